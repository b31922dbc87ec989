"""Artificial clients whose photos are drawn anew whenever they take part, as those of pfl-research's `flair_iid`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from benchmark.data.records import Records
from benchmark.run.seeds import derive_generator

_READ_AT_ONCE = 256


class Artificial(NamedTuple):
    """How artificial clients are made.

    Attributes:
      photos_per_client: photos of each, or their mean where `is_poisson`; None: as many as the users have.
      is_fresh: photos are drawn anew at every visit; else they are dealt out once.
      is_poisson: the number of photos is Poisson, drawn again while it is below `least`; at fresh draws only.
    """

    seed: int
    photos_per_client: int | None = None
    is_fresh: bool = False
    is_poisson: bool = False
    least: int = 1


class FreshClients:
    """Clients that draw photos of a partition uniformly and with replacement, at each visit to a round.

    A visit is a client by a name of its own, which `visits` gives it, and its photos follow from the seed and that name
    alone: a process that never saw the rounds before draws the same. There are as many clients as dealing would make.
    """

    def __init__(self, records: Records, partition: str, artificial: Artificial) -> None:
        assert artificial.photos_per_client is not None
        self._records, self._partition, self._artificial = records, partition, artificial
        self._mean = artificial.photos_per_client
        self._num_photos = len(records.photo_index(partition).offset)
        count = -(-self._num_photos // self._mean)
        width = len(str(count))
        self.client_ids: Sequence[str] = [f"iid{number:0{width}d}" for number in range(count)]

    def rows(self, client_id: str) -> np.ndarray:
        """The rows of `Records.photo_index` that a visit draws; some may be there twice."""
        generator = derive_generator(self._artificial.seed, "iid visit", self._partition, client_id)
        size = self._mean
        if self._artificial.is_poisson:
            while (size := int(generator.poisson(self._mean))) < self._artificial.least:
                pass
        return generator.integers(self._num_photos, size=size)

    def read(self, client_id: str) -> list[bytes]:
        return self._records.read_photos(self._partition, self.rows(client_id))

    def all_photos(self) -> Iterator[bytes]:
        """Every serialized example that a visit may draw, once."""
        for first in range(0, self._num_photos, _READ_AT_ONCE):
            rows = range(first, min(first + _READ_AT_ONCE, self._num_photos))
            yield from self._records.read_photos(self._partition, rows)

    def num_photos(self, client_id: str) -> int:
        return len(self.rows(client_id))


def visits(client_ids: Sequence[str], round_number: int) -> list[str]:
    """The clients of a round, counted from 0, by the names of their visits to it.

    >>> visits(["iid07", "iid19"], 4)
    ['iid07@5', 'iid19@5']
    """
    return [f"{client_id}@{round_number + 1}" for client_id in client_ids]
