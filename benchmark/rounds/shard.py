"""A shard of a cohort: each client is trained, and its update added to one aggregate. Imports TensorFlow only.

In one process the shard is the whole cohort; on Ray every worker has one.
"""

from __future__ import annotations

import functools
import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from benchmark.data.clients import BatchPlan, ClientBatch, ClientData, client_batches
from benchmark.metrics.keras import ScoreHistogram
from benchmark.rounds.aggregation import Aggregation
from benchmark.rounds.client import Batch, LocalTrainer
from benchmark.rounds.config import FED_SGD, MAX_UPDATE_NORM, MIME_LITE
from benchmark.run.seeds import derive_seed


class Broadcast(NamedTuple):
    """What the server sends to the clients of a round, as tensors or arrays.

    Attributes:
      round_number: counted from 0.
      learning_rate: of the clients' SGD in this round.
      weights: the global weights, trainable ones first.
      aggregator: the aggregator's own (clip norm, ...).
      base_optimizer_state: MimeLite's.
    """

    round_number: int
    learning_rate: float
    weights: Sequence[tf.Tensor]
    aggregator: Sequence[tf.Tensor]
    base_optimizer_state: Sequence[tf.Tensor]

    def arrays(self) -> Broadcast:
        """The same as NumPy arrays, to be sent to another process."""
        return self._each(lambda tensor: tensor.numpy())

    def tensors(self) -> Broadcast:
        """The same as tensors."""
        return self._each(tf.convert_to_tensor)

    def _each(self, convert: Callable[[Any], Any]) -> Broadcast:
        return self._replace(
            weights=list(map(convert, self.weights)),
            aggregator=list(map(convert, self.aggregator)),
            base_optimizer_state=list(map(convert, self.base_optimizer_state)),
        )


class ShardResult(NamedTuple):
    """What one shard of the cohort comes to.

    Attributes:
      aggregate: TFF's accumulated results of the clients, as tensors or arrays.
      metric_sums: of `ScoreHistogram`: counts, loss and photos, over the clients whose update was not refused.
      num_examples: photos shown, epochs counted.
      refused_clients: clients whose update was not finite or longer than `MAX_UPDATE_NORM`, and therefore left out.
      client_seconds: float64 [clients], how long each client took.
    """

    aggregate: Sequence[tf.Tensor]
    metric_sums: Sequence[np.ndarray]
    num_examples: int
    refused_clients: tuple[str, ...]
    client_seconds: np.ndarray


