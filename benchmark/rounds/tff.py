"""TFF's own runtime: the unmodified `tff.learning.algorithms` process, as the published code runs it.

CPU only (the wheel's worker is built without CUDA), seconds of overhead per round and about 0.1 GB per client
for 11M parameters; kept as the definition that the in-process runtime is checked against.
"""

from __future__ import annotations

import collections
import os
import subprocess
import sys
import types
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_federated as tff
from tensorflow_federated.python.core.impl.executor_stacks import executor_factory

from benchmark.data.clients import BatchPlan, ClientData, client_dataset, client_seed
from benchmark.metrics.keras import ScoreHistogram
from benchmark.metrics.loss import LossConfig, keras_loss
from benchmark.model.networks import in_inference_mode
from benchmark.rounds import tff_worker_guard
from benchmark.rounds.algorithm import build_learning_process
from benchmark.rounds.config import FederatedConfig
from benchmark.rounds.runtime import RoundResult

_CLIENT_TYPE = tff.types.to_type(
    collections.OrderedDict(serialized=tff.TensorType(np.str_, [None]), seed=tff.TensorType(np.int64, [2]))
)


class TffRuntime:
    """Runs rounds on TFF's worker process. Arguments as `InProcessRuntime`; `model_fn` builds the same model anew."""

    def __init__(
        self,
        model_fn: Callable[[], tf.keras.Model],
        config: FederatedConfig,
        data: ClientData,
        batch_plan: BatchPlan,
        seed: int,
    ) -> None:
        self._data, self._seed = data, seed
        self.proximal_strength = config.client.proximal_strength
        guard_worker()
        weights = tff.learning.models.ModelWeights.from_model(model_fn())
        self._process = build_learning_process(config, lambda: _tff_model(model_fn(), batch_plan, config.client.loss))

        @tff.tensorflow.computation(_CLIENT_TYPE)
        def dataset_of(client: Any) -> tf.data.Dataset:
            return client_dataset(client["serialized"], client["seed"], batch_plan)

        composed = tff.simulation.compose_dataset_computation_with_learning_process(dataset_of, self._process)
        self._next = composed.next
        # Keras swaps the base classes of layers built inside TFF's graphs for their TF1 forms, in place; building a
        # model outside swaps them back, without which every model of this process would refuse to run.
        _tff_model(model_fn(), batch_plan, config.client.loss)
        self._state = self._process.set_model_weights(composed.initialize(), weights)

    def run_round(
        self, round_number: int, cohort: Sequence[str], looked_at: Sequence[int] | None = None
    ) -> RoundResult:
        if looked_at is not None:
            raise ValueError("no update of a client leaves TFF's own runtime")
        clients = [
            collections.OrderedDict(
                # Objects, because NumPy's own byte strings lose trailing zero bytes.
                serialized=np.array(self._data.read(client_id), dtype=object),
                seed=client_seed(self._seed, round_number, client_id),
            )
            for client_id in cohort
        ]
        output = self._next(self._state, clients)
        self._state = output.state
        train = output.metrics["client_work"]["train"]
        metrics = {name: float(value) for name, value in train["flair"].items()}
        aggregated = output.metrics["aggregator"]
        measurements = {
            name: float(value)
            for part, values in (("aggregator", aggregated["zeroing"]), ("finalizer", output.metrics.get("finalizer")))
            for name, value in _flatten(values, part)
        }
        refused = ("TFF does not say which",) * int(aggregated["zeroed_count"])
        return RoundResult(metrics, measurements, int(train["num_examples"]), self._noise_multipliers(), refused)

    def weights(self) -> list[np.ndarray]:
        return [np.asarray(array) for array in self._process.get_model_weights(self._state).trainable]

    def state(self) -> list[np.ndarray]:
        # TFF's `LearningAlgorithmState`, flat.
        return [np.asarray(array) for array in tf.nest.flatten(self._state)]

    def restore(self, state: Sequence[np.ndarray]) -> None:
        self._state = tf.nest.pack_sequence_as(self._state, list(state))

    def _noise_multipliers(self) -> tuple[float, ...]:
        state = self._state.aggregator["inner_agg"]
        if not hasattr(state, "dp_event"):
            return ()
        event = tff.aggregators.differential_privacy.extract_dp_event_from_state(state)
        events = getattr(event, "events", [event])
        return tuple(float(one.noise_multiplier) for one in events if hasattr(one, "noise_multiplier"))

    def forget(self, round_number: int) -> None:
        pass

    def canary_scores(self) -> None:
        return None

    def close(self) -> None:
        stop_workers()


def _tff_model(model: tf.keras.Model, batch_plan: BatchPlan, loss: LossConfig) -> tff.learning.models.VariableModel:
    task = batch_plan.task
    pixels = tf.TensorSpec([None, *batch_plan.image_size, 3], tf.uint8 if batch_plan.augment else tf.float32)
    return tff.learning.models.from_keras_model(
        in_inference_mode(model),
        loss=keras_loss(loss),
        input_spec=(pixels, tf.TensorSpec([None, task.num_outputs], tf.float32)),
        metrics=[ScoreHistogram(task.num_outputs, task.is_binary)],
    )


def _flatten(value: Any, prefix: str) -> list[tuple[str, Any]]:
    if isinstance(value, dict):
        return [pair for key, inner in value.items() for pair in _flatten(inner, f"{prefix}/{key}")]
    return [(prefix, value)] if value is not None and np.shape(value) == () else []


_workers: list[subprocess.Popen[bytes]] = []


def guard_worker() -> None:
    """Makes TFF start its worker through `tff_worker_guard` from now on, so that it ends with this process."""

    class GuardedPopen(subprocess.Popen):
        def __init__(self, args: Sequence[str], **options: Any) -> None:
            guard = os.path.abspath(tff_worker_guard.__file__)
            # In a session of its own, so that Ctrl-C lets the round in flight end.
            super().__init__([sys.executable, guard, *args], start_new_session=True, **options)
            _workers.append(self)

    executor_factory.subprocess = types.SimpleNamespace(Popen=GuardedPopen)
    # A context of our own, because the default one cannot start a second worker after `close`.
    tff.backends.native.set_sync_local_cpp_execution_context()


def stop_workers() -> None:
    """Ends every guarded worker; TFF starts another when it needs one."""
    while _workers:
        worker = _workers.pop()
        worker.terminate()
        # Not reaped: TFF signals its old worker's id before it starts another, so the id must stay taken until then.
        os.waitid(os.P_PID, worker.pid, os.WEXITED | os.WNOWAIT)
