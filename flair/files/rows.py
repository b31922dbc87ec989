"""Rows of numbers kept in a cache as .npy: whole or not at all, never unpickled, and refused where a byte has changed.

The CRC-32C of the rows follows them in the file, where NumPy does not look. A file without it is read unchecked.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from flair.errors import FlairError
from flair.files import npy_file
from flair.files.atomic import replacing

_CHECKSUM = struct.Struct("<I")


def write_rows(path: Path, rows: NDArray[Any]) -> None:
    """Writes rows [k] to `path`."""
    write_chunks(path, rows.dtype, len(rows), [rows])


def write_chunks(path: Path, dtype: np.dtype[Any], count: int, chunks: Iterable[NDArray[Any]]) -> None:
    """Writes `count` rows of `dtype` to `path`, which come in chunks."""
    with replacing(path) as temporary, open(temporary, "wb") as file:
        header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": (count,)}
        np.lib.format.write_array_header_1_0(file, header)
        checksum = 0
        for chunk in chunks:
            for data in npy_file.pieces(chunk):
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
    checksum = npy_file.crc32c(rows)
    with open(path, "rb") as file:
        file.seek(rows.offset + rows.nbytes)
        found = file.read()
    if found not in (b"", _CHECKSUM.pack(checksum)):
        raise FlairError(f"{path}: is damaged (its checksum differs); delete it and run the same command again")
    return rows if mmap_mode else np.array(rows)


def map_rows(path: Path, dtype: np.dtype[Any]) -> np.memmap[Any, Any]:
    """The rows of a file, which stay on disk, unchecked but for their number and `dtype`; errors as of `read_rows`."""
    try:
        return npy_file.map_array(path, [dtype], 1, _CHECKSUM.size)
    except npy_file.BadNpy as error:
        raise FlairError(f"{path}: is damaged ({error}); delete it and run the same command again") from None
