"""Checkpoints of a run: named arrays and a small JSON state in one .npz file.

The CRC-32C of all bytes follows the archive, where NumPy does not look: the archive's own checksums cover the arrays,
but neither their names nor the archive's directory. Checkpoints of older versions end with the archive.
"""

from __future__ import annotations

import io
import json
import math
import re
import struct
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import google_crc32c
import numpy as np

from flair.errors import FlairError
from flair.files import atomic, json_text, npy_file, regular_file

_KEPT = 2
_STATE, _PREFIX = "state.json", "array/"
_NAME = re.compile(r"checkpoint-(\d{10})\.npz", re.ASCII)
_CHECKSUM = struct.Struct("<I")
_BYTES_AT_ONCE = 1 << 22
_LAST_RECORD = 22  # bytes of the end of a ZIP archive, which begins with the next:
_LAST_RECORD_SIGNATURE = b"PK\x05\x06"


class Checkpoint(NamedTuple):
    """What was saved: `arrays` by name and `state`, any JSON value."""

    step: int
    arrays: dict[str, np.ndarray]
    state: Any


class Checkpoints:
    """Checkpoints in one folder, named by their step."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def save(self, step: int, arrays: Mapping[str, np.ndarray], state: Any) -> Path:
        """Writes a checkpoint whole or not at all, then removes all but the newest two."""
        path = self.folder / f"checkpoint-{step:010d}.npz"
        encoded = np.frombuffer(json.dumps(state).encode(), np.uint8)
        with atomic.replacing(path) as temporary, open(temporary, "w+b") as file:
            np.savez(file, **{_STATE: encoded}, **{f"{_PREFIX}{name}": value for name, value in arrays.items()})
            file.write(_CHECKSUM.pack(_crc32c(file, file.seek(0, io.SEEK_END))))
        for old in self._paths()[:-_KEPT]:
            old.unlink()
        return path

    def oldest_step(self) -> int:
        """The step of the oldest checkpoint that is kept, 0 without any."""
        return next(map(_step, self._paths()), 0)

    def latest(self) -> Checkpoint | None:
        """The newest checkpoint that can be read; damaged ones are named on stderr, and a FlairError if all are."""
        atomic.remove_leftovers(self.folder, ".checkpoint-*.tmp")
        paths = self._paths()
        for path in reversed(paths):
            try:
                return _read(path)
            except (FlairError, OSError) as error:
                print(f"{path}: damaged ({error}); trying the checkpoint before it", file=sys.stderr)
        if paths:
            raise FlairError(f"{self.folder}: no checkpoint can be read; delete the folder to start over")
        return None

    def _paths(self) -> list[Path]:
        return sorted(path for path in self.folder.glob("*") if _NAME.fullmatch(path.name))


def _read(path: Path) -> Checkpoint:
    with regular_file.open_file(path) as file:
        length = file.seek(0, io.SEEK_END)
        file.seek(max(0, length - _LAST_RECORD))
        if not file.read().startswith(_LAST_RECORD_SIGNATURE):
            length -= _CHECKSUM.size
            if length < 0 or _CHECKSUM.pack(_crc32c(file, length)) != file.read():
                raise FlairError("its checksum does not fit its content")
        try:
            with zipfile.ZipFile(file) as archive:
                arrays = {member.filename: _member(archive, member, length) for member in archive.infolist()}
            state = json_text.parse(arrays.pop(f"{_STATE}.npy").tobytes())
        # In a file of an older version, zipfile and NumPy meet bytes that they were not made for, and raise anything.
        except Exception as error:  # noqa: BLE001
            raise FlairError(" ".join(f"{type(error).__name__}: {error}".split())) from None
    named = {name.removeprefix(_PREFIX).removesuffix(".npy"): array for name, array in arrays.items()}
    return Checkpoint(_step(path), named, state)


def _step(path: Path) -> int:
    return int(path.stem.removeprefix("checkpoint-"))


def _member(archive: zipfile.ZipFile, member: zipfile.ZipInfo, length: int) -> np.ndarray:
    # What is declared is compared with what is there before memory is asked for.
    if member.compress_type != zipfile.ZIP_STORED or member.file_size > length:
        raise FlairError(f"{member.filename} is not stored in it as it is")
    data = archive.read(member)
    header = npy_file.parse_header(data)
    dtype = np.dtype(header.descr.strip("'"))
    if dtype.hasobject or header.size + math.prod(header.shape) * dtype.itemsize != len(data):
        raise FlairError(f"{member.filename} is not an array of the shape {header.shape}")
    array: np.ndarray = np.lib.format.read_array(io.BytesIO(data), allow_pickle=False)
    return array


def _crc32c(file: BinaryIO, length: int) -> int:
    """The checksum of the first `length` bytes; the file then stands behind them."""
    file.seek(0)
    crc = 0
    for start in range(0, length, _BYTES_AT_ONCE):
        crc = int(google_crc32c.extend(crc, file.read(min(_BYTES_AT_ONCE, length - start))))
    return crc
