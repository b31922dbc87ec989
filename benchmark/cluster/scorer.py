"""Scores a model on Ray's workers, which hold the records; `benchmark.federated.scoring` does it in one process."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from benchmark.cluster.pool import WorkerPool
from benchmark.data.records import Records, Task
from benchmark.evaluation import passes
from benchmark.federated.scoring import ClientScore, LocalComparison, weights_of
from benchmark.rounds.config import ClientConfig
from flair.terminal.progress import Progress

_SHARDS_PER_WORKER = 4  # so that a slow machine does less, and progress shows
_PHOTOS_PER_SHARD = 64  # at least


class RayScorer:
    """Scores on the workers of a pool, which were given the same records, batch plan and batch size.

    The methods are those of `benchmark.federated.scoring.Scorer`.
    """

    def __init__(self, model: tf.keras.Model, records: Records, task: Task, pool: WorkerPool) -> None:
        self._model, self._records, self._task, self._pool = model, records, task, pool

    def evaluate(self, partition: str, title: str | None = None) -> dict[str, float]:
        total = self._records.num_photos(partition)
        count = max(1, min(_SHARDS_PER_WORKER * self._pool.num_workers, total // _PHOTOS_PER_SHARD))
        weights = self._pool.put(weights_of(self._model))
        tasks = [(weights, partition, shard, count) for shard in range(count)]
        parts: list[passes.Evaluation] = []
        with Progress(total, title or f"scoring {partition}", "photo") as progress:
            for part in self._pool.run("evaluate", tasks):
                parts.append(part)
                progress.add(part.num_photos)
        counts = np.sum([part.counts for part in parts], axis=0)
        loss_sum = sum(part.loss_sum for part in parts)
        return passes.Evaluation(counts, loss_sum, total).metrics(self._task)

    def score_clients(self, partition: str, clients: Sequence[str]) -> list[ClientScore]:
        return self._of_clients("score_clients", f"scoring {partition} clients", partition, clients)

    def compare_local_training(
        self, partition: str, clients: Sequence[str], config: ClientConfig, seed: int
    ) -> list[LocalComparison]:
        title = f"training {partition} clients locally"
        return self._of_clients("compare_local_training", title, partition, clients, config, seed)

    def _of_clients(self, task: str, title: str, partition: str, clients: Sequence[str], *arguments: Any) -> list[Any]:
        size = max(1, math.ceil(len(clients) / (_SHARDS_PER_WORKER * self._pool.num_workers)))
        shards = [clients[start : start + size] for start in range(0, len(clients), size)]
        weights = self._pool.put(weights_of(self._model))
        tasks = [(weights, partition, shard, *arguments) for shard in shards]
        found: list[Any] = []
        with Progress(len(clients), title, "client") as progress:
            for shard, results in zip(shards, self._pool.run(task, tasks), strict=True):
                found += results
                progress.add(len(shard))
        return found
