"""Runs photos through a network and writes what it sees in each, row by row."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import numpy as np
import tensorflow as tf

from flair.files.growing import GrowingArrays
from flair.terminal.progress import Progress


def fill(
    growing: GrowingArrays, body: tf.keras.Model, batches: Iterable[tf.Tensor], dtype: np.dtype, what: str
) -> None:
    """Writes the features of the photos that are not done yet.

    Args:
      growing: one array [photos, d] in the making; what is done of it is saved whatever stops the work.
      body: pixels [b, height, width, 3] to features [b, d].
      batches: the pixels of the photos from `growing.num_done` on.
      dtype: in which they are kept.
      what: what the progress is called.
    """

    @tf.function(reduce_retracing=True)
    def forward(pixels: tf.Tensor) -> tf.Tensor:
        return tf.cast(body(pixels, training=False), tf.float32)

    try:
        with Progress(growing.num_rows, what, "photo", done=growing.num_done) as progress:
            for pixels in batches:
                features = forward(pixels).numpy()
                growing.add(features.astype(dtype))
                progress.add(len(features))
    finally:
        growing.save()


def weights_digest(body: tf.keras.Model) -> str:
    """SHA-256 over the names, shapes and values of all weights."""
    sha = hashlib.sha256()
    for layer in body.layers:
        for variable in layer.weights:
            value = variable.numpy()
            sha.update(f"{layer.name} {variable.name.rpartition('/')[2]} {value.dtype} {value.shape}\n".encode())
            sha.update(value.tobytes())
    return sha.hexdigest()
