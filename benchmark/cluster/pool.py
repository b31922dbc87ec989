"""Workers on a Ray cluster: they run tasks, and one that dies is replaced and its task run again."""

from __future__ import annotations

import collections
import contextlib
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from benchmark.cluster.cluster import Cluster
from benchmark.cluster.tasks import Job
from benchmark.cluster.worker import FederatedWorker, Place
from flair.errors import FlairError

MOST_LOSSES = 3
_PATIENCE_SECONDS = 30


@dataclass
class _Slot:
    """One place for a worker, whoever fills it; `actor` is None where no machine has room any more."""

    number: int
    actor: Any = None
    place: Any = None  # reference to its `Place`
    losses: int = 0


class WorkerPool:
    """`num_workers` actors that run `Tasks`.

    Args:
      cluster: where; closed with the pool.
      num_workers: None takes as many as fit.
      cpus, gpus: of each.

    Raises:
      FlairError: the cluster is too small.
    """

    def __init__(self, cluster: Cluster, num_workers: int | None = None, cpus: int = 1, gpus: float = 0.0) -> None:
        import ray

        self._ray, self._cluster, self._cpus, self._gpus = ray, cluster, cpus, gpus
        self._keep_logs = False
        room = cluster.room(cpus, gpus)
        if room < (num_workers or 1):
            has_cpus, has_gpus = cluster.resources()
            cluster.close()
            per_worker = f"{cpus} CPUs" + (f" and {gpus:g} GPUs" if gpus else "")
            offered = f"{has_cpus:g} CPUs" + (f" and {has_gpus:g} GPUs" if gpus else "")
            raise FlairError(
                f"--num_workers={num_workers or 1} with {per_worker} each: the Ray cluster has {offered}; lower "
                "--num_workers, --worker_cpus or --worker_gpus, or add machines"
            )
        self.num_workers = num_workers or room
        self._lost = (
            *(ray.exceptions.RayActorError, ray.exceptions.WorkerCrashedError, ray.exceptions.NodeDiedError),
            *(ray.exceptions.ObjectLostError, ray.exceptions.OutOfMemoryError),
        )
        self._actor_class = ray.remote(
            num_cpus=cpus, num_gpus=gpus, max_restarts=0, max_task_retries=0, scheduling_strategy="SPREAD"
        )(FederatedWorker)
        self._job: list[Any] = []
        self._slots = [_Slot(number) for number in range(self.num_workers)]
        for slot in self._slots:
            self._fill(slot)

    def places(self) -> list[Place]:
        """Where the workers run, in their order; waits for all of them."""
        waiting = [slot.place for slot in self._slots if slot.actor is not None]
        with _signals_unwrapped():
            _, missing = self._ray.wait(waiting, num_returns=len(waiting), timeout=_PATIENCE_SECONDS)
            if missing:
                print(f"waiting for {len(missing)} of {self.num_workers} workers to start", file=sys.stderr, flush=True)
            return list(self._ray.get(waiting))

    def summary(self) -> str:
        """How many workers there are and where, in a line; waits for all of them."""
        hosts = collections.Counter(place.host for place in self.places())
        text = ", ".join(f"{count} on {host}" for host, count in sorted(hosts.items()))
        size = f"{self._cpus} CPU" + (f" and {self._gpus:g} GPU" if self._gpus else "")
        return f"Ray workers of {size} each: {text}"

    def give(self, job: Job) -> None:
        """Tells the workers, and their replacements, what the run is."""
        self._job = [self._ray.put(job)]
        list(self.run("ready", [()] * self.num_workers))

    def put(self, value: Any) -> Any:
        """Broadcasts arrays: a reference to give as an argument to any number of tasks."""
        return self._ray.put(value)

    def run(self, task: str, arguments: Sequence[tuple[Any, ...]]) -> Iterator[Any]:
        """The task's results in the order of `arguments`, each as soon as it and those before it are there.

        Raises:
          FlairError: a task's own, or a worker was lost for the third time.
        """
        waiting = collections.deque(range(len(arguments)))
        failures = collections.Counter[int]()
        running: dict[Any, tuple[_Slot, int]] = {}
        early: dict[int, Any] = {}  # results by number, of which one before is not there yet
        following = 0
        self._refill()
        while waiting or running:
            busy = {slot.number for slot, _ in running.values()}
            for slot in self._slots:
                if waiting and slot.actor is not None and slot.number not in busy:
                    number = waiting.popleft()
                    running[slot.actor.run.remote(self._job, task, *arguments[number])] = slot, number
            with _signals_unwrapped():
                (done,), _ = self._ray.wait(list(running), num_returns=1)
            slot, number = running.pop(done)
            try:
                with _signals_unwrapped():
                    early[number] = self._ray.get(done)
            except self._ray.exceptions.RayTaskError as error:
                if isinstance(error.cause, FlairError):
                    raise FlairError(str(error.cause)) from None
                raise
            except self._lost:
                failures[number] += 1
                waiting.appendleft(number)
                self._lose(slot, failures[number])
            while following in early:
                yield early.pop(following)
                following += 1

    def close(self) -> None:
        """Ends the workers, and the cluster of this machine."""
        for slot in self._slots:
            if slot.actor is not None:
                self._ray.kill(slot.actor)
                slot.actor = None
        self._cluster.close(self._keep_logs)

    def _fill(self, slot: _Slot) -> None:
        actor: Any = self._actor_class.remote(self._cpus, self._gpus > 0)
        slot.actor, slot.place = actor, actor.place.remote()

    def _refill(self) -> None:
        empty = [slot for slot in self._slots if slot.actor is None]
        if empty:
            room = self._cluster.room(self._cpus, self._gpus) - (len(self._slots) - len(empty))
            for slot in empty[: max(0, room)]:
                self._fill(slot)

    def _lose(self, slot: _Slot, failures: int) -> None:
        slot.losses += 1
        name, log = self._describe(slot)
        if max(slot.losses, failures) >= MOST_LOSSES:
            self._keep_logs = True
            raise FlairError(
                f"{name} was lost {MOST_LOSSES} times; its log {log} may say why (too little memory is the usual "
                "cause); the same command continues after the last checkpoint"
            )
        print(f"{name} was lost; its share is computed again by another (log: {log})", file=sys.stderr, flush=True)
        # It may only be out of reach, and would then hold its cores.
        self._ray.kill(slot.actor)
        slot.actor = None
        self._refill()
        if all(other.actor is None for other in self._slots):
            raise FlairError("no machine of the Ray cluster has room for a worker any more; add one and continue")

    def _describe(self, slot: _Slot) -> tuple[str, str]:
        name = f"worker {slot.number + 1} of {self.num_workers}"
        try:
            place = self._ray.get(slot.place, timeout=1)
        except self._ray.exceptions.RayError:
            return name, "in the newest folder session_*/logs of its machine's Ray"
        return f"{name} (process {place.process} on {place.host})", place.log


@contextlib.contextmanager
def _signals_unwrapped() -> Iterator[None]:
    """Ray wraps what a signal's handler raises while it waits."""
    try:
        yield
    except SystemError as error:
        raise (error.__cause__ or error) from None


def start_workers(address: str | None, num_workers: int | None, cpus: int, gpus: float) -> WorkerPool:
    """Workers on the cluster at `address`, or on one of this machine that is as large as they need.

    Raises:
      FlairError: no cluster answers, or it is too small.
    """
    # Without a number of workers there is at least one, even on fewer cores than it has threads.
    local_cpus = max(cpus, len(os.sched_getaffinity(0))) if num_workers is None else num_workers * cpus
    return WorkerPool(Cluster(address, local_cpus, gpus > 0), num_workers, cpus, gpus)
