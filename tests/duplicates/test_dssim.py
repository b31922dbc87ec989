"""dssim against scikit-image, on pairs of many kinds."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from skimage.metrics import structural_similarity

from flair.duplicates.distance import dssim, dssim_of, moments
from flair.duplicates.planted import cropped, even_sky, night, noised


def expected(one: np.ndarray, other: np.ndarray) -> float:
    return float((1 - structural_similarity(one, other, win_size=35, channel_axis=2)) / 2)


def pairs(folder: Path) -> list[tuple[np.ndarray, np.ndarray]]:
    """50 pairs: neighbouring photos, noisy copies, crops, skies, nights, extremes."""
    rng = np.random.default_rng(4)
    photos = [np.asarray(Image.open(path).convert("RGB")) for path in sorted(folder.iterdir())[:25]]
    found = list(itertools.pairwise(photos))
    found += [(photo, noised(photo, rng.uniform(0, 30), rng)) for photo in photos[:12]]
    found += [(photo, cropped(photo, 3)) for photo in photos[:4]]
    found += [(even_sky(rng), even_sky(rng)) for _ in range(4)] + [(night(rng), night(rng)) for _ in range(4)]
    black, white = np.zeros((256, 256, 3), np.uint8), np.full((256, 256, 3), 255, np.uint8)
    return [*found, (black, white), (photos[0], photos[0])]


def test_it_is_what_scikit_image_computes(miniature: Path) -> None:
    found = pairs(miniature / "small_images")
    assert len(found) == 50
    for one, other in found:
        assert dssim(one, other) == pytest.approx(expected(one, other), abs=1e-6)


def test_moments_can_be_mirrored(miniature: Path) -> None:
    one, other = pairs(miniature / "small_images")[0]
    turned = moments(other).mirrored()
    found = dssim_of(one, moments(one), other[:, ::-1], turned)
    assert found == pytest.approx(expected(one, other[:, ::-1]), abs=1e-6)
