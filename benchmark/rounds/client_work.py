"""What a client sends: its update, clipped and encoded by TFF's aggregator, added to the aggregate of the round."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from benchmark.metrics.keras import ScoreHistogram
from benchmark.rounds.config import FED_SGD, MAX_UPDATE_NORM, MIME_LITE
from benchmark.rounds.local_training import Batch, LocalTrainer
from benchmark.rounds.server import ClientAggregation


class ClientOutcome(NamedTuple):
    """What is kept of one client: the aggregate with it in, its examples, and whether its update was usable."""

    aggregate: list[tf.Tensor]
    num_examples: int
    is_usable: bool


class ClientWork:
    """Trains clients one after another and adds each result to an aggregate.

    Args:
      trainer: the client's steps.
      aggregation: TFF's clip-and-encode and accumulate functions.
    """

    def __init__(self, trainer: LocalTrainer, aggregation: ClientAggregation) -> None:
        self.trainer, self.aggregation = trainer, aggregation
        self._round_metrics = ScoreHistogram(trainer.metrics.num_labels, trainer.metrics.is_binary)

    def start_round(self) -> list[tf.Tensor]:
        """Forgets the last round's metrics; returns the aggregate of no client."""
        self._round_metrics.reset_state()
        self.trainer.has_moved = True  # whatever the model was used for since
        return self.aggregation.zero()

    def train(
        self,
        batches: Callable[[], Iterable[Batch]],
        global_weights: Sequence[tf.Tensor],
        learning_rate: tf.Tensor,
        aggregate: Sequence[tf.Tensor],
        broadcast: Sequence[tf.Tensor],
        seed: tf.Tensor,
        optimizer_state: Sequence[tf.Tensor] = (),
    ) -> ClientOutcome:
        """Trains one client from `global_weights` and adds its clipped, encoded result to `aggregate`.

        Args:
          batches, learning_rate, optimizer_state: as `LocalTrainer.run`.
          global_weights: the same for all clients since `start_round`.
          aggregate: so far, from `start_round` or the client before.
          broadcast: what the server's aggregator sent for this round.
          seed: int64[2], for an aggregator that rounds stochastically.
        """
        only = None
        if self.trainer.descends:
            only, batches = _look_ahead(batches)
        if only is None:
            self.trainer.start(global_weights)
            num_examples = self.trainer.run(batches, learning_rate, global_weights, optimizer_state)
            sent = (global_weights, tf.constant(num_examples, tf.float32), aggregate, broadcast, seed)
            add = functools.partial(self._add_difference, *sent)
        else:
            # Going through the weights costs as much as a good part of a step, and most clients of FLAIR have one.
            if self.trainer.has_moved:
                self.trainer.start(global_weights)
            num_examples = int(only[1].shape[0])
            add = functools.partial(self._add_only_step, *only, learning_rate, aggregate, broadcast, seed)
        added, is_usable = add(refuse=False)
        if not is_usable:
            added, _ = add(refuse=True)
        return ClientOutcome(list(added), num_examples, bool(is_usable))

    def metric_sums(self) -> list[np.ndarray]:
        """`ScoreHistogram`'s sums over all clients since `start_round`, each batch scored before its step."""
        metrics = self._round_metrics
        return [variable.numpy() for variable in (metrics.counts, metrics.loss_sum, metrics.num_photos)]

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
        sent = [*update, *full_gradient]
        if refuse:
            # A diverged client counts as TFF has it: a zero update of weight zero, its metrics left out.
            sent = [tf.zeros_like(tensor) for tensor in sent]
            is_usable = tf.constant(False)
        else:
            # Not a test of every number: these sums are what clipping needs anyway, and NaN is above no bound.
            is_usable = 2 * tf.add_n([tf.nn.l2_loss(tensor) for tensor in sent]) <= MAX_UPDATE_NORM**2
        weight = tf.where(is_usable, num_examples if self.trainer.config.weighted else 1.0, 0.0)
        self._round_metrics.add(self.trainer.metrics, tf.cast(is_usable, tf.int64))
        result = [*sent[: len(update)], weight, *sent[len(update) :]]
        return self.aggregation.accumulate(aggregate, result, broadcast, seed), is_usable


def _look_ahead(
    batches: Callable[[], Iterable[Batch]],
) -> tuple[Batch | None, Callable[[], Iterable[Batch]]]:
    """The batch of a client that has but one, else None; and the batches, to be gone through once more only."""
    rest = iter(batches())
    ahead = list(itertools.islice(rest, 2))
    return ahead[0] if len(ahead) == 1 else None, functools.partial(itertools.chain, ahead, rest)
