"""A network as any Keras can load it: described in Keras's own layers where those compute the same as ours.

Our normalization layers compute what Keras's do in fewer passes over memory, from the same weights. What is left of
ours (`PixelStandardization` that reverses colors, the layers of `vision_transformer`) and what Keras has in no public
place (`LayerScale` of ConvNeXt) is made known to Keras by `import benchmark.flair_model`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

_Config = dict[str, Any]


def description(model: tf.keras.Model) -> _Config | None:
    """The model as `config.json` of a .keras file has it; None where a layer of somebody's cannot say what it is."""
    try:
        found: _Config = json.loads(json.dumps(tf.keras.saving.serialize_keras_object(model)))
    except (NotImplementedError, TypeError, ValueError):
        return None
    # Keras makes a configuration up for a layer without get_config, from its arguments, of which the name is none.
    if any("name" not in layer["config"] for layer in found["config"]["layers"]):
        return None
    found["config"]["layers"] = [_plain(layer) for layer in found["config"]["layers"]]
    return found


def of_any_size(found: _Config) -> _Config:
    """A `description` whose input has no size, and behind it a layer that scales photos as evaluation does."""
    pixels, *others = found["config"]["layers"]
    name, (_, height, width, channels) = pixels["name"], pixels["config"]["batch_input_shape"]
    # The new layer takes the input's name, under which others refer to it.
    unscaled = f"unscaled_{name}"
    shape = [None, None, None, channels]
    config = {**pixels["config"], "name": unscaled, "batch_input_shape": shape}
    size = {"height": height, "width": width, "interpolation": "bilinear", "crop_to_aspect_ratio": True}
    resizing = {
        **pixels,
        "class_name": "Resizing",
        "config": {"name": name, "trainable": True, "dtype": "float32", **size},
        "inbound_nodes": [[[unscaled, 0, 0, {}]]],
    }
    layers = [{**pixels, "name": unscaled, "config": config}, resizing, *others]
    inputs = [[unscaled, *place[1:]] for place in found["config"]["input_layers"]]
    return {**found, "config": {**found["config"], "layers": layers, "input_layers": inputs}}


def legacy(found: Mapping[str, Any]) -> _Config:
    """A `description` as the attribute `model_config` of an .h5 file has it."""
    layers = [
        {
            "class_name": layer["registered_name"] or layer["class_name"],
            **{key: layer[key] for key in ("config", "name", "inbound_nodes")},
        }
        for layer in found["config"]["layers"]
    ]
    return {"class_name": found["class_name"], "config": {**found["config"], "layers": layers}}


def weights(model: tf.keras.Model) -> dict[str, dict[str, np.ndarray]]:
    """Layer -> name of a weight as Keras writes it (`norm1/gamma:0`) -> array, in Keras's order; [] for most layers."""
    variables = [(layer.name, layer.trainable_weights + layer.non_trainable_weights) for layer in model.layers]
    arrays = iter(tf.keras.backend.batch_get_value([variable for _, some in variables for variable in some]))
    return {layer: {variable.name: next(arrays) for variable in some} for layer, some in variables}


def rebuilt(model: tf.keras.Model) -> tf.keras.Model:
    """An equal model, with weights of its own, made of Keras's layers."""
    found = description(model)
    if found is None:
        raise TypeError("it has a layer without get_config")
    again = tf.keras.Model.from_config(legacy(found)["config"], custom_objects=classes(model))
    for layer in model.layers:
        again.get_layer(layer.name).set_weights(layer.get_weights())
    return again


def classes(model: tf.keras.Model) -> dict[str, type]:
    """The classes of the model's layers by the names under which a description has them."""
    return {tf.keras.saving.get_registered_name(type(layer)): type(layer) for layer in model.layers}


def _plain(layer: _Config) -> _Config:
    """One of our layers as Keras's that computes the same; any other as it is."""
    kind, config = layer["registered_name"], layer["config"]
    if kind == "flair>GroupNormalization":
        # float32 also in a bfloat16 network, as our statistics are.
        options = {"groups": config["groups"], "epsilon": config["epsilon"], "dtype": "float32"}
        name = "GroupNormalization"
    elif kind == "flair>FrozenBatchNormalization":
        # Keras's layer moves its statistics in training unless it is frozen, with scale and shift.
        name, options = "BatchNormalization", {"axis": [3], "epsilon": config["epsilon"], "trainable": False}
    elif kind == "flair>PixelStandardization" and not config["is_bgr"]:
        scale = [1 / (255 * std) for std in config["std"]]
        offset = [-mean / std for mean, std in zip(config["mean"], config["std"], strict=True)]
        name, options = "Rescaling", {"scale": scale, "offset": offset, "dtype": "float32"}
    else:
        return layer
    common = {key: config[key] for key in ("name", "trainable", "dtype")}
    return {**layer, "module": "keras.layers", "class_name": name, "config": common | options, "registered_name": None}
