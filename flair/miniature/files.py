"""The metadata and photos of the miniature, written fast, in order, and never in half."""

from __future__ import annotations

import errno
import functools
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from flair.dataset.catalog import SMALL_IMAGES_DIR
from flair.dataset.metadata import Record, photo_path
from flair.files import atomic
from flair.miniature.photos import Painter
from flair.parallel.processes import map_in_order
from flair.terminal.progress import Progress

_PHOTOS_PER_TASK = 32


def write_metadata(path: Path, records: Sequence[Record]) -> None:
    """Writes what `json.dump(..., indent=4)` writes of the records in the official key order, several times as fast."""
    quoted = functools.cache(json.dumps)  # labels and user ids recur
    with atomic.replacing(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
        separator = "["
        for record in records:
            labels, fine_grained_labels = (
                ",\n            ".join(map(quoted, labels)) for labels in (record.labels, record.fine_grained_labels)
            )
            file.write(
                f'{separator}\n    {{\n        "user_id": {quoted(record.user_id)},\n'
                f'        "image_id": {json.dumps(record.image_id)},\n'
                f'        "labels": [\n            {labels}\n        ],\n'
                f'        "partition": {quoted(record.partition)},\n'
                f'        "fine_grained_labels": [\n            {fine_grained_labels}\n        ]\n    }}'
            )
            separator = ","
        file.write("\n]")


def write_photos(
    dataset_dir: Path, records: Sequence[Record], painter: Painter, distinct: int | None, num_workers: int
) -> None:
    """Draws the photo of every record that is not there yet; see `dataset.make_dataset` for `distinct`."""
    folder = dataset_dir / SMALL_IMAGES_DIR
    folder.mkdir(exist_ok=True)
    atomic.remove_leftovers(folder)
    there = set(os.listdir(folder))
    drawn = records if distinct is None else records[:: max(1, len(records) // distinct)][:distinct]
    todo = [record for record in drawn if f"{record.image_id}.jpg" not in there]
    tasks = [todo[i : i + _PHOTOS_PER_TASK] for i in range(0, len(todo), _PHOTOS_PER_TASK)]
    with Progress(len(records), "drawing", "photo", done=len(there)) as progress:
        for count in map_in_order(_draw, (dataset_dir, painter), tasks, min(num_workers, len(tasks))):
            progress.add(count)
        if distinct is not None:
            there.update(f"{record.image_id}.jpg" for record in drawn)
            originals = [photo_path(dataset_dir, record.image_id) for record in drawn]
            for index, record in enumerate(records):
                if f"{record.image_id}.jpg" not in there:
                    turn = index % len(originals)
                    originals[turn] = _link(originals[turn], photo_path(dataset_dir, record.image_id))
                    progress.add()


def _draw(context: tuple[Path, Painter], records: Sequence[Record]) -> int:
    dataset_dir, painter = context
    for record in records:
        path = photo_path(dataset_dir, record.image_id)
        temporary = atomic.beside(path, f"{os.getpid()}.tmp")
        # Not atomic.replacing: its fsync for each of 429,078 files would take longer than the drawing.
        try:
            temporary.write_bytes(painter.jpeg(record))
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    return len(records)


def _link(original: Path, path: Path) -> Path:
    """Links `path` to `original`, or copies where that cannot be; returns the one to link the next to."""
    try:
        os.link(original, path)
        return original
    except OSError as error:
        if error.errno not in (errno.EMLINK, errno.EPERM, errno.EOPNOTSUPP):
            raise
    with atomic.replacing(path) as temporary:
        shutil.copyfile(original, temporary)
    return path
