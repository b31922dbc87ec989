"""Scores a model on a partition: all photos together, or the spread over clients that a pooled average hides."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
import tensorflow as tf

from benchmark.data.clients import Batch, BatchPlan, Clients, photos_of, prefetched
from benchmark.data.group_orders import training_orders
from benchmark.data.inputs import Evaluation, FeatureInputs, Inputs
from benchmark.data.records import Records
from benchmark.evaluation import passes
from benchmark.metrics import histogram, keras
from benchmark.metrics.spread import distribution
from benchmark.rounds.client import LocalTrainer
from benchmark.rounds.config import FED_AVG, ClientConfig
from benchmark.rounds.group import LocalGroups
from benchmark.run.seeds import derive_generator, derive_seed
from flair.errors import FlairError
from flair.files import atomic
from flair.terminal.progress import Progress

_AT_ONCE = 64  # photos of one client that are scored
_CLIENTS_AT_ONCE = 200  # that train on features, each with weights of its own
_Item = TypeVar("_Item")


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
        """Scores each client's photos by themselves, whole photos as in central evaluation.

        Clients of `train` are those that train, artificial ones included.
        """
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
      records: the photos; `inputs` has them as the model takes them.
      batch_plan: the task, and how a client trains.
      clients: that train, with the photos as the model takes them.
    """

    def __init__(
        self, model: tf.keras.Model, records: Records, inputs: Inputs, batch_plan: BatchPlan, clients: Clients
    ) -> None:
        self._model, self._records, self._inputs = model, records, inputs
        self._batch_plan, self._clients = batch_plan, clients
        self._opened = functools.cache(inputs.evaluation)
        self._trainer = functools.cache(lambda config: LocalTrainer(model, replace(config, algorithm=FED_AVG)))
        self._groups = functools.cache(lambda config: LocalGroups(config, batch_plan))

    def data(self, partition: str, rows: Sequence[int] | np.ndarray | None = None) -> Evaluation:
        """These photos of a partition (None: all), until somebody asks for others of it."""
        data = self._opened(partition)
        data.select(np.arange(len(self._records.photo_index(partition).offset)) if rows is None else rows)
        return data

    def evaluate(self, partition: str, title: str | None = None) -> dict[str, float]:
        data = self.data(partition)
        with Progress(data.num_photos, title or f"scoring {partition}", "photo") as progress:
            return passes.evaluate(self._model, data, self._batch_plan.task, progress)

    def score_clients(self, partition: str, clients: Sequence[str]) -> list[ClientScore]:
        rows = [self._rows(partition, client_id) for client_id in clients]
        with Progress(len(clients), f"scoring {partition} clients", "client") as progress:
            return list(_counted(self._scores(partition, clients, rows), progress))

    def compare_local_training(
        self, partition: str, clients: Sequence[str], config: ClientConfig, seed: int
    ) -> list[LocalComparison]:
        clients = [client_id for client_id in clients if len(self._rows(partition, client_id)) > 1]
        compare = self._compare_groups if isinstance(self._inputs, FeatureInputs) else self._compare_each
        with Progress(len(clients), f"training {partition} clients locally", "client") as progress:
            return list(_counted(compare(partition, clients, config, seed), progress))

    def _rows(self, partition: str, client_id: str) -> np.ndarray:
        rows = self._clients.rows(client_id) if partition == "train" else self._records.rows_of(partition, client_id)
        if not len(rows):
            raise FlairError(f"client {client_id}: has no photo; prepare the records again")
        return rows

    def _scores(self, partition: str, clients: Sequence[str], rows: Sequence[np.ndarray]) -> Iterator[ClientScore]:
        """The scores of these rows of each client."""
        # Batches run across the borders of clients: of most the photos are so few that a call would cost more.
        photos = self._predicted(self.data(partition, np.concatenate([np.zeros(0, np.int64), *rows])))
        for client_id, own in zip(clients, rows, strict=True):
            yield _score(client_id, itertools.islice(photos, len(own)))

    def _predicted(self, batches: Iterable[Batch]) -> Iterator[tuple[np.ndarray, ...]]:
        """Scores and labels [outputs] and loss of one photo after the other."""
        for batch in passes.predicted(self._model, batches):
            yield from zip(*batch, strict=True)

    def _compare_each(
        self, partition: str, clients: Sequence[str], config: ClientConfig, seed: int
    ) -> Iterator[LocalComparison]:
        """One client after the other, photos decoded ahead."""
        trainer, weights = self._trainer(config), [tf.constant(weight) for weight in weights_of(self._model)]
        rate = tf.constant(config.learning_rates[-1], tf.float32)
        for client_id, shown, held_out in prefetched(self._batches(partition, clients, seed), 1):
            before = _score(client_id, self._predicted(held_out))
            trainer.run(shown.copy, rate, weights)
            after = _score(client_id, self._predicted(held_out))
            trainer.start(weights)
            yield LocalComparison(before, after)

    def _batches(
        self, partition: str, clients: Sequence[str], seed: int
    ) -> Iterator[tuple[str, list[Batch], list[Batch]]]:
        """Of each client the batches that it trains on, and those of the photos that it does not."""
        plan = self._batch_plan
        for client_id in clients:
            if partition == "train":
                photos = photos_of(self._clients, client_id, plan)
            else:
                photos = self._inputs.user(partition, client_id)
            (train, held_out), own = _halves(client_id, photos.count, seed)
            order, draws, _ = training_orders([len(train)], own[np.newaxis], plan)
            shown, seeds = tf.constant(train[order], tf.int32), tf.stack([draws, tf.fill(draws.shape, own[1])], axis=1)
            size = plan.batch_size
            yield (
                client_id,
                [photos.training(shown[at : at + size], seeds[at : at + size]) for at in range(0, len(order), size)],
                [photos.whole(held_out[at : at + _AT_ONCE]) for at in range(0, len(held_out), _AT_ONCE)],
            )

    def _compare_groups(
        self, partition: str, clients: Sequence[str], config: ClientConfig, seed: int
    ) -> Iterator[LocalComparison]:
        """Groups of clients at once, on features."""
        assert isinstance(self._inputs, FeatureInputs)
        features, weights = self._inputs.features[partition], weights_of(self._model)
        for at in range(0, len(clients), _CLIENTS_AT_ONCE):
            some = clients[at : at + _CLIENTS_AT_ONCE]
            rows = [self._rows(partition, client_id) for client_id in some]
            halves, seeds = zip(*map(_halves, some, map(len, rows), itertools.repeat(seed)), strict=True)
            train, held_out = ([own[half[part]] for own, half in zip(rows, halves, strict=True)] for part in (0, 1))
            logits = [np.zeros(0)] * len(some)
            for place, (kernel, bias) in self._groups(config).train(features, train, np.stack(seeds), weights):
                whole = features.inputs(held_out[place], np.zeros(len(held_out[place]), np.int64))
                logits[place] = whole @ kernel + bias
            outputs, labels = np.concatenate(logits), features.labels(np.concatenate(held_out))
            losses = keras.losses_of(labels, outputs).numpy()
            photos = zip(keras.scores_of(outputs).numpy(), labels, losses, strict=True)
            for before, own in zip(self._scores(partition, some, held_out), held_out, strict=True):
                yield LocalComparison(before, _score(before.client_id, itertools.islice(photos, len(own))))


def _halves(client_id: str, photos: int, seed: int) -> tuple[list[np.ndarray], np.ndarray]:
    """The photos that a client trains on and those that it does not, and the seed of the order in which it does."""
    halves = np.array_split(derive_generator(seed, "local split", client_id).permutation(photos), 2)
    return halves, derive_seed(seed, "local training", client_id)


def _counted(items: Iterable[_Item], progress: Progress) -> Iterator[_Item]:
    for item in items:
        yield item
        progress.add()


def _score(client_id: str, photos: Iterable[tuple[np.ndarray, ...]]) -> ClientScore:
    scores, labels, losses = map(np.array, zip(*photos, strict=True))
    exact = histogram.pooled_average_precision(scores, labels)
    return ClientScore(client_id, len(losses), float(np.mean(losses)), exact)


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
