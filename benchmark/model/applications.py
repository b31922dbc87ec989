"""The networks of tf.keras.applications, flat, seeded, with their own preprocessing."""

from __future__ import annotations

import collections
import copy
import functools
import importlib
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn
from unittest import mock

import numpy as np
import tensorflow as tf

from benchmark.model import specs
from benchmark.model.normalization import PixelStandardization
from benchmark.model.trainable import CLASSIFIER
from benchmark.run.seeds import derive_generator
from flair.errors import FlairError

_Description = dict[str, Any]  # of a layer, as `get_config` of a model has it

_FIRST_LAYERS = ("Rescaling", "Normalization")  # preprocessing that cannot be left out of EfficientNetB0 to B7
_NUMBERED = re.compile(r"(.+?)(_\d+)?")
_NUMBERED_STEM = re.compile(r"stem_\d+_")  # ResNetRS counts its stems through the whole process, too
_AT_LEAST = re.compile(r"at least (\d+x\d+)")


def build(spec: str, input_shape: tuple[int, int, int], seed: int, policy: str) -> tf.keras.Model:
    """The network up to its features: pixels `[b, h, w, 3]` (0 to 255) to `[b, d]` of the compute dtype.

    Keras's own model is taken apart and built again from its description, because there all of this can be said:
    layers called once (Keras numbers unnamed ones through the whole process, and a saved model finds its weights by
    name), no model inside the model, the seed of every initializer, the dtype policy of every layer.

    Args:
      spec: `keras:NAME`.
      policy: name of the dtype policy.
    """
    specs.check(spec)
    specs.check_size(spec, *input_shape[:2])
    layers, kinds = _described(spec, input_shape)
    layers = copy.deepcopy(layers)
    for number, layer in enumerate(layers):
        if layer["class_name"] not in ("InputLayer", "TFOpLambda"):  # the latter compute in the dtype of what enters
            layer["config"]["dtype"] = policy
        _seed(layer["config"], seed, number)
    config = {
        "name": specs.file_name(spec),
        "layers": layers,
        "input_layers": [["pixels", 0, 0]],
        "output_layers": [[layers[-1]["config"]["name"], 0, 0]],
    }
    return tf.keras.Model.from_config(config, custom_objects=kinds)


# Kept, because TFF's runtime builds a network again inside a graph, where Keras describes operations in another way.
@functools.lru_cache(maxsize=8)
def _described(spec: str, input_shape: tuple[int, int, int]) -> tuple[list[_Description], dict[str, type]]:
    """Every layer of the network as `get_config` of a model has it, and the classes of layers by name."""
    name = specs.keras_name(spec)
    try:
        original = _application(name, None, input_shape=input_shape)
    except ValueError as error:
        least = _AT_LEAST.search(str(error))
        possible = f"at least {least[1].replace('x', ' x ')} pixels" if least else specs.one_line(error)
        raise FlairError(
            f"--model={spec}: takes no input of {input_shape[0]} x {input_shape[1]} pixels ({possible}); give another "
            "--image_height and --image_width"
        ) from None
    layers = _renamed(_without_preprocessing(_spliced(original.get_config()["layers"])))
    # Keras does not know the layers of its own ConvNeXt by name.
    kinds = {type(layer).__name__: type(layer) for layer in [*_leaves(original), PixelStandardization()]}
    # Not as input_tensor=..., of which ConvNeXt takes the input layer alone.
    return _standardized(layers, specs.KERAS_NETWORKS[name]), kinds


class _Wanted(Exception):
    """What Keras asks its cache for; raised in place of the download."""

    def __init__(self, file_name: str, origin: str, **options: Any) -> None:
        super().__init__(file_name)
        self.file_name, self.origin = file_name, origin
        self.file_hash = options.get("file_hash") or options.get("md5_hash")


@functools.cache
def imagenet_file(spec: str) -> Path:
    """Keras's file of weights for ImageNet, fetched into its cache if it is not there.

    Raises:
      FlairError: it cannot be fetched; where it is to be had and where it is to be put.
    """
    data_utils = importlib.import_module("keras.src.utils.data_utils")
    specs.check(spec)

    def want(fname: str, origin: str, **options: Any) -> NoReturn:
        raise _Wanted(fname, origin, **options)

    try:
        # The names of the files stand in the middle of the functions that build the networks.
        with mock.patch.object(data_utils, "get_file", want):
            _application(specs.keras_name(spec), "imagenet")
        raise FlairError(f"--backbone_weights=imagenet: Keras has no weights for {spec}; give none or a file")
    except _Wanted as wanted:
        return _fetched(wanted)


def load_imagenet(model: tf.keras.Model, spec: str) -> list[str]:
    """Gives a network of `build` Keras's weights for ImageNet; returns the layers that took some."""
    path = imagenet_file(spec)
    try:
        original = _application(specs.keras_name(spec), str(path))
    except (OSError, ValueError, KeyError) as error:
        raise FlairError(
            f"{path}: is not Keras's file of {spec} ({specs.one_line(error)}); delete it and run the same command again"
        ) from None
    # By position: Keras's files have the names that its layers had when they were written.
    sources = [layer for layer in _leaves(original) if layer.weights and type(layer).__name__ not in _FIRST_LAYERS]
    targets = [layer for layer in model.layers if layer.weights and layer.name != CLASSIFIER]
    for source, target in zip(sources, targets, strict=True):
        weights = source.get_weights()
        if not all(np.isfinite(array).all() for array in weights):
            raise FlairError(f"{path}: the layer {source.name} holds numbers that are not finite; delete the file")
        target.set_weights(weights)
    return [layer.name for layer in targets]


