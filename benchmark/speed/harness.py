"""How every speed command measures: settings take turns, and memory is measured in a process of its own."""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from flair.errors import FlairError

Name = TypeVar("Name")


def take_turns(
    settings: Mapping[Name, Callable[[int], float | None]],
    repeats: int,
    warm_up: int = 1,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[Name, list[float]]:
    """Seconds of each setting in each repetition.

    All settings take turns within a repetition, so that a busy machine slows them alike.

    Args:
      settings: what is measured, called with the number of the repetition; it may return a time of its own, which
        counts instead of the time that the call took.
      repeats: repetitions that are measured.
      warm_up: repetitions before, which compile and are not measured.
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


def memory_of(subject: str, flags: argparse.Namespace, part: object) -> int:
    """Bytes that a part of a subject takes in a process of its own, which is given the flags of this one."""
    given = {**vars(flags), "memory_of": part, "json": None}
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
