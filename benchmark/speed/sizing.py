"""Computes how long a round takes, and how many bytes it sends, on any number of machines, from measured parts.

    round = longest shard x seconds per photo                   (training; shards as `cluster.assignment` cuts them)
          + (machines x weights + workers x aggregate) / link   (network: all of it passes the driver's link)
          + workers x merge + fixed                             (the driver adds up, then takes the server's step)

Machines fetch the weights from one another too, so the first term of the network is an upper bound.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import NamedTuple

from benchmark.cluster.assignment import assign, client_cost
from benchmark.run.seeds import derive_generator
from flair.dataset.catalog import NUM_USERS
from flair.miniature.population import user_sizes

LINK_BYTES = 10e9 / 8  # 10 Gbit/s
_DRAWS = 9  # cohorts of which the median is taken


class Parts(NamedTuple):
    """What was measured, for one worker of one machine."""

    photo_seconds: float  # of training on one photo
    client_overhead: float  # fixed cost of a client, in photos
    weights_bytes: int  # of what is broadcast
    aggregate_bytes: int  # of what a worker returns
    merge_seconds: float  # of adding up two aggregates
    fixed_seconds: float  # of a round beyond the slowest worker, with two workers
    worker_bytes: int  # peak memory of a worker


class Size(NamedTuple):
    """What a round comes to; seconds, bytes through the driver's link, and `speedup` over one worker's training."""

    clients: int
    machines: int
    workers: int
    training_seconds: float
    imbalance: float
    network_bytes: float
    network_seconds: float
    merge_seconds: float
    round_seconds: float
    speedup: float
    machine_bytes: int


def size(
    parts: Parts,
    clients: int,
    machines: int,
    workers_per_machine: int,
    *,
    epochs: int = 2,
    max_elements: int = 512,
    link_bytes: float = LINK_BYTES,
) -> Size:
    """A round of so many clients of FLAIR, on machines like the one whose parts were measured.

    A client goes through at most `max_elements` photos, `epochs` times; `link_bytes` per second pass the driver's link.
    """
    workers = machines * workers_per_machine
    longest, total, imbalance = _load(clients, workers, epochs, max_elements, parts.client_overhead)
    training = longest * parts.photo_seconds
    network = machines * parts.weights_bytes + workers * parts.aggregate_bytes
    merging = max(0, workers - 2) * parts.merge_seconds + parts.fixed_seconds
    seconds = training + network / link_bytes + merging
    return Size(
        clients=clients,
        machines=machines,
        workers=workers,
        training_seconds=training,
        imbalance=imbalance,
        network_bytes=network,
        network_seconds=network / link_bytes,
        merge_seconds=merging,
        round_seconds=seconds,
        speedup=total * parts.photo_seconds / seconds,
        machine_bytes=workers_per_machine * parts.worker_bytes,
    )


def _load(clients: int, workers: int, epochs: int, max_elements: int, overhead: float) -> tuple[float, float, float]:
    sizes = user_sizes(NUM_USERS["train"], None)
    found = []
    for draw in range(_DRAWS):
        chosen = derive_generator(0, "sizing", draw).choice(sizes, clients, replace=False)
        costs = [client_cost(int(photos), epochs, max_elements, overhead) for photos in chosen]
        assignment = assign(costs, workers)
        found.append((max(assignment.loads), sum(costs), assignment.imbalance))
    longest, total, imbalance = (statistics.median(column) for column in zip(*found, strict=True))
    return longest, total, imbalance


def table(sizes: Sequence[Size]) -> str:
    """The sizes as text, one per line."""
    lines = [
        f"{'clients':>8} {'machines':>9} {'workers':>8} {'training':>9} {'imbalance':>10} {'network':>17} "
        f"{'merging':>8} {'round':>9} {'speed-up':>9}"
    ]
    lines += [
        f"{one.clients:>8,} {one.machines:>9,} {one.workers:>8,} {one.training_seconds:>7.1f} s {one.imbalance:>9.0%} "
        f"{one.network_bytes / 1e9:>6.2f} GB {one.network_seconds:>5.2f} s {one.merge_seconds:>6.2f} s "
        f"{one.round_seconds:>7.1f} s {one.speedup:>9.1f}"
        for one in sizes
    ]
    return "\n".join(lines)
