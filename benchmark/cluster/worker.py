"""What a Ray worker process does: it holds a resident model and trains or scores shares of clients and photos on it.

A worker needs TensorFlow and the records, not TensorFlow Federated: TFF's aggregator arrives as graphs. What travels
is arrays, bytes and plain data. Nothing heavy is imported before the threads are pinned.
"""

from __future__ import annotations

import faulthandler
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import numpy as np

    from benchmark.data.clients import BatchPlan
    from benchmark.data.source import ClientSource
    from benchmark.evaluation.passes import Evaluation
    from benchmark.federated.client_scores import ClientScore, LocalComparison
    from benchmark.rounds.aggregation import RoundSpec
    from benchmark.rounds.config import ClientConfig
    from benchmark.rounds.shard import Broadcast, ShardResult


class Job(NamedTuple):
    """All that a worker needs to know of a run, once.

    Attributes:
      model: arguments of `networks.build_model`.
      source: the clients' photos.
      plan: how a client goes through them.
      client: what a client does.
      seed: of the run.
      round: TFF's aggregator as graphs.
      eval_batch_size: photos per batch when scoring.
      tensorflow: version that the run has.
    """

    model: tuple[Any, ...]
    source: ClientSource
    plan: BatchPlan
    client: ClientConfig
    seed: int
    round: RoundSpec
    eval_batch_size: int
    tensorflow: str


class Place(NamedTuple):
    """Where a worker runs: host, process, its log file, its TensorFlow threads, and what it has imported."""

    host: str
    process: int
    log: str
    threads: tuple[int, int]
    imports_tff: bool


class FederatedWorker:
    """The Ray actor. A task's result depends on its arguments alone, so that any worker may run it again.

    Args:
      num_threads: of TensorFlow's operations.
      use_gpu: whether TensorFlow may see the GPUs that Ray gave to this worker.
    """

    def __init__(self, num_threads: int, use_gpu: bool) -> None:
        faulthandler.enable()
        os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
        # Without this, every worker of a machine would start threads for all of its cores.
        for name in ("OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS"):
            os.environ[name] = str(num_threads)
        import tensorflow as tf

        tf.config.threading.set_intra_op_parallelism_threads(num_threads)
        tf.config.threading.set_inter_op_parallelism_threads(num_threads)
        gpus = tf.config.list_physical_devices("GPU")
        if not use_gpu:
            tf.config.set_visible_devices([], "GPU")
        else:
            for gpu in gpus:
                tf.config.experimental.set_memory_growth(gpu, True)
        self._shards: _Shards | None = None
        self._job = ""

    def place(self) -> Place:
        """Where this worker runs."""
        import socket

        import tensorflow as tf

        threads = tf.config.threading
        return Place(
            socket.gethostname(),
            os.getpid(),
            os.readlink("/proc/self/fd/2"),
            (threads.get_intra_op_parallelism_threads(), threads.get_inter_op_parallelism_threads()),
            "tensorflow_federated" in sys.modules,
        )

    def run(self, job: Sequence[Any], task: str, *arguments: Any) -> Any:
        """Runs the method `task` of `_Shards`; `job` is a list of the reference to the `Job`, which is fetched once."""
        if self._shards is None or self._job != job[0].hex():
            import ray

            self._shards, self._job = _Shards(ray.get(job[0])), job[0].hex()
        return getattr(self._shards, task)(*arguments)


class _Shards:
    """The tasks of a worker, on one model."""

    def __init__(self, job: Job) -> None:
        import socket

        import tensorflow as tf

        from benchmark.model.networks import build_model
        from benchmark.rounds.aggregation import Aggregation
        from benchmark.rounds.client import LocalTrainer
        from benchmark.rounds.shard import ShardTrainer
        from flair.errors import FlairError

        if tf.__version__ != job.tensorflow:
            raise FlairError(
                f"machine {socket.gethostname()} has TensorFlow {tf.__version__}, the run {job.tensorflow}; install "
                "the toolkit there with the same requirements.txt"
            )
        try:
            self._records, clients = job.source.open()
        except FlairError as error:
            raise FlairError(f"machine {socket.gethostname()}: {error}") from None
        self._job, self._model = job, build_model(*job.model)
        self._trainer = LocalTrainer(self._model, job.client, job.round.step, job.plan.task.is_binary)
        self._training = ShardTrainer(self._trainer, Aggregation(job.round), clients, job.plan, job.seed)
        self._evaluation_data: dict[str, Any] = {}
        self._local: LocalTrainer | None = None

    def ready(self) -> None:
        """Nothing: the model is built."""

    def train(self, sent: Broadcast, clients: Sequence[str]) -> ShardResult:
        """Trains these clients in a round."""
        result = self._training.train(sent, clients)
        return result._replace(aggregate=[tensor.numpy() for tensor in result.aggregate])

    def evaluate(self, weights: Sequence[np.ndarray], partition: str, share: int, num_shares: int) -> Evaluation:
        """The sums behind the metrics over every `num_shares`-th photo of a partition, from `share` on."""
        from benchmark.data.pipeline import evaluation_dataset, evaluation_rows
        from benchmark.evaluation.passes import accumulate

        job = self._job
        if partition not in self._evaluation_data:
            size, task = job.plan.image_size, job.plan.task
            self._evaluation_data[partition] = evaluation_dataset(
                self._records, partition, task, size, job.eval_batch_size
            )
        data = self._evaluation_data[partition]
        data.select(evaluation_rows(self._records, partition)[share::num_shares])
        self._set(weights)
        return accumulate(self._model, data, job.plan.task)

    def score_clients(self, weights: Sequence[np.ndarray], partition: str, clients: Sequence[str]) -> list[ClientScore]:
        """Each client's photos scored by themselves."""
        from benchmark.federated.client_scores import score_clients

        self._set(weights)
        return score_clients(self._model, self._records, partition, clients, self._job.plan)

    def compare_local_training(
        self,
        weights: Sequence[np.ndarray],
        partition: str,
        clients: Sequence[str],
        learning_rate: float,
        seed: int,
    ) -> list[LocalComparison]:
        """Each client's held-out photos scored before and after training on its others."""
        from benchmark.federated.client_scores import compare_local_training
        from benchmark.rounds.client import LocalTrainer
        from benchmark.rounds.config import FED_AVG

        job = self._job
        if self._local is None:
            config = replace(job.client, algorithm=FED_AVG)
            self._local = LocalTrainer(self._model, config, is_binary=job.plan.task.is_binary)
        return compare_local_training(
            self._local, weights, self._records, partition, clients, job.plan, learning_rate, seed
        )

    def _set(self, weights: Sequence[np.ndarray]) -> None:
        import tensorflow as tf

        self._trainer.start([tf.convert_to_tensor(weight) for weight in weights])
