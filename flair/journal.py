"""How far a long piece of work has come, so that a killed run is continued and a crashed machine is not trusted.

A line is appended for each finished task, and flushed to disk now and then, after the data it speaks of. What a killed
process wrote is safe in the operating system's memory; after a crash of the machine only what was flushed counts.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import NamedTuple

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
FLUSH_INTERVAL_SECONDS = 10.0


class Position(NamedTuple):
    """The number of finished tasks, and the end of the data file after them."""

    tasks: int
    end: int


class Journal:
    """Appends positions to `path`; `position` is the last one that can be trusted, of this run or an earlier one."""

    def __init__(self, path: Path, data_descriptor: int, start: Position) -> None:
        self._data = data_descriptor
        self.position = _read(path, start)
        # Rewritten, because a killed process may have left half a line at the end.
        lines = [f"boot {_boot_id()}", _line("written", self.position)]
        path.write_text("".join(f"{line}\n" for line in lines), encoding="ascii")
        self._file = open(path, "a", encoding="ascii")  # noqa: SIM115 - closed by close()
        self._last_flush = time.monotonic()

    def add(self, position: Position) -> None:
        """Records that the data of `position` have been written."""
        self.position = position
        self._append("written")
        if time.monotonic() - self._last_flush > FLUSH_INTERVAL_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Waits until all data written so far are on disk, and records that they are."""
        os.fsync(self._data)
        self._append("flushed")
        os.fsync(self._file.fileno())
        self._last_flush = time.monotonic()

    def close(self) -> None:
        """Closes the journal; its file stays."""
        self._file.close()

    def _append(self, word: str) -> None:
        self._file.write(f"{_line(word, self.position)}\n")
        self._file.flush()


def _line(word: str, position: Position) -> str:
    return f"{word} {position.tasks} {position.end}"


def _read(path: Path, start: Position) -> Position:
    written = flushed = start
    boot_id = None
    try:
        lines = path.read_text(encoding="ascii").split("\n")[:-1]
    except (FileNotFoundError, UnicodeDecodeError):
        return start
    for line in lines:
        word, *rest = line.split(" ")
        if word == "boot":
            boot_id = rest[0]
        elif word in ("written", "flushed") and len(rest) == 2 and all(part.isdigit() for part in rest):
            written = Position(int(rest[0]), int(rest[1]))
            flushed = written if word == "flushed" else flushed
    return written if boot_id == _boot_id() else flushed


def _boot_id() -> str:
    # Elsewhere than on Linux an id that never recurs: only flushed positions are trusted.
    return _BOOT_ID.read_text(encoding="ascii").strip() if _BOOT_ID.exists() else f"{os.getpid()}-{time.time_ns()}"
