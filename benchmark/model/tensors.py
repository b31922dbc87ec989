"""Weights of a .safetensors file, by the layers of a Keras network that they belong to.

The tensor `A.B.weight` of a PyTorch file belongs to the layer `A.B`; leading underscores of the whole name go, because
no Keras layer begins with one. `weight` is `kernel`, `depthwise_kernel` or `gamma`, `bias` is `bias` or `beta`,
whatever the layer has. A tensor with Keras's name of the weight (`A.B/kernel`, `A.B.kernel`) has Keras's shape, too.
A tensor `A` is the weight `A` of a layer `A`, as PyTorch has them outside of its layers, if the layer has no others.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from benchmark.model import safetensors
from benchmark.model.weights import Fit, check_values
from flair.errors import FlairError
from flair.records.hdf5.objects import printable

_NAME = re.compile(r"_*([^_].*)[./]([^./:]+)(:0)?")  # of which each part ends in one place only: names may be long
_BARE_NAME = re.compile(r"([^./:]+)(:0)?")  # of a layer and its only weight
_KERAS_NAMES = {
    "weight": ("kernel", "depthwise_kernel", "gamma"),
    "bias": ("bias", "beta"),
    "running_mean": ("moving_mean",),
    "running_var": ("moving_variance",),
}
_IGNORED = "num_batches_tracked"  # a count of PyTorch's, which no network computes with


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
        self._tensors = safetensors.read(path)
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

    def verify(self) -> None:
        """Nothing: the format has no checksum, and the file's form was checked as it was opened."""

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
        return Fit({name: values[name] for name in wanted}, [])

    def __exit__(self, *_: object) -> None:
        self._tensors = {}


def float_array(array: np.ndarray, name: str, path: str | Path) -> np.ndarray:
    """A tensor as float32; refuses one of other numbers than floating-point ones."""
    if array.dtype.kind != "f":
        raise FlairError(f"{path}: {printable(name)} holds {array.dtype}, expected floating-point numbers")
    with np.errstate(over="ignore"):  # becomes infinite, which `check_values` refuses
        return array.astype(np.float32)


def _torch_shape(name: str, shape: tuple[int, ...]) -> tuple[tuple[int, ...] | None, tuple[int, ...]]:
    """How PyTorch's axes are put in Keras's order, and PyTorch's shape of a weight that has this one in Keras."""
    if name == "depthwise_kernel" and len(shape) == 4:  # [channels, 1, h, w] -> [h, w, channels, 1]
        return (2, 3, 0, 1), (shape[2] * shape[3], 1, shape[0], shape[1])
    if name == "kernel" and len(shape) == 4:  # [out, in, h, w] -> [h, w, in, out]
        return (2, 3, 1, 0), (shape[3], shape[2], shape[0], shape[1])
    if name == "kernel" and len(shape) == 2:  # [out, in] -> [in, out]
        return (1, 0), (shape[1], shape[0])
    return None, shape
