"""Sheets of photos and mean photos."""

from __future__ import annotations

import io
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from flair.dataset.images import MissingPhoto
from flair.dataset.metadata import group_by_user, load_records, photo_path
from flair.dataset.notebooks import by_photos
from flair.statistics.photo_figures import draw_mean_photos, draw_photos, mean_photo


def test_a_mean_photo_is_the_mean(miniature: Path) -> None:
    user = by_photos(group_by_user(load_records(miniature)))[1]
    assert len(user.records) > 3
    photos = [np.asarray(Image.open(photo_path(miniature, record.image_id)), float) for record in user.records]
    assert np.abs(mean_photo(miniature, user) - np.mean(photos, axis=0)).max() <= 0.5 + 1e-9
    assert np.abs(mean_photo(miniature, user, limit=2) - np.mean(photos[:2], axis=0)).max() <= 0.5 + 1e-9


def test_a_sheet_shows_every_photo_and_its_labels(miniature: Path) -> None:
    records = load_records(miniature)[:7]
    figure = draw_photos(miniature, records, "seven", columns=3)
    assert len(figure.axes) == 7
    for axes, record in zip(figure.axes, records, strict=True):
        (shown,) = axes.images
        np.testing.assert_array_equal(shown.get_array(), Image.open(photo_path(miniature, record.image_id)))
        assert record.image_id in axes.get_title()
        assert record.labels[0] in axes.get_xlabel()
    users = group_by_user(records)
    assert len(draw_mean_photos(miniature, users).axes) == len(users)
    figure.savefig(io.BytesIO(), format="png")


def test_a_photo_that_is_missing_does_not_hide_the_others(miniature: Path, tmp_path: Path) -> None:
    records = load_records(miniature)[:2]
    (tmp_path / "small_images").mkdir()
    shutil.copy(photo_path(miniature, records[0].image_id), photo_path(tmp_path, records[0].image_id))
    figure = draw_photos(tmp_path, records, "one of two")
    assert len(figure.axes[0].images) == 1 and not figure.axes[1].images
    assert "missing" in figure.axes[1].texts[0].get_text().replace("\n", " ")
    with pytest.raises(MissingPhoto, match=records[1].image_id):
        mean_photo(tmp_path, group_by_user(records[1:])[0])
    means = draw_mean_photos(tmp_path, [user for record in records for user in group_by_user([record])])
    assert len(means.axes[0].images) == 1 and not means.axes[1].images
    assert records[1].image_id in means.axes[1].texts[0].get_text().replace("\n", "")
    with pytest.raises(ValueError, match="at least one"):
        draw_photos(tmp_path, [], "none")
