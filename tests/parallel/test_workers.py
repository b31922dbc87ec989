"""Work over processes: order, bounds, errors, and processes that die."""

from __future__ import annotations

import os
import resource
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from flair.errors import FlairError
from flair.parallel.processes import TASKS_PER_WORKER, map_in_order


def multiply(factor: int, task: int) -> int:
    if task < 0:
        raise FlairError(f"task {task} is negative")
    return factor * task


def die(_context: None, task: int) -> int:
    if task == 3:
        os._exit(1)
    return task


@pytest.mark.parametrize("num_workers", [1, 2])
def test_results_come_in_the_order_of_the_tasks(num_workers: int) -> None:
    assert list(map_in_order(multiply, 10, range(40), num_workers)) == list(range(0, 400, 10))


@pytest.mark.parametrize("num_workers", [1, 2])
def test_an_error_comes_when_its_turn_comes(num_workers: int) -> None:
    results = map_in_order(multiply, 2, [1, 2, -3, 4, -5], num_workers)
    assert [next(results), next(results)] == [2, 4]
    with pytest.raises(FlairError, match="task -3 is negative"):
        next(results)


def test_no_more_tasks_are_taken_than_fit_in_flight() -> None:
    taken = 0

    def tasks() -> Iterator[int]:
        nonlocal taken
        while True:
            taken += 1
            yield taken

    results = map_in_order(multiply, 1, tasks(), 2)
    for count in range(1, 20):
        assert next(results) == count
        assert taken <= count + 2 * TASKS_PER_WORKER
    results.close()  # type: ignore[attr-defined]


def test_a_process_that_dies_is_told() -> None:
    with pytest.raises(FlairError, match="a worker process died, most likely for lack of memory"):
        list(map_in_order(die, None, range(20), 2))


def test_without_shared_memory_this_process_does_the_work(capsys: pytest.CaptureFixture[str]) -> None:
    """No file may grow: so semaphores fail as they do where /dev/shm is full, read-only or missing."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    results = map_in_order(multiply, 10, iter(range(8)), 3)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, limits[1]))
    try:
        first = next(results)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [first, *results] == list(range(0, 80, 10))
    (line,) = capsys.readouterr().err.splitlines()
    assert "shared memory in /dev/shm" in line and "--num_workers=1" in line


def test_where_no_process_can_start_this_one_does_the_work(capsys: pytest.CaptureFixture[str]) -> None:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)

    def tasks() -> Iterator[int]:
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, limits[1]))  # no pipe to the new process
        yield 0
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        yield from range(1, 20)

    try:
        results = list(map_in_order(multiply, 10, tasks(), 4))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert results == list(range(0, 200, 10))
    assert "no more worker processes: Too many open files" in capsys.readouterr().err


@pytest.mark.timeout(120)  # where the executor's own thread died, its workers waited for ever
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("allowed", range(6))
def test_threads_that_the_system_refuses_stop_nothing_for_ever(
    allowed: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    left = [allowed]

    def start(*arguments: Any) -> Any:
        if not left[0]:
            raise RuntimeError("can't start new thread")
        left[0] -= 1
        return really_start(*arguments)

    really_start = threading._start_new_thread  # type: ignore[attr-defined]
    monkeypatch.setattr(threading, "_start_new_thread", start)
    monkeypatch.setattr("flair.parallel.processes._LOOK_SECONDS", 0.1)
    done: list[int] | str
    try:
        done = list(map_in_order(multiply, 10, range(20), 2))
    except FlairError as error:
        done = str(error)
    assert done == list(range(0, 200, 10)) or (allowed == 3 and "fewer --num_workers" in done)
    # Three: two that were ended to see whether there may be two, and the executor's own, which is refused its second.
    assert allowed >= 3 or "no more worker processes: can't start new thread" in capsys.readouterr().err
