"""How well the detail of two photos agrees where one is laid over the other as a crop: what pixel distance cannot see.

A photo is reduced to 64x64 grey blocks of 4x4 pixels. Its detail is what is left without the mean of the 5x5 blocks
around each, divided by the deviation of that over 9x9: brightness, contrast and colours drop out, smooth skies have
none. The other photo is scaled to 32, 34, ..., 64 blocks a side, mirrored or not, and laid over it at every place;
what counts is the correlation of the details at the best one (normalized cross-correlation: J. P. Lewis, "Fast
Template Matching", 1995), by Fourier transforms. Both photos take either part.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import scipy.fft
import scipy.ndimage
from numpy.typing import NDArray
from PIL import Image

SIDE = 64
SIDES = np.arange(32, SIDE + 1, 2)  # blocks a side that are left of a crop: down to half of a photo's width
_MEAN, _DEVIATION = 5, 9
_LEAST_VARIANCE = 4.0  # of detail, in grey levels squared: what is evener has no contrast to be divided by
_FLAT = 1e-3


class Detail(NamedTuple):
    """Of one photo: the transform of its detail, complex64 [64, 33], its deviations in every window, float32
    [sides, 33, 33], and the transforms of it as a crop, complex64 [2, sides, 64, 33], as it is and mirrored."""

    whole: NDArray[np.complex64]
    deviations: NDArray[np.float32]
    crops: NDArray[np.complex64]


def detail_of(pixels: NDArray[np.uint8]) -> Detail:
    """Prepares a photo uint8 [256, 256, 3]."""
    grey = Image.fromarray(pixels).convert("L")
    whole = _detail(grey, SIDE)
    sums, squares = _integral(whole), _integral(whole.astype(np.float64) ** 2)
    most = SIDE - int(SIDES[0]) + 1
    deviations = np.full((len(SIDES), most, most), np.inf, np.float32)
    crops = np.empty((2, len(SIDES), SIDE, SIDE // 2 + 1), np.complex64)
    for row, side in enumerate(SIDES.tolist()):
        places = SIDE - side + 1
        variance = _windows(squares, side) - _windows(sums, side) ** 2 / side**2
        deviations[row, :places, :places] = np.sqrt(np.maximum(variance, _FLAT))
        crop = _detail(grey, side)
        crop = crop - crop.mean()
        crop /= max(float(np.sqrt(np.square(crop).sum())), _FLAT)
        for turned, one in enumerate((crop, crop[:, ::-1])):
            crops[turned, row] = np.conj(scipy.fft.rfft2(one, (SIDE, SIDE)))
    return Detail(scipy.fft.rfft2(whole), deviations, crops)


def align(one: Detail, other: Detail, both_orientations: bool = True) -> float:
    """The correlation of the details, -1 to 1, at the best of all ways to lay one photo over the other.

    With `both_orientations` the mirrored photo is laid there, too.
    """
    orientations = 2 if both_orientations else 1
    best = -1.0
    for whole, crop in ((one, other), (other, one)):
        places = whole.deviations.shape[-1]
        products = scipy.fft.irfft2(whole.whole * crop.crops[:orientations], (SIDE, SIDE))
        best = max(best, float((products[..., :places, :places] / whole.deviations).max()))
    return min(best, 1.0)


def _detail(grey: Image.Image, side: int) -> NDArray[np.float32]:
    blocks = np.asarray(grey.resize((side, side), Image.Resampling.BOX), np.float32)
    detail = blocks - scipy.ndimage.uniform_filter(blocks, _MEAN, mode="nearest")
    variance = scipy.ndimage.uniform_filter(np.square(detail), _DEVIATION, mode="nearest")
    return np.asarray(detail / np.sqrt(np.maximum(variance, 0) + _LEAST_VARIANCE), np.float32)


def _integral(values: NDArray[np.floating]) -> NDArray[np.float64]:
    return np.pad(values.astype(np.float64).cumsum(0).cumsum(1), ((1, 0), (1, 0)))


def _windows(integral: NDArray[np.float64], side: int) -> NDArray[np.float64]:
    """Sums over all windows of `side` x `side`."""
    return integral[side:, side:] - integral[:-side, side:] - integral[side:, :-side] + integral[:-side, :-side]