class ShardTrainer:
    """Trains shards of cohorts on a resident model.

    Args:
      trainer: the client's steps.
      aggregation: TFF's aggregator.
      data: the training clients.
      batch_plan: how a client goes through its photos.
      seed: of the run; order, augmentation and encoding of a client follow from it, the round and the client.
    """

    def __init__(
        self, trainer: LocalTrainer, aggregation: Aggregation, data: ClientData, batch_plan: BatchPlan, seed: int
    ) -> None:
        self.trainer, self._aggregation = trainer, aggregation
        self._data, self._batch_plan, self._seed = data, batch_plan, seed
        self._metrics = ScoreHistogram(trainer.metrics.num_labels, trainer.metrics.is_binary)
        aggregation.load("zero", "work", "accumulate")

    def train(self, sent: Broadcast, clients: Sequence[str]) -> ShardResult:
        """Trains each client from the weights that were sent, which no order or grouping of the clients changes."""
        sent = sent.tensors()
        passes = 2 if self.trainer.config.algorithm == MIME_LITE else 1
        batches = client_batches(
            self._data,
            clients,
            plan=self._batch_plan,
            seed=self._seed,
            round_number=sent.round_number,
            passes=passes,
        )
        learning_rate = tf.constant(sent.learning_rate, tf.float32)
        self._metrics.reset_state()
        self.trainer.has_moved = True  # whatever the model was used for since the round before
        aggregate = self._aggregation.zero()
        num_examples, refused, seconds = 0, [], []
        for client_id in clients:
            started = time.perf_counter()
            seed = tf.constant(derive_seed(self._seed, "encoding", sent.round_number, client_id))
            photos, add = self._train_client(lambda: one_pass(batches), sent, learning_rate)
            added, is_usable = add(aggregate, sent.aggregator, seed, refuse=False)
            if not is_usable:
                # Once more, now as nothing. To decide it inside the first pass would select between two results,
                # another way through all weights, for every client because of hardly any.
                added, _ = add(aggregate, sent.aggregator, seed, refuse=True)
                refused.append(client_id)
            aggregate = list(added)
            num_examples += photos
            seconds.append(time.perf_counter() - started)
        sums = [total.numpy() for total in (self._metrics.counts, self._metrics.loss_sum, self._metrics.num_photos)]
        return ShardResult(aggregate, sums, num_examples, tuple(refused), np.array(seconds, np.float64))

    def _train_client(
        self, batches: Callable[[], Iterable[Batch]], sent: Broadcast, learning_rate: tf.Tensor
    ) -> tuple[int, Callable[..., tuple[Sequence[tf.Tensor], tf.Tensor]]]:
        """Trains one client; returns the photos shown, and what adds its update to an aggregate."""
        only = None
        if self.trainer.descends:
            only, batches = _look_ahead(batches)
        if only is None:
            self.trainer.start(sent.weights)
            photos = self.trainer.run(batches, learning_rate, sent.weights, sent.base_optimizer_state)
            return photos, functools.partial(self._add_difference, sent.weights, tf.constant(photos, tf.float32))
        # Most clients of FLAIR have a single batch. Their update is the scaled gradient: no weight is set back, moved
        # and subtracted again, each of which costs as much as a good part of the step.
        if self.trainer.has_moved:
            self.trainer.start(sent.weights)
        return int(only[1].shape[0]), functools.partial(self._add_only_step, *only, learning_rate)

    @tf.function(reduce_retracing=True)
    def _add_only_step(
        self,
        pixels: tf.Tensor,
        labels: tf.Tensor,
        learning_rate: tf.Tensor,
        aggregate: Sequence[tf.Tensor],
        broadcast: Sequence[tf.Tensor],
        seed: tf.Tensor,
        refuse: bool,
    ) -> tuple[list[tf.Tensor], tf.Tensor]:
        self.trainer.forget()
        update = self.trainer.only_update(pixels, labels, learning_rate)
        num_examples = tf.cast(tf.shape(labels)[0], tf.float32)
        return self._add(update, [], num_examples, aggregate, broadcast, seed, refuse)

    @tf.function
    def _add_difference(
        self,
        global_weights: Sequence[tf.Tensor],
        num_examples: tf.Tensor,
        aggregate: Sequence[tf.Tensor],
        broadcast: Sequence[tf.Tensor],
        seed: tf.Tensor,
        refuse: bool,
    ) -> tuple[list[tf.Tensor], tf.Tensor]:
        gradient = [tf.math.divide_no_nan(total, num_examples) for total in self.trainer.gradient_sum]
        update = (
            gradient
            if self.trainer.config.algorithm == FED_SGD
            else [weight - variable for weight, variable in zip(global_weights, self.trainer.trainable, strict=False)]
        )
        full_gradient = gradient if self.trainer.config.algorithm == MIME_LITE else []
        return self._add(update, full_gradient, num_examples, aggregate, broadcast, seed, refuse)

    def _add(
        self,
        update: Sequence[tf.Tensor],
        full_gradient: Sequence[tf.Tensor],
        num_examples: tf.Tensor,
        aggregate: Sequence[tf.Tensor],
        broadcast: Sequence[tf.Tensor],
        seed: tf.Tensor,
        refuse: bool,
    ) -> tuple[list[tf.Tensor], tf.Tensor]:
        """The aggregate with this client in it, which is of no use where the update turns out not to be usable."""
        result = [*update, *full_gradient]
        if refuse:
            # A diverged client counts as TFF has it: a zero update of weight zero, its metrics left out.
            result = [tf.zeros_like(tensor) for tensor in result]
            is_usable = tf.constant(False)
        else:
            # Not a test of every number: these sums are what clipping needs anyway, and NaN is above no bound.
            is_usable = 2 * tf.add_n([tf.nn.l2_loss(tensor) for tensor in result]) <= MAX_UPDATE_NORM**2
        weight = tf.where(is_usable, num_examples if self.trainer.config.weighted else 1.0, 0.0)
        self._metrics.add(self.trainer.metrics, tf.cast(is_usable, tf.int64))
        result = [*result[: len(update)], weight, *result[len(update) :]]
        return self._aggregation.accumulate(aggregate, result, broadcast, seed), is_usable


def one_pass(batches: Iterator[ClientBatch]) -> Iterator[Batch]:
    """The batches up to the end of the current client's pass."""
    for batch in batches:
        yield batch.pixels, batch.labels
        if batch.is_last:
            return


def _look_ahead(
    batches: Callable[[], Iterable[Batch]],
) -> tuple[Batch | None, Callable[[], Iterable[Batch]]]:
    """The batch of a client that has but one, else None; and the batches, to be gone through once more only."""
    rest = iter(batches())
    ahead = list(itertools.islice(rest, 2))
    return ahead[0] if len(ahead) == 1 else None, functools.partial(itertools.chain, ahead, rest)
