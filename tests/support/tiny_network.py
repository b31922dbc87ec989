"""A network that TensorFlow traces in a fraction of the time of `cnn`, for tests that any network would do."""

from __future__ import annotations

import tensorflow as tf

from benchmark.model.normalization import GroupNormalization

TINY = "tests.support.tiny_network:tiny"  # what --model and build_model take


def tiny(shape: tuple[int, int, int]) -> tf.keras.Model:
    """Pixels `[b, h, w, 3]` to 64 features: one convolution and its normalization, 12,480 weights in four tensors."""
    pixels = tf.keras.Input(shape)
    scaled = tf.keras.layers.Rescaling(1 / 64, -2)(pixels)
    maps = GroupNormalization(8, name="normalization")(tf.keras.layers.Conv2D(64, 8, 8, name="convolution")(scaled))
    return tf.keras.Model(pixels, tf.keras.layers.GlobalAveragePooling2D()(tf.nn.relu(maps)))
