"""The in-process runtime: one round of federated training, as the textbook has it.

`run_round` is the whole round. What it calls: `server.RoundServer` (the global weights, noise, the server's step),
`shard.ShardTrainer` (client after client; `group.GroupTrainer` where many small ones go at once), `client.LocalTrainer`
(the steps of a client) and `aggregation.Aggregation` (TFF's aggregator, which adds the updates up). Peak memory does
not depend on the cohort: the model, the server's state, one aggregate and one client's update.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import tensorflow as tf

from benchmark.data.clients import BatchPlan, ClientData
from benchmark.privacy.noise_key import NoiseKey
from benchmark.rounds import drift
from benchmark.rounds.client import LocalTrainer
from benchmark.rounds.config import CanaryConfig, FederatedConfig
from benchmark.rounds.group import shard_trainer
from benchmark.rounds.runtime import RoundResult
from benchmark.rounds.server import RoundServer
from benchmark.rounds.shard import Broadcast
from benchmark.run.user_states import UserStates


class InProcessRuntime(RoundServer):
    """Runs rounds in this process, on its GPU when it has one.

    Args:
      model: the resident model; its weights are where training starts.
      config: algorithm, optimizers and aggregator.
      data: the training clients.
      batch_plan: how a client goes through its photos.
      seed: of the run; order and augmentation of a round follow from it and the round's number.
      noise_key, canaries, user_states: see `RoundServer`.
    """

    def __init__(
        self,
        model: tf.keras.Model,
        config: FederatedConfig,
        data: ClientData,
        batch_plan: BatchPlan,
        seed: int,
        noise_key: NoiseKey | None = None,
        canaries: CanaryConfig | None = None,
        user_states: UserStates | None = None,
    ) -> None:
        super().__init__(model, config, batch_plan.task.is_binary, seed, noise_key, canaries, user_states)
        self.trainer = LocalTrainer(model, config.client, self.aggregation.spec.step)
        self._cohort = shard_trainer(self.trainer, self.aggregation, data, batch_plan, seed, self.local_key)

    def run_round(
        self, round_number: int, cohort: Sequence[str], looked_at: Sequence[int] | None = None
    ) -> RoundResult:
        """Sends the global weights, trains each client and adds its update up, takes the server's step."""
        sent = self.broadcast(round_number)
        if looked_at is None:
            return self.finish(round_number, [self._cohort.train(sent, cohort, self._user_states)])
        result = self._cohort.train(drift.watched(sent), cohort)
        found = drift.measure(self._products, sent, cohort, result.update_norms, result.update_sum, looked_at)
        return replace(self.finish(round_number, [result]), drift=found)

    def _products(self, sent: Broadcast, clients: Sequence[str]) -> np.ndarray:
        return self._cohort.train(sent, clients).update_products
