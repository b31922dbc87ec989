"""How far a long piece of work has come, so that a killed run is continued and a crashed machine is not trusted.

A line is appended for each finished task, with one before it for each thing to be remembered of the task, and another
now and then when all data up to there are flushed to disk. What a killed process wrote is safe in the operating
system's memory; after a crash of the machine only what was flushed counts. Each of these lines ends with the CRC-32C of
the file up to there: behind a byte that has changed nothing is trusted, and is done again.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import google_crc32c

from flair.errors import FlairError
from flair.files import regular_file
from flair.files.atomic import sync, write_text

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_WORDS = ("written", "flushed")
FLUSH_INTERVAL_SECONDS = 10.0


class Position(NamedTuple):
    """The number of finished tasks, and the end of the data file after them."""

    tasks: int
    end: int


class Journal:
    """Appends positions to a file made by `create`.

    Attributes:
      position: the last that can be trusted, of any run.
      notes: words noted with tasks up to there, in order, when the journal was opened.

    Raises:
      FlairError: there is no journal, or none that has a position.
    """

    def __init__(self, path: Path, data_descriptor: int) -> None:
        self._data = data_descriptor
        self.position, self.notes, self._crc = _read(path)
        self._file = open(path, "a", encoding="ascii")  # noqa: SIM115 - closed by close()
        # A killed process may have left half a line; the mark keeps it from being read as a whole one.
        self._write(f"~\nboot {_boot_id()}\n")
        self._append("written")
        self._last_flush = time.monotonic()

    @staticmethod
    def create(path: Path, start: Position) -> None:
        """Makes a journal of work not yet begun, whose data file is on disk as it is."""
        write_text(path, f"{_line('flushed', start, 0)}\n")

    def add(self, position: Position, notes: Sequence[str] = ()) -> None:
        """Records that the data of `position` have been written; `notes` are words to remember of its last task."""
        self.position = position
        self._write("".join(f"note {note}\n" for note in notes))
        self._append("written")
        if time.monotonic() - self._last_flush > FLUSH_INTERVAL_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Waits until all data written so far are on disk, and records that they are."""
        sync(self._data)
        self._append("flushed")
        sync(self._file.fileno())
        self._last_flush = time.monotonic()

    def close(self) -> None:
        """Closes the journal; its file stays."""
        self._file.close()

    def _append(self, word: str) -> None:
        self._write(f"{_line(word, self.position, self._crc)}\n")
        self._file.flush()

    def _write(self, text: str) -> None:
        self._file.write(text)
        self._crc = _extend(self._crc, text.encode())


def _line(word: str, position: Position, crc: int) -> str:
    """The line of a position, behind a file with the checksum `crc`."""
    text = f"{word} {position.tasks} {position.end}"
    return f"{text} {_extend(crc, text.encode()):08x}"


def _extend(crc: int, data: bytes) -> int:
    return int(google_crc32c.extend(crc, data))


def _read(path: Path) -> tuple[Position, list[str], int]:
    """The position that can be trusted, the notes up to there, and the checksum of the whole file."""
    written = flushed = boot_id = None
    notes: dict[int, list[str]] = {}  # of finished tasks
    pending: list[str] = []
    try:
        *lines, rest = regular_file.read_bytes(path).split(b"\n")
    except FileNotFoundError:
        lines, rest = [], b""
    crc = 0
    for line in lines:
        match line.decode("ascii", "replace").split(" "):
            case ["note", note]:
                pending.append(note)
            case ["boot", name]:
                boot_id, pending = name, []
            case [word, tasks, end, _] if word in _WORDS and _is_number(tasks) and _is_number(end):
                position = Position(int(tasks), int(end))
                if line == _line(word, position, crc).encode():
                    written = position
                    flushed = written if word == "flushed" else flushed
                    # What comes after this position was lost in a crash, and is done again.
                    notes = {task: words for task, words in notes.items() if task <= written.tasks}
                    if pending:
                        notes[written.tasks], pending = pending, []
        crc = _extend(crc, line + b"\n")
    if written is None or flushed is None:
        raise FlairError(f"{path}: is damaged; add --overwrite to start over")
    position = written if boot_id == _boot_id() else flushed
    words = [word for task, words in notes.items() if task <= position.tasks for word in words]
    return position, words, _extend(crc, rest)


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) < 20


def _boot_id() -> str:
    # Elsewhere than on Linux an id that never recurs: only flushed positions are trusted.
    return _BOOT_ID.read_text(encoding="ascii").strip() if _BOOT_ID.exists() else f"{os.getpid()}-{time.time_ns()}"
