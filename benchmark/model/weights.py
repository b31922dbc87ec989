"""Weights in Keras's .h5 format, as this toolkit, Keras and others write them; h5py and NumPy alone.

Layout: the attribute `layer_names` lists groups, the attribute `weight_names` of each lists its datasets, whose last
part (`norm1/gamma:0` -> `gamma`) says which weight it is. In a whole saved model this lies below `model_weights`.
A file of ours also says its network and a checksum over everything, as JSON in the attribute `networks`.
"""

from __future__ import annotations

import collections
import contextlib
import itertools
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import google_crc32c
import h5py
import numpy as np

from flair.errors import FlairError
from flair.files import json_text
from flair.records.hdf5 import global_heap, objects
from flair.records.hdf5.objects import BadObject, printable

FACTS_ATTRIBUTE = "flair_model"
CHECKSUM = "crc32c"  # among the facts
# What Keras calls the weights of layers such as ours: a weight of such a name is never taken for another one.
_KERAS_NAMES = ("kernel", "bias", "gamma", "beta", "moving_mean", "moving_variance")
_NAMES_SHOWN = 6


class Fit(NamedTuple):
    """Weights of a layer as a network wants them: name -> float32 array; `by_position` are pairs (stored, wanted)."""

    values: dict[str, np.ndarray]
    by_position: list[tuple[str, str]]


class WeightsFile(contextlib.AbstractContextManager["WeightsFile"]):
    """A .h5 file of weights, open for reading.

    Attributes:
      path: of the file.
      layers: layer name -> path of each weight below the layer's group, in the order of the file.

    Raises (all methods):
      FlairError: the file is missing, damaged, or not of the format; one line that names it.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        with self._guarded():
            try:
                global_heap.check_collections(self.path, global_heap.BYTES_OF_ATTRIBUTES)
            except FileNotFoundError:
                raise FlairError(f"{path}: no such file; expected a Keras .h5 file") from None
            # A file appears whole, so that a lock adds nothing; some file systems have none.
            self._file = h5py.File(path, "r", locking=False)
        try:
            with self._guarded():
                is_model = objects.has(self._file, "model_weights")
                self._root = objects.group(self._file, "model_weights") if is_model else self._file
                names = _listed(self._root, "layer_names")
                if not names:
                    raise BadObject("it holds no Keras weights (no attribute layer_names)")
                self.layers = {name: _listed(self._group(name), "weight_names") for name in names}
        except FlairError:
            self._file.close()
            raise

    def facts(self) -> dict[str, Any]:
        """What a file of ours says of its network; empty for others."""
        with self._guarded():
            return _facts(self._file)

    def keras_config(self) -> Any:
        """Keras's own description of a whole saved model; empty in a file of weights alone."""
        with self._guarded():
            return json_text.parse(objects.text(self._file, "model_config") or "{}")

    @property
    def has_batch_statistics(self) -> bool:
        """Whether a network of these weights needs frozen batch normalization."""
        return any(weight_name(path) == "moving_mean" for paths in self.layers.values() for path in paths)

    def shapes(self, layer: str) -> dict[str, tuple[int, ...]]:
        """Weight name -> shape of one layer."""
        with self._guarded():
            group = self._group(layer)
            return {name: tuple(objects.dataset(group, path).shape) for name, path in self._paths(layer).items()}

    def fit(self, layer: str, wanted: Mapping[str, tuple[int, ...]]) -> Fit | str:
        """The weights of a layer, matched by name, or in words why they do not fit.

        `wanted` is weight name -> shape as the network has it.

        Weights under names that are not Keras's take, in their order, the places that no name has taken.
        """
        with self._guarded():
            paths = self._paths(layer) if layer in self.layers else {}
            pairs = _match(list(paths), list(wanted))
            if isinstance(pairs, str):
                return pairs
            group = self._group(layer)
            found = {name: tuple(objects.dataset(group, paths[pairs[name]]).shape) for name in wanted}
            if found != dict(wanted):
                return f"has shapes {list(found.values())}, needs {list(wanted.values())}"
            values = {name: _read(group, paths[pairs[name]]) for name in wanted}
        for name, array in values.items():
            check_values(array, name, f"{self.path}: {name} of the layer {printable(layer)}")
        return Fit(values, [(printable(stored), name) for name, stored in pairs.items() if stored != name])

    def verify(self) -> None:
        """Compares the checksum that a file of ours was saved with; files without one pass."""
        with self._guarded():
            facts = _facts(self._file)
            expected = facts.pop(CHECKSUM, None)
            if expected is not None and expected != _checksum(self._file, self._root, self.layers, facts):
                raise BadObject("it does not have the checksum that it was saved with")

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def _guarded(self) -> contextlib.AbstractContextManager[None]:
        damaged = f"{self.path}: is not a Keras .h5 file, or is damaged"
        return objects.guarded(lambda reason, kind: FlairError(f"{damaged}: {reason or kind}"))

    def _group(self, layer: str) -> h5py.Group:
        return objects.group(self._root, layer)

    def _paths(self, layer: str) -> dict[str, str]:
        paths: dict[str, str] = {}
        for path in self.layers[layer]:
            name = weight_name(path)
            if name in paths:
                raise BadObject(f"the layer {printable(layer)} has the weight {printable(name)} twice")
            paths[name] = path
        return paths


