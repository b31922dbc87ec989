"""The in-process runtime: clients train one after another on a resident model, TFF's aggregator adds them up.

Peak memory does not depend on the cohort: the model, the server state, one aggregate and one client's update.
"""

from __future__ import annotations

import collections
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from benchmark.algorithm import build_aggregation_factory, build_base_optimizer, build_optimizer
from benchmark.client_data import BatchPlan, ClientBatch, ClientData, client_batches
from benchmark.client_work import ClientWork
from benchmark.federated_config import MIME_LITE, FederatedConfig
from benchmark.local_training import Batch, LocalTrainer, OptimizerStep
from benchmark.runtime import RoundResult
from benchmark.seeds import derive_seed
from benchmark.server import ClientAggregation, Server
from benchmark.server_graphs import build_server_spec


class InProcessRuntime:
    """Runs rounds in this process, on its GPU when it has one.

    Args:
      model: the resident model; its weights are where training starts.
      config: algorithm, optimizers and aggregator.
      data: the training clients.
      plan: how a client goes through its photos.
      seed: of the run; noise, order and augmentation of a round follow from it and the round's number.
      noise_name: names the run's noise. Two runs that differ must not share noise, or the difference of their models
        would show the clients' updates without any; `federated_main` gives a digest of flags and data.
    """

    def __init__(
        self,
        model: tf.keras.Model,
        config: FederatedConfig,
        data: ClientData,
        plan: BatchPlan,
        seed: int,
        noise_name: str = "",
    ) -> None:
        self._config, self._data, self._plan, self._seed = config, data, plan, seed
        self._noise_name = noise_name
        trainable = tuple(tf.TensorSpec(v.shape, v.dtype) for v in model.trainable_variables)
        non_trainable = tuple(tf.TensorSpec(v.shape, v.dtype) for v in model.non_trainable_variables)
        base_optimizer = build_base_optimizer(config)
        spec = build_server_spec(
            trainable,
            non_trainable,
            build_aggregation_factory(config, trainable),
            build_optimizer(config.server_optimizer),
            base_optimizer,
        )
        self._server = Server(spec)
        step = _optimizer_step(base_optimizer, trainable) if base_optimizer is not None else None
        self.trainer = LocalTrainer(model, config.client, step, plan.task.is_binary)
        self._work = ClientWork(self.trainer, ClientAggregation(spec.work, spec.zero, spec.accumulate))
        variables = [*model.trainable_variables, *model.non_trainable_variables]
        self._state = self._server.initialize([variable.read_value() for variable in variables])

    def run_round(self, round_number: int, cohort: Sequence[str]) -> RoundResult:
        """Trains the cohort from the current global weights and updates them."""
        weights = self._server.weights(self._state)
        broadcast = self._server.broadcast(self._state, self._round_seed("broadcast", round_number))
        base_optimizer_state = self._server.part(self._state, "base_optimizer")
        rates = self._config.client.learning_rates
        learning_rate = tf.constant(rates[min(round_number, len(rates) - 1)], tf.float32)
        batches = client_batches(
            self._data,
            cohort,
            plan=self._plan,
            seed=self._seed,
            round_number=round_number,
            passes=2 if self._config.client.algorithm == MIME_LITE else 1,
        )
        aggregate = self._work.start_round()
        num_examples, non_finite = 0, []
        for client_id in cohort:
            outcome = self._work.train(
                lambda: one_pass(batches),
                weights,
                learning_rate,
                aggregate,
                broadcast,
                self._round_seed("encoding", round_number, client_id),
                base_optimizer_state,
            )
            aggregate = outcome.aggregate
            num_examples += outcome.num_examples
            if not outcome.is_finite:
                non_finite.append(client_id)
        noise_seed = self._round_seed("noise", self._noise_name, round_number)
        self._state, measurements = self._server.finish(self._state, aggregate, noise_seed)
        return RoundResult(
            self._work.round_metrics(), measurements, num_examples, self._noise_multipliers(), tuple(non_finite)
        )

    def weights(self) -> list[np.ndarray]:
        """The global weights, trainable ones first."""
        return [tensor.numpy() for tensor in self._server.weights(self._state)]

    def state(self) -> list[np.ndarray]:
        """The server's flat state: weights, aggregator, optimizer."""
        return [tensor.numpy() for tensor in self._state]

    def restore(self, state: Sequence[np.ndarray]) -> None:
        """Continues from a saved `state()`."""
        if len(state) != len(self._state):
            raise ValueError(f"expected a state of {len(self._state)} arrays, got {len(state)}")
        self._state = [tf.constant(array, tensor.dtype) for array, tensor in zip(state, self._state, strict=True)]

    def _round_seed(self, *names: str | int) -> tf.Tensor:
        return tf.constant(derive_seed(self._seed, *names))

    def _noise_multipliers(self) -> tuple[float, ...]:
        named = zip(self._server.spec.state_names, self._state, strict=True)
        return tuple(
            float(value)
            for name, value in named
            if name.startswith("aggregator/dp_event/") and name.endswith("noise_multiplier")
        )

    def close(self) -> None:
        """Nothing to end."""


def one_pass(batches: Iterator[ClientBatch]) -> Iterator[Batch]:
    """The batches up to the end of the current client's pass."""
    for batch in batches:
        yield batch.pixels, batch.labels
        if batch.is_last:
            return


def _optimizer_step(optimizer: object, trainable: Sequence[tf.TensorSpec]) -> OptimizerStep:
    template = optimizer.initialize(tuple(trainable))  # type: ignore[attr-defined]

    def step(
        state: Sequence[tf.Tensor], weights: Sequence[tf.Tensor], gradients: Sequence[tf.Tensor]
    ) -> list[tf.Tensor]:
        packed = _pack(template, iter(state))
        return list(optimizer.next(packed, tuple(weights), tuple(gradients))[1])  # type: ignore[attr-defined]

    return step


def _pack(template: Any, flat: Iterator[tf.Tensor]) -> Any:
    """`template` with its leaves from `flat`, in TFF's order: as inserted (`tf.nest` would sort the keys)."""
    if isinstance(template, Mapping):
        return collections.OrderedDict((key, _pack(value, flat)) for key, value in template.items())
    if isinstance(template, tuple | list):
        return tuple(_pack(value, flat) for value in template)
    return next(flat)
