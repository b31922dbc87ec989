"""Passes over maps of activations `[batch, height, width, channels]`: moments, sums of products, scales and shifts.

TensorFlow's own operations read and write whole tensors, so x * scale + shift goes through memory twice and a sum of
products leaves the products behind. `fused` has XLA compile each pass into one loop that keeps nothing in between. XLA
adds along a dimension in one thread, but adds tensors to each other in all threads. So a sum over pixels first adds
blocks of pixels to each other; TensorFlow sums what is left, which is several times smaller.

XLA compiles anew for each batch size, 30 to 60 ms per pass: worth it for large maps only.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import tensorflow as tf

_MOST_BLOCKS = 7  # of more, XLA makes loops that are several times slower


class Passes(NamedTuple):
    """Maps have the compute dtype; vectors, one number per photo and channel, are float32 `[batch, channels]`.

    Attributes:
      moments: x -> mean and variance over the pixels.
      sums: u, x, mean -> the sums over the pixels of u and of u * (x - mean).
      scale: x, mean, scale, shift -> (x - mean) * scale + shift, a map; this shift is one of all photos, `[channels]`.
      combine: u, scale_of_u, x, mean, scale_of_x, shift -> u * scale_of_u + (x - mean) * scale_of_x + shift, a map.
    """

    moments: Callable[[tf.Tensor], tuple[tf.Tensor, tf.Tensor]]
    sums: Callable[[tf.Tensor, tf.Tensor, tf.Tensor], tuple[tf.Tensor, tf.Tensor]]
    scale: Callable[[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor], tf.Tensor]
    combine: Callable[[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor], tf.Tensor]


def plain() -> Passes:
    """Passes made of TensorFlow's operations, for any device and shape; the mean is taken out of the vectors."""
    return Passes(_moments, _sums, _scale, _combine)


@functools.cache
def fused(height: int, width: int, channels: int, dtype: tf.DType) -> Passes:
    """Passes compiled by XLA for maps of this shape and dtype and batches of any size."""
    a_map, vector = tf.TensorSpec((None, height, width, channels), dtype), tf.TensorSpec((None, channels), tf.float32)
    pixels = height * width
    blocks = next(count for count in range(_MOST_BLOCKS, 0, -1) if pixels % count == 0)

    def compiled(*signature: tf.TensorSpec) -> Callable[..., Any]:
        return tf.function(input_signature=signature, jit_compile=True, autograph=False)

    def split(x: tf.Tensor) -> list[tf.Tensor]:
        grouped = tf.reshape(x, (-1, blocks, pixels // blocks, channels))
        return [_float(grouped[:, block]) for block in range(blocks)]

    # Both sums in one result: XLA does not divide a loop with two among threads.
    @compiled(a_map, vector)
    def deviations(x: tf.Tensor, reference: tf.Tensor) -> tf.Tensor:
        parts = [part - reference[:, tf.newaxis] for part in split(x)]
        return tf.stack([_add(parts), _add([tf.square(part) for part in parts])], 2)

    @compiled(a_map, a_map, vector)
    def products(u: tf.Tensor, x: tf.Tensor, mean: tf.Tensor) -> tf.Tensor:
        of_u, of_x = split(u), split(x)
        pairs = zip(of_u, of_x, strict=True)
        return tf.stack([_add(of_u), _add([a * (b - mean[:, tf.newaxis]) for a, b in pairs])], 2)

    @compiled(a_map, vector, vector, tf.TensorSpec((channels,), tf.float32))
    def scale(x: tf.Tensor, mean: tf.Tensor, scale: tf.Tensor, shift: tf.Tensor) -> tf.Tensor:
        return tf.cast((_float(x) - _over_pixels(mean)) * _over_pixels(scale) + shift, dtype)

    @compiled(a_map, vector, a_map, vector, vector, vector)
    def combine(
        u: tf.Tensor, scale_of_u: tf.Tensor, x: tf.Tensor, mean: tf.Tensor, scale_of_x: tf.Tensor, shift: tf.Tensor
    ) -> tf.Tensor:
        of_x = (_float(x) - _over_pixels(mean)) * _over_pixels(scale_of_x)
        return tf.cast(_float(u) * _over_pixels(scale_of_u) + of_x + _over_pixels(shift), dtype)

    def moments(x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        # In one pass, by deviations from the mean of a sixteenth of the rows. Its squared distance from the mean of all
        # is at most 16 variances, so the difference below loses four bits at worst, whatever the mean is.
        reference = _mean(x[:, : -(-height // 16)])
        of_deviations, of_squares = _both_totals(deviations(x, reference))
        mean = of_deviations / pixels
        return reference + mean, tf.maximum(of_squares / pixels - tf.square(mean), 0)

    return Passes(moments, lambda u, x, mean: _both_totals(products(u, x, mean)), scale, combine)


def _moments(x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    x, mean = _float(x), _mean(x)
    return mean, _mean(tf.math.squared_difference(x, _over_pixels(mean)))


def _mean(x: tf.Tensor) -> tf.Tensor:
    return _total(_float(x)) / tf.cast(tf.shape(x)[1] * tf.shape(x)[2], tf.float32)


def _sums(u: tf.Tensor, x: tf.Tensor, mean: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    of_u = _total(_float(u))
    return of_u, _total(_float(u) * _float(x)) - mean * of_u


def _scale(x: tf.Tensor, mean: tf.Tensor, scale: tf.Tensor, shift: tf.Tensor) -> tf.Tensor:
    return tf.cast(_float(x) * _over_pixels(scale) + _over_pixels(shift - mean * scale), x.dtype)


def _combine(
    u: tf.Tensor, scale_of_u: tf.Tensor, x: tf.Tensor, mean: tf.Tensor, scale_of_x: tf.Tensor, shift: tf.Tensor
) -> tf.Tensor:
    of_u, of_x = _float(u) * _over_pixels(scale_of_u), _float(x) * _over_pixels(scale_of_x)
    return tf.cast(of_u + of_x + _over_pixels(shift - mean * scale_of_x), x.dtype)


def _add(tensors: list[tf.Tensor]) -> tf.Tensor:
    """The sum, by pairs, so that rounding errors do not pile up in one of them."""
    while len(tensors) > 1:
        tensors = [a + b for a, b in zip(tensors[::2], tensors[1::2], strict=False)] + tensors[len(tensors) & ~1 :]
    return tensors[0]


def _both_totals(x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """float32 `[b, p, 2, c]` -> two of `[b, c]`."""
    totals = tf.reshape(_total(tf.reshape(x, [-1, x.shape[1], 2 * x.shape[3]])), [-1, 2, x.shape[3]])
    return totals[:, 0], totals[:, 1]


def _total(x: tf.Tensor) -> tf.Tensor:
    """float32 `[b, ..., c]` -> `[b, c]`; a product with ones is the fastest sum that TensorFlow has for it on a CPU."""
    batch, pixels = tf.shape(x)[0], x.shape[1:-1].num_elements()
    if pixels is None:
        pixels = tf.reduce_prod(tf.shape(x)[1:-1])
    return tf.matmul(tf.ones([batch, 1, pixels]), tf.reshape(x, [batch, pixels, x.shape[-1]]))[:, 0]


def _over_pixels(values: tf.Tensor) -> tf.Tensor:
    return values[:, tf.newaxis, tf.newaxis, :]


def _float(x: tf.Tensor) -> tf.Tensor:
    return tf.cast(x, tf.float32)