def weight_name(path: str) -> str:
    """The name that tells a weight from others of its layer.

    >>> weight_name("model/norm1/gamma:0")
    'gamma'
    """
    return path.rpartition("/")[2].partition(":")[0]


def seal(path: str | Path, facts: Mapping[str, Any]) -> None:
    """Writes facts of the network, and a checksum over them and all weights, into a finished weights file."""
    with h5py.File(path, "r+") as file:
        layers = {name: _listed(objects.group(file, name), "weight_names") for name in _listed(file, "layer_names")}
        checksum = _checksum(file, file, layers, facts)
        # A text of fixed length lies with its object, one of any length in a heap, which may be damaged by itself.
        file.attrs[FACTS_ATTRIBUTE] = np.bytes_(json.dumps({**facts, CHECKSUM: checksum}).encode())


def _match(stored: Sequence[str], wanted: Sequence[str]) -> dict[str, str] | str:
    """Wanted name -> stored name, or why they do not fit."""
    if not stored:
        return "not in the file"
    foreign = [name for name in stored if name not in wanted]
    left = [name for name in wanted if name not in stored]
    if len(foreign) != len(left) or any(name in _KERAS_NAMES for name in foreign):
        return f"has {_shown(stored)}, needs {_shown(wanted)}"
    taken = dict(zip(left, foreign, strict=True))
    return {name: taken.get(name, name) for name in wanted}


def _shown(names: Sequence[str]) -> str:
    rest = f" and {len(names) - _NAMES_SHOWN:,} more" if len(names) > _NAMES_SHOWN else ""
    return ", ".join(map(printable, names[:_NAMES_SHOWN])) + rest


def _read(group: h5py.Group, path: str) -> np.ndarray:
    dataset = objects.dataset(group, path)
    if dataset.dtype.kind != "f":
        raise BadObject(f"{printable(path)} holds {dataset.dtype}, not floating-point numbers")
    dataset = objects.stored(group, path, math.prod(dataset.shape) * dataset.dtype.itemsize)
    with np.errstate(over="ignore"):  # becomes infinite, which is refused
        return np.asarray(dataset[()], np.float32)


def check_values(array: np.ndarray, name: str, where: str) -> None:
    """Refuses values of the weight `name` that no network can compute with; `where` begins the line."""
    if not np.isfinite(array).all():
        raise FlairError(
            f"{where} holds numbers that are not finite, so its training has diverged; use another file or an "
            "earlier one of that training"
        )
    if name == "moving_variance" and array.min(initial=0) < 0:
        raise FlairError(f"{where} holds a variance below 0, so the file is damaged; use another one")


def _facts(file: h5py.File) -> dict[str, Any]:
    facts = json_text.parse(objects.text(file, FACTS_ATTRIBUTE) or "{}")
    if not isinstance(facts, dict):
        raise BadObject(f"its attribute {FACTS_ATTRIBUTE} is not a JSON object")
    return facts


def _checksum(file: h5py.File, root: h5py.Group, layers: Mapping[str, Sequence[str]], facts: Mapping[str, Any]) -> int:
    """CRC-32C over the facts and every weight with its names, type and shape."""
    left = Path(file.filename).stat().st_size  # several names may lead to one array
    crc: int = google_crc32c.value(json.dumps(facts, sort_keys=True).encode())
    for layer, paths in layers.items():
        for path in paths:
            dataset = objects.stored(objects.group(root, layer), path, left)
            if dataset.dtype.kind not in "fiub":
                raise BadObject(f"{printable(path)} holds {dataset.dtype}, not numbers")
            array = dataset[()]
            left -= array.nbytes
            about = json.dumps([layer, path, str(array.dtype), array.shape]).encode()
            crc = google_crc32c.extend(google_crc32c.extend(crc, about), array.tobytes())
    return int(crc)


def _listed(item: h5py.HLObject, key: str) -> list[str]:
    names = objects.texts(item, key)
    if names is None:  # Keras splits an attribute over 64 kB into numbered chunks.
        chunks = (objects.texts(item, f"{key}{index}") for index in itertools.count())
        names = [name for chunk in itertools.takewhile(lambda chunk: chunk is not None, chunks) for name in chunk or ()]
    for name, count in collections.Counter(names).items():
        if count > 1:
            raise BadObject(f"its attribute {key} lists {printable(name)} twice")
    return names
