"""Normalization layers that cost few passes over memory: group normalization and frozen batch normalization."""

from __future__ import annotations

from typing import Any

import tensorflow as tf


class GroupNormalization(tf.keras.layers.Layer):
    """Group normalization (Wu and He, 2018, https://arxiv.org/abs/1803.08494) of `[batch, height, width, channels]`.

    Same weights (`gamma`, `beta`, both `[channels]`) and numbers as `keras.layers.GroupNormalization`. The statistics
    are float32 whatever the compute dtype.
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
        x = tf.cast(inputs, tf.float32)
        shape = tf.shape(x)
        channels = x.shape[-1]
        mean = tf.reduce_mean(x, [1, 2], keepdims=True)
        variance = tf.reduce_mean(tf.math.squared_difference(x, mean), [1, 2], keepdims=True)
        grouped = [shape[0], 1, self.groups, channels // self.groups]
        mean_in_groups = tf.reshape(mean, grouped)
        group_mean = tf.reduce_mean(mean_in_groups, -1, keepdims=True)
        group_variance = tf.reduce_mean(
            tf.reshape(variance, grouped) + tf.math.squared_difference(mean_in_groups, group_mean), -1, keepdims=True
        )
        like_channels = tf.zeros(grouped)
        factor = tf.reshape(tf.math.rsqrt(group_variance + self.epsilon) + like_channels, tf.shape(mean))
        scale = factor * self.gamma
        offset = self.beta - tf.reshape(group_mean + like_channels, tf.shape(mean)) * scale
        return tf.cast(x * scale + offset, inputs.dtype)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "groups": self.groups, "epsilon": self.epsilon}


class FrozenBatchNormalization(tf.keras.layers.Layer):
    """Batch normalization by fixed statistics: `gamma` and `beta` train, the moving mean and variance never change.

    Same weights, in the same order, as `keras.layers.BatchNormalization`, so that pretrained files load by name. With
    fixed statistics it is one scale and one shift a channel.
    """

    def __init__(self, epsilon: float = 1e-5, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.epsilon = epsilon

    def build(self, input_shape: tf.TensorShape) -> None:
        shape = (int(input_shape[-1]),)
        common: dict[str, Any] = {"experimental_autocast": False}
        self.gamma = self.add_weight("gamma", shape, initializer="ones", **common)
        self.beta = self.add_weight("beta", shape, initializer="zeros", **common)
        self.moving_mean = self.add_weight("moving_mean", shape, initializer="zeros", trainable=False, **common)
        self.moving_variance = self.add_weight("moving_variance", shape, initializer="ones", trainable=False, **common)
        super().build(input_shape)

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """`[..., c]` of the compute dtype to the same shape and dtype."""
        scale = self.gamma * tf.math.rsqrt(self.moving_variance + self.epsilon)
        offset = self.beta - self.moving_mean * scale
        return inputs * tf.cast(scale, inputs.dtype) + tf.cast(offset, inputs.dtype)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "epsilon": self.epsilon}


class PixelStandardization(tf.keras.layers.Layer):
    """Pixels 0 to 255 to ImageNet's mean 0 and variance 1, as one scale and one shift; computes in float32."""

    # https://pytorch.org/vision/stable/models.html
    MEAN = (0.485, 0.456, 0.406)
    STD = (0.229, 0.224, 0.225)

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(autocast=False, **kwargs)

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """`[b, h, w, 3]` of any dtype, 0 to 255, to the compute dtype."""
        scale = tf.constant([1 / (255 * std) for std in self.STD])
        offset = tf.constant([-mean / std for mean, std in zip(self.MEAN, self.STD, strict=True)])
        return tf.cast(tf.cast(inputs, tf.float32) * scale + offset, self.compute_dtype)
