"""Logistic regression on the mean color of a photo, in Keras and in NumPy: a model whose gradient fits on a line."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from tests.support.rounds import SIZE


class NumpyLinear:
    """The model in float64."""

    def __init__(self, kernel: np.ndarray, bias: np.ndarray) -> None:
        self.kernel, self.bias = kernel.astype(np.float64), bias.astype(np.float64)

    def gradients(self, pixels: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Of the mean binary cross-entropy, by kernel and by bias."""
        features = pixels.astype(np.float64).mean((1, 2)) / 255
        scores = 1 / (1 + np.exp(-(features @ self.kernel + self.bias)))
        error = (scores - labels) / labels.size
        return features.T @ error, error.sum(0)


def linear_model(num_outputs: int) -> tf.keras.Model:
    """The model in Keras."""
    return tf.keras.Sequential(
        [
            tf.keras.layers.Rescaling(1 / 255, input_shape=(*SIZE, 3)),
            tf.keras.layers.GlobalAveragePooling2D(),
            tf.keras.layers.Dense(num_outputs, kernel_initializer=tf.keras.initializers.GlorotUniform(5)),
        ]
    )


def clip(gradient: np.ndarray, norm: float) -> np.ndarray:
    """The gradient, no longer than `norm`."""
    return np.asarray(gradient * min(1.0, norm / max(float(np.linalg.norm(gradient)), 1e-30)))
