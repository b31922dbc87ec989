"""ResNet-18 with the published layer names, a small CNN for laptops, and loading weights by layer name."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from benchmark.model import weights as weights_file
from benchmark.model.normalization import FrozenBatchNormalization, GroupNormalization, PixelStandardization
from benchmark.model.weights import Misfit, WeightsFile, weight_name
from flair.errors import FlairError
from flair.files import atomic
from flair.records.hdf5.objects import printable

EPSILON = 1e-5
RESNET_GROUPS = 32
CNN_GROUPS = 8
CNN_FILTERS = (32, 64, 128, 128)
_LAYERS_SHOWN = 50
_layers = tf.keras.layers
NormFactory = Callable[[str, int, tf.keras.mixed_precision.Policy], Callable[[tf.Tensor], tf.Tensor]]


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


def build_model(
    name: str,
    input_shape: tuple[int, int, int],
    num_outputs: int,
    pretrained_norm: bool = False,
    seed: int = 0,
    compute_dtype: str = "float32",
    norm: NormFactory | None = None,
) -> tf.keras.Model:
    """A model from pixels `[b, height, width, 3]` (0 to 255, uint8 or float32) to logits float32 `[b, num_outputs]`.

    Args:
      name: `resnet18` or `cnn`.
      input_shape: (height, width, 3).
      num_outputs: number of labels.
      pretrained_norm: frozen batch normalization instead of group normalization.
      seed: of the initial weights; every layer draws its own.
      compute_dtype: `float32` or `bfloat16`; variables and logits are float32 either way.
      norm: makes another normalization from (name, groups, dtype policy), for comparisons.

    >>> build_model("resnet18", (224, 224, 3), 17).count_params()
    11185233
    """
    policy = tf.keras.mixed_precision.Policy("float32" if compute_dtype == "float32" else f"mixed_{compute_dtype}")
    builders = {"resnet18": _resnet18, "cnn": _cnn}
    if name not in builders:
        raise FlairError(f"--model={name}: no such model; the models are {', '.join(builders)}")
    parts = _Parts(itertools.count(seed * 1000), policy, norm or (_frozen_batch if pretrained_norm else _group))
    pixels = tf.keras.Input(input_shape, name="pixels")
    features = builders[name](PixelStandardization(name="standardization", dtype=policy)(pixels), parts)
    pooled = _layers.GlobalAveragePooling2D(name="global_pooling", dtype=policy)(features)
    # A float32 head: logits in bfloat16 would give the loss and the metrics only eight bits.
    logits = _layers.Dense(
        num_outputs,
        name="classifier",
        dtype="float32",
        kernel_initializer=tf.keras.initializers.GlorotUniform(next(parts.seeds)),
    )(pooled)
    return tf.keras.Model(pixels, logits, name=name)


def _group(name: str, groups: int, policy: tf.keras.mixed_precision.Policy) -> tf.keras.layers.Layer:
    return GroupNormalization(groups, EPSILON, name=name, dtype=policy)


def _frozen_batch(name: str, _groups: int, policy: tf.keras.mixed_precision.Policy) -> tf.keras.layers.Layer:
    return FrozenBatchNormalization(EPSILON, name=name, dtype=policy)


class _Parts(NamedTuple):
    seeds: Iterator[int]
    policy: tf.keras.mixed_precision.Policy
    make_norm: NormFactory

    def conv(self, x: tf.Tensor, name: str, filters: int, size: int, stride: int = 1, padding: int = 0) -> tf.Tensor:
        # Keras's "same" is this padding only without a stride. Then it saves a copy of the whole tensor, and another
        # one of its gradient; with a stride a layer of its own pads, as in the published model.
        is_same = stride == 1 and padding == size // 2
        if padding and not is_same:
            name_of_padding = f"{name.removesuffix('_3x3').removesuffix('_conv')}_padding"
            x = _layers.ZeroPadding2D(padding, name=name_of_padding, dtype=self.policy)(x)
        return _layers.Conv2D(
            filters,
            size,
            stride,
            padding="same" if is_same else "valid",
            use_bias=False,
            name=name,
            dtype=self.policy,
            kernel_initializer=tf.keras.initializers.HeNormal(next(self.seeds)),
        )(x)

    def norm(self, x: tf.Tensor, name: str, groups: int) -> tf.Tensor:
        return self.make_norm(name, groups, self.policy)(x)

    def relu(self, x: tf.Tensor, name: str) -> tf.Tensor:
        return _layers.ReLU(name=name, dtype=self.policy)(x)


def _resnet18(x: tf.Tensor, parts: _Parts) -> tf.Tensor:
    x = parts.conv(x, "initial_conv", 64, 7, 2, padding=3)
    x = parts.norm(x, "initial_norm", RESNET_GROUPS)
    # The published order is relu, padding with zeros, pooling. Maximum and relu commute, and behind the pooling there
    # are four times fewer numbers.
    x = _layers.ZeroPadding2D(1, name="pooling_padding", dtype=parts.policy)(x)
    x = _layers.MaxPooling2D(3, 2, name="initial_pooling", dtype=parts.policy)(x)
    x = parts.relu(x, "initial_relu")
    for stage, filters in enumerate((64, 128, 256, 512), start=1):
        x = _block(x, f"layer{stage}_block1", filters, 1 if stage == 1 else 2, parts, f"layer{stage}_downsample")
        x = _block(x, f"layer{stage}_block2", filters, 1, parts, None)
    return x


def _block(x: tf.Tensor, name: str, filters: int, stride: int, parts: _Parts, downsample: str | None) -> tf.Tensor:
    out = parts.conv(x, f"{name}_conv1_3x3", filters, 3, stride, padding=1)
    out = parts.relu(parts.norm(out, f"{name}_norm1", RESNET_GROUPS), f"{name}_relu1")
    out = parts.conv(out, f"{name}_conv2_3x3", filters, 3, padding=1)
    out = parts.norm(out, f"{name}_norm2", RESNET_GROUPS)
    if downsample is not None and stride != 1:
        x = parts.conv(x, f"{downsample}_conv_1x1", filters, 1, stride)
        x = parts.norm(x, f"{downsample}_norm", RESNET_GROUPS)
    return parts.relu(_layers.Add(name=f"{name}_add", dtype=parts.policy)([out, x]), f"{name}_relu2")


def _cnn(x: tf.Tensor, parts: _Parts) -> tf.Tensor:
    for index, filters in enumerate(CNN_FILTERS, start=1):
        x = parts.conv(x, f"conv{index}", filters, 3, 2, padding=1)
        x = parts.relu(parts.norm(x, f"norm{index}", CNN_GROUPS), f"relu{index}")
    return x


def wants_batch_normalization(path: str | Path) -> bool:
    """Whether a weights file has batch statistics, so that it needs frozen batch normalization."""
    with WeightsFile(path) as file:
        return any(weight_name(weight) == "moving_mean" for weights in file.layers.values() for weight in weights)


def load_by_name(model: tf.keras.Model, path: str | Path) -> LoadReport:
    """Loads a Keras .h5 file (weights or whole model) into the layers of equal name, weights of equal name and shapes.

    Raises:
      FlairError: the file is no Keras HDF5 file, it is damaged, a weight that fits is not finite, or not one layer
        fits; the model is as before then.
    """
    values: list[tuple[tf.Variable, np.ndarray]] = []
    loaded, skipped, by_position = [], {}, {}
    with WeightsFile(path) as file:
        file.verify()
        for layer in model.layers:
            variables = {weight_name(v.name): v for v in layer.trainable_weights + layer.non_trainable_weights}
            if not variables:
                continue
            found = file.fit(layer.name, {name: tuple(v.shape) for name, v in variables.items()})
            if isinstance(found, Misfit):
                skipped[layer.name] = found.reason
                continue
            values += [(variable, found.values[name]) for name, variable in variables.items()]
            loaded.append(layer.name)
            if found.by_position:
                by_position[layer.name] = ", ".join(f"{name} as {wanted}" for name, wanted in found.by_position)
        for name, weights in file.layers.items():
            if weights and name not in loaded and name not in skipped:
                skipped[name] = "not in the model"
        if not loaded:
            raise FlairError(
                f"{path}: none of its layers ({', '.join(list(file.layers)[:5]) or 'none at all'}, ...) fits the model "
                f"{model.name}; expected layer names such as {', '.join(_weighted_names(model)[:3])}"
            )
    tf.keras.backend.batch_set_value(values)
    return LoadReport(loaded, skipped, by_position)


def save_weights(model: tf.keras.Model, path: str | Path) -> None:
    """Writes the model's weights as Keras .h5, whole or not at all; `saved` reads what else the file says."""
    weighted = next(layer for layer in model.layers if layer.weights)
    facts = {"name": model.name, "input_shape": model.input_shape[1:], "compute_dtype": weighted.compute_dtype}
    with atomic.replacing(path) as temporary:
        model.save_weights(str(temporary), save_format="h5")
        weights_file.seal(temporary, facts)


def _weighted_names(model: tf.keras.Model) -> list[str]:
    return [layer.name for layer in model.layers if layer.weights]
