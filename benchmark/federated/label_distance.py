"""How far the labels of clients lie from those of all training photos."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np

from benchmark.data.clients import Clients
from benchmark.data.labels import read_photo_table
from benchmark.data.records import Records
from flair.statistics import divergence


class LabelDistance:
    """Jensen-Shannon divergences, in bits, of clients' coarse labels (`flair.statistics.divergence`).

    The labels of a partition are read when they are first asked for: a pass over its records, once per process.

    Args:
      clients: of the train partition.
    """

    def __init__(self, records: Records, clients: Clients) -> None:
        self._records, self._clients = records, clients
        self._labels = functools.cache(self._read)

    def of_clients(self, client_ids: Sequence[str]) -> np.ndarray:
        """float64 [clients] of training clients; NaN of one whose photos have no label."""
        return self._distances("train", [self._clients.rows(client_id) for client_id in client_ids])

    def of_users(self, partition: str, user_ids: Sequence[str]) -> np.ndarray:
        """The same of users of a partition."""
        return self._distances(partition, [self._records.rows_of(partition, user_id) for user_id in user_ids])

    def _distances(self, partition: str, rows: Sequence[np.ndarray]) -> np.ndarray:
        labels = self._labels(partition)
        counts = np.array([labels[own].sum(0) for own in rows], np.int64).reshape(len(rows), labels.shape[1])
        found, is_labelled = np.full(len(rows), np.nan), counts.any(1)
        found[is_labelled] = divergence.divergences(counts[is_labelled], self._labels("train").sum(0))
        return found

    def _read(self, partition: str) -> np.ndarray:
        """bool [photos, labels]: which photo has which label."""
        table = read_photo_table(self._records, partition)
        found = np.zeros((len(table.labels), len(self._records.labels)), bool)
        for photo, columns in enumerate(table.labels):
            found[photo, list(columns)] = True
        return found
