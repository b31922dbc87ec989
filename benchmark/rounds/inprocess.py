"""The in-process runtime: one round of federated training, as the textbook has it.

Clients train one after another on a resident model, and TFF's aggregator adds them up. Peak memory does not depend on
the cohort: the model, the server's state, one aggregate and one client's update.
"""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow as tf

from benchmark.data.clients import BatchPlan, ClientData
from benchmark.privacy.noise_key import NoiseKey
from benchmark.rounds.client import LocalTrainer
from benchmark.rounds.config import FederatedConfig
from benchmark.rounds.runtime import RoundResult
from benchmark.rounds.server import RoundServer, ServedRuntime
from benchmark.rounds.shard import ShardTrainer


class InProcessRuntime(ServedRuntime):
    """Runs rounds in this process, on its GPU when it has one.

    Args:
      model: the resident model; its weights are where training starts.
      config: algorithm, optimizers and aggregator.
      data: the training clients.
      plan: how a client goes through its photos.
      seed: of the run; order and augmentation of a round follow from it and the round's number.
      noise_key: of a private run, see `RoundServer`.
    """

    def __init__(
        self,
        model: tf.keras.Model,
        config: FederatedConfig,
        data: ClientData,
        plan: BatchPlan,
        seed: int,
        noise_key: NoiseKey | None = None,
    ) -> None:
        self.server = RoundServer(model, config, plan.task.is_binary, seed, noise_key)
        aggregation = self.server.aggregation
        self.trainer = LocalTrainer(model, config.client, aggregation.spec.step, plan.task.is_binary)
        self._clients = ShardTrainer(self.trainer, aggregation, data, plan, seed)

    def run_round(self, round_number: int, cohort: Sequence[str]) -> RoundResult:
        """Sends the global weights, trains each client and adds its update up, takes the server's step."""
        sent = self.server.broadcast(round_number)
        result = self._clients.train(sent, cohort)
        return self.server.finish(round_number, [result])

    def close(self) -> None:
        """Nothing to end."""
