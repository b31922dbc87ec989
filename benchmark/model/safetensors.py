"""Reads and writes .safetensors files with NumPy alone, and finds the weights of a Keras network in them.

The format (https://github.com/huggingface/safetensors#format): eight bytes with the length of a JSON header, the header
{name: {dtype, shape, data_offsets}}, then the tensors' bytes, little-endian.

The tensor `A.B.weight` of a PyTorch file belongs to the layer `A.B`; leading underscores of the whole name go, because
no Keras layer begins with one. `weight` is `kernel`, `depthwise_kernel` or `gamma`, `bias` is `bias` or `beta`,
whatever the layer has. A tensor with Keras's name of the weight (`A.B/kernel`, `A.B.kernel`) has Keras's shape, too.
A tensor `A` is the weight `A` of a layer `A`, as PyTorch has them outside of its layers, if the layer has no others.

By hand, because the package of that name (0.8.0, tried with NumPy 1.25) does not read bfloat16 into NumPy, ends in an
AttributeError or TypeError where a file holds other types, and its refusals lack the file's path.
"""

from __future__ import annotations

import contextlib
import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmark.model.weights import Fit, check_values
from flair.errors import FlairError
from flair.files import atomic, json_text
from flair.records.hdf5.objects import printable

_MAX_HEADER_BYTES = 100_000_000  # as the format's own readers
_ALIGNMENT = 8  # of the tensors, as the format asks of writers
_MOST_DIMENSIONS = 32  # as NumPy
_DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "I64": "<i8", "I32": "<i4", "U8": "u1"}
_NAME = re.compile(r"_*([^_].*)[./]([^./:]+)(:0)?")  # of which each part ends in one place only: names may be long
_BARE_NAME = re.compile(r"([^./:]+)(:0)?")  # of a layer and its only weight
_KERAS_NAMES = {
    "weight": ("kernel", "depthwise_kernel", "gamma"),
    "bias": ("bias", "beta"),
    "running_mean": ("moving_mean",),
    "running_var": ("moving_variance",),
}
_IGNORED = "num_batches_tracked"  # a count of PyTorch's, which no network computes with


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


class TensorsFile(contextlib.AbstractContextManager["TensorsFile"]):
    """A .safetensors file, read as `WeightsFile` reads .h5.

    Attributes:
      path: of the file.
      layers: layer name -> names of its weights, in the order of the file.

    Raises (all methods):
      FlairError: the file is missing, damaged, or not of the format; one line that names it.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._tensors = read(path)
        self.layers: dict[str, list[str]] = {}
        self._names: dict[tuple[str, str], str] = {}  # (layer, weight) -> tensor
        for tensor in self._tensors:
            match = _NAME.fullmatch(tensor)
            if match is not None and match[2] != _IGNORED:
                self._add(match[1], match[2], tensor)
        for tensor in self._tensors:
            match = _BARE_NAME.fullmatch(tensor)
            if match is not None and match[1] not in self.layers:
                self._add(match[1], match[1], tensor)

    def _add(self, layer: str, weight: str, tensor: str) -> None:
        if (layer, weight) in self._names:
            other = self._names[layer, weight]
            raise FlairError(f"{self.path}: {printable(other)} and {printable(tensor)} are the same weight of a layer")
        self._names[layer, weight] = tensor
        self.layers.setdefault(layer, []).append(weight)

    @property
    def has_batch_statistics(self) -> bool:
        """Whether a network of these weights needs frozen batch normalization."""
        return any({"running_mean", "moving_mean"} & set(weights) - {layer} for layer, weights in self.layers.items())

    def fit(self, layer: str, wanted: Mapping[str, tuple[int, ...]]) -> Fit | str:
        """As `WeightsFile.fit`; `by_position` is empty."""
        stored = self.layers.get(layer, [])
        if not stored:
            return "not in the file"
        taken: dict[str, str] = {}  # Keras's name -> that of the file
        for weight in stored:
            possible = {weight, *_KERAS_NAMES.get(weight, ())} & wanted.keys()
            if len(possible) != 1 or possible & taken.keys():
                break
            taken[possible.pop()] = weight
        if taken.keys() != wanted.keys() or len(taken) != len(stored):
            return f"has {', '.join(map(printable, stored[:6]))}, needs {', '.join(wanted)}"
        values = {}
        for name, shape in wanted.items():
            tensor = self._names[layer, taken[name]]
            array = float_array(self._tensors[tensor], tensor, self.path)
            order, expected = (None, shape) if taken[name] == name else _torch_shape(name, shape)
            if array.shape != expected:
                return f"has {printable(tensor)} of shape {list(array.shape)}, needs {list(expected)}"
            check_values(array, name, f"{self.path}: {printable(tensor)}")
            values[name] = array if order is None else array.transpose(order).reshape(shape)
        return Fit(values, [])

    def __exit__(self, *_: object) -> None:
        self._tensors = {}


def float_array(array: np.ndarray, name: str, path: str | Path) -> np.ndarray:
    """A tensor as float32; refuses one of other numbers than floating-point ones."""
    if array.dtype.kind != "f":
        raise FlairError(f"{path}: {printable(name)} holds {array.dtype}, expected floating-point numbers")
    with np.errstate(over="ignore"):  # becomes infinite, which `check_values` refuses
        return array.astype(np.float32)


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


def _torch_shape(name: str, shape: tuple[int, ...]) -> tuple[tuple[int, ...] | None, tuple[int, ...]]:
    """How PyTorch's axes are put in Keras's order, and PyTorch's shape of a weight that has this one in Keras."""
    if name == "depthwise_kernel" and len(shape) == 4:  # [channels, 1, h, w] -> [h, w, channels, 1]
        return (2, 3, 0, 1), (shape[2] * shape[3], 1, shape[0], shape[1])
    if name == "kernel" and len(shape) == 4:  # [out, in, h, w] -> [h, w, in, out]
        return (2, 3, 1, 0), (shape[3], shape[2], shape[0], shape[1])
    if name == "kernel" and len(shape) == 2:  # [out, in] -> [in, out]
        return (1, 0), (shape[1], shape[0])
    return None, shape
