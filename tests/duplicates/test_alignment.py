"""Alignment against a direct computation, nearest neighbors against a sort, and copies that pixels cannot see."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import scipy.ndimage
from PIL import Image

from flair.dataset.metadata import Record
from flair.duplicates import features as features_module
from flair.duplicates.alignment import SIDES, align, detail_of
from flair.duplicates.distance import mirror
from flair.duplicates.features import FeatureTable
from flair.duplicates.planted import cropped, even_sky, grey, recoloured
from flair.duplicates.rule import Thresholds
from flair.duplicates.scope import make_scope
from flair.errors import FlairError

LEAST = Thresholds().review_alignment


def _photos(folder: Path, count: int) -> list[np.ndarray]:
    return [np.asarray(Image.open(path).convert("RGB")) for path in sorted(folder.iterdir())[:count]]


def _detail(photo: np.ndarray, side: int) -> np.ndarray:
    blocks = np.asarray(Image.fromarray(photo).convert("L").resize((side, side), Image.Resampling.BOX), float)
    detail = blocks - scipy.ndimage.uniform_filter(blocks, 5, mode="nearest")
    return np.asarray(detail / np.sqrt(scipy.ndimage.uniform_filter(detail**2, 9, mode="nearest") + 4))


def _directly(one: np.ndarray, other: np.ndarray) -> float:
    best = -1.0
    for whole, crop in ((one, other), (one, mirror(other)), (other, one), (other, mirror(one))):
        around = _detail(whole, 64)
        for side in SIDES.tolist():
            inner = _detail(crop, side).ravel()
            for row in range(64 - side + 1):
                for column in range(64 - side + 1):
                    window = around[row : row + side, column : column + side].ravel()
                    best = max(best, float(np.corrcoef(window, inner)[0, 1]))
    return best


def test_it_is_the_best_correlation_over_all_places_sizes_and_orientations(
    miniature: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flair.duplicates import alignment

    few = np.array([44, 58, 64])
    monkeypatch.setattr(alignment, "SIDES", few)
    monkeypatch.setitem(globals(), "SIDES", few)
    one, other = _photos(miniature / "small_images", 2)
    turned = mirror(cropped(one, 12))
    for a, b in ((one, other), (one, turned)):
        found = align(detail_of(a), detail_of(b))
        assert found == pytest.approx(_directly(a, b), abs=1e-3)
        assert found == align(detail_of(b), detail_of(a))


def test_crops_mirrored_and_recoloured_copies_agree(miniature: Path) -> None:
    for photo in _photos(miniature / "small_images", 4):
        detail = detail_of(photo)
        for border in (4, 8, 16, 32, 64):
            assert align(detail, detail_of(cropped(photo, border))) > LEAST, border
        for copy in (mirror(cropped(photo, 16)), recoloured(photo, (1.2, 1.0, 0.7)), grey(photo)):
            assert align(detail, detail_of(copy)) > LEAST
        assert align(detail, detail) == pytest.approx(1, abs=1e-5)
        turned = detail_of(mirror(photo))
        assert align(detail, turned) == pytest.approx(1, abs=1e-5)
        assert align(detail, turned, both_orientations=False) < 0.99


def test_skies_and_black_photos_do_not_agree(miniature: Path) -> None:
    rng = np.random.default_rng(0)
    skies = [detail_of(even_sky(rng)) for _ in range(3)]
    assert max(align(one, other) for row, one in enumerate(skies) for other in skies[:row]) < LEAST
    black = detail_of(np.zeros((256, 256, 3), np.uint8))
    assert all(abs(align(black, detail_of(photo))) < LEAST for photo in _photos(miniature / "small_images", 2))
    assert abs(align(black, black)) <= 1


def test_real_photos_of_different_scenes_do_not_agree(coco256: Path) -> None:
    details = [detail_of(photo) for photo in _photos(coco256 / "small_images", 12)]
    assert max(align(one, other) for row, one in enumerate(details) for other in details[:row]) < LEAST


@pytest.mark.parametrize("name", ["all", "cross_partition", "cross_user", "within_user"])
def test_the_nearest_are_those_of_a_sort_whatever_the_blocks(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    partitions = rng.choice(["train", "val", "test"], 40)
    records = [
        Record(f"{partitions[i]}{rng.integers(5)}", str(i), ("a",), ("b",), str(partitions[i])) for i in range(40)
    ]
    scope = make_scope(name, records)
    values = rng.normal(size=(50, 4)).astype(np.float32)
    table = FeatureTable(values, rng.permutation(50)[:40].astype(np.int64))
    monkeypatch.setattr(features_module, "_COLUMNS_AT_ONCE", 7)
    found = np.concatenate([table.nearest(scope, range(start, start + 10), 6) for start in range(0, 40, 10)])
    own = values[table.rows].astype(np.float64)
    for row in range(40):
        distances = np.square(own - own[row]).sum(axis=1)
        others = [i for i in np.argsort(distances) if i != row and scope.has(np.array([row]), np.array([i]))[0]][:6]
        assert sorted(found[row].tolist()) == sorted(others + [-1] * (6 - len(others)))


def test_features_that_are_no_numbers_are_refused() -> None:
    values = np.full((3, 2), np.nan, np.float32)
    records = [Record("u", str(i), ("a",), ("b",), "train") for i in range(3)]
    too_large = np.full((3, 2), 1e300)  # for float32, in which they are compared
    for table in (FeatureTable(values, np.arange(3)), FeatureTable(too_large, np.arange(3))):
        with pytest.raises(FlairError, match="no finite numbers"):
            table.nearest(make_scope("all", records), range(3), 1)
