"""The in-process runtime: clients train one after another on a resident model, TFF's aggregator adds them up.

Peak memory does not depend on the cohort: the model, the server state, one aggregate and one client's update.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from benchmark.data.clients import BatchPlan, ClientData
from benchmark.privacy.noise_key import NoiseKey
from benchmark.rounds.config import FederatedConfig
from benchmark.rounds.local_training import LocalTrainer, graph_step
from benchmark.rounds.round_server import RoundServer
from benchmark.rounds.runtime import RoundResult
from benchmark.rounds.server import ClientAggregation
from benchmark.rounds.share_training import ShareTrainer


class InProcessRuntime:
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
        self._server = RoundServer(model, config, plan.task.is_binary, seed, noise_key)
        spec = self._server.spec
        step = None if self._server.step_spec is None else graph_step(self._server.step_spec)
        self.trainer = LocalTrainer(model, config.client, step, plan.task.is_binary)
        aggregation = ClientAggregation(spec.work, spec.zero, spec.accumulate)
        self._cohort = ShareTrainer(self.trainer, aggregation, data, plan, seed)

    def run_round(self, round_number: int, cohort: Sequence[str]) -> RoundResult:
        """Trains the cohort from the current global weights and updates them."""
        result = self._cohort.train(self._server.start(round_number), cohort)
        return self._server.finish(round_number, [result])

    def weights(self) -> list[np.ndarray]:
        """The global weights, trainable ones first."""
        return self._server.weights()

    def state(self) -> list[np.ndarray]:
        """The server's flat state: weights, aggregator, optimizer."""
        return self._server.state()

    def restore(self, state: Sequence[np.ndarray]) -> None:
        """Continues from a saved `state()`."""
        self._server.restore(state)

    def close(self) -> None:
        """Nothing to end."""
