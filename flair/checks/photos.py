"""Checks of the photos in `small_images`: each is there, whole, of the right size and color, and in the metadata."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from flair.checks.comparison import compare_photos
from flair.checks.findings import Check
from flair.checks.metadata import Metadata
from flair.dataset import images
from flair.dataset.catalog import SMALL_IMAGES_DIR
from flair.dataset.metadata import Record, photo_path

_CHECKS: dict[type[images.PhotoError], str] = {
    images.MissingPhoto: "photos exist",
    images.BrokenPhoto: "photos are JPEG and decode in full",
    images.WrongSize: "photos are 256x256",
    images.WrongColors: "photos are RGB",
}


def check_photos(dataset_dir: Path, metadata: Metadata, num_workers: int) -> list[Check]:
    """Decodes every photo; a photo fails at most one of the checks."""
    checks = [Check(name, "photos") for name in _CHECKS.values()]
    compare_photos("Photos", _inspect, dataset_dir, metadata.records, lambda _: 1, checks, num_workers)
    return [*checks, _check_orphans(dataset_dir, metadata)]


def _inspect(dataset_dir: Path, records: Sequence[Record]) -> list[list[str]]:
    """The photos that fail each of `_CHECKS`."""
    failed: dict[type[images.PhotoError], list[str]] = {kind: [] for kind in _CHECKS}
    for record in records:
        where = f"image {record.image_id} of user {record.user_id}"
        try:
            if images.read_jpeg(dataset_dir, record).converted:
                failed[images.WrongColors].append(where)  # it is grayscale
        except images.PhotoError as error:
            failed[type(error)].append(where)
    return list(failed.values())


def _check_orphans(dataset_dir: Path, metadata: Metadata) -> Check:
    check = Check("no photo lacks a record", "files")
    expected = {photo_path(dataset_dir, image_id).name for image_id in metadata.image_ids}
    folder = dataset_dir / SMALL_IMAGES_DIR
    try:
        for name in os.listdir(folder) if folder.is_dir() else ():
            check.checked += 1
            if name not in expected:
                check.fail(f"{SMALL_IMAGES_DIR}/{name}")
    except OSError as error:
        check.fail(f"{SMALL_IMAGES_DIR} cannot be listed ({error.strerror})")
    return check
