"""How everything here is measured: settings in turns, commands to their end, memory in a process of its own."""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from flair.errors import FlairError
from flair.files import atomic

if TYPE_CHECKING:
    from benchmark.data.records import Records

ROOT = Path(__file__).resolve().parents[2]
_SAMPLE_SECONDS = 0.05
Name = TypeVar("Name")


def take_turns(
    settings: Mapping[Name, Callable[[int], float | None]],
    repeats: int,
    warm_up: int = 1,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[Name, list[float]]:
    """Seconds of each setting in each repetition, after `warm_up` repetitions that compile and are not measured.

    All settings take turns within a repetition, so that a busy machine slows them alike. A setting is called with the
    number of the repetition; it may return a time of its own, which counts instead of the time that the call took.
    """
    seconds: dict[Name, list[float]] = {name: [] for name in settings}
    for repetition in range(warm_up + repeats):
        for name, run in settings.items():
            started = clock()
            own = run(repetition)
            if repetition >= warm_up:
                seconds[name].append(clock() - started if own is None else own)
    return seconds


def ratio(seconds: Sequence[float], baseline: Sequence[float]) -> float:
    """Speed relative to a baseline: the median over repetitions of the quotient of times measured side by side.

    >>> ratio([1.0, 2.0, 4.0], [2.0, 4.0, 8.0])
    2.0
    """
    return statistics.median(b / s for s, b in zip(seconds, baseline, strict=True))


def made_up_records(
    folder: Path, num_users: int | None = None, num_images: int | None = None, distinct_photos: int | None = None
) -> Records:
    """Records in `folder` of a synthetic dataset of these sizes (`make_dataset`)."""
    # Here, because commands that are measured import this file.
    from benchmark.data.opening import open_records
    from flair.miniature.dataset import make_dataset
    from flair.records.tfrecord.writer import write_tfrecords

    make_dataset(folder / "dataset", num_users=num_users, num_images=num_images, distinct_photos=distinct_photos)
    write_tfrecords(folder / "dataset", folder / "records")
    return open_records(folder / "records")


def memory_of(subject: str, flags: argparse.Namespace, part: object) -> int:
    """Bytes that a part of a subject takes in a process of its own, which is given the flags of this one."""
    given = {**vars(flags), "memory_of": part, "output_file": None}
    words = [
        f"--{name}={','.join(map(str, value)) if isinstance(value, list) else value}"
        for name, value in given.items()
        if value is not None
    ]
    command = [sys.executable, "-m", "benchmark.speed_main", subject, *words]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise FlairError(f"{subject} {' '.join(words)}: exited with {done.returncode}; see what it printed above")
    return int(done.stdout.split()[-1])


class Step(NamedTuple):
    """A command to measure."""

    name: str
    command: list[str]
    num_bytes: int  # that it moves
    leaves: Path | None  # what it leaves behind
    baseline: str | None = None  # the step by whose time its own is divided
    needs: tuple[str, ...] = ()  # the steps of which it needs what they leave


class Measured(NamedTuple):
    """One run of a command."""

    seconds: float
    memory: int  # largest resident memory of all its processes together, in bytes


def run(step: Step) -> Measured:
    """Runs a step to its end; a step that fails ends the benchmark with what it printed."""
    if step.leaves:
        atomic.remove(step.leaves)
    start = time.perf_counter()
    process = subprocess.Popen(
        step.command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL
    )
    memory = 0
    output: bytes | None = None
    while output is None:
        memory = max(memory, sum(map(resident_bytes, process_tree(process.pid))))
        with contextlib.suppress(subprocess.TimeoutExpired):
            output, _ = process.communicate(timeout=_SAMPLE_SECONDS)
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
