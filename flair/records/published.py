"""What the published functions of prepare_dataset.py and prepare_tfrecords.py have in common."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from flair.dataset.catalog import METADATA_FILE, SMALL_IMAGES_DIR
from flair.dataset.metadata import group_by_user, read_records, record_to_json

NUM_WORKERS = 1  # a script that calls a function at its top level cannot start processes, which would import it


def user_metadata(labels_file: str) -> dict[str, list[dict[str, Any]]]:
    """User id -> their checked records as dicts in the published form; FlairError as `metadata.load_records`."""
    users = group_by_user(read_records(Path(labels_file)))
    return {user.user_id: [record_to_json(record) for record in user.records] for user in users}


@contextlib.contextmanager
def dataset_dir(image_dir: str, labels_file: str) -> Iterator[Path]:
    """A dataset directory of these photos and this metadata file, wherever they lie."""
    photos, metadata = Path(image_dir).resolve(), Path(labels_file).resolve()
    if photos == metadata.parent / SMALL_IMAGES_DIR and metadata.name == METADATA_FILE:
        yield metadata.parent
        return
    with tempfile.TemporaryDirectory(prefix="flair-") as folder:
        (Path(folder) / SMALL_IMAGES_DIR).symlink_to(photos)
        (Path(folder) / METADATA_FILE).symlink_to(metadata)
        yield Path(folder)
