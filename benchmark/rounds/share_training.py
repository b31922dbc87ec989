"""A share of a round's cohort, trained client after client into one aggregate; imports TensorFlow only.

The in-process runtime has one share, the whole cohort; on Ray every worker has one.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from benchmark.data.clients import BatchPlan, ClientBatch, ClientData, client_batches
from benchmark.rounds.client_work import ClientWork
from benchmark.rounds.config import MIME_LITE
from benchmark.rounds.local_training import Batch, LocalTrainer
from benchmark.rounds.server import ClientAggregation
from benchmark.run.seeds import derive_seed


class RoundStart(NamedTuple):
    """What the server sends to the clients of a round, as tensors or arrays.

    Attributes:
      round_number: counted from 0.
      learning_rate: of the clients' SGD in this round.
      weights: the global weights, trainable ones first.
      broadcast: the aggregator's own (clipping norm, ...).
      base_optimizer_state: MimeLite's.
    """

    round_number: int
    learning_rate: float
    weights: Sequence[tf.Tensor]
    broadcast: Sequence[tf.Tensor]
    base_optimizer_state: Sequence[tf.Tensor]


class ShareResult(NamedTuple):
    """What one share of the cohort comes to.

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


class ShareTrainer:
    """Trains shares of cohorts on a resident model.

    Args:
      trainer: the client's steps.
      aggregation: TFF's clip-and-encode and accumulate functions.
      data: the training clients.
      plan: how a client goes through its photos.
      seed: of the run.
    """

    def __init__(
        self, trainer: LocalTrainer, aggregation: ClientAggregation, data: ClientData, plan: BatchPlan, seed: int
    ) -> None:
        self.trainer = trainer
        self._work = ClientWork(trainer, aggregation)
        self._data, self._plan, self._seed = data, plan, seed

    def train(self, start: RoundStart, clients: Sequence[str]) -> ShareResult:
        """Trains each client from the weights of `start`, which no order or grouping of the clients changes."""
        weights, broadcast, base_optimizer_state = (
            [tf.convert_to_tensor(array) for array in arrays]
            for arrays in (start.weights, start.broadcast, start.base_optimizer_state)
        )
        learning_rate = tf.constant(start.learning_rate, tf.float32)
        batches = client_batches(
            self._data,
            clients,
            plan=self._plan,
            seed=self._seed,
            round_number=start.round_number,
            passes=2 if self.trainer.config.algorithm == MIME_LITE else 1,
        )
        aggregate = self._work.start_round()
        num_examples, refused, seconds = 0, [], []
        for client_id in clients:
            started = time.perf_counter()
            outcome = self._work.train(
                lambda: one_pass(batches),
                weights,
                learning_rate,
                aggregate,
                broadcast,
                tf.constant(derive_seed(self._seed, "encoding", start.round_number, client_id)),
                base_optimizer_state,
            )
            aggregate = outcome.aggregate
            num_examples += outcome.num_examples
            if not outcome.is_usable:
                refused.append(client_id)
            seconds.append(time.perf_counter() - started)
        return ShareResult(
            aggregate, self._work.metric_sums(), num_examples, tuple(refused), np.array(seconds, np.float64)
        )


def one_pass(batches: Iterator[ClientBatch]) -> Iterator[Batch]:
    """The batches up to the end of the current client's pass."""
    for batch in batches:
        yield batch.pixels, batch.labels
        if batch.is_last:
            return
