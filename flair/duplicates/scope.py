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

    @property
    def _codes(self) -> NDArray[np.int32]:
        """What decides whether a pair counts: whether it is equal, or whether it differs."""
        return self.partition if self.name == "cross_partition" else self.user

    def has(self, first: NDArray[Any], second: NDArray[Any]) -> NDArray[np.bool_]:
        """Whether pairs of rows count."""
        if self.name == "all":
            return np.ones(np.broadcast(first, second).shape, bool)
        one, other = self._codes[first], self._codes[second]
        return np.asarray(one == other if self.name == "within_user" else one != other)

    def may_have(self, rows: range, columns: range) -> bool:
        """Whether any pair of one of `rows` and one of `columns` can count; no column comes before the first row."""
        if self.name == "within_user":
            return bool(self.user[rows[-1]] >= self.user[columns[0]])
        return self.name == "all" or bool(self._codes[rows[0]] != self._codes[columns[-1]])

    def num_pairs(self) -> int:
        """How many pairs count."""
        every, equal = pairs_within(np.array([len(self.records)])), pairs_within(np.bincount(self._codes))
        return {"all": every, "within_user": equal}.get(self.name, every - equal)

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


def pair_codes(pairs: NDArray[Any]) -> NDArray[np.int64]:
    """A number for each pair (`first`, `second`): equal for equal pairs, and in their order."""
    return np.asarray(pairs["first"].astype(np.int64) << 32 | pairs["second"])


def pairs_within(sizes: NDArray[Any]) -> int:
    """How many pairs there are within groups of these sizes."""
    return int((sizes * (sizes - 1) // 2).sum())
