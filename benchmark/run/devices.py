"""The devices of a central training: one, several GPUs, or several machines by TF_CONFIG.

Every replica takes its part of each batch, gradients are summed before they are clipped, and only the first machine
writes files, so that the number of devices changes the result by rounding only.
"""

from __future__ import annotations

import hashlib
import signal
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Any

import numpy as np
import tensorflow as tf

from benchmark.run import tf_config
from flair.errors import FlairError

_LOST = (tf.errors.UnavailableError, tf.errors.AbortedError, tf.errors.CancelledError, tf.errors.DeadlineExceededError)
_LOST_MESSAGE = (
    "another machine of TF_CONFIG has failed or cannot be reached; see what it printed, then start all of them again "
    "with the same command, and training goes on from its newest checkpoint"
)


class Devices:
    """The devices of this job.

    Attributes:
      num_workers: machines (processes) of the job.
      worker: number of this one.
      replicas: numbers of this process's devices among all `num_replicas` of the job.
    """

    def __init__(self, strategy: tf.distribute.Strategy | None = None) -> None:
        place = tf_config.place()
        self.worker, self.num_workers = place.worker, place.num_workers
        if strategy is not None:
            self._strategy = strategy
        elif self.num_workers > 1:
            self._strategy = _join_machines(place)
        elif len(tf.config.list_logical_devices("GPU")) > 1:
            self._strategy = tf.distribute.MirroredStrategy()
        else:
            self._strategy = tf.distribute.get_strategy()
        self.num_replicas = int(self._strategy.num_replicas_in_sync)
        local = self.num_replicas // self.num_workers
        self.replicas = range(self.worker * local, (self.worker + 1) * local)

    @property
    def is_cpu(self) -> bool:
        """Whether there is no GPU."""
        return not tf.config.list_physical_devices("GPU")

    def scope(self) -> AbstractContextManager[Any]:
        """Variables made inside it exist on every device."""
        return self._strategy.scope()

    def run(self, function: Any, parts: Sequence[Sequence[tf.Tensor]]) -> list[Any]:
        """Calls `function` on every device of this process with its part; the results, in order."""
        if self.num_replicas == 1:
            return [function(*parts[0])]
        results = self._strategy.run(function, args=self._distribute(parts))
        flat = [self._strategy.experimental_local_results(value) for value in tf.nest.flatten(results)]
        return [tf.nest.pack_sequence_as(results, [values[i] for values in flat]) for i in range(len(parts))]

    def sum_over_workers(self, values: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Element-wise sums of the arrays of all processes, which get the same sums."""
        if self.num_workers == 1:
            return [np.asarray(value) for value in values]
        others = [[tf.zeros_like(value) for value in values]] * (len(self.replicas) - 1)
        sums = self._sums(*self._distribute([[tf.constant(value) for value in values], *others]))
        return [self._strategy.experimental_local_results(value)[0].numpy() for value in sums]

    def barrier(self) -> None:
        """Waits until every process is here."""
        self.sum_over_workers([np.zeros(1, np.float32)])

    def check_equal(self, text: str, what: str) -> None:
        """Raises FlairError in every process, saying that `what` differs, unless all of them have the same text."""
        digests = np.zeros((self.num_workers, 32), np.float32)  # whole numbers up to 255 are exact, and so are sums
        digests[self.worker] = np.frombuffer(hashlib.sha256(text.encode()).digest(), np.uint8)
        (digests,) = self.sum_over_workers([digests])
        others = [worker for worker in range(self.num_workers) if not np.array_equal(digests[worker], digests[0])]
        if others:
            self.leave()
            raise FlairError(f"TF_CONFIG: worker {others[0]} has {what}, worker 0 another")

    def leave(self) -> None:
        """Waits, before this process ends, until every other one has what this one sent."""
        # An error means that the others have left, so they had received everything.
        with suppress(*_LOST):
            self.barrier()

    @contextmanager
    def together(self) -> Iterator[None]:
        """Inside it, the loss of another machine of the job is a FlairError."""
        try:
            yield
        except _LOST:
            if self.num_workers == 1:
                raise
            raise FlairError(_LOST_MESSAGE) from None

    @tf.function(autograph=False)
    def _sums(self, *columns: Any) -> Any:
        return self._strategy.run(lambda *tensors: [sum_over_replicas(tensor) for tensor in tensors], args=columns)

    def _distribute(self, parts: Sequence[Sequence[tf.Tensor]]) -> list[Any]:
        """The arguments of a function that runs on every device, from what each device is given."""
        columns = [iter(column) for column in zip(*parts, strict=True)]
        distribute = self._strategy.experimental_distribute_values_from_function
        return [distribute(lambda _context, column=column: next(column)) for column in columns]


def _join_machines(place: tf_config.Place) -> tf.distribute.Strategy:
    tf_config.wait_for_all(place)
    # A machine that is lost right now would be waited for without returning to Python, whose handler would not run.
    previous = signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        return tf.distribute.MultiWorkerMirroredStrategy()
    except _LOST:
        raise FlairError(_LOST_MESSAGE) from None
    finally:
        signal.signal(signal.SIGINT, previous)


def sum_over_replicas(tensor: tf.Tensor) -> tf.Tensor:
    """The sum over all devices, inside a function that `Devices.run` runs."""
    context = tf.distribute.get_replica_context()
    if context.num_replicas_in_sync == 1:
        return tensor
    # An argument of the function has no device yet, and the sum goes to the device of its operand.
    return context.all_reduce(tf.distribute.ReduceOp.SUM, tf.identity(tensor))