def _application(name: str, weights: str | None, **options: Any) -> tf.keras.Model:
    if specs.KERAS_NETWORKS[name].is_inside:
        options["include_preprocessing"] = False
    function = getattr(tf.keras.applications, name)
    return function(include_top=False, weights=weights, pooling="avg", **options)


def _fetched(wanted: _Wanted) -> Path:
    home = Path(os.environ.get("KERAS_HOME") or Path.home() / ".keras")  # Keras asks for the variable elsewhere only
    path = home / "models" / wanted.file_name
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Keras compares the digest of a file that is there, too.
        tf.keras.utils.get_file(
            wanted.file_name, wanted.origin, cache_subdir="models", file_hash=wanted.file_hash, cache_dir=str(home)
        )
    except Exception as error:  # noqa: BLE001 Keras raises it itself
        reason = specs.one_line(error).removeprefix("Exception: ")
        raise FlairError(
            f"--backbone_weights=imagenet: cannot fetch the weights ({reason}); download {wanted.origin} elsewhere and "
            f"put it at {path}, or give --backbone_weights=none"
        ) from None
    return path


def _leaves(model: tf.keras.Model) -> Iterator[tf.keras.layers.Layer]:
    """All layers, those of models inside the model, too."""
    for layer in model.layers:
        if isinstance(layer, tf.keras.Model):
            yield from _leaves(layer)
        else:
            yield layer


def _spliced(layers: Sequence[_Description]) -> list[_Description]:
    """Without Sequential models: their layers stand in their place."""
    found: list[_Description] = []
    last: dict[str, str] = {}
    for layer in layers:
        if layer["class_name"] != "Sequential":
            found.append(layer)
            continue
        nodes = layer["inbound_nodes"]
        for inner in layer["config"]["layers"]:
            if inner["class_name"] != "InputLayer":
                found.append({**inner, "name": inner["config"]["name"], "inbound_nodes": nodes})
                nodes = [[[inner["config"]["name"], 0, 0, {}]]]
        last[layer["config"]["name"]] = found[-1]["name"]
    return _linked(found, last)


def _without_preprocessing(layers: Sequence[_Description]) -> list[_Description]:
    """Without `_FIRST_LAYERS`, each of which has one input."""
    before: dict[str, str] = {}
    for layer in layers:
        if layer["class_name"] in _FIRST_LAYERS:
            source = layer["inbound_nodes"][0][0][0]
            before[layer["config"]["name"]] = before.get(source, source)
    return _linked((layer for layer in layers if layer["class_name"] not in _FIRST_LAYERS), before)


def _standardized(layers: Sequence[_Description], about: specs.Pixels) -> list[_Description]:
    """With an input layer `pixels` and what the network does with pixels first."""
    first, *others = layers
    entry, preprocessing = "pixels", PixelStandardization(*about[:3], name="standardization")
    names = {first["config"]["name"]: preprocessing.name}
    return [
        {**first, "name": entry, "config": {**first["config"], "name": entry}},
        {
            "name": preprocessing.name,
            "class_name": type(preprocessing).__name__,
            "config": preprocessing.get_config(),
            "inbound_nodes": [[[entry, 0, 0, {}]]],
        },
        *_linked(others, names),
    ]


def _renamed(layers: Sequence[_Description]) -> list[_Description]:
    """With the numbers that Keras gives to layers without names in a new process."""
    counts: collections.Counter[str] = collections.Counter()
    names: dict[str, str] = {}
    for layer in layers:
        name = layer["config"]["name"]
        match = _NUMBERED.fullmatch(name)
        assert match is not None
        if match[1] in (specs.automatic_name(layer["class_name"]), f"tf.{layer['config'].get('function', '')}"):
            names[name] = match[1] if not counts[match[1]] else f"{match[1]}_{counts[match[1]]}"
            counts[match[1]] += 1
        elif _NUMBERED_STEM.match(name):
            names[name] = _NUMBERED_STEM.sub("stem_1_", name)
    found = []
    for layer in _linked(layers, names):
        name = names.get(layer["config"]["name"], layer["config"]["name"])
        found.append({**layer, "name": name, "config": {**layer["config"], "name": name}})
    return found


def _linked(layers: Iterable[_Description], names: Mapping[str, str]) -> list[_Description]:
    """With connections to layers by their other names; also in the arguments of operations."""
    return [{**layer, "inbound_nodes": _with_names(layer["inbound_nodes"], names)} for layer in layers]


def _with_names(nodes: Any, names: Mapping[str, str]) -> Any:
    if isinstance(nodes, dict):
        return {key: _with_names(value, names) for key, value in nodes.items()}
    if not isinstance(nodes, list | tuple):
        return nodes
    if len(nodes) >= 3 and isinstance(nodes[0], str) and type(nodes[1]) is int and type(nodes[2]) is int:
        # A call's number is 0 but for Sequential models, which call themselves before anybody else does.
        call = 0 if nodes[0] in names else nodes[1]
        return [names.get(nodes[0], nodes[0]), call, nodes[2], *(_with_names(rest, names) for rest in nodes[3:])]
    return [_with_names(node, names) for node in nodes]


def _seed(config: _Description, seed: int, number: int) -> None:
    """Gives every initializer of a layer a seed of its own."""
    for key in sorted(config):
        initializer = config[key]
        if key.endswith("_initializer") and isinstance(initializer, dict) and "seed" in initializer["config"]:
            own = int(derive_generator(seed, "weights", number, key).integers(2**31))
            config[key] = {**initializer, "config": {**initializer["config"], "seed": own}}
