"""Runs photos through a network and writes what it sees in each, row by row."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import tensorflow as tf

from flair.errors import FlairError
from flair.files.growing import GrowingArrays
from flair.terminal.progress import Progress


def compiled(body: tf.keras.Model) -> Callable[[tf.Tensor], tf.Tensor]:
    """Pixels [b, height, width, 3] to features float32 [b, d]."""

    @tf.function(reduce_retracing=True)
    def forward(pixels: tf.Tensor) -> tf.Tensor:
        return tf.cast(body(pixels, training=False), tf.float32)

    return forward


def fill(
    growing: GrowingArrays,
    forward: Callable[[tf.Tensor], tf.Tensor],
    batches: Iterable[tf.Tensor],
    dtype: np.dtype,
    what: str,
) -> None:
    """Writes the features of the photos that are not done yet.

    Args:
      growing: one array [photos, d] in the making; what is done of it is saved whatever stops the work.
      forward: `compiled`.
      batches: the pixels of the photos from `growing.num_done` on.
      dtype: in which they are kept.
      what: what the progress is called.

    Raises:
      FlairError: a feature is not a finite number, in this type.
    """
    try:
        with Progress(growing.num_rows, what, "photo", done=growing.num_done) as progress:
            for pixels in batches:
                features = forward(pixels).numpy()
                with np.errstate(over="ignore"):  # becomes infinite, which is refused
                    kept = features.astype(dtype)
                if not np.isfinite(kept).all():
                    raise FlairError(_not_finite(features, dtype))
                growing.add(kept)
                progress.add(len(features))
    finally:
        growing.save()


def _not_finite(features: np.ndarray, dtype: np.dtype) -> str:
    if np.isfinite(features).all():
        return f"features reach {np.abs(features).max():.3g}, which {dtype} cannot hold; give --feature_dtype=float32"
    return "the network gives features that are no finite numbers: its training has diverged; start from other weights"
