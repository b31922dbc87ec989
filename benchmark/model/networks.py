"""The networks: ResNet-18 by its published names, a small CNN, Keras's and anybody's."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import tensorflow as tf

from benchmark.model import applications, custom, specs
from benchmark.model.normalization import FrozenBatchNormalization, GroupNormalization, PixelStandardization
from benchmark.model.trainable import CLASSIFIER
from benchmark.run.seeds import derive_generator

EPSILON = 1e-5
RESNET_GROUPS = 32
CNN_GROUPS = 8
CNN_FILTERS = (32, 64, 128, 128)
_layers = tf.keras.layers
NormFactory = Callable[[str, int, tf.keras.mixed_precision.Policy], Callable[[tf.Tensor], tf.Tensor]]


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
      name: `resnet18`, `cnn`, `keras:NAME` of tf.keras.applications, or `MODULE:FUNCTION` (docs/networks.md), whose
        module is imported.
      input_shape: (height, width, 3).
      num_outputs: number of labels.
      pretrained_norm: frozen batch normalization instead of group normalization.
      seed: of the initial weights; every layer draws its own.
      compute_dtype: `float32` or `bfloat16`; variables and logits are float32 either way.
      norm: makes another normalization from (name, groups, dtype policy), for comparisons.

    `pretrained_norm` and `norm` are of our own two networks; others have the normalization that they have. The model's
    attribute `network` is `name`.

    Raises:
      FlairError: there is no such network, or it cannot be built for this input.

    >>> build_model("resnet18", (224, 224, 3), 17).count_params()
    11185233
    """
    policy = tf.keras.mixed_precision.Policy("float32" if compute_dtype == "float32" else f"mixed_{compute_dtype}")
    specs.check(name)
    if name in _BUILDERS:
        parts = Parts(itertools.count(seed * 1000), policy, norm or (_frozen_batch if pretrained_norm else group_norm))
        pixels = tf.keras.Input(input_shape, name="pixels")
        features = _BUILDERS[name](PixelStandardization(name="standardization", dtype=policy)(pixels), parts)
        pooled, head_seed = parts.pool(features), next(parts.seeds)
    else:
        build = applications.build if specs.is_keras(name) else custom.build
        body = build(name, input_shape, seed, policy.name)
        pixels, pooled = body.input, body.output
        head_seed = int(derive_generator(seed, "weights", CLASSIFIER).integers(2**31))
    model = tf.keras.Model(pixels, classify(pooled, num_outputs, head_seed), name=specs.file_name(name))
    model.network = name
    return model


def in_inference_mode(model: tf.keras.Model) -> tf.keras.Model:
    """The model with the same weights for callers that train it with `training=True`, which it does not hear.

    No network of the toolkit normalizes by a batch or drops at random, also in training: a client's update is a
    function of its photos and the seed, and the statistics of batch normalization never move.
    """
    pixels = tf.keras.Input(model.input_shape[1:], name="pixels")
    return tf.keras.Model(pixels, model(pixels, training=False), name=model.name)


def classify(pooled: tf.Tensor, num_outputs: int, seed: int) -> tf.Tensor:
    """The classifier on top of `[b, features]`: logits float32 `[b, num_outputs]`."""
    # A float32 head: logits in bfloat16 would give the loss and the metrics only eight bits.
    initializer = tf.keras.initializers.GlorotUniform(seed)
    return _layers.Dense(num_outputs, name=CLASSIFIER, dtype="float32", kernel_initializer=initializer)(pooled)


def group_norm(name: str, groups: int, policy: tf.keras.mixed_precision.Policy) -> tf.keras.layers.Layer:
    """The normalization of a network that trains from random weights."""
    return GroupNormalization(groups, EPSILON, name=name, dtype=policy)


def _frozen_batch(name: str, _groups: int, policy: tf.keras.mixed_precision.Policy) -> tf.keras.layers.Layer:
    return FrozenBatchNormalization(EPSILON, name=name, dtype=policy)


