"""Checks of the photos in `small_images`: each is there, whole, of the right size and color, and in the metadata."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from flair.checks.findings import Check
from flair.checks.metadata import Metadata
from flair.dataset import images
from flair.dataset.catalog import SMALL_IMAGES_DIR
from flair.dataset.metadata import Record, photo_path
from flair.parallel.processes import batches, map_in_order
from flair.terminal.progress import Progress

_PHOTOS_PER_TASK = 512


def check_photos(dataset_dir: Path, metadata: Metadata, num_workers: int) -> list[Check]:
    """Decodes every photo; a photo fails at most one of the checks."""
    records = metadata.records
    exist = Check("photos exist", "photos", len(records))
    whole = Check("photos are JPEG and decode in full", "photos", len(records))
    sized = Check("photos are 256x256", "photos", len(records))
    colored = Check("photos are RGB", "photos", len(records))
    checks: dict[type[images.PhotoError], Check] = {
        images.MissingPhoto: exist,
        images.BrokenPhoto: whole,
        images.WrongSize: sized,
        images.WrongColors: colored,
    }
    tasks = list(batches(records, _PHOTOS_PER_TASK, lambda _: 1))
    with Progress(len(records), "Photos", "photo") as progress:
        inspected = map_in_order(_inspect, dataset_dir, tasks, min(num_workers, len(tasks)))
        for task, problems in zip(tasks, inspected, strict=True):
            for record, problem in problems:
                checks[problem].fail(f"image {record.image_id} of user {record.user_id}")
            progress.add(len(task))
    return [exist, whole, sized, colored, _check_orphans(dataset_dir, metadata)]


def _inspect(dataset_dir: Path, records: Sequence[Record]) -> list[tuple[Record, type[images.PhotoError]]]:
    problems: list[tuple[Record, type[images.PhotoError]]] = []
    for record in records:
        try:
            if images.read_jpeg(dataset_dir, record).converted:
                problems.append((record, images.WrongColors))  # grayscale
        except images.PhotoError as error:
            problems.append((record, type(error)))
    return problems


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
