"""EfficientNet-Lite0, an example of a network for --model=MODULE:FUNCTION.

Tan and Le, 2019 (https://arxiv.org/abs/1905.11946), without squeeze-and-excitation and with ReLU6, as Google released
it for phones. Layers are called as in the PyTorch package efficientnet-lite-pytorch, without leading underscores, so
that its weights load by name: --backbone_weights=efficientnet_lite0.safetensors.
"""

from __future__ import annotations

import itertools

import tensorflow as tf

from benchmark.model.normalization import FrozenBatchNormalization, PixelStandardization

EPSILON = 1e-3
# (blocks, kernel, stride, expansion, filters) of each stage.
LITE0 = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
_layers = tf.keras.layers


def efficientnet_lite0(input_shape: tuple[int, int, int]) -> tf.keras.Model:
    """Pixels float32 `[b, h, w, 3]` (0 to 255) to features `[b, 1280]`; published for 224 x 224 pixels."""
    pixels = tf.keras.Input(input_shape, name="pixels", dtype="float32")
    x = PixelStandardization(name="standardization")(pixels)
    x = _conv(x, "conv_stem", 32, 3, 2)
    x = _relu(_norm(x, "bn0"), "relu0")
    numbers = itertools.count()
    for blocks, kernel, stride, expansion, filters in LITE0:
        for block in range(blocks):
            x = _block(x, f"blocks.{next(numbers)}", kernel, 1 if block else stride, expansion, filters)
    x = _conv(x, "conv_head", 1280, 1, 1)
    x = _relu(_norm(x, "bn1"), "relu1")
    return tf.keras.Model(pixels, _layers.GlobalAveragePooling2D(name="global_pooling")(x))


def _block(x: tf.Tensor, name: str, kernel: int, stride: int, expansion: int, filters: int) -> tf.Tensor:
    inputs, channels = x, int(x.shape[-1])
    if expansion > 1:
        x = _conv(x, f"{name}._expand_conv", channels * expansion, 1, 1)
        x = _relu(_norm(x, f"{name}._bn0"), f"{name}.relu0")
    x = _layers.DepthwiseConv2D(
        kernel,
        stride,
        padding="same",
        use_bias=False,
        depthwise_initializer=tf.keras.initializers.VarianceScaling(2.0, "fan_out", "untruncated_normal"),
        name=f"{name}._depthwise_conv",
    )(x)
    x = _relu(_norm(x, f"{name}._bn1"), f"{name}.relu1")
    x = _norm(_conv(x, f"{name}._project_conv", filters, 1, 1), f"{name}._bn2")
    return _layers.Add(name=f"{name}.add")([x, inputs]) if stride == 1 and channels == filters else x


def _conv(x: tf.Tensor, name: str, filters: int, kernel: int, stride: int) -> tf.Tensor:
    initializer = tf.keras.initializers.VarianceScaling(2.0, "fan_out", "untruncated_normal")
    return _layers.Conv2D(
        filters, kernel, stride, padding="same", use_bias=False, kernel_initializer=initializer, name=name
    )(x)


def _norm(x: tf.Tensor, name: str) -> tf.Tensor:
    # The toolkit never moves batch statistics, and with fixed ones this layer is one pass over memory.
    return FrozenBatchNormalization(EPSILON, name=name)(x)


def _relu(x: tf.Tensor, name: str) -> tf.Tensor:
    return _layers.ReLU(6.0, name=name)(x)