class Parts(NamedTuple):
    """Makes the layers of a network; each convolution takes the next of `seeds`."""

    seeds: Iterator[int]
    policy: tf.keras.mixed_precision.Policy
    make_norm: NormFactory

    def conv(
        self,
        x: tf.Tensor,
        name: str,
        filters: int,
        size: int,
        stride: int = 1,
        padding: int = 0,
        **options: int,
    ) -> tf.Tensor:
        """A convolution without bias; `options` are Keras's `groups` and `dilation_rate`."""
        # Keras's "same" is this padding only without a stride. Then it saves a copy of the whole tensor, and another
        # one of its gradient; with a stride a layer of its own pads, as in the published model.
        is_same = stride == 1 and padding == size // 2 * options.get("dilation_rate", 1)
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
            **options,
        )(x)

    def norm(self, x: tf.Tensor, name: str, groups: int = RESNET_GROUPS) -> tf.Tensor:
        """Group normalization, or what `make_norm` makes of it."""
        return self.make_norm(name, groups, self.policy)(x)

    def relu(self, x: tf.Tensor, name: str) -> tf.Tensor:
        """The activation of both networks."""
        return _layers.ReLU(name=name, dtype=self.policy)(x)

    def pool(self, x: tf.Tensor) -> tf.Tensor:
        """`[b, h, w, c]` to `[b, c]`, for the classifier."""
        return _layers.GlobalAveragePooling2D(name="global_pooling", dtype=self.policy)(x)


def resnet(
    x: tf.Tensor, parts: Parts, repetitions: Sequence[int] = (2, 2, 2, 2), initial_filters: int = 64
) -> tf.Tensor:
    """A ResNet of basic blocks below its pooling: standardized `[b, h, w, 3]` to `[b, h / 32, w / 32, 512]`.

    Args:
      repetitions: blocks of each of the four stages; ResNet-18 has two.
    """
    x = parts.conv(x, "initial_conv", initial_filters, 7, 2, padding=3)
    x = parts.norm(x, "initial_norm")
    # The published order is relu, padding with zeros, pooling. Maximum and relu commute, and behind the pooling there
    # are four times fewer numbers.
    x = _layers.ZeroPadding2D(1, name="pooling_padding", dtype=parts.policy)(x)
    x = _layers.MaxPooling2D(3, 2, name="initial_pooling", dtype=parts.policy)(x)
    x = parts.relu(x, "initial_relu")
    for stage, (filters, blocks) in enumerate(zip((64, 128, 256, 512), repetitions, strict=True), start=1):
        x = resnet_stage(x, f"layer{stage}", filters, blocks, 1 if stage == 1 else 2, parts)
    return x


def resnet_stage(x: tf.Tensor, name: str, filters: int, blocks: int, stride: int, parts: Parts) -> tf.Tensor:
    """Basic blocks one after the other, the first with the stride, and with a convolution where `x` changes shape."""

    def downsample(x: tf.Tensor) -> tf.Tensor:
        x = parts.conv(x, f"{name}_downsample_conv_1x1", filters, 1, stride)
        return parts.norm(x, f"{name}_downsample_norm")

    keeps_shape = stride == 1 and x.shape[-1] == filters
    x = resnet_block(x, f"{name}_block1", filters, stride, parts, None if keeps_shape else downsample)
    for number in range(2, blocks + 1):
        x = resnet_block(x, f"{name}_block{number}", filters, 1, parts)
    return x


def resnet_block(
    x: tf.Tensor,
    name: str,
    filters: int,
    stride: int,
    parts: Parts,
    downsample: Callable[[tf.Tensor], tf.Tensor] | None = None,
) -> tf.Tensor:
    """Two convolutions around which `x`, or what `downsample` makes of it, is added."""
    out = parts.conv(x, f"{name}_conv1_3x3", filters, 3, stride, padding=1)
    out = parts.relu(parts.norm(out, f"{name}_norm1"), f"{name}_relu1")
    out = parts.conv(out, f"{name}_conv2_3x3", filters, 3, padding=1)
    out = parts.norm(out, f"{name}_norm2")
    if downsample is not None:
        x = downsample(x)
    return parts.relu(_layers.Add(name=f"{name}_add", dtype=parts.policy)([out, x]), f"{name}_relu2")


def _cnn(x: tf.Tensor, parts: Parts) -> tf.Tensor:
    for index, filters in enumerate(CNN_FILTERS, start=1):
        x = parts.conv(x, f"conv{index}", filters, 3, 2, padding=1)
        x = parts.relu(parts.norm(x, f"norm{index}", CNN_GROUPS), f"relu{index}")
    return x


_BUILDERS: dict[str, Callable[[tf.Tensor, Parts], tf.Tensor]] = {"resnet18": resnet, "cnn": _cnn}
