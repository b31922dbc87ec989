"""Reads and writes arrays in .npy files, and notices where anybody has damaged one.

Only headers of one known form, and sizes that agree, are taken: NumPy itself evaluates the header as a Python literal,
which fails in many ways, and reserves the memory that the header asks for.
Rows kept in a cache are followed by their CRC-32C, where NumPy does not look; a file without it is read unchecked.
Format: https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from flair.errors import FlairError
from flair.files import regular_file
from flair.files.atomic import replacing

_START = b"\x93NUMPY\x01\x00"
_HEADER = re.compile(
    rb"\{'descr': (?P<descr>.{1,4000}), 'fortran_order': (?P<order>True|False), "
    rb"'shape': \((?P<shape>|\d{1,18},|\d{1,18}(?:, \d{1,18}){1,30})\), \} *\n"
)
_BYTES_AT_ONCE = 1 << 22
_CHECKSUM = struct.Struct("<I")


class BadNpy(ValueError):
    """The bytes are not a .npy file that can be used; the message is one clause that says why."""


class Header(NamedTuple):
    """What a .npy file begins with; `size` in bytes, `descr` as NumPy spells the dtype."""

    descr: str
    is_fortran: bool
    shape: tuple[int, ...]
    size: int


def parse_header(data: bytes) -> Header:
    """The header that `data` begins with; BadNpy where NumPy did not write it."""
    if not data.startswith(_START) or len(data) < 10:
        raise BadNpy("it does not begin as a .npy file")
    size = 10 + int.from_bytes(data[8:10], "little")
    match = _HEADER.fullmatch(data[10:size]) if len(data) >= size else None
    if match is None:
        raise BadNpy("its header is not as NumPy writes it")
    shape = tuple(int(side) for side in match["shape"].split(b",") if side)
    return Header(match["descr"].decode("ascii", "replace"), match["order"] == b"True", shape, size)


def map_array(
    path: Path, dtypes: Sequence[np.dtype[Any]], num_dimensions: int, trailer: int = 0
) -> np.memmap[Any, Any]:
    """The array of a file, of one of `dtypes`, which stays on disk; at most `trailer` bytes may follow it.

    Raises:
      BadNpy: the file was cut off, or holds anything else.
      FlairError: there is no ordinary file of that name.
      FileNotFoundError: there is nothing.
    """
    with regular_file.open_file(path) as file:
        try:
            header = parse_header(file.read(1 << 16))
            length = file.seek(0, 2)
        except OSError as error:
            raise FlairError(f"{path}: cannot be read ({error.strerror}); restore it") from None
        by_name = {repr(np.lib.format.dtype_to_descr(dtype)): dtype for dtype in dtypes}
        if header.descr not in by_name:
            raise BadNpy(f"it holds something else than it should, {header.descr[:60]!r}")
        dtype = by_name[header.descr]
        if len(header.shape) != num_dimensions or header.is_fortran:
            order = " in the order of Fortran" if header.is_fortran else ""
            raise BadNpy(f"its array has the shape {header.shape}{order}")
        rest = length - header.size - math.prod(header.shape) * dtype.itemsize
        if not 0 <= rest <= trailer:
            raise BadNpy(f"it has {length:,} bytes, which is not what its shape {header.shape} takes")
        return np.memmap(file, dtype, "r", header.size, header.shape)


def crc32c(rows: NDArray[Any], before: int = 0) -> int:
    """CRC-32C of rows [k, ...], in C order; `before` is that of the rows before them.

    >>> crc32c(np.arange(3)) == crc32c(np.array([2]), crc32c(np.arange(2)))
    True
    """
    for data in pieces(rows):
        before = int(google_crc32c.extend(before, data))
    return before


def pieces(rows: NDArray[Any]) -> Iterator[bytes]:
    """The bytes of rows [k, ...], in C order, about four megabytes at a time."""
    at_once = max(1, _BYTES_AT_ONCE // max(1, rows.itemsize * math.prod(rows.shape[1:])))
    for start in range(0, len(rows), at_once):
        yield rows[start : start + at_once].tobytes()


def write_array(path: Path, array: NDArray[Any]) -> None:
    """Writes an array [k, ...] to `path` as `np.save` does, which on a full disk says neither that nor which file."""
    with replacing(path) as temporary, open(temporary, "wb") as file:
        _write_header(file, array.dtype, array.shape)
        file.writelines(pieces(array))


def write_rows(path: Path, rows: NDArray[Any]) -> None:
    """Writes rows [k] to `path`."""
    write_chunks(path, rows.dtype, len(rows), [rows])


def write_chunks(path: Path, dtype: np.dtype[Any], count: int, chunks: Iterable[NDArray[Any]]) -> None:
    """Writes `count` rows of `dtype` to `path`, which come in chunks."""
    with replacing(path) as temporary, open(temporary, "wb") as file:
        _write_header(file, dtype, (count,))
        checksum = 0
        for chunk in chunks:
            for data in pieces(chunk):
                checksum = google_crc32c.extend(checksum, data)
                file.write(data)
        file.write(_CHECKSUM.pack(checksum))


def read_rows(path: Path, dtype: np.dtype[Any], mmap_mode: Literal["r"] | None = None) -> NDArray[Any]:
    """Reads what was written, rows [k] of `dtype`, and checks every byte; with `mmap_mode` they stay on disk.

    Raises:
      FlairError: the file is cut off, was changed, or holds something else.
      FileNotFoundError: there is no such file.
    """
    rows = map_rows(path, dtype)
    checksum = crc32c(rows)
    with open(path, "rb") as file:
        file.seek(rows.offset + rows.nbytes)
        found = file.read()
    if found not in (b"", _CHECKSUM.pack(checksum)):
        raise FlairError(f"{path}: is damaged (its checksum differs); delete it and run the same command again")
    return rows if mmap_mode else np.array(rows)


def map_rows(path: Path, dtype: np.dtype[Any]) -> np.memmap[Any, Any]:
    """The rows of a file, which stay on disk, unchecked but for their number and `dtype`; errors like `read_rows`."""
    try:
        return map_array(path, [dtype], 1, _CHECKSUM.size)
    except BadNpy as error:
        raise FlairError(f"{path}: is damaged ({error}); delete it and run the same command again") from None


def _write_header(file: BinaryIO, dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)
