"""The server's part of a round: the global state, what clients are sent, what their results do to it."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Sequence

import numpy as np
import tensorflow as tf

from benchmark.metrics import histogram
from benchmark.privacy.audit import CanaryScores
from benchmark.privacy.noise import normals_of
from benchmark.privacy.noise_key import NoiseKey
from benchmark.rounds.aggregation import Aggregation
from benchmark.rounds.algorithm import build_aggregation_factory, build_optimizer
from benchmark.rounds.canaries import Canaries
from benchmark.rounds.compilation import compile_round
from benchmark.rounds.config import SCAFFOLD, CanaryConfig, FederatedConfig, ServerConfig
from benchmark.rounds.dp_metrics import clipping_metrics, noise_metrics
from benchmark.rounds.runtime import RoundResult
from benchmark.rounds.shard import Broadcast, ShardResult, no_metrics
from benchmark.run.seeds import derive_seed
from benchmark.run.user_states import UserStates
from flair.errors import FlairError


@functools.lru_cache(maxsize=32)
def _compiled(config: ServerConfig, weights: tuple[tf.TensorSpec, ...]) -> Aggregation:
    """Kept, because TFF takes seconds to make the graphs, and TensorFlow to load them; nothing changes them."""
    base = None if config.base_optimizer is None else build_optimizer(config.base_optimizer)
    return Aggregation(
        compile_round(weights, build_aggregation_factory(config), build_optimizer(config.optimizer), base)
    )


class RoundServer:
    """Holds the state of a run between rounds, as a `Runtime` does; a subclass adds the clients.

    Args:
      model: its trainable weights are where training starts, and all that rounds know of it.
      config: algorithm, optimizers and aggregator.
      is_binary: whether metrics carry their bare names.
      seed: of the run; what an aggregator rounds stochastically follows from it and the round's number.
      noise_key: what the noise of a private run follows from, by round. None draws a new one: two runs that differ
        must not share noise, or the difference of their models would show the clients' updates without any.
      canaries: take part in the rounds of a private run beside its users; None: none do.
      user_states: of SCAFFOLD, the users' control variates; closed with the runtime.

    Attributes:
      aggregation: TFF's aggregator and server optimizer.
      local_key: what the clients' noise under local privacy follows from, and nothing else; None without.
      proximal_strength: FedProx's mu of the next round.
    """

    def __init__(
        self,
        model: tf.keras.Model,
        config: FederatedConfig,
        is_binary: bool,
        seed: int,
        noise_key: NoiseKey | None = None,
        canaries: CanaryConfig | None = None,
        user_states: UserStates | None = None,
    ) -> None:
        if (user_states is None) == (config.client.algorithm == SCAFFOLD):
            raise ValueError("SCAFFOLD, and nothing else, needs the users' states")
        self.proximal_strength = config.client.proximal_strength
        self._user_states = user_states
        self._rates, self._is_binary, self._seed = config.client.learning_rates, is_binary, seed
        self._noise, self._normals, self._canaries = config.noise, None, None
        if config.noise is not None:
            key = noise_key or NoiseKey.draw()
            self._normals = normals_of(config.noise.mechanism, key, config.noise.column)
            if config.noise.noise_multiplier == 0:
                self._normals = lambda _round, count: np.zeros(count, np.float32)
            if canaries is not None:
                named = [(variable.name.partition(":")[0], variable.shape) for variable in model.trainable_variables]
                self._canaries = Canaries(canaries, key, named, config.noise.clients_per_round)
        self._local = config.client.local_noise
        self.local_key = None if self._local is None else (noise_key or NoiseKey.draw()).derive("local noise")
        self._num_outputs = model.output_shape[-1]
        specs = tuple(tf.TensorSpec(v.shape, v.dtype) for v in model.trainable_variables)
        self.aggregation = _compiled(config.server, specs)
        self._state = self.aggregation.initialize([v.read_value() for v in model.trainable_variables])
        self._control = [] if user_states is None else [tf.zeros(spec.shape, spec.dtype) for spec in specs]

    def broadcast(self, round_number: int) -> Broadcast:
        """What the clients of this round are sent."""
        if self._user_states is not None:
            self._user_states.begin_round(round_number)
        return Broadcast(
            round_number,
            self._rates[min(round_number, len(self._rates) - 1)],
            self.aggregation.weights(self._state),
            self.aggregation.broadcast(self._state, self._round_seed("broadcast", round_number)),
            self.aggregation.part(self._state, "base_optimizer"),
            self._control,
            self.proximal_strength,
        )

    def finish(self, round_number: int, results: Iterable[ShardResult]) -> RoundResult:
        """Merges the shards in the order given, adds the noise and takes the server optimizer's step."""
        aggregate: list[tf.Tensor] | None = None
        sums = no_metrics(self._num_outputs)
        num_examples = 0
        refused: tuple[str, ...] = ()
        norms = [np.zeros(0, np.float32)]
        control_change: list[tf.Tensor] = []
        for result in results:
            shard = [tf.convert_to_tensor(array) for array in result.aggregate]
            aggregate = shard if aggregate is None else self.aggregation.merge(aggregate, shard)
            sums = [total + more for total, more in zip(sums, result.metric_sums, strict=True)]
            num_examples += result.num_examples
            refused += result.refused_clients
            norms.append(result.update_norms)
            of_shard = [tf.convert_to_tensor(array) for array in result.control_change]
            summed = zip(control_change, of_shard, strict=True)
            control_change = [one + more for one, more in summed] if control_change else of_shard
            for client_id, state in result.states:
                assert self._user_states is not None
                self._user_states[client_id] = state
        if aggregate is None:
            aggregate = self.aggregation.zero()
        normals = None if self._normals is None else functools.partial(self._normals, round_number)
        seed = self._round_seed("rounding", round_number)
        before, of_users = self._state, aggregate
        clip_norm = self._clip_norm()
        if self._canaries is not None:
            sent = self.aggregation.broadcast(before, self._round_seed("broadcast", round_number))
            aggregate = self._canaries.add(self.aggregation, aggregate, sent, seed, clip_norm, round_number)
        self._state, measurements, update = self.aggregation.finish(before, aggregate, seed, normals)
        if self._user_states is not None and control_change:
            # The mean over all clients moves by the changes of those that took part.
            users = self._user_states.num_users
            self._control = [c + change / users for c, change in zip(self._control, control_change, strict=True)]
        unprotected = clipping_metrics(clip_norm, np.concatenate(norms)) if math.isfinite(clip_norm) else {}
        if self._noise is not None:
            unprotected |= noise_metrics(self._noise, clip_norm, of_users, update)
        if self._canaries is not None:
            weights = zip(self.aggregation.weights(before), self.aggregation.weights(self._state), strict=True)
            self._canaries.observe(round_number, clip_norm, update, [then - now for then, now in weights])
        metrics = histogram.finalize(sums[0], float(sums[1]), int(sums[2]), self._is_binary)
        return RoundResult(metrics, measurements, num_examples, self._noise_multipliers(), refused, unprotected)

    def weights(self) -> list[np.ndarray]:
        return [tensor.numpy() for tensor in self.aggregation.weights(self._state)]

    def state(self) -> list[np.ndarray]:
        """The state, the canaries' scores, and of SCAFFOLD c and which states of users belong to it."""
        scores = [] if self._canaries is None else self._canaries.state()
        states = [] if self._user_states is None else self._user_states.state()
        return [*(tensor.numpy() for tensor in [*self._state, *self._control]), *scores, *states]

    def restore(self, state: Sequence[np.ndarray]) -> None:
        own, control = len(self._state), len(self._control)
        scores = 0 if self._canaries is None else len(self._canaries.state())
        expected = own + scores + (0 if self._user_states is None else control + 2)
        if len(state) != expected:
            raise FlairError(
                f"the checkpoint has {len(state)} arrays, this training {expected}: an earlier version wrote "
                "it; use --overwrite"
            )
        self._state = [tf.constant(array, tensor.dtype) for array, tensor in zip(state[:own], self._state, strict=True)]
        if self._canaries is not None:
            self._canaries.restore(state[own:])
        if self._user_states is not None:
            self._control = [tf.constant(array) for array in state[own : own + control]]
            self._user_states.restore(*state[own + control :])

    def close(self) -> None:
        """Lets go of the users' states."""
        if self._user_states is not None:
            self._user_states.close()

    def forget(self, round_number: int) -> None:
        if self._user_states is not None:
            self._user_states.forget(round_number)

    def canary_scores(self) -> CanaryScores | None:
        return None if self._canaries is None else self._canaries.scores()

    def _round_seed(self, *names: str | int) -> tf.Tensor:
        return tf.constant(derive_seed(self._seed, *names))

    def _clip_norm(self) -> float:
        """The clip norm that is in force; infinite where updates are not clipped for privacy."""
        if self._local is not None:
            return self._local.l2_norm_clip
        if self._noise is None:
            return math.inf
        named = zip(self.aggregation.spec.state_names, self._state, strict=True)
        return next(float(value) for name, value in named if name.endswith("/l2_norm_clip"))

    def _noise_multipliers(self) -> tuple[float, ...]:
        named = zip(self.aggregation.spec.state_names, self._state, strict=True)
        return tuple(
            float(value)
            for name, value in named
            if name.startswith("aggregator/dp_event/") and name.endswith("noise_multiplier")
        )
