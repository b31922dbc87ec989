"""Functions that somebody may give to --models: what they return scores photos."""

from __future__ import annotations

import sys
from collections.abc import Callable

import numpy as np
import tensorflow as tf

Pixels = np.ndarray
GIVEN = "tests.support.given_functions"
NUM_OUTPUTS = 15  # as the miniature has


def by_color(shape: tuple[int, int, int]) -> Callable[[Pixels], np.ndarray]:
    """Scores of a photo [photos, 15] from its mean color, in plain NumPy, as another library would give them."""
    kernel = np.random.default_rng(shape[0]).normal(size=(3, NUM_OUTPUTS))

    def score(pixels: Pixels) -> np.ndarray:
        return 1 / (1 + np.exp(-(pixels.mean(axis=(1, 2)) / 255 @ kernel)))

    return score


def in_keras(shape: tuple[int, int, int]) -> tf.keras.Model:
    """The same as a Keras model, with a layer that would drop half of all numbers in training."""
    kernel = np.random.default_rng(shape[0]).normal(size=(3, NUM_OUTPUTS))
    pixels = tf.keras.Input(shape)
    mean = tf.keras.layers.GlobalAveragePooling2D()(tf.keras.layers.Rescaling(1 / 255)(pixels))
    head = tf.keras.layers.Dense(NUM_OUTPUTS, "sigmoid")
    model = tf.keras.Model(pixels, head(tf.keras.layers.Dropout(0.5)(mean)))
    head.set_weights([kernel, np.zeros(NUM_OUTPUTS)])
    return model


def in_place(shape: tuple[int, int, int]) -> Callable[[Pixels], np.ndarray]:
    """The same as `by_color`, which scales the photos that it is given where they are."""
    score = by_color(shape)

    def scaled(pixels: Pixels) -> np.ndarray:
        pixels /= 255
        return score(255 * pixels)

    return scaled


def ending(shape: tuple[int, int, int]) -> Callable[[Pixels], np.ndarray]:
    """Ends the process, as a script's `main` does."""
    return lambda pixels: sys.exit(3)


def logits(shape: tuple[int, int, int]) -> Callable[[Pixels], np.ndarray]:
    """Not scores."""
    return lambda pixels: np.full((len(pixels), NUM_OUTPUTS), 3.5)


def one_for_all(shape: tuple[int, int, int]) -> Callable[[Pixels], np.ndarray]:
    """One row, however many photos."""
    return lambda pixels: np.zeros(NUM_OUTPUTS)


def raising(shape: tuple[int, int, int]) -> None:
    """No weights."""
    raise OSError(f"no weights for {shape}")


NOTHING = None
