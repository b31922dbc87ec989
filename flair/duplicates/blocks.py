"""Means of 16x16-pixel blocks: 768 numbers per photo that bound the distance of two photos from below.

Of each block the sum is kept, not the mean: a whole number that fits 16 bits, so that everything here is exact. For the
256 pixels of a block, by Cauchy-Schwarz, sum (x - y)^2 >= (sum (x - y))^2 / 256; added up over all blocks and colours,
l2(x, y) >= |sums(x) - sums(y)|^2 / 256 = 256 |means(x) - means(y)|^2.

The detail of a block, which is the block less its mean, is orthogonal to the mean, and two vectors are at least as far
from each other as their lengths: sum (x - y)^2 >= (sum (x - y))^2 / 256 + (|detail(x)| - |detail(y)|)^2. The length
times 32, rounded down to a whole number of 16 bits, is kept too; lengths differ by more than (difference of the kept -
1) / 32. Either bound excludes pairs and never decides that two photos are alike.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from flair.dataset.catalog import IMAGE_SIZE

BLOCK = 16
BLOCKS = IMAGE_SIZE // BLOCK
NUM_SUMS = BLOCKS * BLOCKS * 3
PIXELS_PER_BLOCK = BLOCK * BLOCK
MAX_SUM = 255 * PIXELS_PER_BLOCK
DETAIL_SCALE = 32


def block_sums(pixels: NDArray[np.uint8]) -> NDArray[np.uint16]:
    """Sums uint16 [768] over the 16x16-pixel blocks of a photo uint8 [256, 256, 3], by row, column and colour.

    >>> block_sums(np.full((256, 256, 3), 255, np.uint8))[:2]
    array([65280, 65280], dtype=uint16)
    """
    rows = pixels.reshape(BLOCKS, BLOCK, IMAGE_SIZE * 3).sum(axis=1, dtype=np.uint16)
    return rows.reshape(BLOCKS, BLOCKS, BLOCK, 3).sum(axis=2, dtype=np.uint16).reshape(NUM_SUMS)


def block_details(pixels: NDArray[np.uint8]) -> NDArray[np.uint16]:
    """Lengths uint16 [768] of what each block of a photo has besides its mean, times 32, rounded down.

    >>> checked = np.indices((256, 256)).sum(axis=0) % 2 * 255
    >>> block_details(np.stack([checked] * 3, axis=2).astype(np.uint8))[:2]
    array([65280, 65280], dtype=uint16)
    """
    # 256 squares add up to less than 2^24: float32 adds them without an error.
    rows = pixels.reshape(BLOCKS, BLOCK, IMAGE_SIZE * 3).astype(np.float32)
    squares = np.einsum("bri,bri->bi", rows, rows).reshape(BLOCKS, BLOCKS, BLOCK, 3).sum(axis=2).reshape(NUM_SUMS)
    # (32 length)^2, a whole number far below 2^52: its float64 root is on the right side of every whole number.
    scaled = 4 * (PIXELS_PER_BLOCK * squares.astype(np.float64) - block_sums(pixels).astype(np.float64) ** 2)
    return np.sqrt(scaled).astype(np.uint16)


def mirrored(sums: NDArray[Any]) -> NDArray[Any]:
    """The sums or details [..., 768] of the photos mirrored left to right."""
    return sums.reshape(*sums.shape[:-1], BLOCKS, BLOCKS, 3)[..., ::-1, :].reshape(sums.shape)


def lower_bound(sums: NDArray[np.uint16], others: NDArray[np.uint16]) -> NDArray[np.int64]:
    """The least l2, a whole number, that photos of these sums [..., 768] can have; int64 [...].

    >>> black, white = np.zeros(768, np.uint16), np.full(768, 65280, np.uint16)
    >>> int(lower_bound(black, white)) == 256 * 256 * 3 * 255**2
    True
    """
    return -(-_squared(sums.astype(np.float64) - others) // PIXELS_PER_BLOCK)


def detail_bound(details: NDArray[np.uint16], others: NDArray[np.uint16]) -> NDArray[np.int64]:
    """What photos of these details [..., 768] add to `lower_bound` at least; int64 [...].

    >>> int(detail_bound(np.full(768, 1), np.full(768, 33)))
    720
    """
    difference = np.abs(details.astype(np.float64) - others) - 1
    return _squared(np.maximum(difference, 0, out=difference)) // DETAIL_SCALE**2


def _squared(difference: NDArray[np.float64]) -> NDArray[np.int64]:
    # Whole numbers whose sum stays below 2^53: float64 adds them without an error.
    return np.asarray(np.einsum("...i,...i->...", difference, difference)).astype(np.int64)
