"""Means of 16x16-pixel blocks: 768 numbers a photo that bound the distance of two photos from below.

Of each block the sum is kept, not the mean: a whole number that fits 16 bits, so that everything here is exact. For the
256 pixels of a block, by Cauchy-Schwarz, sum (x - y)^2 >= (sum (x - y))^2 / 256; added up over all blocks and colours,
l2(x, y) >= |sums(x) - sums(y)|^2 / 256 = 256 |means(x) - means(y)|^2. The bound is 0 for photos that differ only within
blocks, so it excludes pairs and never decides that two photos are alike.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from flair.catalog import IMAGE_SIZE

BLOCK = 16
BLOCKS = IMAGE_SIZE // BLOCK
NUM_SUMS = BLOCKS * BLOCKS * 3
PIXELS_PER_BLOCK = BLOCK * BLOCK
MAX_SUM = 255 * PIXELS_PER_BLOCK


def block_sums(pixels: NDArray[np.uint8]) -> NDArray[np.uint16]:
    """Sums uint16 [768] over the 16x16-pixel blocks of a photo uint8 [256, 256, 3], by row, column and colour.

    >>> block_sums(np.full((256, 256, 3), 255, np.uint8))[:2]
    array([65280, 65280], dtype=uint16)
    """
    rows = pixels.reshape(BLOCKS, BLOCK, IMAGE_SIZE * 3).sum(axis=1, dtype=np.uint16)
    return rows.reshape(BLOCKS, BLOCKS, BLOCK, 3).sum(axis=2, dtype=np.uint16).reshape(NUM_SUMS)


def mirrored(sums: NDArray[Any]) -> NDArray[Any]:
    """The sums [..., 768] of the photos mirrored left to right."""
    return sums.reshape(*sums.shape[:-1], BLOCKS, BLOCKS, 3)[..., ::-1, :].reshape(sums.shape)


def lower_bound(sums: NDArray[np.uint16], others: NDArray[np.uint16]) -> NDArray[np.int64]:
    """The least l2, a whole number, that photos of these sums [..., 768] can have; int64 [...].

    >>> black, white = np.zeros(768, np.uint16), np.full(768, 65280, np.uint16)
    >>> int(lower_bound(black, white)) == 256 * 256 * 3 * 255**2
    True
    """
    return -(-scaled_distance(sums, others) // PIXELS_PER_BLOCK)


def scaled_distance(sums: NDArray[np.uint16], others: NDArray[np.uint16]) -> NDArray[np.int64]:
    """|sums - others|^2, exactly: int64 [...]; 256 times the lower bound."""
    difference = sums.astype(np.int64) - others.astype(np.int64)
    return np.einsum("...i,...i->...", difference, difference)
