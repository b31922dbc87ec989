"""Which worker trains which clients of a round, so that all end at about the same time.

Longest-processing-time-first is within a third of the best possible assignment (R. L. Graham, "Bounds on
Multiprocessing Timing Anomalies", 1969, https://doi.org/10.1137/0117039). A client is trained by one worker from
beginning to end, so no assignment ends before the largest client does.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from typing import NamedTuple

# What a client costs beyond its photos (weights to set, an update to clip and add, a last batch that is not full), in
# photos: `speed_main ray` measures it.
CLIENT_OVERHEAD = 1.5


class Assignment(NamedTuple):
    """Positions in the cohort that each worker trains, in cohort order, and the sum of their costs."""

    shards: tuple[tuple[int, ...], ...]
    loads: tuple[float, ...]

    @property
    def imbalance(self) -> float:
        """By how much the longest worker exceeds the mean, relative to the mean; 0 without any work."""
        mean = sum(self.loads) / len(self.loads)
        return max(self.loads) / mean - 1 if mean > 0 else 0.0


def client_cost(num_photos: int, epochs: int, max_elements: int, overhead: float = CLIENT_OVERHEAD) -> float:
    """Expected work of a client in one round, in photos shown.

    Args:
      num_photos: photos that the client holds.
      epochs: passes over them per round.
      max_elements: photos used per pass, at most.
      overhead: fixed cost of a client, in photos.

    >>> client_cost(4151, epochs=2, max_elements=512)
    1025.5
    """
    return epochs * min(num_photos, max_elements) + overhead


def assign(costs: Sequence[float], num_workers: int) -> Assignment:
    """Gives each client, longest first, to the worker with the least work so far.

    Ties go to the earlier client and the lower worker, so that the assignment is a function of its arguments.

    Args:
      costs: of the clients, in cohort order, each 0 or above.
      num_workers: at least 1.

    >>> assign([1, 5, 2, 2], num_workers=2)
    Assignment(shards=((1,), (0, 2, 3)), loads=(5, 5))
    """
    if num_workers < 1:
        raise ValueError(f"num_workers={num_workers}: expected at least 1")
    shards: list[list[int]] = [[] for _ in range(num_workers)]
    loads: list[float] = [0] * num_workers
    free = [(0.0, worker) for worker in range(num_workers)]
    for position in sorted(range(len(costs)), key=lambda position: (-costs[position], position)):
        _, worker = heapq.heappop(free)
        shards[worker].append(position)
        loads[worker] += costs[position]
        heapq.heappush(free, (loads[worker], worker))
    return Assignment(tuple(tuple(sorted(shard)) for shard in shards), tuple(loads))
