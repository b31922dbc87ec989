"""How far two photos are from each other, pixel by pixel, and how much of their fine detail they share."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from flair.duplicates.blocks import PIXELS_PER_BLOCK

# Rows of 256 squares of at most 255 add up to less than 2^24: float32 adds them without an error, in any order.
_ROW = 256


def squared_distance(pixels: NDArray[np.uint8], others: NDArray[np.uint8]) -> int:
    """l2: the squared Euclidean distance of two photos uint8 [256, 256, 3], exactly.

    That of ImageNetV2 (Recht et al., 2019, https://arxiv.org/abs/1902.10811), whose review threshold is 1.2e8.

    >>> black, white = np.zeros((256, 256, 3), np.uint8), np.full((256, 256, 3), 255, np.uint8)
    >>> squared_distance(black, white) == 256 * 256 * 3 * 255**2
    True
    """
    difference = np.subtract(pixels, others, dtype=np.int16).astype(np.float32).reshape(-1, _ROW)
    return int(np.einsum("ij,ij->i", difference, difference).sum(dtype=np.float64))


def mirror(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The photo mirrored left to right."""
    return pixels[:, ::-1]


def energy(pixels: NDArray[np.uint8]) -> int:
    """The sum of all squared values, exactly.

    >>> energy(np.full((256, 256, 3), 2, np.uint8))
    786432
    """
    values = pixels.reshape(-1).astype(np.float64)
    return int(values @ values)


def detail_correlation(
    l2: NDArray[np.int64], energies: NDArray[np.int64], sums: NDArray[np.uint16], others: NDArray[np.uint16]
) -> NDArray[np.float64]:
    """The correlation, from -1 to 1, of what two photos have within their 16x16-pixel blocks; 0 where one has nothing.

    Two pictures of an even sky are near in l2 and in SSIM without being copies: they share their colours and no detail.

    Args:
      l2: squared distances int64 [k] of k pairs.
      energies: of both photos, int64 [2, k], see `energy`.
      sums: block sums uint16 [k, 768] of the first photos, see `blocks`; `others` are those of the second
        ones, turned as they were when l2 was measured.

    Returns:
      float64 [k].
    """
    one, other = sums.astype(np.int64), others.astype(np.int64)
    inner = (energies[0] + energies[1] - l2) // 2 - _dot(one, other) / PIXELS_PER_BLOCK
    norms = (energies[0] - _dot(one, one) / PIXELS_PER_BLOCK) * (energies[1] - _dot(other, other) / PIXELS_PER_BLOCK)
    return np.clip(np.divide(inner, np.sqrt(norms), out=np.zeros(len(inner)), where=norms > 0), -1.0, 1.0)


def _dot(one: NDArray[np.int64], other: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.einsum("ki,ki->k", one, other)
