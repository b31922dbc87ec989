"""Networks that somebody's function builds: import, checks, seeds; docs/networks.md has the contract."""

from __future__ import annotations

import importlib
import re
from typing import Any

import tensorflow as tf

from benchmark.model import specs
from benchmark.model.trainable import CLASSIFIER
from benchmark.model.weights import weight_name
from benchmark.run.seeds import derive_generator
from flair.errors import FlairError

# Keras calls the initializer of a weight by the weight's name, but for these.
_WEIGHT_NAMES = {"depthwise": "depthwise_kernel", "pointwise": "pointwise_kernel"}


def build(spec: str, input_shape: tuple[int, int, int], seed: int, policy: str) -> tf.keras.Model:
    """The network up to its features: pixels float32 `[b, h, w, 3]` (0 to 255) to `[b, d]`, weights drawn anew.

    Args:
      spec: `MODULE:FUNCTION`, which is imported.
      policy: name of the dtype policy, the global one while the function runs.

    Raises:
      FlairError: the function is not there, raises, or returns a model that breaks the contract.
    """
    before = tf.keras.mixed_precision.global_policy()
    tf.keras.mixed_precision.set_global_policy(policy)
    try:
        model = call(spec, input_shape)
    finally:
        tf.keras.mixed_precision.set_global_policy(before)
    reason = _breach(model, input_shape)
    if reason is not None:
        raise FlairError(f"--model={spec}: {reason}; docs/networks.md says what it has to return")
    for number, layer in enumerate(model.layers):
        _draw_anew(layer, seed, number)
    return model


def call(spec: str, input_shape: tuple[int, int, int], flag: str = "--model") -> Any:
    """What the function of `MODULE:FUNCTION`, which is imported, returns; a FlairError where that fails."""
    specs.check(spec, flag)
    specs.check_module(spec, flag)
    module_name, _, name = spec.partition(":")
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:  # somebody else's code
        raise FlairError(f"{flag}={spec}: cannot import {module_name}: {specs.one_line(error)}") from error
    function = getattr(module, name, None)
    if not callable(function):
        what = "is no function" if hasattr(module, name) else "is not there"
        raise FlairError(f"{flag}={spec}: {name} {what} in {module.__file__}; give the name of a function there")
    try:
        return function(input_shape)
    except (Exception, SystemExit) as error:  # somebody else's code
        raise FlairError(f"{flag}={spec}: it raised {specs.one_line(error)}") from error


def _breach(model: Any, input_shape: tuple[int, int, int]) -> str | None:
    """What is wrong with a model, in words; None where nothing is."""
    if not isinstance(model, tf.keras.Model):
        return f"it returned {type(model).__name__}, expected a tf.keras.Model"
    if not getattr(model, "_is_graph_network", False) or isinstance(model, tf.keras.Sequential):
        return "it returned a model that is not functional, expected tf.keras.Model(inputs, outputs)"
    if len(model.inputs) != 1 or len(model.outputs) != 1:
        return f"its model has {len(model.inputs)} inputs and {len(model.outputs)} outputs, expected one of each"
    pixels, features = model.inputs[0], model.outputs[0]
    if tuple(pixels.shape[1:]) != input_shape or pixels.dtype != tf.float32:
        expected = list(input_shape)
        return f"its input is {pixels.dtype.name} of shape {list(pixels.shape)[1:]}, expected float32 of {expected}"
    if features.shape.rank != 2 or features.shape[-1] is None:
        return f"its output has the shape {list(features.shape)}, expected features of shape [None, number]"
    for layer in model.layers:
        if isinstance(layer, tf.keras.Model):
            return (
                f"its layer {layer.name} is a model itself, expected layers only (for Keras's models give input_tensor)"
            )
        names = [weight_name(variable.name) for variable in layer.weights]
        if len(set(names)) < len(names) or _has_weights_inside(layer):
            return f"its layer {layer.name} has layers with weights inside, expected each as a layer of the model"
        if layer.name == CLASSIFIER:
            return f"it has a layer {CLASSIFIER}, a name that the layer added behind it takes"
        if not layer.built:
            return f"its layer {layer.name} has not been built, so its weights do not exist yet"
        if layer.weights and _is_numbered(layer):
            # Keras would count on in the next process that builds it, and a saved file would fit nothing there.
            return f"its layer {layer.name} has weights and no name of its own, expected name=... for each such layer"
    return None


def _has_weights_inside(layer: tf.keras.layers.Layer) -> bool:
    return any(isinstance(inner, tf.keras.layers.Layer) and inner.weights for inner in layer.submodules)


def _is_numbered(layer: tf.keras.layers.Layer) -> bool:
    automatic = specs.automatic_name(type(layer).__name__)
    return re.fullmatch(rf"{re.escape(automatic)}(_\d+)?", layer.name) is not None


def _draw_anew(layer: tf.keras.layers.Layer, seed: int, number: int) -> None:
    """Draws a layer's weights by their initializers, from the run's seed and the layer's number."""
    for attribute in sorted(vars(layer)):
        if not attribute.endswith("_initializer"):
            continue
        name = attribute.removesuffix("_initializer")
        weight, initializer = getattr(layer, _WEIGHT_NAMES.get(name, name), None), getattr(layer, attribute)
        if not isinstance(weight, tf.Variable) or not isinstance(initializer, tf.keras.initializers.Initializer):
            continue
        config = initializer.get_config()
        if "seed" in config:
            config["seed"] = int(derive_generator(seed, "weights", number, attribute).integers(2**31))
            weight.assign(type(initializer).from_config(config)(weight.shape, weight.dtype))
