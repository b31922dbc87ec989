"""Scores a model on a partition: all photos together, or the spread over clients that a pooled average hides."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import tensorflow as tf

from benchmark.data.clients import Batch, BatchPlan, ClientPhotos, training_order
from benchmark.data.inputs import Evaluation, Inputs
from benchmark.evaluation import passes
from benchmark.metrics import histogram
from benchmark.metrics.spread import distribution
from benchmark.rounds.client import LocalTrainer
from benchmark.rounds.config import FED_AVG, ClientConfig
from benchmark.run.seeds import derive_generator, derive_seed
from flair.files import atomic
from flair.terminal.progress import Progress


class ClientScore(NamedTuple):
    """One client: photos scored, mean binary cross-entropy, exact average precision over all its decisions."""

    client_id: str
    photos: int
    loss: float
    micro_averaged_precision: float


class LocalComparison(NamedTuple):
    """One client's held-out photos before and after training on its other photos."""

    before: ClientScore
    after: ClientScore


class Evaluator(Protocol):
    """Scores the weights that a model has at the moment of the call."""

    def evaluate(self, partition: str, title: str | None = None) -> dict[str, float]:
        """The published metrics over all photos; `title` is what the progress is called."""
        ...


class Scorer(Evaluator, Protocol):
    """Scores clients by themselves, too."""

    def score_clients(self, partition: str, clients: Sequence[str]) -> list[ClientScore]:
        """Scores each client's photos by themselves, whole photos as in central evaluation."""
        ...

    def compare_local_training(
        self, partition: str, clients: Sequence[str], config: ClientConfig, seed: int
    ) -> list[LocalComparison]:
        """Trains each client as in a round on a random half of its photos and scores the other half before and after.

        Training is plain SGD with the last learning rate of `config`. Clients with one photo are left out.
        """
        ...


class LocalScorer:
    """Scores in this process.

    Args:
      model: whose weights are scored.
      inputs: the photos, as the model takes them.
      batch_plan: the task, and how a client trains.

    Attributes:
      data: opens the photos of a partition, once.
    """

    def __init__(self, model: tf.keras.Model, inputs: Inputs, batch_plan: BatchPlan) -> None:
        self._model, self._inputs, self._batch_plan = model, inputs, batch_plan
        self.data: Callable[[str], Evaluation] = functools.cache(inputs.evaluation)
        self._trainer = functools.cache(lambda config: LocalTrainer(model, replace(config, algorithm=FED_AVG)))

    def evaluate(self, partition: str, title: str | None = None) -> dict[str, float]:
        data = self.data(partition)
        with Progress(data.num_photos, title or f"scoring {partition}", "photo") as progress:
            return passes.evaluate(self._model, data, self._batch_plan.task, progress)

    def score_clients(self, partition: str, clients: Sequence[str]) -> list[ClientScore]:
        with Progress(len(clients), f"scoring {partition} clients", "client") as progress:
            scores = []
            for client_id in clients:
                photos = self._inputs.user(partition, client_id)
                scores.append(self._score(client_id, photos.whole(range(photos.count))))
                progress.add()
            return scores

    def compare_local_training(
        self, partition: str, clients: Sequence[str], config: ClientConfig, seed: int
    ) -> list[LocalComparison]:
        trainer, weights = self._trainer(config), [tf.constant(weight) for weight in weights_of(self._model)]
        rate = tf.constant(config.learning_rates[-1], tf.float32)
        comparisons = []
        with Progress(len(clients), f"training {partition} clients locally", "client") as progress:
            for client_id in clients:
                progress.add()
                photos = self._inputs.user(partition, client_id)
                if photos.count < 2:
                    continue
                order = derive_generator(seed, "local split", client_id).permutation(photos.count)
                train, held_out = np.array_split(order, 2)
                tested = photos.whole(held_out)
                trainer.start(weights)
                before = self._score(client_id, tested)
                trainer.run(self._batches(photos, train, seed, client_id).copy, rate, weights)
                comparisons.append(LocalComparison(before, self._score(client_id, tested)))
        trainer.start(weights)
        return comparisons

    def _score(self, client_id: str, photos: Batch) -> ClientScore:
        scores, losses = passes.predict_step(self._model)([photos])[0]
        exact = histogram.pooled_average_precision(scores.numpy(), photos[1].numpy())
        return ClientScore(client_id, len(losses), float(np.mean(losses.numpy())), exact)

    def _batches(self, photos: ClientPhotos, train: np.ndarray, seed: int, client_id: str) -> list[Batch]:
        plan, count = self._batch_plan, tf.constant(len(train))
        order, seeds = training_order(count, derive_seed(seed, "local training", client_id), plan)
        shown, starts = tf.gather(tf.constant(train, tf.int32), order), range(0, int(order.shape[0]), plan.batch_size)
        return [photos.training(shown[i : i + plan.batch_size], seeds[i : i + plan.batch_size]) for i in starts]


def weights_of(model: tf.keras.Model) -> list[np.ndarray]:
    """The weights that train, in the order in which a runtime holds them."""
    return [variable.numpy() for variable in model.trainable_variables]


def sample_clients(client_ids: Sequence[str], count: int | None, seed: int) -> list[str]:
    """`count` clients drawn without replacement (None: all), in their own order."""
    if count is None or count >= len(client_ids):
        return list(client_ids)
    chosen = derive_generator(seed, "federated evaluation").choice(len(client_ids), count, replace=False)
    return [client_ids[index] for index in sorted(chosen)]


def evaluate_clients(
    scorer: Scorer, clients: Sequence[str], folder: Path, local_training: ClientConfig | None, seed: int
) -> dict[str, Any]:
    """The spread of each metric over clients of the test partition, whose scores become CSV files in `folder`.

    With `local_training`, also before and after each client is trained by itself.
    """
    scores = scorer.score_clients("test", clients)
    found = {"count": len(scores), "test": _spread(scores, folder / "clients.csv")}
    if local_training is not None:
        compared = scorer.compare_local_training("test", clients, local_training, seed)
        for name in ("before", "after"):
            chosen = [getattr(one, name) for one in compared]
            spread = _spread(chosen, folder / f"clients_{name}_local_training.csv")
            found[f"{name}_local_training"] = {"count": len(chosen), **spread} if chosen else None
    return found


def _spread(scores: Sequence[ClientScore], path: Path) -> dict[str, dict[str, float]]:
    atomic.write_csv(path, [ClientScore._fields, *scores])
    metrics = ("loss", "micro_averaged_precision") if scores else ()
    return {name: distribution([getattr(score, name) for score in scores]) for name in metrics}
