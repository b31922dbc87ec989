"""What a Ray worker does in a run: it trains and scores shards of clients and photos on a resident model."""

from __future__ import annotations

import socket
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from benchmark.data.clients import BatchPlan, ClientSource
from benchmark.data.inputs import Inputs, PixelInputs
from benchmark.evaluation.passes import Evaluation, accumulate
from benchmark.features.cache import FeatureSource
from benchmark.federated.scoring import ClientScore, LocalComparison, LocalScorer
from benchmark.model.networks import build_model
from benchmark.model.trainable import choose, new_head
from benchmark.privacy.noise_key import NoiseKey
from benchmark.rounds.aggregation import Aggregation, RoundSpec
from benchmark.rounds.client import LocalTrainer
from benchmark.rounds.config import ClientConfig
from benchmark.rounds.group import shard_trainer
from benchmark.rounds.shard import Broadcast, ShardResult, in_arrays
from flair.errors import FlairError


class Job(NamedTuple):
    """All that a worker needs to know of a run, once.

    Attributes:
      model: arguments of `networks.build_model`, and which of its weights train (`model.trainable`).
      frozen: the values of the others.
      features: where features are, if the head alone trains on them; None: photos are decoded.
      source: the clients' photos.
      batch_plan: how a client goes through them.
      client: what a client does.
      seed: of the run.
      local_key: what the clients' noise under local privacy follows from, which is not the run's noise key.
      round: TFF's aggregator as graphs.
      eval_batch_size: photos per batch when scoring.
      tensorflow: version that the run has.
    """

    model: tuple[tuple[Any, ...], str]
    frozen: Sequence[np.ndarray]
    features: FeatureSource | None
    source: ClientSource
    batch_plan: BatchPlan
    client: ClientConfig
    seed: int
    local_key: NoiseKey | None
    round: RoundSpec
    eval_batch_size: int
    tensorflow: str


class Tasks:
    """The tasks of a run, as methods that `FederatedWorker.run` calls by name; all share one model."""

    def __init__(self, job: Job) -> None:
        if tf.__version__ != job.tensorflow:
            raise FlairError(
                f"machine {socket.gethostname()} has TensorFlow {tf.__version__}, the run {job.tensorflow}; install "
                "the toolkit there with the same requirements.txt"
            )
        (arguments, trainable), plan = job.model, job.batch_plan
        self._task = plan.task
        inputs: Inputs
        try:
            self._records, clients = job.source.open()
            if job.features is None:
                self._model = choose(build_model(*arguments), trainable)
                size = plan.image_size, job.eval_batch_size
                inputs = PixelInputs(self._records, plan.task, *size, plan.augment)
            else:
                self._model = new_head(job.features.network.size, plan.task.num_outputs)
                inputs = job.features.open(self._records, plan.task)
        except FlairError as error:
            raise FlairError(f"machine {socket.gethostname()}: {error}") from None
        for variable, value in zip(self._model.non_trainable_variables, job.frozen, strict=True):
            variable.assign(value)
        self._trainer = LocalTrainer(self._model, job.client, job.round.step)
        training = inputs.clients(clients)
        self._shard = shard_trainer(self._trainer, Aggregation(job.round), training, plan, job.seed, job.local_key)
        self._scorer = LocalScorer(self._model, self._records, inputs, plan, training)

    def ready(self) -> None:
        """Nothing: the model is built."""

    def train(self, sent: Broadcast, clients: Sequence[str], states: Mapping[str, np.ndarray]) -> ShardResult:
        """Trains these clients in a round, in SCAFFOLD with their control variates."""
        renewed = dict(states)
        result = in_arrays(self._shard.train(sent, clients, renewed))
        changed = ((name, state) for name, state in renewed.items() if state is not states.get(name))
        return result._replace(states=tuple(changed))

    def evaluate(self, weights: Sequence[np.ndarray], partition: str, shard: int, num_shards: int) -> Evaluation:
        """The sums behind the metrics over every `num_shards`-th photo of a partition, from `shard` on."""
        data = self._scorer.data(partition, range(shard, self._records.num_photos(partition), num_shards))
        self._set(weights)
        return accumulate(self._model, data, self._task)

    def score_clients(self, weights: Sequence[np.ndarray], partition: str, clients: Sequence[str]) -> list[ClientScore]:
        """As `Scorer` has it, for these weights."""
        self._set(weights)
        return self._scorer.score_clients(partition, clients)

    def compare_local_training(
        self, weights: Sequence[np.ndarray], partition: str, clients: Sequence[str], config: ClientConfig, seed: int
    ) -> list[LocalComparison]:
        """As `Scorer` has it, for these weights."""
        self._set(weights)
        return self._scorer.compare_local_training(partition, clients, config, seed)

    def _set(self, weights: Sequence[np.ndarray]) -> None:
        self._trainer.start([tf.convert_to_tensor(weight) for weight in weights])
