"""A digest of what a network computes: its layers, how they are connected and set, and its weights."""

from __future__ import annotations

import hashlib
import inspect
import json
from typing import Any

import tensorflow as tf


def network_digest(model: tf.keras.Model) -> str:
    """SHA-256 over the configuration and the weights of all layers.

    A layer without a configuration counts by its source. What a layer reads from elsewhere, such as a global variable
    of its module, is not seen.
    """
    sha = hashlib.sha256(json.dumps([_layer(layer) for layer in model.layers], sort_keys=True).encode())
    for layer in model.layers:
        for variable in layer.weights:
            value = variable.numpy()
            sha.update(f"{layer.name} {variable.name.rpartition('/')[2]} {value.dtype} {value.shape}\n".encode())
            sha.update(value.tobytes())
    return sha.hexdigest()


def _layer(layer: tf.keras.layers.Layer) -> list[Any]:
    inputs = [[tensor.name for tensor in tf.nest.flatten(node.keras_inputs)] for node in layer.inbound_nodes]
    try:
        config: Any = {**layer.get_config(), "trainable": None}
        text = json.dumps(config, sort_keys=True, default=_named)
    except NotImplementedError:
        text = ""
    kind = type(layer)
    is_kerass = kind.__module__.startswith("keras.")
    return [layer.name, kind.__qualname__, inputs, text, "" if is_kerass else _source(kind)]


def _source(kind: type) -> str:
    try:
        return inspect.getsource(kind)
    except OSError:  # made in no file
        return ""


def _named(value: Any) -> str:
    """Functions and objects by their names, since how they are printed changes from process to process."""
    return str(getattr(value, "__qualname__", type(value).__qualname__))
