"""Reading a .safetensors file with NumPy alone.

The format (https://github.com/huggingface/safetensors#format): eight bytes with the length of a JSON header, the header
{name: {dtype, shape, data_offsets}}, then the tensors' bytes, little-endian.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from flair.errors import FlairError

_MAX_HEADER_BYTES = 100_000_000  # as the format's own readers
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
        header = json.loads(data[8 : 8 + length].tobytes())
        header.pop("__metadata__", None)
        return {name: _tensor(data[8 + length :], entry) for name, entry in header.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise FlairError(f"{path}: is not a .safetensors file ({error})") from None


def _tensor(data: np.ndarray, entry: dict[str, Any]) -> np.ndarray:
    dtype, shape, (start, stop) = np.dtype(_DTYPES[entry["dtype"]]), tuple(entry["shape"]), entry["data_offsets"]
    if not 0 <= start <= stop <= len(data) or stop - start != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"a tensor of shape {shape} does not fit the bytes {start} to {stop}")
    array = np.frombuffer(data[start:stop].tobytes(), dtype).reshape(shape)
    if entry["dtype"] == "BF16":
        return (array.astype(np.uint32) << 16).view(np.float32)
    return array
