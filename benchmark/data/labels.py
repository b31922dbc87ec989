"""Ids and labels of all photos of a partition, without their pixels."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from benchmark.data.records import Records
from flair.errors import FlairError
from flair.records.tfrecord import example
from flair.terminal.progress import Progress


class PhotoTable(NamedTuple):
    """One row per photo, in the order of `Records.photo_index`: by user, then in file order.

    Attributes:
      users: ids of the partition's users, sorted.
      owner: int64 [photos], place of each photo's user in `users`.
      image_ids: None where the records have no ids.
      labels, fine_grained_labels: columns that each photo carries.
    """

    users: list[str]
    owner: np.ndarray
    image_ids: list[str | None]
    labels: list[tuple[int, ...]]
    fine_grained_labels: list[tuple[int, ...]]

    def rows_by_user(self) -> list[np.ndarray]:
        """Rows int64 of each user's photos, in the order of `users`."""
        return np.split(np.arange(len(self.owner)), np.cumsum(np.bincount(self.owner, minlength=len(self.users)))[:-1])


def read_photo_table(records: Records, partition: str) -> PhotoTable:
    """Reads every photo of the partition once.

    Raises:
      FlairError: a photo cannot be read, or carries a label that the label file does not have; one line naming it.
    """
    users = records.users(partition)
    owner: list[int] = []
    image_ids: list[str | None] = []
    labels: list[tuple[int, ...]] = []
    fine_grained_labels: list[tuple[int, ...]] = []
    with Progress(len(users), f"reading the labels of {partition}", "user") as progress:
        for place, user_id in enumerate(users):
            for position, serialized in enumerate(records.read_user(partition, user_id)):
                photo = _decode(records, user_id, position, serialized)
                owner.append(place)
                image_ids.append(photo.image_id)
                labels.append(photo.labels)
                fine_grained_labels.append(photo.fine_grained_labels)
            progress.add()
    return PhotoTable(users, np.array(owner, np.int64), image_ids, labels, fine_grained_labels)


def _decode(records: Records, user_id: str, position: int, serialized: bytes) -> example.Example:
    try:
        photo = example.decode(serialized)
    except FlairError as error:
        raise FlairError(f"{records.root}: record {position} of user {user_id}: {error}") from None
    for columns, known in ((photo.labels, records.labels), (photo.fine_grained_labels, records.fine_grained_labels)):
        check_columns(columns, len(known), f"{records.root}: record {position} of user {user_id}")
    return photo


def check_columns(columns: Iterable[int], num_columns: int, place: str) -> None:
    """Raises FlairError, in one line that begins with `place`, where a photo has a label that the label file lacks."""
    if any(not 0 <= column < num_columns for column in columns):
        raise FlairError(
            f"{place} has a label column outside 0 to {num_columns - 1}; the records do not belong to this label file"
        )
