"""The functions of ml-flair's module of this name: ResNets in which the crop and the flips are layers of the model.

Differences, each of which leaves weights, their names and outputs as they were: convolutions without a stride pad
themselves, without a layer `..._padding`; `initial_relu` comes behind `initial_pooling`; pixels are standardized by one
layer. Group normalization is this toolkit's, which is faster than that of TensorFlow Addons. Initial weights: where
ml-flair gives each layer the same seed, so that layers of equal shape begin equal, each layer draws its own here.

Importing it also makes known to Keras what layers a saved model may have beside Keras's public ones, so that
`tf.keras.models.load_model` loads every model of this toolkit.
"""

from __future__ import annotations

import importlib
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from benchmark.model import (
    networks,
    vision_transformer,  # noqa: F401 registers its layers
)
from benchmark.model.normalization import PixelStandardization

IMAGENET_MEAN = list(PixelStandardization.MEAN)
IMAGENET_VARIANCE = [std**2 for std in PixelStandardization.STD]
_CROP = 224  # pixels, both sides, whatever the input
_SEEDS_PER_MODEL = 1000


class FrozenBatchNormalization(tf.keras.layers.BatchNormalization):
    """Keras's batch normalization, whose moving mean and variance normalize in training, too, and never change.

    `gamma` and `beta` train. `benchmark.model.normalization` has the same for the toolkit's own networks.
    """

    def call(self, inputs: tf.Tensor, training: Any = None) -> tf.Tensor:
        """`inputs` of any shape to the same shape, whatever `training` says."""
        return super().call(inputs, training=False)


_convnext = importlib.import_module("keras.src.applications.convnext")
for _name in ("LayerScale", "StochasticDepth"):
    tf.keras.utils.get_custom_objects()[_name] = getattr(_convnext, _name)
# By this name, without a package before it, as in the models that ml-flair has saved.
tf.keras.utils.get_custom_objects()[FrozenBatchNormalization.__name__] = FrozenBatchNormalization


def resnet18(
    input_shape: tuple[int, int, int], num_classes: int, pretrained: bool, seed: int = 0
) -> tf.keras.models.Model:
    """ResNet-18 from whole photos `[b, *input_shape]`, 0 to 255, to logits float32 `[b, num_classes]`.

    Args:
      input_shape: (height, width, 3); of FLAIR's photos (256, 256, 3).
      pretrained: frozen batch normalization, for weights such as Apple's `resnet18.h5`, which
        `load_weights(path, by_name=True, skip_mismatch=True)` loads; else group normalization.
      seed: of the initial weights.

    In training a batch is cropped to a random window of 224x224 pixels and each photo flipped at random along both
    axes; else whole photos are scaled to 224x224. `fit`, `evaluate` and `predict` know which it is; `model(photos)`
    trains unless it is told `training=False`, as Keras's layers have it.

    >>> resnet18((256, 256, 3), 17, pretrained=False).count_params()
    11185233
    """
    return create_resnet(input_shape, num_classes, use_batch_norm=pretrained, repetitions=(2, 2, 2, 2), seed=seed)


def create_resnet(
    input_shape: tuple[int, int, int],
    num_classes: int,
    use_batch_norm: bool,
    repetitions: Sequence[int] | None = None,
    initial_filters: int = 64,
    seed: int = 0,
) -> tf.keras.models.Model:
    """As `resnet18`, with so many basic blocks in each of the four stages: (3, 4, 6, 3) are ResNet-34.

    Without `repetitions`, where ml-flair ends in a TypeError, it is ResNet-18.
    """
    parts = _parts(use_batch_norm, _SEEDS_PER_MODEL * seed)
    pixels = tf.keras.layers.Input(input_shape)
    x = tf.keras.layers.RandomCrop(_CROP, _CROP)(pixels)
    x = PixelStandardization(dtype=parts.policy)(tf.keras.layers.RandomFlip()(x))
    pooled = parts.pool(networks.resnet(x, parts, repetitions or (2, 2, 2, 2), initial_filters))
    return tf.keras.models.Model(pixels, networks.classify(pooled, num_classes, next(parts.seeds)))


def block_layers(
    x: tf.Tensor,
    scope: str,
    in_planes: int,
    out_planes: int,
    blocks: int,
    use_batch_norm: bool,
    stride: int = 1,
    seed: int = 0,
) -> tf.Tensor:
    """A stage of `blocks` basic blocks `[scope]_block1`, ...; `in_planes` are the channels of `x`, which `x` tells."""
    parts = _parts(use_batch_norm, _SEEDS_PER_MODEL * seed)
    return networks.resnet_stage(x, scope, out_planes, blocks, stride, parts)


def basic_block(
    x: tf.Tensor,
    scope: str,
    out_planes: int,
    use_batch_norm: bool,
    stride: int = 1,
    downsample: Callable[[tf.Tensor], tf.Tensor] | None = None,
    seed: int = 0,
) -> tf.Tensor:
    """Two 3x3 convolutions, the first with the stride, around which `x` or `downsample(x)` is added."""
    parts = _parts(use_batch_norm, _SEEDS_PER_MODEL * seed)
    return networks.resnet_block(x, scope, out_planes, stride, parts, downsample)


def conv3x3(
    x: tf.Tensor, scope: str, out_planes: int, stride: int = 1, groups: int = 1, dilation: int = 1, seed: int = 0
) -> tf.Tensor:
    """A 3x3 convolution `[scope]_3x3` without bias, padded by `dilation`."""
    conv = _parts(False, seed).conv
    return conv(x, f"{scope}_3x3", out_planes, 3, stride, dilation, groups=groups, dilation_rate=dilation)


def conv1x1(x: tf.Tensor, scope: str, out_planes: int, stride: int = 1, seed: int = 0) -> tf.Tensor:
    """A 1x1 convolution `[scope]_1x1` without bias."""
    return _parts(False, seed).conv(x, f"{scope}_1x1", out_planes, 1, stride)


def norm(x: tf.Tensor, scope: str, use_batch_norm: bool) -> tf.Tensor:
    """A layer `[scope]`: `FrozenBatchNormalization`, or group normalization with 32 groups; epsilon is 1e-5."""
    return _parts(use_batch_norm).norm(x, scope)


def relu(x: tf.Tensor, scope: str) -> tf.Tensor:
    """A layer `[scope]` of max(x, 0)."""
    return _parts().relu(x, scope)


def _parts(use_batch_norm: bool = False, first_seed: int = 0) -> networks.Parts:
    make_norm = _frozen_batch if use_batch_norm else networks.group_norm
    return networks.Parts(itertools.count(first_seed), tf.keras.mixed_precision.global_policy(), make_norm)


def _frozen_batch(name: str, _groups: int, policy: tf.keras.mixed_precision.Policy) -> FrozenBatchNormalization:
    return FrozenBatchNormalization(epsilon=networks.EPSILON, name=name, dtype=policy)
