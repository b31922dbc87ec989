"""A CSV table that grows by gzip members, one per step: it can be cut back at any of them, and zcat reads all at once.

A member holds the rows of one step, the first one the header before them; a row begins with its step. Equal rows give
equal bytes: a member has neither a time nor a name.
"""

from __future__ import annotations

import csv
import gzip
import io
import os
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from flair.errors import FlairError
from flair.files import atomic, regular_file

_LEVEL = 6
_GZIP = 16 + zlib.MAX_WBITS
_LARGEST_MEMBER = 1 << 28  # bytes of text; a member of ours has some kilobytes


class _Member(NamedTuple):
    step: int
    end: int  # where it ends in the file
    rows: list[list[str]]  # the first member's begin with the header


def append(path: Path, header: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Adds the rows of one step, which stands first in each of them; a header goes before the first rows of a file."""
    is_new = not path.exists() or path.stat().st_size == 0
    text = atomic.csv_text([header, *rows] if is_new else rows)
    member = gzip.compress(text.encode(), _LEVEL, mtime=0)
    with open(path, "ab", buffering=0) as file:
        atomic.write_all(file.fileno(), member)


def cut_back(path: Path, step: int) -> None:
    """Forgets the rows after `step`, and a member that a killed process left half written.

    Raises:
      FlairError: the file is damaged.
    """
    end = max((member.end for member in _members(path) if member.step <= step), default=0)
    if end:
        os.truncate(path, end)
    else:
        path.unlink(missing_ok=True)


def read(path: Path) -> Iterator[dict[str, str]]:
    """The rows of all whole members as header -> cell, none where there is no file.

    Raises:
      FlairError: the file is damaged.
    """
    header: list[str] = []
    for member in _members(path):
        header, rows = (header, member.rows) if header else (member.rows[0], member.rows[1:])
        for row in rows:
            if len(row) != len(header):
                raise _damaged(path, f"a row of step {member.step} has {len(row)} cells")
            yield dict(zip(header, row, strict=True))


def _members(path: Path) -> Iterator[_Member]:
    try:
        data = regular_file.read_bytes(path)
    except FileNotFoundError:
        return
    start, last = 0, 0
    while start < len(data):
        unpacking = zlib.decompressobj(_GZIP)
        try:
            text = unpacking.decompress(data[start:], _LARGEST_MEMBER).decode()
            if not unpacking.eof and not unpacking.unconsumed_tail:
                return  # half written
            rows = list(csv.reader(io.StringIO(text, newline=""), strict=True))
            step = int(rows[0 if start else 1][0])
        except (zlib.error, UnicodeDecodeError, csv.Error, ValueError, IndexError) as error:
            raise _damaged(path, f"{type(error).__name__}: {error}") from None
        if step <= last or not unpacking.eof:
            raise _damaged(path, f"step {step} after step {last}")
        start, last = len(data) - len(unpacking.unused_data), step
        yield _Member(step, start, rows)


def _damaged(path: Path, reason: str) -> FlairError:
    return FlairError(f"{path}: is damaged ({reason}); restore it, or move it away to go on without it")
