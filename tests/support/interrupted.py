"""Runs scripts, each in a process that sends itself a signal at its n-th operation on files.

A line of JSON on standard input asks for a run: signal, n, words of the command, environment, folder. n=0 only counts:
the number goes to the last line of stderr. The answer is a line with the exit code, as subprocess tells it; what was
printed is in the folder. The processes are forks of this one, which has imported what most of the scripts need.
Counted are opening, renaming, linking, truncating and removing files, making and removing folders, and positioned
writes, half of whose bytes are written before the signal comes.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import runpy
import signal
import sys
from typing import Any

EVENTS = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.symlink"}
signal_name, stop_at, counted = "", 0, 0
real_pwrite = os.pwrite


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


def begin() -> None:
    """Starts the processes, one after another; comes back in each of them only."""
    for line in sys.stdin:
        if not (process := os.fork()):
            become(*json.loads(line))
            return
        print(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), flush=True)
    sys.exit()


def become(name: str, number: int, words: list[str], environment: dict[str, str], folder: str) -> None:
    """Makes this process that of the script, up to its first line."""
    global signal_name, stop_at
    signal_name, stop_at, sys.argv = name, number, words
    os.environ.clear()
    os.environ.update(environment)
    for descriptor, path in enumerate((os.devnull, f"{folder}/stdout", f"{folder}/stderr")):
        os.dup2(os.open(path, os.O_RDWR | os.O_CREAT), descriptor)
    sys.path.insert(0, os.path.dirname(os.path.abspath(words[0])))
    os.pwrite = pwrite  # type: ignore[assignment]
    sys.addaudithook(hook)


for module in ("flair.download.run", "flair.records.hdf5.writer", "flair.records.tfrecord.writer"):
    importlib.import_module(module)
gc.freeze()  # else each fork would go through all of these objects as it ends, and copy their memory to do so
begin()
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
finally:
    print(counted, file=sys.stderr)
