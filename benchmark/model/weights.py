"""Weights and models in Keras's .h5 format, as this toolkit, Keras and others write them; h5py and NumPy alone.

Layout: the attribute `layer_names` lists groups, the attribute `weight_names` of each lists its datasets, whose last
part (`norm1/gamma:0` -> `gamma`) says which weight it is. In a whole saved model this lies below `model_weights`.
A file of ours also says its network and a checksum over everything, as JSON in the attribute `flair_model`.
"""

from __future__ import annotations

import collections
import contextlib
import itertools
import json
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import google_crc32c
import h5py
import numpy as np

from benchmark.model import vetting
from flair.errors import FlairError
from flair.files import atomic, json_text
from flair.records.hdf5 import global_heap, objects
from flair.records.hdf5.objects import BadObject, printable

FACTS_ATTRIBUTE = "flair_model"
CHECKSUM = "crc32c"  # among the facts
KERAS_VERSION = "2.14.0"  # whose format a file has
_CONFIG_ATTRIBUTE, _TRAINING_ATTRIBUTE, _MODEL_GROUP = "model_config", "training_config", "model_weights"
_MOST_LIST_BYTES = 60_000  # of an attribute; the HDF5 library has room for 64 kB
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

    form = ".h5"

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        with contextlib.ExitStack() as self._after, self._guarded():
            try:
                self._file, self._root, self.layers = self._open()
            except FileNotFoundError:
                raise FlairError(f"{path}: no such file; expected a Keras {self.form} file") from None
            self._after = self._after.pop_all()

    def _open(self) -> tuple[h5py.File, h5py.Group, dict[str, list[str]]]:
        """The HDF5 file, the group in which the layers are, and `layers`."""
        file = self._opened(self.path)
        root = objects.group(file, _MODEL_GROUP) if objects.has(file, _MODEL_GROUP) else file
        names = _listed(root, "layer_names")
        if not names:
            raise BadObject("it holds no Keras weights (no attribute layer_names)")
        return file, root, {name: _listed(objects.group(root, name), "weight_names") for name in names}

    def _opened(self, path: Path) -> h5py.File:
        """Opens an HDF5 file until this one is closed."""
        global_heap.check_collections(path, global_heap.BYTES_OF_ATTRIBUTES)
        # A file appears whole, so that a lock adds nothing; some file systems have none.
        return self._after.enter_context(h5py.File(path, "r", locking=False))

    def check_config(self, own: Collection[str] = (), modules: Collection[str] = ()) -> None:
        """Refuses a file whose description could make whoever loads it as a model run code; see `vetting.check`."""
        try:
            vetting.check(self.keras_config(), own, modules)
            vetting.check_training(self._parsed(_TRAINING_ATTRIBUTE))
        except BadObject as error:
            raise FlairError(f"{self.path}: {error}") from None

    def facts(self) -> dict[str, Any]:
        """What a file of ours says of its network; empty for others."""
        with self._guarded():
            return _facts(self._file)

    def keras_config(self) -> Any:
        """Keras's own description of a whole saved model; empty in a file of weights alone."""
        return self._parsed(_CONFIG_ATTRIBUTE)

    def _parsed(self, attribute: str) -> Any:
        with self._guarded():
            return json_text.parse(objects.text(self._file, attribute) or "{}")

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

        `wanted` is weight name -> shape as the network has it. Weights under names that are not Keras's take, in their
        order, the places that no name has taken.
        """
        with self._guarded():
            paths = self._paths(layer, wanted) if layer in self.layers else {}
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
        self._after.close()

    def _guarded(self) -> contextlib.AbstractContextManager[None]:
        damaged = f"{self.path}: is not a Keras {self.form} file, or is damaged"
        return objects.guarded(lambda reason, kind: FlairError(f"{damaged}: {reason or kind}"))

    def _group(self, layer: str) -> h5py.Group:
        return objects.group(self._root, layer)

    def _paths(self, layer: str, _wanted: Mapping[str, tuple[int, ...]] | None = None) -> dict[str, str]:
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


def write(
    path: str | Path,
    layers: Mapping[str, Mapping[str, np.ndarray]],
    facts: Mapping[str, Any],
    keras_config: Mapping[str, Any] | None = None,
) -> None:
    """Writes a file of Keras's .h5 format, whole or not at all; the same bytes for the same content.

    Args:
      layers: layer name -> name of a weight, such as `norm1/gamma:0` -> array, in the order of the network.
      facts: of the network; they and a checksum over everything are added.
      keras_config: Keras's description of the network, with which Keras loads the file as a model; None: weights alone.
    """
    with atomic.replacing(path) as temporary:
        with h5py.File(temporary, "w", locking=False) as file:
            root = file
            if keras_config is not None:
                file.attrs[_CONFIG_ATTRIBUTE] = json.dumps(keras_config)
                root = file.create_group(_MODEL_GROUP)
            for item in (file,) if root is file else (file, root):
                item.attrs["backend"], item.attrs["keras_version"] = np.bytes_("tensorflow"), np.bytes_(KERAS_VERSION)
            _write_names(root, "layer_names", layers)
            for layer in sorted(layers):  # as Keras does, so that the group `a/b` comes after the group `a`
                group = root.create_group(layer)
                _write_names(group, "weight_names", layers[layer])
                for name, array in layers[layer].items():
                    group.create_dataset(name, data=array)
        with h5py.File(temporary, "r+") as file:
            root = file if keras_config is None else file[_MODEL_GROUP]
            names = {layer: list(weights) for layer, weights in layers.items()}
            checksum = _checksum(file, root, names, facts)
            # A text of fixed length lies with its object, one of any length in a heap, which may be damaged by itself.
            file.attrs[FACTS_ATTRIBUTE] = np.bytes_(json.dumps({**facts, CHECKSUM: checksum}).encode())


def _write_names(item: h5py.HLObject, key: str, names: Iterable[str]) -> None:
    """An attribute that lists names, in numbered chunks where it is too large for one, as Keras does."""
    encoded = np.array([name.encode() for name in names] or [], "S")
    chunks = max(1, -(-encoded.nbytes // _MOST_LIST_BYTES))
    for number, chunk in enumerate(np.array_split(encoded, chunks)):
        item.attrs[key if chunks == 1 else f"{key}{number}"] = chunk


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
    crc = google_crc32c.extend(crc, (objects.text(file, _CONFIG_ATTRIBUTE) or "").encode())
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
