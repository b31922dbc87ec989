"""Scores a model on a partition, all photos together or client by client."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np
import tensorflow as tf

from benchmark.data.clients import BatchPlan
from benchmark.data.pipeline import EvaluationData, evaluation_dataset
from benchmark.data.records import Records
from benchmark.evaluation import passes
from benchmark.federated import client_scores
from benchmark.federated.client_scores import ClientScore, LocalComparison
from benchmark.rounds.client import LocalTrainer
from benchmark.rounds.config import FED_AVG, ClientConfig
from flair.terminal.progress import Progress


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
      batch_size: photos per batch.
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
            return passes.evaluate(self._model, data, self._plan.task, progress)

    def score_clients(self, partition: str, clients: Sequence[str]) -> list[ClientScore]:
        """Each client's photos by themselves."""
        return client_scores.score_clients(self._model, self._records, partition, clients, self._plan)

    def compare_local_training(
        self, partition: str, clients: Sequence[str], config: ClientConfig, seed: int
    ) -> list[LocalComparison]:
        """Each client before and after local training."""
        trainer = LocalTrainer(self._model, replace(config, algorithm=FED_AVG), is_binary=self._plan.task.is_binary)
        return client_scores.compare_local_training(
            trainer,
            *(weights_of(self._model), self._records, partition, clients, self._plan, config.learning_rates[-1], seed),
        )


def weights_of(model: tf.keras.Model) -> list[np.ndarray]:
    """The model's weights, trainable ones first, in the order in which a runtime holds them."""
    return [variable.numpy() for variable in (*model.trainable_variables, *model.non_trainable_variables)]
