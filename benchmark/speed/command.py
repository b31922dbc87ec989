"""A command run to its end in a process of its own: how long it took, and the memory of all its processes together."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import NamedTuple

from flair.errors import FlairError

ROOT = Path(__file__).resolve().parents[2]
_SAMPLE_SECONDS = 0.05


class Step(NamedTuple):
    """A command to measure: the bytes it moves, what it leaves behind, and the steps it depends on.

    Its time is divided by that of the step `baseline`; what the steps in `needs` leave has to be there.
    """

    name: str
    command: list[str]
    num_bytes: int
    leaves: Path | None
    baseline: str | None = None
    needs: tuple[str, ...] = ()


class Measured(NamedTuple):
    """One run: seconds, and the largest resident memory of all processes together, in bytes."""

    seconds: float
    memory: int


def run(step: Step) -> Measured:
    """Runs a step to its end; a step that fails ends the benchmark with what it printed."""
    if step.leaves:
        remove(step.leaves)
    start = time.perf_counter()
    process = subprocess.Popen(
        step.command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL
    )
    memory = 0
    while True:
        memory = max(memory, sum(map(resident_bytes, process_tree(process.pid))))
        try:
            output, _ = process.communicate(timeout=_SAMPLE_SECONDS)
            break
        except subprocess.TimeoutExpired:
            continue
    seconds = time.perf_counter() - start
    if process.returncode:
        raise FlairError(f"{step.name} failed: {output.decode(errors='replace').strip().splitlines()[-1:]}")
    return Measured(seconds, memory)


def process_tree(pid: int) -> list[int]:
    """A process and all processes below it (Linux)."""
    children: list[str] = []
    with contextlib.suppress(OSError):  # the process has ended in the meantime
        for thread in os.listdir(f"/proc/{pid}/task"):
            with contextlib.suppress(OSError):  # or the thread has
                children += Path(f"/proc/{pid}/task/{thread}/children").read_text().split()
    return [pid, *(grandchild for child in children for grandchild in process_tree(int(child)))]


def resident_bytes(pid: int) -> int:
    """Resident memory of a process; 0 when it is gone."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError):
        return 0


def remove(path: Path) -> None:
    """Removes a file or a folder, if it is there."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
