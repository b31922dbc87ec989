"""Loads weights into a network by layer name, and saves networks."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from benchmark.model import applications, archive, plain, specs, vetting
from benchmark.model.safetensors import TensorsFile
from benchmark.model.trainable import CLASSIFIER
from benchmark.model.weights import WeightsFile, weight_name, write
from flair.errors import FlairError
from flair.records.hdf5.objects import printable

_LAYERS_SHOWN = 50


class LoadReport(NamedTuple):
    """Which layers took weights from a file, and why each other one did not.

    `by_position` says which weights of a layer had foreign names and so were taken by their position.
    """

    loaded: list[str]
    skipped: dict[str, str]
    by_position: dict[str, str]

    def __str__(self) -> str:
        text = f"loaded {len(self.loaded)} layers"
        if self.skipped:
            text += f"; skipped {_listed(self.skipped)}"
        if self.by_position:
            text += f"; by position, since their names are foreign: {_listed(self.by_position)}"
        return text


def _listed(layers: Mapping[str, str]) -> str:
    shown = [f"{printable(name)} ({what})" for name, what in itertools.islice(layers.items(), _LAYERS_SHOWN)]
    rest = f" and {len(layers) - _LAYERS_SHOWN:,} more" if len(layers) > _LAYERS_SHOWN else ""
    return ", ".join(shown) + rest


def wants_batch_normalization(path: str | Path) -> bool:
    """Whether a weights file has batch statistics, so that it needs frozen batch normalization."""
    with _opened(path) as file:
        return file.has_batch_statistics


def load_backbone(model: tf.keras.Model, weights: str) -> LoadReport:
    """Loads `imagenet` or a file of weights into all layers but the classifier.

    Raises:
      FlairError: as `load_by_name`, or a layer of the file has other weights or shapes than the model's of that name.
    """
    if weights == specs.IMAGENET:
        return LoadReport(applications.load_imagenet(model, model.network), {}, {})
    return load_by_name(model, weights, is_backbone=True)


def _opened(path: str | Path) -> WeightsFile | TensorsFile:
    return TensorsFile(path) if Path(path).suffix == ".safetensors" else archive.open_model(path)


def load_by_name(model: tf.keras.Model, path: str | Path, is_backbone: bool = False) -> LoadReport:
    """Loads a file into the layers of equal name, weights of equal name and shapes.

    Args:
      path: of Keras's .h5 (weights or whole model) or .keras, or of a .safetensors file (`TensorsFile`).
      is_backbone: leave the classifier as it is, and refuse a file in which one of the others has other shapes.

    Raises:
      FlairError: the file is not of its format or is damaged, no layer of it fits, or a weight that fits is not
        finite; the model is as before then.
    """
    values: list[tuple[tf.Variable, np.ndarray]] = []
    loaded, skipped, by_position = [], {}, {}
    with _opened(path) as file:
        if isinstance(file, WeightsFile):
            file.verify()
            file.check_config(*vetting.named(plain.description(model)))
        for layer in model.layers:
            variables = {weight_name(v.name): v for v in layer.trainable_weights + layer.non_trainable_weights}
            if not variables:
                continue
            if is_backbone and layer.name == CLASSIFIER:
                skipped[layer.name] = "not of the backbone"
                continue
            found = file.fit(layer.name, {name: tuple(v.shape) for name, v in variables.items()})
            if isinstance(found, str):
                if is_backbone and layer.name in file.layers:
                    raise FlairError(f"{path}: is not of the network {model.network}: its layer {layer.name} {found}")
                skipped[layer.name] = found
                continue
            values += [(variable, found.values[name]) for name, variable in variables.items()]
            loaded.append(layer.name)
            if found.by_position:
                by_position[layer.name] = ", ".join(f"{name} as {wanted}" for name, wanted in found.by_position)
        for name, weights in file.layers.items():
            if weights and name not in loaded and name not in skipped:
                skipped[name] = "not in the model"
        if not loaded:
            expected = [layer.name for layer in model.layers if layer.weights][:3]
            names = ", ".join(map(printable, list(file.layers)[:5])) or "none at all"
            raise FlairError(
                f"{path}: none of its layers ({names}, ...) fits the model "
                f"{model.name}; expected layer names such as {', '.join(expected)}"
            )
    tf.keras.backend.batch_set_value(values)
    return LoadReport(loaded, skipped, by_position)


def save_model(model: tf.keras.Model, path: str | Path) -> None:
    """Writes the model as Keras .h5, whole or not at all; `saved` reads what else the file says.

    `tf.keras.models.load_model` loads it, as a model of photos of any size, which it scales to `model`'s. Where
    somebody's layer has no configuration, it holds weights alone.
    """
    found, weights = _contents(model)
    write(path, weights, _facts(model), None if found is None else plain.legacy(found))


def save_archive(model: tf.keras.Model, path: str | Path) -> bool:
    """Writes the model as .keras, whole or not at all; False, and no file, where `save_model` saves weights alone."""
    found, weights = _contents(model)
    if found is None:
        Path(path).unlink(missing_ok=True)  # of an earlier model
        return False
    archive.write(path, found, weights, _facts(model))
    return True


def _contents(model: tf.keras.Model) -> tuple[dict[str, Any] | None, dict[str, dict[str, np.ndarray]]]:
    """What Keras builds the model from, as one of photos of any size, and the weights of each layer of it."""
    found, weights = plain.description(model), plain.weights(model)
    if found is None or len(model.input_shape) != 4:  # a head takes features
        return found, weights
    found = plain.of_any_size(found)
    return found, {layer["name"]: weights.get(layer["name"], {}) for layer in found["config"]["layers"]}


def _facts(model: tf.keras.Model) -> dict[str, Any]:
    weighted = next(layer for layer in model.layers if layer.weights)
    facts = {"name": model.name, "input_shape": model.input_shape[1:], "compute_dtype": weighted.compute_dtype}
    network = getattr(model, "network", model.name)
    return facts if network == model.name else {**facts, "network": network}
