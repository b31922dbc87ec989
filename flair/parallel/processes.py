"""Spreads tasks over processes, and gives their results in order, a few at a time."""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import multiprocessing
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from flair.errors import FlairError
from flair.parallel import threads

Context = TypeVar("Context")
Item = TypeVar("Item")
Task = TypeVar("Task")
Result = TypeVar("Result")

TASKS_PER_WORKER = 3  # in flight: one at work, the others so that nobody waits
_THREADS_OF_EXECUTOR = 2  # one that deals with the workers, one that feeds their queue
_LOOK_SECONDS = 5.0
_PR_SET_PDEATHSIG = 1  # of <linux/prctl.h>
_HELD_BACK = (signal.SIGINT, signal.SIGTERM)

_context: Any = None


def default_num_workers() -> int:
    """The processor cores this process may use, at most 16."""
    return min(len(os.sched_getaffinity(0)), 16)


def map_in_order(
    function: Callable[[Context, Task], Result], context: Context, tasks: Iterable[Task], num_workers: int
) -> Iterator[Result]:
    """Yields `function(context, task)` for each task, in order, computed by `num_workers` processes (1: by this one).

    The result does not depend on `num_workers`. `context` is sent to each process once. An error of a task is raised
    when its turn comes; after it, or after Ctrl-C, tasks at work are finished and the others dropped. Where the system
    refuses a process, or the shared memory for it, one line says so, and the work goes on without it. A process that
    died (killed for memory, or by a crash in a library) is a FlairError.
    """
    if num_workers > 1 and not _can_start_threads():
        _tell_refused(RuntimeError(threads.REFUSED))
        num_workers = 1
    if num_workers <= 1:
        for task in tasks:
            yield function(context, task)
        return
    try:
        # Spawned processes share no memory, locks or threads with this one, whatever it has imported or loaded.
        executor = ProcessPoolExecutor(
            num_workers, multiprocessing.get_context("spawn"), _initialize, (context, os.getpid())
        )
    except OSError as error:
        _tell_refused(error)
        yield from map_in_order(function, context, tasks, 1)
        return
    pending: deque[Future[Result]] = deque()
    left = iter(tasks)
    try:
        for task in left:
            try:
                with _signals_held_back():
                    pending.append(executor.submit(_call, function, task))
            except (OSError, RuntimeError) as error:
                if isinstance(error, RuntimeError) and str(error) != threads.REFUSED:
                    raise
                _tell_refused(error)
                while pending:
                    yield _result(pending.popleft(), executor)
                yield from map_in_order(function, context, itertools.chain([task], left), 1)
            if len(pending) >= num_workers * TASKS_PER_WORKER:
                yield _result(pending.popleft(), executor)
        while pending:
            yield _result(pending.popleft(), executor)
    except BrokenProcessPool:
        raise FlairError(
            "a worker process died, most likely for lack of memory or of threads; run the same command again with "
            "fewer --num_workers"
        ) from None
    finally:
        if _is_managed(executor):
            executor.shutdown(wait=True, cancel_futures=True)
        else:  # the workers would be waited for without end
            for process in list((executor._processes or {}).values()):
                process.kill()
            executor.shutdown(wait=False, cancel_futures=True)


def batches(items: Iterable[Item], size: int, weight: Callable[[Item], int]) -> Iterator[list[Item]]:
    """Groups items, in order, into lists whose weights sum to `size` or just more.

    >>> list(batches(["aa", "b", "cccc", "d"], 3, len))
    [['aa', 'b'], ['cccc'], ['d']]
    """
    batch: list[Item] = []
    total = 0
    for item in items:
        batch.append(item)
        total += weight(item)
        if total >= size:
            yield batch
            batch, total = [], 0
    if batch:
        yield batch


def _can_start_threads() -> bool:
    """Whether the system allows the executor's threads; one that is refused would leave its workers waiting."""
    done = threading.Event()
    started: list[threading.Thread] = []
    try:
        for _ in range(_THREADS_OF_EXECUTOR):
            thread = threading.Thread(target=done.wait, daemon=True)
            thread.start()
            started.append(thread)
    except RuntimeError:
        return False
    finally:
        done.set()
        for thread in started:
            thread.join()
    return True


def _is_managed(executor: ProcessPoolExecutor) -> bool:
    """Whether the executor's own thread, which hands out tasks and results, is not yet started or alive."""
    thread: Any = executor._executor_manager_thread
    return thread is None or thread.is_alive()


def _result(future: Future[Result], executor: ProcessPoolExecutor) -> Result:
    while True:
        try:
            return future.result(timeout=_LOOK_SECONDS)
        except FutureTimeoutError:
            if future.done():
                raise  # the task's own
            if not _is_managed(executor):
                raise BrokenProcessPool from None


def _tell_refused(error: Exception) -> None:
    reason = getattr(error, "strerror", None) or str(error)
    print(
        f"no more worker processes: {reason}, for a process, for its threads or for its shared memory in /dev/shm; "
        "going on with fewer, as --num_workers=1 does with none",
        file=sys.stderr,
        flush=True,
    )


@contextlib.contextmanager
def _signals_held_back() -> Iterator[None]:
    """Holds Ctrl-C and SIGTERM back while a process is started: the new one never sees them, this one sees them later.

    The mask is for the new process, which inherits it. The handlers are for this one: its libraries have threads
    without the mask, and an exception in the middle of a start would leave half a process.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    received: list[int] = []
    handlers = {number: signal.signal(number, lambda *seen: received.append(seen[0])) for number in _HELD_BACK}
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, _HELD_BACK)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for arrived in received:
            signal.raise_signal(arrived)


def die_with(parent: int) -> None:
    """Has the kernel kill this process when its parent (a process id) ends, however that ends.

    To the kernel the parent is the thread that started this process: do not start one from a thread that ends before.
    """
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before the kernel was asked
        os._exit(1)


def _initialize(context: Any, parent: int) -> None:
    global _context
    _context = context
    # A killed parent closes nothing: both ends of the executor's pipes are open in the workers.
    die_with(parent)


def _call(function: Callable[[Any, Any], Any], task: Any) -> Any:
    return function(_context, task)
