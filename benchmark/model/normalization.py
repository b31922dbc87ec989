"""Normalization layers that cost few passes over memory: group normalization and frozen batch normalization."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from benchmark.model import map_passes

_LARGE_MAP = 50_000  # numbers per photo, from which on compiled passes save more than they cost
_Gradient = Callable[[tf.Tensor], tuple[tf.Tensor, tf.Tensor, tf.Tensor]]


@tf.keras.saving.register_keras_serializable("flair")
class GroupNormalization(tf.keras.layers.Layer):
    """Group normalization (Wu and He, 2018, https://arxiv.org/abs/1803.08494) of `[batch, height, width, channels]`.

    Same weights (`gamma`, `beta`, both `[channels]`) and numbers as `keras.layers.GroupNormalization`; the statistics
    are float32 whatever the compute dtype. Raises ValueError where the channels do not divide into `groups`.

    Keras normalizes `[batch, height, width, groups, channels / groups]`, and each of its operations passes over the
    whole tensor with a broadcast in its middle. Here all statistics come from sums per photo and channel, which are
    small (`[batch, channels]`), and the whole tensor sees one scale and one shift. For a photo, let P be the pixels of
    a channel and n their number, and let group g have m channels.

    Forward. mu_c = sum_P x / n, v_c = sum_P (x - mu_c)^2 / n, and by the law of total variance

        mu_g = mean_c mu_c,    v_g = mean_c (v_c + (mu_c - mu_g)^2),    r = 1 / sqrt(v_g + epsilon),
        y = s (x - mu_g) + beta    with    s = gamma r.

    Where the mean is huge beside the deviation, E[x^2] - mu^2 would lose the variance; deviations from the channel's
    own mean, or that of some of its pixels (`map_passes.fused`), do not. In small maps, to save passes, the mean is
    then taken from the shift of y and from b_c below: differences of numbers as large as the mean over the deviation,
    as Keras's are. At a mean of 10,000 deviations y is right to 1e-3 and its gradients to 5e-3 of the
    largest, two to three times Keras's error.

    Backward. With u = dL/dy, a_c = sum_P u and b_c = sum_P u (x - mu_g),

        dL/dbeta = sum over photos of a_c,    dL/dgamma = sum over photos of r b_c,
        dL/dx = s u - r^3 B (x - mu_g) - r A    with    A = mean_g(gamma a_c) / n,  B = mean_g(gamma b_c) / n,

    mean_g being the mean over the group's channels: again one scale of u, one of x, and one shift.
    """

    def __init__(self, groups: int = 32, epsilon: float = 1e-5, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.groups, self.epsilon = groups, epsilon
        self.input_spec = tf.keras.layers.InputSpec(ndim=4)

    def build(self, input_shape: tf.TensorShape) -> None:
        channels = int(input_shape[-1])
        if self.groups < 1 or channels % self.groups:
            raise ValueError(f"{self.name}: {channels} channels do not divide into {self.groups} groups")
        self.gamma = self.add_weight("gamma", (channels,), initializer="ones", experimental_autocast=False)
        self.beta = self.add_weight("beta", (channels,), initializer="zeros", experimental_autocast=False)
        super().build(input_shape)

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """`[b, h, w, c]` of the compute dtype to the same shape and dtype."""
        gamma, beta = tf.convert_to_tensor(self.gamma), tf.convert_to_tensor(self.beta)
        return _group_normalization(inputs, gamma, beta, self.groups, self.epsilon)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "groups": self.groups, "epsilon": self.epsilon}


@tf.autograph.experimental.do_not_convert
def _group_normalization(
    inputs: tf.Tensor, gamma: tf.Tensor, beta: tf.Tensor, groups: int, epsilon: float
) -> tf.Tensor:
    """The formulas of `GroupNormalization`, in float32."""
    passes = _passes(inputs)

    @tf.custom_gradient
    def normalize(x: tf.Tensor, gamma: tf.Tensor, beta: tf.Tensor) -> tuple[tf.Tensor, _Gradient]:
        pixels = tf.cast(tf.shape(x)[1] * tf.shape(x)[2], tf.float32)
        channel_mean, channel_variance = passes.moments(x)
        mean = _mean_in_groups(channel_mean, groups)
        variance = _mean_in_groups(channel_variance + tf.math.squared_difference(channel_mean, mean), groups)
        inverse = tf.math.rsqrt(variance + epsilon)
        scale = inverse * gamma

        def gradient(u: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
            a, b = passes.sums(u, x, mean)
            scale_of_x = -_mean_in_groups(gamma * b, groups) / pixels * inverse**3
            shift = -_mean_in_groups(gamma * a, groups) / pixels * inverse
            to_inputs = passes.combine(u, scale, x, mean, scale_of_x, shift)
            return to_inputs, tf.reduce_sum(inverse * b, 0), tf.reduce_sum(a, 0)

        return passes.scale(x, mean, scale, beta), gradient

    return normalize(inputs, gamma, beta)


def _passes(inputs: tf.Tensor) -> map_passes.Passes:
    shape = inputs.shape[1:]
    elements = shape.num_elements()
    if elements is not None and elements >= _LARGE_MAP and not tf.config.list_physical_devices("GPU"):
        return map_passes.fused(*shape, inputs.dtype)
    return map_passes.plain()


def _mean_in_groups(values: tf.Tensor, groups: int) -> tf.Tensor:
    """[b, c] -> [b, c]: the mean over each group, given to each of its channels."""
    grouped = tf.reshape(values, [tf.shape(values)[0], groups, values.shape[-1] // groups])
    means = tf.reduce_mean(grouped, -1, keepdims=True)
    return tf.reshape(tf.tile(means, [1, 1, values.shape[-1] // groups]), tf.shape(values))


@tf.keras.saving.register_keras_serializable("flair")
class FrozenBatchNormalization(tf.keras.layers.Layer):
    """Batch normalization by fixed statistics: `gamma` and `beta` train, the moving mean and variance never change.

    Same weights, in the same order, as `keras.layers.BatchNormalization`, so that pretrained files load by name. With
    fixed statistics it is one scale and one shift per channel; TensorFlow's fused operation does both in one pass.
    """

    def __init__(self, epsilon: float = 1e-5, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.epsilon = epsilon
        self.input_spec = tf.keras.layers.InputSpec(ndim=4)

    def build(self, input_shape: tf.TensorShape) -> None:
        shape = (int(input_shape[-1]),)
        common: dict[str, Any] = {"experimental_autocast": False}
        self.gamma = self.add_weight("gamma", shape, initializer="ones", **common)
        self.beta = self.add_weight("beta", shape, initializer="zeros", **common)
        self.moving_mean = self.add_weight("moving_mean", shape, initializer="zeros", trainable=False, **common)
        self.moving_variance = self.add_weight("moving_variance", shape, initializer="ones", trainable=False, **common)
        super().build(input_shape)

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """`[b, h, w, c]` of the compute dtype to the same shape and dtype."""
        return tf.raw_ops.FusedBatchNormV3(
            x=inputs,
            scale=self.gamma,
            offset=self.beta,
            mean=self.moving_mean,
            variance=self.moving_variance,
            epsilon=self.epsilon,
            is_training=False,
        )[0]

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "epsilon": self.epsilon}


@tf.keras.saving.register_keras_serializable("flair")
class PixelStandardization(tf.keras.layers.Layer):
    """Pixels 0 to 255 to (pixel / 255 - mean) / std, as one scale and one shift; computes in float32.

    Args:
      mean, std: of each channel as it leaves; those of ImageNet make its mean 0 and its variance 1.
      is_bgr: the channels leave as blue, green, red.
    """

    # https://pytorch.org/vision/stable/models.html
    MEAN = (0.485, 0.456, 0.406)
    STD = (0.229, 0.224, 0.225)

    def __init__(
        self, mean: Sequence[float] = MEAN, std: Sequence[float] = STD, is_bgr: bool = False, **kwargs: Any
    ) -> None:
        super().__init__(**{"autocast": False, **kwargs})
        self.mean, self.std, self.is_bgr = tuple(mean), tuple(std), is_bgr

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """`[b, h, w, 3]` of any dtype, 0 to 255, to the compute dtype."""
        if self.is_bgr:
            inputs = inputs[..., ::-1]
        width = tf.shape(inputs)[2]
        scale = tf.tile([1 / (255 * std) for std in self.std], [width])
        shift = tf.tile([-mean / std for mean, std in zip(self.mean, self.std, strict=True)], [width])
        # Whole rows, because broadcasting over an innermost dimension of 3 takes five times as long.
        rows = tf.reshape(tf.cast(inputs, tf.float32), [-1, tf.shape(inputs)[1], 3 * width])
        return tf.cast(tf.reshape(rows * scale + shift, tf.shape(inputs)), self.compute_dtype)

    def get_config(self) -> dict[str, Any]:
        # Without a method of its own Keras refuses to save whole models with this layer, because of `autocast`.
        return {**super().get_config(), "mean": self.mean, "std": self.std, "is_bgr": self.is_bgr}
