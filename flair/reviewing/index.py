"""All photos of a dataset, indexed once, so that a filtered page of them is found in milliseconds."""

from __future__ import annotations

from array import array
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from flair.curation.reviews import NO_MARK, Reviews
from flair.dataset.metadata import Record

UNMARKED = "unmarked"
MARK_FILTERS = (UNMARKED, "ok", "problematic", "blacklist")


class Filters(NamedTuple):
    """Which photos to show; an empty text filters nothing.

    Attributes:
      user: exactly this user's photos.
      label, fine: photos with this coarse, this fine-grained label.
      partition: photos of this partition.
      mark: photos of this mark, or `unmarked`.
      subset: photos of this named subset (the test set, those with near duplicates).
    """

    user: str = ""
    label: str = ""
    fine: str = ""
    partition: str = ""
    mark: str = ""
    subset: str = ""


class PhotoIndex:
    """Records by id, user, label and partition.

    Attributes:
      records: all photos, in the order of the metadata.
      labels, fine_labels: label name -> number of photos, most frequent first.
      partitions: partition -> number of photos.
    """

    def __init__(self, records: Sequence[Record]) -> None:
        self.records = records
        self._row_of = {record.image_id: row for row, record in enumerate(records)}
        self._partitions = _rows((record.partition,) for record in records)
        self._users = _rows((record.user_id,) for record in records)
        self._by_size = tuple(_by_frequency(self._users))
        self._labels = _rows(record.labels for record in records)
        self._fine = _rows(record.fine_grained_labels for record in records)
        self._subsets: dict[str, np.ndarray] = {}
        self.labels = _by_frequency(self._labels)
        self.fine_labels = _by_frequency(self._fine)
        self.partitions = {name: len(rows) for name, rows in self._partitions.items()}

    def __contains__(self, image_id: object) -> bool:
        return image_id in self._row_of

    def record(self, image_id: str) -> Record | None:
        """The photo of that id, or None."""
        row = self._row_of.get(image_id)
        return None if row is None else self.records[row]

    def rows_of(self, image_ids: Iterable[str]) -> np.ndarray:
        """The rows of those photos that are in the dataset, in order."""
        return np.array(sorted(self._row_of[name] for name in image_ids if name in self._row_of), np.int64)

    def num_of_user(self, user_id: str) -> int:
        """How many photos a user has."""
        return len(self._users.get(user_id, ()))

    def users(self, partition: str = "") -> list[str]:
        """The users of a partition, or all, those with the most photos first."""
        return [
            user_id for user_id in self._by_size if not partition or self.first_of_user(user_id).partition == partition
        ]

    def first_of_user(self, user_id: str) -> Record:
        """A user's first photo, which tells their partition; KeyError where there is no such user."""
        return self.records[self._users[user_id][0]]

    def add_subset(self, name: str, image_ids: Collection[str]) -> None:
        """Names some of the photos, to filter by."""
        self._subsets[name] = self.rows_of(image_ids)

    def subset_sizes(self) -> dict[str, int]:
        """The named subsets and how many photos of the dataset are in each."""
        return {name: len(rows) for name, rows in self._subsets.items()}

    def select(self, filters: Filters, reviews: Reviews) -> np.ndarray:
        """Rows of all photos that pass the filters, in order; an unknown user, label, partition or subset has none."""
        keep = np.ones(len(self.records), bool)
        for value, rows_of in (
            (filters.user, self._users),
            (filters.label, self._labels),
            (filters.fine, self._fine),
            (filters.partition, self._partitions),
            (filters.subset, self._subsets),
        ):
            if value:
                keep &= self._mask(rows_of.get(value, ()))
        if filters.mark == UNMARKED:
            marked = (image_id for image_id in reviews.photos if reviews.photo_mark(image_id) != NO_MARK)
            keep &= ~self._mask(self.rows_of(marked))
        elif filters.mark:
            keep &= self._mask(self.rows_of(reviews.photos_marked(filters.mark)))
        return np.flatnonzero(keep)

    def _mask(self, rows: Sequence[int] | np.ndarray) -> np.ndarray:
        mask = np.zeros(len(self.records), bool)
        mask[np.asarray(rows, np.int64)] = True
        return mask


def _rows(names_of_rows: Iterable[Iterable[str]]) -> dict[str, np.ndarray]:
    rows: dict[str, array[int]] = {}
    for row, names in enumerate(names_of_rows):
        for name in names:
            rows.setdefault(name, array("i")).append(row)
    return {name: np.frombuffer(values, np.int32) for name, values in rows.items()}


def _by_frequency(rows: Mapping[str, np.ndarray]) -> dict[str, int]:
    return {name: len(rows[name]) for name in sorted(rows, key=lambda name: (-len(rows[name]), name))}
