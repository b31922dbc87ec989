"""Writing files that appear whole or not at all: under a temporary name, flushed, then renamed."""

from __future__ import annotations

import contextlib
import csv
import errno
import hashlib
import io
import json
import os
import shutil
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from flair.errors import FlairError

_MAX_NAME_BYTES = 143  # the least that a file system in use allows (eCryptfs); most allow 255
_OF_WRITING = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


def sync(descriptor: int) -> None:
    """Waits until a file is on the disk; does nothing where its file system, as some in user space, cannot tell."""
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS):
            raise


def write_all(descriptor: int, data: bytes | memoryview, position: int | None = None) -> None:
    """Writes all of `data`, at `position` or else where the file stands.

    A disk that is nearly full takes fewer bytes than it is given before it complains.
    """
    view = memoryview(data)
    while view:
        if position is None:
            written = os.write(descriptor, view)
        else:
            written = os.pwrite(descriptor, view, position)
            position += written
        view = view[written:]


def destination(path: str | os.PathLike[str]) -> Path:
    """The path where a new file `path` goes: itself, or where it is a link the link's target, so that the link stays.

    Raises:
      FlairError: something is there that no file can take the place of, such as a pipe or a device.
      OSError: a folder is there, the name is too long, or links lead in a circle.
    """
    if not Path(path).name:
        raise FlairError(f"{str(path)!r}: is no name of a file")
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        mode = stat.S_IFREG
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(mode):
        raise FlairError(f"{path}: is a pipe or a device, which a whole file cannot replace; give the name of a file")
    return Path(os.path.realpath(path) if os.path.islink(path) else path)


def beside(path: Path, mark: str) -> Path:
    """The hidden path `.<name>.<mark>` in the same folder; a long name is cut, and a digest keeps it apart."""
    if len(os.fsencode(f".{path.name}.{mark}")) <= _MAX_NAME_BYTES:
        return path.with_name(f".{path.name}.{mark}")
    end = f"~{hashlib.sha256(os.fsencode(path.name)).hexdigest()[:16]}.{mark}"
    start = path.name
    while len(os.fsencode(f".{start}{end}")) > _MAX_NAME_BYTES:
        start = start[:-1]
    return path.with_name(f".{start}{end}")


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yields a temporary path beside `path`; renames it to `path` on success, removes it on any failure.

    The parent folder is made when missing. The temporary name is `beside(path, "<pid>.tmp")`, so that a leftover of a
    killed process is recognised and two processes never share one. A link stays, and its target is replaced.

    Raises:
      FlairError, OSError: see `destination`; errors of writing name `path`, not the temporary file.
    """
    final = destination(path)
    final.parent.mkdir(parents=True, exist_ok=True)
    temporary = beside(final, f"{os.getpid()}.tmp")
    try:
        yield temporary
        with open(temporary, "rb") as file:
            sync(file.fileno())
        os.replace(temporary, final)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and (
            error.filename == str(temporary) or (error.filename is None and error.errno in _OF_WRITING)
        ):
            error.filename, error.filename2 = str(path), None
        raise


def remove(path: Path) -> None:
    """Removes a folder with all that is in it, or a file; nothing where nothing is."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    elif os.path.lexists(path):  # a file system that is read-only refuses to remove even what is not there
        path.unlink(missing_ok=True)


def remove_leftovers(folder: str | os.PathLike[str], pattern: str = ".*.tmp") -> int:
    """Deletes temporary files that a killed process left in `folder`; returns how many."""
    leftovers = list(Path(folder).glob(pattern))
    for leftover in leftovers:
        leftover.unlink(missing_ok=True)
    return len(leftovers)


def write_bytes(path: str | os.PathLike[str], data: bytes) -> None:
    """Writes `data` to `path`, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Writes `text` to `path` as UTF-8, whole or not at all; a byte of a path that is not UTF-8 becomes `\\udcff`."""
    write_bytes(path, text.encode("utf-8", "backslashreplace"))


def csv_text(rows: Iterable[Iterable[object]]) -> str:
    """The rows as CSV text; floats keep every digit, None is an empty cell.

    >>> csv_text([["round", "loss"], [1, 0.1], [2, None]])
    'round,loss\\n1,0.1\\n2,\\n'
    """
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def write_csv(path: str | os.PathLike[str], rows: Iterable[Iterable[object]]) -> None:
    """Writes the rows to `path` as `csv_text`, whole or not at all."""
    write_text(path, csv_text(rows))


def write_json(path: str | os.PathLike[str], value: Any, indent: int | None = 2) -> None:
    """Writes `value` to `path` as JSON, whole or not at all."""
    write_text(path, json.dumps(value, indent=indent, ensure_ascii=False) + "\n")
