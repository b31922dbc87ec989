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
    """One row per photo, in the order of `Records.photo_index`: by user, then in file order."""

    users: list[str]  # sorted
    owner: np.ndarray  # int64 [photos], place of each photo's user in `users`
    image_ids: list[str | None]  # None where the records have no ids
    labels: list[tuple[int, ...]]  # columns, as the label file numbers them
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
    counts: list[int] = []
    photos: list[example.Example] = []
    with Progress(len(users), f"reading the labels of {partition}", "user") as progress:
        for user_id in users:
            payloads = records.read_user(partition, user_id)
            photos += [
                _decode(records, payload, f"{records.root}: record {position} of user {user_id}")
                for position, payload in enumerate(payloads)
            ]
            counts.append(len(payloads))
            progress.add()
    return PhotoTable(
        users,
        np.repeat(np.arange(len(users)), counts),
        [photo.image_id for photo in photos],
        [photo.labels for photo in photos],
        [photo.fine_grained_labels for photo in photos],
    )


def _decode(records: Records, serialized: bytes, place: str) -> example.Example:
    """A photo without its image, of which a table has no need."""
    try:
        photo = example.decode(serialized)
    except FlairError as error:
        raise FlairError(f"{place}: {error}") from None
    check_labels(photo, records, place)
    return photo._replace(image=b"")


def check_labels(photo: example.Example, records: Records, place: str) -> None:
    """`check_columns` of both kinds of labels."""
    check_columns(photo.labels, len(records.labels), place)
    check_columns(photo.fine_grained_labels, len(records.fine_grained_labels), place)


def check_columns(columns: Iterable[int], num_columns: int, place: str) -> None:
    """Raises FlairError, in one line that begins with `place`, where a photo has a label that the label file lacks."""
    if any(not 0 <= column < num_columns for column in columns):
        raise FlairError(
            f"{place} has a label column outside 0 to {num_columns - 1}; the records do not belong to this label file"
        )
