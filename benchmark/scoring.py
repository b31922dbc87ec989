"""Scores a model on a partition, all photos together or client by client: in this process or on Ray's workers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import tensorflow as tf

from benchmark import evaluation, federated_evaluation
from benchmark.client_data import BatchPlan
from benchmark.federated_config import FED_AVG, ClientConfig
from benchmark.federated_evaluation import ClientScore, LocalComparison
from benchmark.flair_data import EvaluationData, evaluation_dataset
from benchmark.local_training import LocalTrainer
from benchmark.records import Records, Task
from flair.progress import Progress

if TYPE_CHECKING:
    from benchmark.ray_pool import WorkerPool

_SHARES_A_WORKER = 4  # so that a slow machine does less, and progress shows
_PHOTOS_A_SHARE = 64  # at least


class Scorer(Protocol):
    """Scores the weights that a model has at the moment of the call."""

    def evaluate(self, partition: str, title: str | None = None) -> dict[str, float]:
        """The published metrics over all photos; `title` is what the progress is called."""
        ...

    def score_clients(self, partition: str, clients: Sequence[str]) -> list[ClientScore]:
        """Each client's photos by themselves."""
        ...

    def compare_local_training(
        self, partition: str, clients: Sequence[str], config: ClientConfig, seed: int
    ) -> list[LocalComparison]:
        """Each client before and after training on half of its photos, with the last learning rate of `config`."""
        ...


class LocalScorer:
    """Scores in this process.

    Args:
      model: whose weights are scored.
      records: the photos.
      plan: the task, the input size, and how a client trains.
      batch_size: photos a batch.
    """

    def __init__(self, model: tf.keras.Model, records: Records, plan: BatchPlan, batch_size: int) -> None:
        self._model, self._records, self._plan, self._batch_size = model, records, plan, batch_size
        self._data: dict[str, EvaluationData] = {}

    def evaluate(self, partition: str, title: str | None = None) -> dict[str, float]:
        """The published metrics over all photos."""
        if partition not in self._data:
            plan = self._plan
            self._data[partition] = evaluation_dataset(
                self._records, partition, plan.task, plan.image_size, self._batch_size
            )
        data = self._data[partition]
        with Progress(data.num_photos, title or f"scoring {partition}", "photo") as progress:
            return evaluation.evaluate(self._model, data, self._plan.task, progress)

    def score_clients(self, partition: str, clients: Sequence[str]) -> list[ClientScore]:
        """Each client's photos by themselves."""
        return federated_evaluation.score_clients(self._model, self._records, partition, clients, self._plan)

    def compare_local_training(
        self, partition: str, clients: Sequence[str], config: ClientConfig, seed: int
    ) -> list[LocalComparison]:
        """Each client before and after local training."""
        trainer = LocalTrainer(self._model, replace(config, algorithm=FED_AVG), is_binary=self._plan.task.is_binary)
        return federated_evaluation.compare_local_training(
            trainer,
            *(_weights(self._model), self._records, partition, clients, self._plan, config.learning_rates[-1], seed),
        )


class RayScorer:
    """Scores on the workers of a pool, which were given the same records, plan and batch size."""

    def __init__(self, model: tf.keras.Model, records: Records, task: Task, pool: WorkerPool) -> None:
        self._model, self._records, self._task, self._pool = model, records, task, pool

    def evaluate(self, partition: str, title: str | None = None) -> dict[str, float]:
        """The published metrics over all photos, dealt out to the workers."""
        total = self._records.num_photos(partition)
        count = max(1, min(_SHARES_A_WORKER * self._pool.num_workers, total // _PHOTOS_A_SHARE))
        weights = self._pool.put(_weights(self._model))
        tasks = [(weights, partition, share, count) for share in range(count)]
        parts: list[evaluation.Evaluation] = []
        with Progress(total, title or f"scoring {partition}", "photo") as progress:
            for part in self._pool.run_in_order("evaluate", tasks):
                parts.append(part)
                progress.add(part.num_photos)
        counts = np.sum([part.counts for part in parts], axis=0)
        loss_sum = sum(part.loss_sum for part in parts)
        return evaluation.Evaluation(counts, loss_sum, total).metrics(self._task)

    def score_clients(self, partition: str, clients: Sequence[str]) -> list[ClientScore]:
        """Each client's photos by themselves."""
        return self._per_client("score_clients", f"scoring {partition} clients", partition, clients)

    def compare_local_training(
        self, partition: str, clients: Sequence[str], config: ClientConfig, seed: int
    ) -> list[LocalComparison]:
        """Each client before and after local training."""
        title = f"training {partition} clients locally"
        return self._per_client("compare_local_training", title, partition, clients, config.learning_rates[-1], seed)

    def _per_client(self, task: str, title: str, partition: str, clients: Sequence[str], *arguments: Any) -> list[Any]:
        size = max(1, math.ceil(len(clients) / (_SHARES_A_WORKER * self._pool.num_workers)))
        shares = [clients[start : start + size] for start in range(0, len(clients), size)]
        weights = self._pool.put(_weights(self._model))
        found: list[Any] = []
        with Progress(len(clients), title, "client") as progress:
            tasks = [(weights, partition, share, *arguments) for share in shares]
            for share, results in zip(shares, self._pool.run_in_order(task, tasks), strict=True):
                found += results
                progress.add(len(share))
        return found


def _weights(model: tf.keras.Model) -> list[np.ndarray]:
    return [variable.numpy() for variable in (*model.trainable_variables, *model.non_trainable_variables)]
