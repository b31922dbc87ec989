"""Locks between processes; where a file system has none, the work goes on without."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from flair.errors import FlairError

_BUSY = (errno.EWOULDBLOCK, errno.EACCES)
_POLL_SECONDS = 0.1
_told: set[int] = set()  # the file systems that were told to have no locks


@contextlib.contextmanager
def exclusive(
    path: Path, busy: str, *, patience: float = 0.0, on_wait: Callable[[], None] | None = None
) -> Iterator[int]:
    """Locks a folder, or what the file `path` (made when missing) stands for, against others; yields its descriptor.

    Another process is waited for, `patience` seconds at most, then a FlairError says `busy`; `on_wait` is called when
    that begins. Where the file system has no locks, which is told once, two processes that come at the same time both
    go on. A process that is started with the descriptor holds the lock too, until it ends.
    """
    flags = os.O_RDONLY if path.is_dir() else os.O_RDWR | os.O_CREAT
    descriptor = os.open(path, flags, 0o666)
    try:
        deadline = time.monotonic() + patience
        while not _take(descriptor, path):
            if on_wait is not None:
                on_wait()
                on_wait = None
            if time.monotonic() >= deadline:
                raise FlairError(busy)
            time.sleep(_POLL_SECONDS)
        yield descriptor
    finally:
        os.close(descriptor)


def _take(descriptor: int, path: Path) -> bool:
    """Whether no other process has the lock."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _BUSY:
            return False
        device = os.fstat(descriptor).st_dev
        if device not in _told:
            _told.add(device)
            print(
                f"{path}: the file system has no locks ({error.strerror}); going on without, so let no other command "
                "write there at the same time",
                file=sys.stderr,
                flush=True,
            )
    return True
