"""Runs a script in this process and sends itself a signal at its n-th operation on files.

Usage: python interrupted.py SIGNAL N script.py [flags...]. N=0 only counts: the number goes to stderr's last line.
Counted are opening, renaming, linking, truncating and removing files, making and removing folders, and positioned
writes, half of whose bytes are written before the signal comes.
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
from typing import Any

EVENTS = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.symlink"}
counted = 0


def count() -> bool:
    global counted
    counted += 1
    return counted == stop_at


def strike() -> None:
    os.kill(os.getpid(), getattr(signal, signal_name))


def hook(event: str, arguments: tuple[Any, ...]) -> None:
    if (event in EVENTS or (event == "open" and is_write(arguments))) and count():
        strike()


def is_write(arguments: tuple[Any, ...]) -> bool:
    path, _mode, flags = arguments
    return isinstance(path, str | bytes | os.PathLike) and bool(flags & (os.O_WRONLY | os.O_RDWR))


def pwrite(descriptor: int, data: bytes, offset: int) -> int:
    if count():
        written = real_pwrite(descriptor, memoryview(data)[: len(data) // 2], offset)
        strike()
        return written
    return real_pwrite(descriptor, data, offset)


signal_name, stop_at, sys.argv = sys.argv[1], int(sys.argv[2]), sys.argv[3:]
sys.path.insert(0, os.path.dirname(os.path.abspath(sys.argv[0])))
real_pwrite, os.pwrite = os.pwrite, pwrite
sys.addaudithook(hook)
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
finally:
    print(counted, file=sys.stderr)
