"""A Ray worker process: it pins its threads, then runs tasks for a run that it is told once.

A worker needs TensorFlow and the records, not TensorFlow Federated: TFF's aggregator arrives as graphs. What travels
is arrays, bytes and plain data. Nothing heavy is imported before the threads are pinned; `tasks` imports it.
"""

from __future__ import annotations

import faulthandler
import os
import socket
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from benchmark.cluster.tasks import Tasks


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

        self._threads = tf.config.threading
        self._threads.set_intra_op_parallelism_threads(num_threads)
        self._threads.set_inter_op_parallelism_threads(num_threads)
        gpus = tf.config.list_physical_devices("GPU")
        if not use_gpu:
            tf.config.set_visible_devices([], "GPU")
        else:
            for gpu in gpus:
                tf.config.experimental.set_memory_growth(gpu, True)
        self._tasks: Tasks | None = None
        self._job = ""

    def place(self) -> Place:
        """Where this worker runs."""
        threads = self._threads
        return Place(
            socket.gethostname(),
            os.getpid(),
            os.readlink("/proc/self/fd/2"),
            (threads.get_intra_op_parallelism_threads(), threads.get_inter_op_parallelism_threads()),
            "tensorflow_federated" in sys.modules,
        )

    def run(self, job: Sequence[Any], task: str, *arguments: Any) -> Any:
        """Runs the method `task` of `Tasks`; `job` is a list of the reference to the `Job`, which is fetched once."""
        if self._tasks is None or self._job != job[0].hex():
            import ray

            from benchmark.cluster.tasks import Tasks

            self._tasks, self._job = Tasks(ray.get(job[0])), job[0].hex()
        return getattr(self._tasks, task)(*arguments)
