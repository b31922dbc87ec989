"""What notebooks need of a dataset: its folder, and its photos by label and by user."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

from flair.dataset.catalog import METADATA_FILE, SMALL_IMAGES_DIR
from flair.dataset.metadata import Record, User
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


def find_photos(
    records: Iterable[Record],
    *,
    labels: Collection[str] = (),
    user_id: str | None = None,
    partition: str | None = None,
) -> list[Record]:
    """The records that carry all of `labels` (coarse or fine-grained), of that user and partition, in their order.

    >>> one = Record("1@N00", "10", ("animal",), ("dog",), "train")
    >>> [len(find_photos([one], labels=labels)) for labels in (["dog", "animal"], ["dog", "plant"])]
    [1, 0]
    """
    wanted = frozenset(labels)
    return [
        record
        for record in records
        if user_id in (None, record.user_id)
        and partition in (None, record.partition)
        and wanted.issubset((*record.labels, *record.fine_grained_labels))
    ]


def find_user(users: Iterable[User], user_id: str) -> User:
    """The user of that id; FlairError where there is no such user."""
    for user in users:
        if user.user_id == user_id:
            return user
    raise FlairError(f"user {user_id!r}: not in this data; expected an id such as 59769174@N00")


def by_photos(users: Sequence[User]) -> list[User]:
    """The users with the most photos first; those with equally many in their order."""
    return sorted(users, key=lambda user: -len(user.records))
