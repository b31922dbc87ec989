"""Checks of the photos in `small_images`: each is there, whole, of the right size and color, and in the metadata."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from flair.checks.findings import Check
from flair.checks.metadata import Metadata
from flair.dataset import images
from flair.dataset.catalog import SMALL_IMAGES_DIR
from flair.dataset.metadata import Record, photo_path
from flair.parallel.processes import map_in_order
from flair.terminal.progress import Progress

_PHOTOS_PER_TASK = 512
_GRAYSCALE = "grayscale"


def check_photos(dataset_dir: Path, metadata: Metadata, num_workers: int) -> list[Check]:
    """Decodes every photo; a photo fails at most one of the checks."""
    records = metadata.records
    exist = Check("photos exist", "photos", len(records))
    whole = Check("photos are JPEG and decode in full", "photos", len(records))
    sized = Check("photos are 256x256", "photos", len(records))
    colored = Check("photos are RGB", "photos", len(records))
    checks = {
        images.MissingPhoto.__name__: exist,
        images.BrokenPhoto.__name__: whole,
        images.WrongSize.__name__: sized,
        images.WrongColors.__name__: colored,
        _GRAYSCALE: colored,
    }
    tasks = [records[first : first + _PHOTOS_PER_TASK] for first in range(0, len(records), _PHOTOS_PER_TASK)]
    with Progress(len(records), "Photos", "photo") as progress:
        for task, problems in zip(
            tasks, map_in_order(_inspect, dataset_dir, tasks, min(num_workers, len(tasks))), strict=True
        ):
            for record, problem in problems:
                checks[problem].fail(f"image {record.image_id} of user {record.user_id}")
            progress.add(len(task))
    return [exist, whole, sized, colored, _check_orphans(dataset_dir, metadata)]


def _inspect(dataset_dir: Path, records: Sequence[Record]) -> list[tuple[Record, str]]:
    problems = []
    for record in records:
        try:
            if images.read_jpeg(dataset_dir, record).converted:
                problems.append((record, _GRAYSCALE))
        except images.PhotoError as error:
            problems.append((record, type(error).__name__))
    return problems


def _check_orphans(dataset_dir: Path, metadata: Metadata) -> Check:
    check = Check("no photo lacks a record", "files")
    expected = {photo_path(dataset_dir, image_id).name for image_id in metadata.image_ids}
    try:
        for name in _file_names(dataset_dir / SMALL_IMAGES_DIR):
            check.checked += 1
            if name not in expected:
                check.fail(f"{SMALL_IMAGES_DIR}/{name}")
    except OSError as error:
        check.fail(f"{SMALL_IMAGES_DIR} cannot be listed ({error.strerror})")
    return check


def _file_names(folder: Path) -> Iterator[str]:
    if folder.is_dir():
        with os.scandir(folder) as entries:
            yield from (entry.name for entry in entries)
