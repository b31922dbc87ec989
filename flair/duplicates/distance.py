"""How far two photos are from each other, pixel by pixel and by structure, and how much fine detail they share."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from flair.duplicates.blocks import PIXELS_PER_BLOCK

# Rows of 256 squares of at most 255 add up to less than 2^24: float32 adds them without an error, in any order.
_ROW = 256
WINDOW = 35  # pixels
_C1 = (0.01 * 255) ** 2
_C2 = (0.03 * 255) ** 2
_AREA = WINDOW * WINDOW


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
    return int(np.einsum("i,i->", values, values))  # not @, whose threads spin between photos


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


class Moments(NamedTuple):
    """Mean and sample variance of each window of a photo, which serve all its pairs: float64 [222, 222, 3] each."""

    mean: NDArray[np.float64]
    variance: NDArray[np.float64]

    def mirrored(self) -> Moments:
        """The moments of the photo mirrored left to right."""
        return Moments(self.mean[:, ::-1], self.variance[:, ::-1])


def dssim(pixels: NDArray[np.uint8], others: NDArray[np.uint8]) -> float:
    """(1 - SSIM) / 2 of two photos uint8 [256, 256, 3]: 0 for equal ones, at most 1; as ImageNetV2 measures it.

    SSIM (Wang et al., 2004, https://doi.org/10.1109/TIP.2003.819861) with a uniform window of 35 pixels, sample
    covariance and a range of 255, the mean over all whole windows and the three colours: what
    `skimage.metrics.structural_similarity(x, y, win_size=35, channel_axis=2)` computes.

    >>> round(dssim(np.zeros((256, 256, 3), np.uint8), np.full((256, 256, 3), 255, np.uint8)), 6)
    0.49995
    """
    return dssim_of(pixels, moments(pixels), others, moments(others))


def dssim_of(pixels: NDArray[np.uint8], own: Moments, others: NDArray[np.uint8], theirs: Moments) -> float:
    """`dssim` with the moments of both photos known."""
    product = own.mean * theirs.mean
    covariance = _sample(_window_sums(np.multiply(pixels, others, dtype=np.uint32)), product)
    similarity = (2 * product + _C1) * (2 * covariance + _C2)
    similarity /= (own.mean**2 + theirs.mean**2 + _C1) * (own.variance + theirs.variance + _C2)
    return float((1 - similarity.mean()) / 2)


def moments(pixels: NDArray[np.uint8]) -> Moments:
    """Mean and sample variance of each whole window of a photo uint8 [256, 256, 3]."""
    mean = _window_sums(pixels.astype(np.uint32)) / _AREA
    return Moments(mean, _sample(_window_sums(np.multiply(pixels, pixels, dtype=np.uint32)), mean * mean))


def _sample(sums: NDArray[np.uint32], product_of_means: NDArray[np.float64]) -> NDArray[np.float64]:
    return (sums / _AREA - product_of_means) * (_AREA / (_AREA - 1))


def _window_sums(values: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """Sums over all whole windows; exact, because a window's sum is below 2^32 and what wraps around cancels."""
    total = np.zeros((values.shape[0] + 1, values.shape[1] + 1, values.shape[2]), np.uint32)
    np.cumsum(values, axis=0, dtype=np.uint32, out=total[1:, 1:])
    np.cumsum(total, axis=1, dtype=np.uint32, out=total)
    columns = total[:, WINDOW:] - total[:, :-WINDOW]
    return columns[WINDOW:] - columns[:-WINDOW]
