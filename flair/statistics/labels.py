"""The labels of a dataset's photos as arrays, and counts of them by photo, by user, by label and by pair of labels."""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from flair.dataset.catalog import PARTITIONS, Distribution
from flair.dataset.metadata import Record

Integers = npt.NDArray[np.int64]
COARSE_HEAD = 24  # as many coarse labels as tables and figures show; FLAIR has 17
FINE_HEAD = 20  # as many fine-grained labels as ml-flair lists
LONGEST_NAME = 40  # characters of a label


def short(text: str, most: int = LONGEST_NAME) -> str:
    """The text, cut where it is long."""
    return text if len(text) <= most else f"{text[: most - 1]}…"


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


def describe(values: npt.ArrayLike) -> Distribution:
    """Mean, sample standard deviation (0 for a single value), least, quartiles and most, as pandas' `describe`.

    >>> describe([1, 2, 3])
    Distribution(mean=2.0, sd=1.0, least=1.0, lower_quartile=1.5, median=2.0, upper_quartile=2.5, most=3.0)
    """
    numbers = np.asarray(values, np.float64)
    sd = float(numbers.std(ddof=1)) if len(numbers) > 1 else 0.0
    return Distribution(float(numbers.mean()), sd, *np.percentile(numbers, [0, 25, 50, 75, 100]).tolist())


def partition_sizes(annotations: Annotations) -> tuple[dict[str, int], dict[str, int]]:
    """(users, photos) of each partition."""
    users = np.bincount(annotations.partition, minlength=len(PARTITIONS))
    photos = np.bincount(annotations.partition[annotations.owner], minlength=len(PARTITIONS))
    return dict(zip(PARTITIONS, users.tolist(), strict=True)), dict(zip(PARTITIONS, photos.tolist(), strict=True))


def labels_per_photo(pairs: LabelPairs, num_photos: int) -> Integers:
    """How many labels each photo carries: int64 [photos]."""
    return np.bincount(pairs.photo, minlength=num_photos)


class UserLabels(NamedTuple):
    """Which labels users have, one row per user and label: int64 rows of the users and of the names, and photos."""

    user: Integers
    label: Integers
    photos: Integers


def labels_of_users(annotations: Annotations, pairs: LabelPairs) -> UserLabels:
    """Which labels each user's photos carry, sorted by user."""
    cells, photos = np.unique(annotations.owner[pairs.photo] * len(pairs.names) + pairs.label, return_counts=True)
    return UserLabels(*np.divmod(cells, len(pairs.names)), photos)


def labels_per_user(annotations: Annotations, pairs: LabelPairs) -> Integers:
    """How many different labels each user's photos carry: int64 [users]."""
    return np.bincount(labels_of_users(annotations, pairs).user, minlength=annotations.num_users)


class LabelCount(NamedTuple):
    """One label: photos that carry it, and users with at least one of them."""

    name: str
    photos: int
    users: int


def count_labels(annotations: Annotations, pairs: LabelPairs) -> list[LabelCount]:
    """All labels that occur, the most frequent first, equals by name."""
    photos = np.bincount(pairs.label, minlength=len(pairs.names))
    users = np.bincount(labels_of_users(annotations, pairs).label, minlength=len(pairs.names))
    counted = map(LabelCount, pairs.names, photos.tolist(), users.tolist())
    return sorted(counted, key=lambda label: (-label.photos, label.name))


def co_occurrence(pairs: LabelPairs, num_photos: int, labels: Sequence[int]) -> Integers:
    """Photos that carry both of two `labels` (rows of the names): int64 [labels, labels], symmetric.

    The labels' own counts stand on the diagonal. Time and memory grow with the square of `labels`.
    """
    place = np.full(len(pairs.names), -1)
    place[list(labels)] = np.arange(len(labels))
    chosen = place[pairs.label] >= 0
    carries = np.zeros((num_photos, len(labels)), np.float32)
    carries[pairs.photo[chosen], place[pairs.label[chosen]]] = 1
    # Whole numbers below 2^24 are exact in float32, and a float product is threaded.
    chunks = np.array_split(carries, num_photos // 2**20 + 1)
    return sum(((chunk.T @ chunk).astype(np.int64) for chunk in chunks), np.zeros((1, 1), np.int64))


def children(taxonomy: Mapping[str, frozenset[str]]) -> dict[str, list[str]]:
    """Coarse label -> its fine-grained labels, both sorted.

    >>> children({"dog": frozenset({"animal"}), "sea": frozenset({"liquid", "outdoor"})})
    {'animal': ['dog'], 'liquid': ['sea'], 'outdoor': ['sea']}
    """
    found: dict[str, list[str]] = {}
    for fine in sorted(taxonomy):
        for coarse in taxonomy[fine]:
            found.setdefault(coarse, []).append(fine)
    return dict(sorted(found.items()))
