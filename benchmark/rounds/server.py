"""The server of a run: the global state, what a round sends to its clients, and what their results do to it."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence

import numpy as np
import tensorflow as tf

from benchmark.metrics import histogram
from benchmark.privacy.noise import FreshNoise, TreeNoise
from benchmark.privacy.noise_key import NoiseKey
from benchmark.privacy.request import Mechanism
from benchmark.rounds.aggregation import Aggregation
from benchmark.rounds.algorithm import build_aggregation_factory, build_base_optimizer, build_optimizer
from benchmark.rounds.compilation import compile_round
from benchmark.rounds.config import FederatedConfig, NoiseConfig
from benchmark.rounds.runtime import RoundResult
from benchmark.rounds.shard import Broadcast, ShardResult
from benchmark.run.seeds import derive_seed


class RoundServer:
    """Holds the state of a run between rounds.

    Args:
      model: its weights are where training starts.
      config: algorithm, optimizers and aggregator.
      is_binary: whether metrics carry their bare names.
      seed: of the run; what an aggregator rounds stochastically follows from it and the round's number.
      noise_key: what the noise of a private run follows from, by round. None draws a new one: two runs that differ
        must not share noise, or the difference of their models would show the clients' updates without any.

    Attributes:
      aggregation: TFF's aggregator and server optimizer.
    """

    def __init__(
        self,
        model: tf.keras.Model,
        config: FederatedConfig,
        is_binary: bool,
        seed: int,
        noise_key: NoiseKey | None = None,
    ) -> None:
        self._config, self._is_binary, self._seed = config, is_binary, seed
        self._noise = None if config.noise is None else _noise_of(config.noise, noise_key or NoiseKey.draw())
        self._num_outputs = model.output_shape[-1]
        trainable = tuple(tf.TensorSpec(v.shape, v.dtype) for v in model.trainable_variables)
        non_trainable = tuple(tf.TensorSpec(v.shape, v.dtype) for v in model.non_trainable_variables)
        spec = compile_round(
            trainable,
            non_trainable,
            build_aggregation_factory(config),
            build_optimizer(config.server_optimizer),
            build_base_optimizer(config),
        )
        self.aggregation = Aggregation(spec)
        variables = [*model.trainable_variables, *model.non_trainable_variables]
        self._state = self.aggregation.initialize([variable.read_value() for variable in variables])

    def broadcast(self, round_number: int) -> Broadcast:
        """What the clients of this round are sent."""
        rates = self._config.client.learning_rates
        return Broadcast(
            round_number,
            rates[min(round_number, len(rates) - 1)],
            self.aggregation.weights(self._state),
            self.aggregation.broadcast(self._state, self._round_seed("broadcast", round_number)),
            self.aggregation.part(self._state, "base_optimizer"),
        )

    def finish(self, round_number: int, results: Iterable[ShardResult]) -> RoundResult:
        """Merges the shards in the order given, adds the noise and takes the server optimizer's step."""
        aggregate: list[tf.Tensor] | None = None
        sums: list[np.ndarray] | None = None
        num_examples = 0
        refused: list[str] = []
        for result in results:
            one = [tf.convert_to_tensor(array) for array in result.aggregate]
            aggregate = one if aggregate is None else self.aggregation.merge(aggregate, one)
            counted = [np.asarray(array) for array in result.metric_sums]
            sums = counted if sums is None else [total + more for total, more in zip(sums, counted, strict=True)]
            num_examples += result.num_examples
            refused += result.refused_clients
        if aggregate is None:
            aggregate = self.aggregation.zero()
        normals = None if self._noise is None else functools.partial(self._noise.normals, round_number)
        seed = self._round_seed("rounding", round_number)
        self._state, measurements = self.aggregation.finish(self._state, aggregate, seed, normals)
        return RoundResult(self._metrics(sums), measurements, num_examples, self._noise_multipliers(), tuple(refused))

    def weights(self) -> list[np.ndarray]:
        """The global weights, trainable ones first."""
        return [tensor.numpy() for tensor in self.aggregation.weights(self._state)]

    def state(self) -> list[np.ndarray]:
        """The server's flat state: weights, aggregator, optimizer."""
        return [tensor.numpy() for tensor in self._state]

    def restore(self, state: Sequence[np.ndarray]) -> None:
        """Continues from a saved `state()`."""
        if len(state) != len(self._state):
            raise ValueError(f"expected a state of {len(self._state)} arrays, got {len(state)}")
        self._state = [tf.constant(array, tensor.dtype) for array, tensor in zip(state, self._state, strict=True)]

    def _metrics(self, sums: Sequence[np.ndarray] | None) -> dict[str, float]:
        if sums is None:
            sums = [np.zeros((self._num_outputs, 2, histogram.NUM_BUCKETS)), np.zeros(()), np.zeros(())]
        return histogram.finalize(sums[0], float(sums[1]), int(sums[2]), self._is_binary)

    def _round_seed(self, *names: str | int) -> tf.Tensor:
        return tf.constant(derive_seed(self._seed, *names))

    def _noise_multipliers(self) -> tuple[float, ...]:
        named = zip(self.aggregation.spec.state_names, self._state, strict=True)
        return tuple(
            float(value)
            for name, value in named
            if name.startswith("aggregator/dp_event/") and name.endswith("noise_multiplier")
        )


class ServedRuntime:
    """What the runtimes with a `RoundServer` have in common: its weights and state are theirs."""

    server: RoundServer

    def weights(self) -> list[np.ndarray]:
        """The global weights, trainable ones first."""
        return self.server.weights()

    def state(self) -> list[np.ndarray]:
        """The server's flat state: weights, aggregator, optimizer."""
        return self.server.state()

    def restore(self, state: Sequence[np.ndarray]) -> None:
        """Continues from a saved `state()`."""
        self.server.restore(state)


def _noise_of(config: NoiseConfig, key: NoiseKey) -> FreshNoise | TreeNoise:
    if config.mechanism is Mechanism.TREE:
        return TreeNoise(key)
    return FreshNoise(key)
