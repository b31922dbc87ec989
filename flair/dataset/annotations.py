"""The metadata as arrays: who owns each photo and which labels it carries, small and quick at FLAIR's full size."""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from flair.dataset.catalog import PARTITIONS
from flair.dataset.metadata import Record

Integers = npt.NDArray[np.int64]


class LabelPairs(NamedTuple):
    """Which photo carries which label: one row per pair, in the order of the photos.

    Attributes:
      names: of the labels that occur, sorted.
      photo: int64 [pairs], rows of the photos.
      label: int64 [pairs], rows of `names`.
    """

    names: tuple[str, ...]
    photo: Integers
    label: Integers

    def rows(self, names: Iterable[str]) -> list[int]:
        """The rows of some of the names."""
        return [bisect.bisect_left(self.names, name) for name in names]


class Annotations(NamedTuple):
    """The metadata of a dataset; users in order of first appearance, photos in file order.

    Attributes:
      user_ids: the id of each user.
      partition: int64 [users], rows of `catalog.PARTITIONS`.
      owner: int64 [photos], rows of `user_ids`.
      coarse, fine: the labels of the photos.
    """

    user_ids: tuple[str, ...]
    partition: Integers
    owner: Integers
    coarse: LabelPairs
    fine: LabelPairs

    @property
    def num_photos(self) -> int:
        """Photos of all users."""
        return len(self.owner)

    @property
    def num_users(self) -> int:
        """Users of all partitions."""
        return len(self.user_ids)

    def photos_per_user(self) -> Integers:
        """int64 [users]."""
        return np.bincount(self.owner, minlength=self.num_users)


def encode(records: Sequence[Record]) -> Annotations:
    """The records as arrays.

    >>> one = Record("1@N00", "10", ("animal", "plant"), ("dog",), "train")
    >>> encode([one, one._replace(image_id="11", labels=("plant",))]).coarse.label.tolist()
    [0, 1, 1]
    """
    partition_of = {record.user_id: PARTITIONS.index(record.partition) for record in records}
    row_of = {user_id: row for row, user_id in enumerate(partition_of)}
    return Annotations(
        tuple(row_of),
        np.fromiter(partition_of.values(), np.int64, len(row_of)),
        np.fromiter((row_of[record.user_id] for record in records), np.int64, len(records)),
        _pairs([record.labels for record in records]),
        _pairs([record.fine_grained_labels for record in records]),
    )


def _pairs(labels: Sequence[tuple[str, ...]]) -> LabelPairs:
    names = tuple(sorted(set(chain.from_iterable(labels))))
    column = {name: index for index, name in enumerate(names)}
    lengths = np.fromiter(map(len, labels), np.int64, len(labels))
    photo = np.repeat(np.arange(len(labels)), lengths)
    columns = map(column.__getitem__, chain.from_iterable(labels))
    return LabelPairs(names, photo, np.fromiter(columns, np.int64, len(photo)))
