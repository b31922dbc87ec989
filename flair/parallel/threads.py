"""A few threads that share a list of work and stop together.

Not ThreadPoolExecutor: Python joins its threads at the end of the process, before anything else is told of that end,
so that one thread waiting for a silent server keeps an interrupted command alive until the server's time is up.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterable
from typing import TypeVar

from flair.errors import FlairError

Item = TypeVar("Item")
REFUSED = "can't start new thread"  # as a RuntimeError of Python's says it
STOP_SECONDS = 1.0  # for all threads to notice; one that waits for a silent server is left behind


class _Worker(threading.Thread):
    """A thread of `run`, by which `are_left` knows it."""


class Stopped(Exception):
    """The command is being interrupted; what has arrived stays for the next run."""


def run(
    work: Callable[[Item], object], items: Iterable[Item], num_threads: int, stop: threading.Event
) -> list[tuple[Item, FlairError]]:
    """Calls `work` once per item, `num_threads` at a time; returns the items that failed with a FlairError, and why.

    Where the system refuses a thread, the others go on. Any other exception, and Ctrl-C, sets `stop`, waits a
    moment for the threads and is raised here.
    """
    waiting: queue.SimpleQueue[Item] = queue.SimpleQueue()
    for item in items:
        waiting.put(item)
    failed: list[tuple[Item, FlairError]] = []
    broken: list[BaseException] = []

    def work_off() -> None:
        while not stop.is_set() and not broken:
            try:
                item = waiting.get_nowait()
            except queue.Empty:
                return
            try:
                work(item)
            except FlairError as error:
                failed.append((item, error))
            except Stopped:
                return
            except BaseException as error:  # noqa: BLE001 (raised again by the main thread)
                broken.append(error)
                stop.set()

    threads = [_Worker(target=work_off, daemon=True) for _ in range(min(num_threads, waiting.qsize()))]
    try:
        for number, thread in enumerate(threads):
            try:
                thread.start()
            except RuntimeError:
                if number == 0:
                    raise
                del threads[number:]
        for thread in threads:
            while thread.is_alive():
                thread.join(0.2)
    except BaseException:
        stop.set()
        deadline = time.monotonic() + STOP_SECONDS
        for thread in threads:
            if thread.ident is not None:
                thread.join(max(0.0, deadline - time.monotonic()))
        raise
    if broken:
        raise broken[0]
    return failed


def are_left() -> bool:
    """Whether threads of an interrupted `run` are still at work."""
    return any(isinstance(thread, _Worker) for thread in threading.enumerate())
