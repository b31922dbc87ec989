"""Structural dissimilarity of two photos, as ImageNetV2 measures it."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

WINDOW = 35  # pixels
_C1 = (0.01 * 255) ** 2
_C2 = (0.03 * 255) ** 2
_AREA = WINDOW * WINDOW


class Moments(NamedTuple):
    """Sums over each window of a photo, which serve all its pairs: float64 [222, 222, 3] each."""

    mean: NDArray[np.float64]
    variance: NDArray[np.float64]


def dssim(pixels: NDArray[np.uint8], others: NDArray[np.uint8]) -> float:
    """(1 - SSIM) / 2 of two photos uint8 [256, 256, 3]: 0 for equal ones, at most 1.

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


def mirrored(one: Moments) -> Moments:
    """The moments of the photo mirrored left to right."""
    return Moments(one.mean[:, ::-1], one.variance[:, ::-1])


def _sample(sums: NDArray[np.uint32], product_of_means: NDArray[np.float64]) -> NDArray[np.float64]:
    return (sums / _AREA - product_of_means) * (_AREA / (_AREA - 1))


def _window_sums(values: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """Sums over all whole windows; exact, because a window's sum is below 2^32 and what wraps around cancels."""
    total = np.zeros((values.shape[0] + 1, values.shape[1] + 1, values.shape[2]), np.uint32)
    np.cumsum(values, axis=0, dtype=np.uint32, out=total[1:, 1:])
    np.cumsum(total, axis=1, dtype=np.uint32, out=total)
    columns = total[:, WINDOW:] - total[:, :-WINDOW]
    return columns[WINDOW:] - columns[:-WINDOW]
