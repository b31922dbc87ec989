"""Which pairs of photos are compared: across partitions, across users, within a user, or all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from flair.dataset.catalog import PARTITIONS
from flair.dataset.metadata import Record

RELATIONS = ("across partitions", "across users of one partition", "within a user")
# Scope -> the relations its pairs can have.
COMPARED = {
    "all": RELATIONS,
    "cross_partition": RELATIONS[:1],
    "cross_user": RELATIONS[:2],
    "within_user": RELATIONS[2:],
}


class Scope(NamedTuple):
    """Photos in the order in which they are compared (by partition, then user), and which of their pairs count.

    `partition` and `user` are int32 [n] codes that never decrease.
    """

    name: str
    records: tuple[Record, ...]
    partition: NDArray[np.int32]
    user: NDArray[np.int32]

    def has(self, first: NDArray[Any], second: NDArray[Any]) -> NDArray[np.bool_]:
        """Whether pairs of rows count."""
        if self.name == "cross_partition":
            return np.asarray(self.partition[first] != self.partition[second])
        if self.name == "cross_user":
            return np.asarray(self.user[first] != self.user[second])
        if self.name == "within_user":
            return np.asarray(self.user[first] == self.user[second])
        return np.ones(np.broadcast(first, second).shape, bool)

    def may_have(self, rows: range, columns: range) -> bool:
        """Whether any pair of one of `rows` and one of `columns` can count; no column comes before the first row."""
        if self.name == "cross_partition":
            return bool(self.partition[rows[0]] != self.partition[columns[-1]])
        if self.name == "cross_user":
            return bool(self.user[rows[0]] != self.user[columns[-1]])
        if self.name == "within_user":
            return bool(self.user[rows[-1]] >= self.user[columns[0]])
        return True

    def num_pairs(self) -> int:
        """How many pairs count."""
        photos = _pairs(np.array([len(self.records)]))
        of_users, of_partitions = _pairs(np.bincount(self.user)), _pairs(np.bincount(self.partition))
        return {
            "all": photos,
            "cross_partition": photos - of_partitions,
            "cross_user": photos - of_users,
            "within_user": of_users,
        }[self.name]

    def relation(self, first: NDArray[Any], second: NDArray[Any]) -> NDArray[np.int8]:
        """Indices into RELATIONS of pairs of rows."""
        same_user = self.user[first] == self.user[second]
        same_partition = self.partition[first] == self.partition[second]
        return np.where(same_user, 2, np.where(same_partition, 1, 0)).astype(np.int8)


def make_scope(name: str, records: Sequence[Record]) -> Scope:
    """Orders the photos; the result depends on the photos, not on their order in the file.

    >>> names = [Record("b", "1", (), (), "test"), Record("a", "2", (), (), "train"), Record("b", "3", (), (), "test")]
    >>> [make_scope(scope, names).num_pairs() for scope in COMPARED]
    [3, 2, 2, 1]
    """
    ordered = sorted(records, key=lambda record: (PARTITIONS.index(record.partition), record.user_id, record.image_id))
    partition = np.array([PARTITIONS.index(record.partition) for record in ordered], np.int32)
    user_of = {user_id: code for code, user_id in enumerate(dict.fromkeys(record.user_id for record in ordered))}
    return Scope(name, tuple(ordered), partition, np.array([user_of[record.user_id] for record in ordered], np.int32))


def _pairs(sizes: NDArray[Any]) -> int:
    return int((sizes.astype(np.int64) * (sizes.astype(np.int64) - 1) // 2).sum())
