"""The runtime on Ray: each worker trains a shard of the cohort, the server merges what they accumulated.

Which worker trains which client follows from the clients' numbers of photos alone, and shards are merged in the
workers' order, so a run is repeatable for a given number of workers, and equal to the in-process runtime up to the
order in which updates are added up.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from benchmark.cluster.assignment import CLIENT_OVERHEAD, Assignment, assign, client_cost
from benchmark.cluster.pool import WorkerPool
from benchmark.cluster.tasks import Job
from benchmark.data.clients import BatchPlan, Clients, ClientSource
from benchmark.features.cache import FeatureSource
from benchmark.privacy.noise_key import NoiseKey
from benchmark.rounds import drift
from benchmark.rounds.config import CanaryConfig, FederatedConfig
from benchmark.rounds.runtime import RoundResult
from benchmark.rounds.server import RoundServer
from benchmark.rounds.shard import Broadcast, ShardResult, in_arrays
from benchmark.run.user_states import UserStates


class RoundTiming(NamedTuple):
    """How a round's time was spent.

    Attributes:
      planned_imbalance: longest shard over the mean, minus 1, in expected work.
      worker_seconds: training time of each shard.
      seconds: of the whole round.
      client_photos, client_seconds: photos shown to every client and the time they took, shard after shard.
    """

    planned_imbalance: float
    worker_seconds: tuple[float, ...]
    seconds: float
    client_photos: np.ndarray
    client_seconds: np.ndarray

    @property
    def imbalance(self) -> float:
        """Longest shard over the mean, minus 1, in seconds."""
        return max(self.worker_seconds) / float(np.mean(self.worker_seconds)) - 1 if self.worker_seconds else 0.0

    @property
    def overhead(self) -> float:
        """Seconds beyond the slowest worker's training."""
        return self.seconds - max(self.worker_seconds, default=0.0)


class RayRuntime(RoundServer):
    """Runs rounds on a pool of workers.

    Args:
      model, config, data, batch_plan, seed, noise_key: as `InProcessRuntime` takes them.
      model_arguments: those of `networks.build_model` for the model, and which of its weights train.
      source: opens `data` on the workers' machines.
      pool: the workers, which end with the runtime. They are not told the noise key; under local privacy
        they have a key of the clients' noise alone, from which it does not follow.
      eval_batch_size: photos per batch when workers score.
      features: where the features are that `model`, a head, takes; None: it takes photos.
      canaries: of a private run, see `RoundServer`; the server adds them.
      user_states: of SCAFFOLD, see `RoundServer`; those of a cohort travel to the workers and back.

    Attributes:
      timing: of the last round.
    """

    timing: RoundTiming

    def __init__(
        self,
        model: tf.keras.Model,
        model_arguments: tuple[tuple[Any, ...], str],
        config: FederatedConfig,
        data: Clients,
        source: ClientSource,
        batch_plan: BatchPlan,
        seed: int,
        noise_key: NoiseKey | None,
        pool: WorkerPool,
        eval_batch_size: int = 512,
        features: FeatureSource | None = None,
        canaries: CanaryConfig | None = None,
        user_states: UserStates | None = None,
    ) -> None:
        super().__init__(model, config, batch_plan.task.is_binary, seed, noise_key, canaries, user_states)
        self.pool, self._batch_plan, self._data = pool, batch_plan, data
        frozen = [variable.numpy() for variable in model.non_trainable_variables]
        run = (model_arguments, frozen, features, source, batch_plan, config.client, seed, self.local_key)
        pool.give(Job(*run, self.aggregation.spec, eval_batch_size, str(tf.__version__)))

    def run_round(
        self, round_number: int, cohort: Sequence[str], looked_at: Sequence[int] | None = None
    ) -> RoundResult:
        """Sends the global weights, has each worker train its clients, merges their sums, takes the server's step."""
        started = time.perf_counter()
        sent = self.broadcast(round_number)
        sent = sent if looked_at is None else drift.watched(sent)
        assignment, results = self._train(sent, cohort)
        client_seconds: list[np.ndarray] = []
        norms, update_sum = [np.zeros(0, np.float32)], list(sent.direction)

        def noted(result: ShardResult) -> ShardResult:
            client_seconds.append(result.client_seconds)
            norms.append(result.update_norms)
            update_sum[:] = [total + more for total, more in zip(update_sum, result.update_sum, strict=True)]
            return result

        result = self.finish(round_number, map(noted, results))
        self.timing = RoundTiming(
            assignment.imbalance,
            tuple(float(seconds.sum()) for seconds in client_seconds),
            time.perf_counter() - started,
            np.array(self._costs([cohort[place] for place in _places(assignment)], overhead=0)),
            np.concatenate([*client_seconds, np.zeros(0)]),
        )
        found = None
        if looked_at is not None:
            update_norms = np.concatenate(norms)[np.argsort(_places(assignment))]
            found = drift.measure(self._products, sent, cohort, update_norms, update_sum, looked_at)
        place = {client_id: position for position, client_id in enumerate(cohort)}
        return replace(
            result, refused_clients=tuple(sorted(result.refused_clients, key=place.__getitem__)), drift=found
        )

    def _train(self, sent: Broadcast, cohort: Sequence[str]) -> tuple[Assignment, Iterator[ShardResult]]:
        """Who trains whom, and what each worker's shard comes to."""
        assignment = assign(self._costs(cohort), self.pool.num_workers)
        shards = [[cohort[place] for place in shard] for shard in assignment.shards if shard]
        reference = self.pool.put(in_arrays(sent))
        return assignment, self.pool.run("train", [(reference, shard, self._states_of(shard)) for shard in shards])

    def _products(self, sent: Broadcast, clients: Sequence[str]) -> np.ndarray:
        assignment, results = self._train(sent, clients)
        found = np.concatenate([np.zeros(0), *(result.update_products for result in results)])
        return found[np.argsort(_places(assignment))]

    def _costs(self, cohort: Sequence[str], overhead: float = CLIENT_OVERHEAD) -> list[float]:
        plan = self._batch_plan
        return [client_cost(self._data.num_photos(one), plan.epochs, plan.max_elements, overhead) for one in cohort]

    def _states_of(self, clients: Sequence[str]) -> dict[str, np.ndarray]:
        if self._user_states is None:
            return {}
        found = ((client_id, self._user_states.get(client_id)) for client_id in clients)
        return {client_id: state for client_id, state in found if state is not None}

    def close(self) -> None:
        super().close()
        self.pool.close()


def _places(assignment: Assignment) -> list[int]:
    """Places in the cohort of all clients, shard after shard."""
    return [place for shard in assignment.shards for place in shard]
