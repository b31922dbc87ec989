"""How fast federated rounds are on Ray with this machine's cores, beside `inprocess`, and what that means for more.

The clients' sizes are FLAIR's, their photos synthetic. Workers of other settings idle while one is measured. The sizing
at the end is computed by `benchmark.speed.sizing` from what was measured here.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmark.cluster.cluster import Cluster
from benchmark.cluster.pool import WorkerPool
from benchmark.cluster.runtime import RayRuntime, RoundTiming
from benchmark.data.clients import BatchPlan, ClientSource
from benchmark.data.opening import make_task
from benchmark.data.records import Records
from benchmark.model.networks import build_model
from benchmark.model.trainable import ALL
from benchmark.rounds.inprocess import InProcessRuntime
from benchmark.run.machine import peak_bytes
from benchmark.speed import sizing
from benchmark.speed.federated import private_config, round_of
from benchmark.speed.harness import made_up_records, ratio, take_turns
from flair.errors import FlairError
from flair.terminal.table import Columns

COHORTS, MACHINES = (200, 5000), (1, 10, 100)


def measure(flags: argparse.Namespace) -> dict[str, Any]:
    """Prints rounds by number of workers, the parts of a round, and what rounds of FLAIR come to on more machines."""
    flags.workers = sorted(set(flags.workers))
    with tempfile.TemporaryDirectory(prefix="flair-speed-") as folder:
        report = _measure(flags, Path(folder))
    _print_rounds(report, flags)
    parts = sizing.Parts(**report["parts"])
    print(
        f"parts: a photo takes a worker {parts.photo_seconds * 1e3:.1f} ms, a client {parts.client_overhead:.2f} "
        f"photos more; {parts.weights_bytes / 1e6:.1f} MB of weights go to each machine, an aggregate of "
        f"{parts.aggregate_bytes / 1e6:.1f} MB comes from each worker and takes {parts.merge_seconds * 1e3:.0f} ms to "
        f"add; peak memory of a worker {parts.worker_bytes / 1e6:,.0f} MB"
    )
    per_machine = max(flags.workers)
    sizes = [sizing.size(parts, clients, machines, per_machine) for clients in COHORTS for machines in MACHINES]
    print(
        f"rounds of FLAIR on machines like this one with {per_machine} workers each, 2 epochs, at most 512 photos a "
        f"client, a link of 10 Gbit/s (computed; speed-up over one worker):\n{sizing.table(sizes)}"
    )
    return report | {"sizes": [one._asdict() for one in sizes]}


def _measure(flags: argparse.Namespace, folder: Path) -> dict[str, Any]:
    records, plan = _make_records(flags, folder)
    source = ClientSource(str(records.root), records.digest())
    data = source.open()[1]
    cohort = data.client_ids[: flags.clients]
    config = private_config(len(cohort))
    network = (flags.model, (flags.image_size, flags.image_size, 3), plan.task.num_outputs)
    local = InProcessRuntime(build_model(*network), config, data, plan, 0)
    with contextlib.closing(Cluster(None, num_cpus=sum(flags.workers))) as cluster:
        run = (network, ALL), config, data, source, plan, 0, None
        runtimes = {
            f"ray, {count}": RayRuntime(build_model(*network), *run, WorkerPool(cluster, count))
            for count in flags.workers
        }
        timings: dict[str, list[RoundTiming]] = {name: [] for name in runtimes}
        settings = {"inprocess": round_of(local, cohort)}
        settings |= {name: _timed_round(runtime, cohort, timings[name]) for name, runtime in runtimes.items()}
        seconds = take_turns(settings, flags.repeats)
        counted = {name: found[-flags.repeats :] for name, found in timings.items()}
        fewest, most = f"ray, {min(flags.workers)}", f"ray, {max(flags.workers)}"
        parts = _parts(counted[fewest], counted[most], runtimes[most])
    return {
        "cores": os.cpu_count(),
        "clients": len(cohort),
        "photos": sum(min(data.num_photos(client_id), plan.max_elements) for client_id in cohort),
        "rounds": [_row(name, times, seconds[fewest], counted.get(name)) for name, times in seconds.items()],
        "parts": parts | {"weights_bytes": sum(weight.nbytes for weight in local.weights())},
    }


def _timed_round(runtime: RayRuntime, cohort: Sequence[str], timings: list[RoundTiming]) -> Callable[[int], None]:
    run_round = round_of(runtime, cohort)

    def run(number: int) -> None:
        run_round(number)
        timings.append(runtime.timing)

    return run


def _row(
    name: str, seconds: Sequence[float], fewest: Sequence[float], timings: Sequence[RoundTiming] | None
) -> dict[str, Any]:
    median = statistics.median(seconds)
    row: dict[str, Any] = {"name": name, "seconds": median, "rounds_per_minute": 60 / median}
    if timings is not None:
        row |= {
            "speedup": ratio(seconds, fewest),
            "planned_imbalance": timings[0].planned_imbalance,
            "imbalance": statistics.median(timing.imbalance for timing in timings),
            "overhead": statistics.median(timing.overhead for timing in timings),
        }
    return row


def _parts(one: Sequence[RoundTiming], most: Sequence[RoundTiming], runtime: RayRuntime) -> dict[str, float]:
    # Of all rounds of one worker: seconds of a client against its photos, as a line.
    shown = np.concatenate([timing.client_photos for timing in one])
    taken = np.concatenate([timing.client_seconds for timing in one])
    slope, intercept = np.polyfit(shown, taken, 1) if len(set(shown)) > 1 else (0.0, 0.0)
    if slope <= 0:  # too few clients to tell
        slope, intercept = taken.sum() / shown.sum(), 0.0
    merge_seconds, aggregate_bytes = _merge(runtime)
    return {
        "photo_seconds": float(slope),
        "client_overhead": max(0.0, float(intercept / slope)),
        "aggregate_bytes": aggregate_bytes,
        "merge_seconds": merge_seconds,
        "fixed_seconds": statistics.median(timing.overhead for timing in most),
        "worker_bytes": max(peak_bytes(place.process) for place in runtime.pool.places()),
    }


def _merge(runtime: RayRuntime) -> tuple[float, int]:
    """Seconds that adding up two aggregates takes, and the bytes of one."""
    aggregation = runtime.aggregation
    aggregate = aggregation.zero()

    def merge(_repetition: int) -> None:
        aggregation.merge(aggregate, aggregate)[-1].numpy()

    seconds = take_turns({"merge": merge}, 5)["merge"]
    return statistics.median(seconds), sum(tensor.numpy().nbytes for tensor in aggregate)


def _make_records(flags: argparse.Namespace, folder: Path) -> tuple[Records, BatchPlan]:
    # Four of five users train.
    records = made_up_records(folder, num_users=max(5, -(-flags.clients * 5 // 4) + 1), distinct_photos=64)
    if len(records.users("train")) < flags.clients:
        raise FlairError(f"--clients={flags.clients}: only {len(records.users('train'))} were made; give fewer")
    size = (flags.image_size, flags.image_size)
    return records, BatchPlan(make_task(records, False, None), size, flags.batch_size, flags.epochs, 512)


def _print_rounds(report: dict[str, Any], flags: argparse.Namespace) -> None:
    print(
        f"{flags.model}, {flags.image_size} x {flags.image_size}, batch {flags.batch_size}, {flags.epochs} epoch, "
        f"{report['clients']} clients of FLAIR's sizes with {report['photos']} photos, adaptive clipping and noise, "
        f"server Adam, workers of one core, medians of {flags.repeats}"
    )
    columns = Columns(">10", ">10.2f", ">11.2f", ">9.2f", ">9.1%", ">10.1%", ">11.2f", gap=" ")
    print(
        columns.line("runtime", "s a round", "rounds/min", "speed-up", "planned", "imbalance", "overhead s"),
        *(columns.line(*(list(row.values()) + [""] * 4)[:7]).rstrip() for row in report["rounds"]),
        sep="\n",
    )
