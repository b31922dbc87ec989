"""Finding the dataset for a notebook, or saying how to get one."""

from __future__ import annotations

import os
from pathlib import Path

from flair.dataset.catalog import METADATA_FILE, SMALL_IMAGES_DIR
from flair.errors import FlairError

_HOW = (
    "Set the variable FLAIR_DATASET_DIR before you start Jupyter, or write the folder into the first cell.\n"
    "No data yet? This makes a miniature, in a terminal or in a cell with a ! in front:\n"
    "    python3 -m flair.synthetic --dataset_dir=mini --num_images=2000\n"
    "and this downloads the real one (6 GB): python3 download_dataset.py --dataset_dir=data"
)


class NoData(FlairError):
    """There is no dataset to explore."""


def check_dataset_dir(dataset_dir: str | os.PathLike[str], photos: bool = False) -> Path:
    """The folder, if it holds metadata, and with `photos` also photos; else NoData says how to make a miniature."""
    given = os.fspath(dataset_dir)
    folder = Path(given).expanduser()  # no shell has read what was written into a cell
    if not given:
        raise NoData(f"No dataset was named.\n{_HOW}")
    if not (folder / METADATA_FILE).is_file():
        raise NoData(f"{folder.absolute()} has no {METADATA_FILE}, so it is no FLAIR dataset.\n{_HOW}")
    if photos and not (folder / SMALL_IMAGES_DIR).is_dir():
        raise NoData(f"{folder.absolute()} has metadata, but no photos ({SMALL_IMAGES_DIR}).\n{_HOW}")
    return folder
