"""Writes .safetensors files, as the library of that name does."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

_KINDS = {"F16": "<f2", "F32": "<f4", "F64": "<f8", "I64": "<i8"}
_NAMES = {np.dtype(kind): name for name, kind in _KINDS.items()}


def write_safetensors(path: Path, tensors: Mapping[str, np.ndarray], floats: str | None = None) -> str:
    """The file's name. Floating-point numbers are stored as `floats` (F16, BF16, F32 or F64); None: as they are."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    data = b""
    for name, array in tensors.items():
        kind = floats if floats and array.dtype.kind == "f" else _NAMES[array.dtype]
        if kind == "BF16":
            blob = (array.astype(np.float32).view(np.uint32) >> 16).astype("<u2").tobytes()
        else:
            blob = array.astype(_KINDS[kind]).tobytes()
        header[name] = {"dtype": kind, "shape": list(array.shape), "data_offsets": [len(data), len(data) + len(blob)]}
        data += blob
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return str(path)
