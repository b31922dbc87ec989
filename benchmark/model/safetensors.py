"""Reads and writes .safetensors files with NumPy alone.

The format (https://github.com/huggingface/safetensors#format): eight bytes with the length of a JSON header, the header
{name: {dtype, shape, data_offsets}}, then the tensors' bytes, little-endian.

By hand, because the package of that name (0.8.0, tried with NumPy 1.25) does not read bfloat16 into NumPy, ends in an
AttributeError or TypeError where a file holds other types, and its refusals lack the file's path.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from flair.errors import FlairError
from flair.files import atomic, json_text

_MAX_HEADER_BYTES = 100_000_000  # as the format's own readers
_ALIGNMENT = 8  # of the tensors, as the format asks of writers
_MOST_DIMENSIONS = 32  # as NumPy
_DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "I64": "<i8", "I32": "<i4", "U8": "u1"}


def read(path: str | Path) -> dict[str, np.ndarray]:
    """All tensors of a file, by name; bfloat16 becomes float32.

    Raises:
      FlairError: the file is missing, or not of the format.
    """
    path = Path(path)
    if not path.is_file():
        raise FlairError(f"{path}: no such file; expected a .safetensors file")
    data = np.memmap(path, np.uint8, "r") if path.stat().st_size else np.zeros(0, np.uint8)
    try:
        length = int.from_bytes(data[:8].tobytes(), "little")
        if len(data) < 8 or length > min(_MAX_HEADER_BYTES, len(data) - 8):
            raise ValueError("its header is longer than the file")
        header = json_text.parse(data[8 : 8 + length].tobytes())
        if not isinstance(header, dict):
            raise ValueError("its header is not a JSON object")
        header.pop("__metadata__", None)
        entries = {name: _entry(name, entry) for name, entry in header.items()}
        _check_places(entries, len(data) - 8 - length)
        return {name: _tensor(data[8 + length :], entry) for name, entry in entries.items()}
    except ValueError as error:
        raise FlairError(f"{path}: is not a .safetensors file, or is damaged: {error}") from None


def write(path: str | Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Writes float32 tensors, by name, as a file, whole or not at all."""
    header: dict[str, Any] = {}
    end = 0
    for name, array in tensors.items():
        header[name] = {"dtype": "F32", "shape": list(array.shape), "data_offsets": [end, end + array.nbytes]}
        end += array.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    with atomic.replacing(path) as temporary, open(temporary, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for array in tensors.values():
            file.write(np.ascontiguousarray(array, "<f4").data)


class _Entry(NamedTuple):
    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


def _entry(name: str, entry: Any) -> _Entry:
    shown = json_text.shown(name)
    if not isinstance(entry, dict) or not {"dtype", "shape", "data_offsets"} <= entry.keys():
        raise ValueError(f"the tensor {shown} has no dtype, shape or data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _DTYPES:
        given = json_text.shown(str(dtype))
        raise ValueError(f"the tensor {shown} has the type {given}; expected one of {', '.join(_DTYPES)}")
    if not _are_sizes(shape) or not _are_sizes(offsets) or len(offsets) != 2 or len(shape) > _MOST_DIMENSIONS:
        raise ValueError(f"the tensor {shown} has a shape or data_offsets that are not whole numbers from 0 on")
    found = _Entry(dtype, tuple(shape), *offsets)
    if found.stop - found.start != math.prod(shape) * np.dtype(_DTYPES[dtype]).itemsize:
        raise ValueError(
            f"the tensor {shown} of shape {found.shape} does not fit its bytes {offsets[0]} to {offsets[1]}"
        )
    return found


def _are_sizes(values: Any) -> bool:
    return isinstance(values, list) and all(type(value) is int and value >= 0 for value in values)


def _check_places(entries: Mapping[str, _Entry], num_bytes: int) -> None:
    """As the format asks: every byte behind the header belongs to exactly one tensor."""
    end = 0
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].start, item[1].stop)):
        if entry.start != end:
            raise ValueError(f"the bytes of the tensor {json_text.shown(name)} do not begin where another one's end")
        end = entry.stop
    if end != num_bytes:
        raise ValueError(f"its tensors have {end:,} bytes, but {num_bytes:,} are there")


def _tensor(data: np.ndarray, entry: _Entry) -> np.ndarray:
    array = np.frombuffer(data[entry.start : entry.stop].tobytes(), _DTYPES[entry.dtype]).reshape(entry.shape)
    if entry.dtype == "BF16":
        return (array.astype(np.uint32) << 16).view(np.float32)
    return array
