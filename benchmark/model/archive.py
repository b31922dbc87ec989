"""Keras's .keras format: a ZIP archive of config.json, metadata.json and model.weights.h5; NumPy and h5py alone.

In model.weights.h5 the i-th weight of the n-th layer of a class, in the order of config.json, is the dataset
`_layer_checkpoint_dependencies/<class>_<n>/vars/<i>`. A file of ours says its network in metadata.json.
"""

from __future__ import annotations

import contextlib
import errno
import io
import json
import re
import struct
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from benchmark.model.weights import FACTS_ATTRIBUTE, KERAS_VERSION, WeightsFile
from flair.errors import FlairError
from flair.files import atomic, json_text, regular_file
from flair.records.hdf5 import objects
from flair.records.hdf5.objects import BadObject, printable

SUFFIX = ".keras"
_CONFIG, _METADATA, _WEIGHTS = "config.json", "metadata.json", "model.weights.h5"
_LAYERS = ("_layer_checkpoint_dependencies", "layers")  # of Keras 2.14, and of 2.15 and 3
_MOST_TEXT_BYTES = 1 << 24
_BYTES_AT_ONCE = 1 << 22
_ENCRYPTED = 1


def write(
    path: str | Path,
    config: Mapping[str, Any],
    layers: Mapping[str, Mapping[str, np.ndarray]],
    facts: Mapping[str, Any],
) -> None:
    """Writes an archive whole or not at all; the same bytes for the same content, since no time is in it.

    Args:
      config: Keras's description of the network, as `plain.description` gives it.
      layers: layer name -> name of a weight -> array.
      facts: of the network.
    """
    weights = io.BytesIO()
    with h5py.File(weights, "w") as file:
        file.create_group("vars")  # of the model itself
        for layer, place in _places(config).items():
            group = file.create_group(f"{_LAYERS[0]}/{place}/vars")
            for number, array in enumerate(layers[layer].values()):
                group.create_dataset(str(number), data=array)
    metadata = {"keras_version": KERAS_VERSION, FACTS_ATTRIBUTE: facts}
    contents: dict[str, str | bytes] = {
        _METADATA: json.dumps(metadata),
        _CONFIG: json.dumps(config),
        _WEIGHTS: weights.getvalue(),
    }
    with atomic.replacing(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        for name, content in contents.items():
            archive.writestr(zipfile.ZipInfo(name), content)


class KerasArchive(WeightsFile):
    """A .keras file, read as `WeightsFile` reads .h5; its weights are copied to a file of their own for the time."""

    form = SUFFIX

    def _open(self) -> tuple[h5py.File, h5py.Group, dict[str, list[str]]]:
        try:
            with regular_file.open_file(self.path) as opened, zipfile.ZipFile(opened) as archive:
                found = _members(archive)
                self._config, self._metadata = (_text(archive, found[name]) for name in (_CONFIG, _METADATA))
                copy = self._after.enter_context(tempfile.NamedTemporaryFile(buffering=0, suffix=".h5"))  # noqa: SIM115
                with archive.open(found[_WEIGHTS]) as packed:
                    while block := packed.read(_BYTES_AT_ONCE):
                        atomic.write_all(copy.fileno(), block)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise FlairError(
                f"{self.path}: is unpacked to be read, and the disk of {tempfile.gettempdir()} is full; free some "
                "space there, or set TMPDIR to another folder"
            ) from None
        except (zipfile.BadZipFile, EOFError, struct.error) as error:
            raise BadObject(str(error)) from None
        file = self._opened(Path(copy.name))
        root = next((objects.group(file, name) for name in _LAYERS if objects.has(file, name)), None)
        if root is None:
            raise BadObject(f"its {_WEIGHTS} has no group {_LAYERS[0]}")
        self._places = _places(self._config)
        layers: dict[str, list[str]] = {}
        for layer, place in self._places.items():
            is_there = objects.has(root, place) and objects.has(objects.group(root, place), "vars")
            layers[layer] = sorted(objects.group(root, f"{place}/vars"), key=_number) if is_there else []
        return file, root, layers

    def facts(self) -> dict[str, Any]:
        facts = self._metadata.get(FACTS_ATTRIBUTE, {}) if isinstance(self._metadata, dict) else {}
        if not isinstance(facts, dict):
            raise FlairError(f"{self.path}: is damaged: {FACTS_ATTRIBUTE} in its {_METADATA} is not a JSON object")
        return dict(facts)

    def keras_config(self) -> Any:
        return self._config

    @property
    def has_batch_statistics(self) -> bool:
        return any(place.startswith("batch_normalization") for place in self._places.values())

    def verify(self) -> None:
        """Nothing: opening the file has compared the checksums that the archive has."""

    def _group(self, layer: str) -> h5py.Group:
        return objects.group(self._root, f"{self._places[layer]}/vars")

    def _paths(self, layer: str, _wanted: Mapping[str, tuple[int, ...]] | None = None) -> dict[str, str]:
        # Weights are numbered in the order of the layer's own.
        paths = self.layers[layer]
        return dict(zip(_wanted if _wanted and len(_wanted) == len(paths) else paths, paths, strict=True))


def open_model(path: str | Path) -> WeightsFile:
    """Opens a model of either of Keras's formats; errors as of `WeightsFile`."""
    return KerasArchive(path) if Path(path).suffix == SUFFIX else WeightsFile(path)


def _members(archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    found = {info.filename: info for info in archive.infolist()}
    for name in (_CONFIG, _METADATA, _WEIGHTS):
        if name not in found:
            raise BadObject(f"it has no {name}")
        # Keras packs nothing, so that nothing can unpack to more than the file.
        if found[name].compress_type != zipfile.ZIP_STORED or found[name].flag_bits & _ENCRYPTED:
            raise BadObject(f"its {name} is packed or encrypted, which Keras does not do")
    return found


def _text(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> Any:
    if member.file_size > _MOST_TEXT_BYTES:
        raise BadObject(f"its {member.filename} has more than {_MOST_TEXT_BYTES:,} bytes")
    return json_text.parse(archive.read(member))


def _places(config: Any) -> dict[str, str]:
    """Layer name -> what Keras calls the layer's group of weights, in the order of the network."""
    counts: dict[str, int] = {}
    places = {}
    for name, kind in _named_layers(config):
        if name in places:
            raise BadObject(f"it has the layer {printable(name)} twice")
        group = re.sub("([a-z])([A-Z])", r"\1_\2", re.sub("(.)([A-Z][a-z]+)", r"\1_\2", kind)).lower()
        number = counts[group] = counts.get(group, -1) + 1
        places[name] = f"{group}_{number}" if number else group
    return places


def _named_layers(config: Any) -> Iterator[tuple[str, str]]:
    with contextlib.suppress(AttributeError, KeyError, TypeError):
        for layer in config["config"]["layers"]:
            name, kind = layer["config"]["name"], layer["class_name"]
            if isinstance(name, str) and isinstance(kind, str):
                yield name, kind
        return
    raise BadObject(f"its {_CONFIG} does not describe a network of layers")


def _number(name: str) -> int:
    if not re.fullmatch("[0-9]{1,4}", name):
        raise BadObject(f"it has a weight {printable(name)}, expected numbers")
    return int(name)
