"""Scores a model on a partition: all photos together, or the spread over clients that a pooled average hides."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import tensorflow as tf

from benchmark.data.clients import Batch, BatchPlan, ClientData, ClientPhotos, photos_of, training_order
from benchmark.data.inputs import Evaluation, Inputs
from benchmark.evaluation import passes
from benchmark.metrics import histogram
from benchmark.metrics.spread import distribution
from benchmark.rounds.client import LocalTrainer
from benchmark.rounds.config import FED_AVG, ClientConfig
from benchmark.run.seeds import derive_generator, derive_seed
from flair.files import atomic
from flair.terminal.progress import Progress

_PHOTOS_AT_ONCE = 64  # of small clients together: alone, each would cost a call


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
      inputs: the photos, as the model takes them.
      batch_plan: the task, and how a client trains.
      clients: that train, with the photos as the model takes them.

    Attributes:
      data: opens the photos of a partition, once.
    """

    def __init__(self, model: tf.keras.Model, inputs: Inputs, batch_plan: BatchPlan, clients: ClientData) -> None:
        self._model, self._inputs, self._batch_plan, self._clients = model, inputs, batch_plan, clients
        self.data: Callable[[str], Evaluation] = functools.cache(inputs.evaluation)
        self._trainer = functools.cache(lambda config: LocalTrainer(model, replace(config, algorithm=FED_AVG)))

    def evaluate(self, partition: str, title: str | None = None) -> dict[str, float]:
        data = self.data(partition)
        with Progress(data.num_photos, title or f"scoring {partition}", "photo") as progress:
            return passes.evaluate(self._model, data, self._batch_plan.task, progress)

    def score_clients(self, partition: str, clients: Sequence[str]) -> list[ClientScore]:
        with Progress(len(clients), f"scoring {partition} clients", "client") as progress:
            scores = []
            for score in self._scores((client_id, self._photos(partition, client_id)) for client_id in clients):
                scores.append(score)
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
                photos = self._photos(partition, client_id)
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

    def _photos(self, partition: str, client_id: str) -> ClientPhotos:
        if partition == "train":
            return photos_of(self._clients, client_id, self._batch_plan)
        return self._inputs.user(partition, client_id)

    def _scores(self, clients: Iterable[tuple[str, ClientPhotos]]) -> Iterator[ClientScore]:
        pieces = (
            (client_id, photos.whole(range(start, min(start + _PHOTOS_AT_ONCE, photos.count))))
            for client_id, photos in clients
            for start in range(0, photos.count, _PHOTOS_AT_ONCE)
        )
        for client_id, own in itertools.groupby(self._predicted(pieces), key=lambda piece: piece.client_id):
            yield _score(client_id, *map(np.concatenate, zip(*(piece[1:] for piece in own), strict=True)))

    def _predicted(self, pieces: Iterable[tuple[str, Batch]]) -> Iterator[_Predicted]:
        """The predictions of each piece, of which several go through the model together."""
        together: list[tuple[str, Batch]] = []
        for piece in pieces:
            if sum(len(labels) for _, (_, labels) in (*together, piece)) > _PHOTOS_AT_ONCE:
                yield from self._predict(together)
                together = []
            together.append(piece)
        if together:
            yield from self._predict(together)

    def _predict(self, pieces: Sequence[tuple[str, Batch]]) -> Iterator[_Predicted]:
        inputs, labels = (tf.concat(parts, 0) for parts in zip(*(batch for _, batch in pieces), strict=True))
        scores, losses = passes.predict_step(self._model)([(inputs, labels)])[0]
        borders = np.cumsum([len(own) for _, (_, own) in pieces])[:-1]
        arrays = (np.split(array.numpy(), borders) for array in (scores, labels, losses))
        for (client_id, _), *of_piece in zip(pieces, *arrays, strict=True):
            yield _Predicted(client_id, *of_piece)

    def _score(self, client_id: str, photos: Batch) -> ClientScore:
        scores, losses = passes.predict_step(self._model)([photos])[0]
        return _score(client_id, scores.numpy(), photos[1].numpy(), losses.numpy())

    def _batches(self, photos: ClientPhotos, train: np.ndarray, seed: int, client_id: str) -> list[Batch]:
        plan, count = self._batch_plan, tf.constant(len(train))
        order, seeds = training_order(count, derive_seed(seed, "local training", client_id), plan)
        shown, starts = tf.gather(tf.constant(train, tf.int32), order), range(0, int(order.shape[0]), plan.batch_size)
        return [photos.training(shown[i : i + plan.batch_size], seeds[i : i + plan.batch_size]) for i in starts]


class _Predicted(NamedTuple):
    """Photos of one client: scores and labels [photos, outputs], losses [photos]."""

    client_id: str
    scores: np.ndarray
    labels: np.ndarray
    losses: np.ndarray


def _score(client_id: str, scores: np.ndarray, labels: np.ndarray, losses: np.ndarray) -> ClientScore:
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
