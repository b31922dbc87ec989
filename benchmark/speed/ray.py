"""How fast federated rounds are on Ray with this machine's cores, beside `inprocess`, and what that means for more.

The clients' sizes are FLAIR's, their photos synthetic. All settings take turns within a repetition, so that a busy
machine slows them alike; medians are over repetitions, the first of which is left out. Workers of other settings idle
meanwhile. The sizing at the end is computed by `benchmark.speed.sizing` from what was measured here.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmark.speed import sizing
from flair.errors import FlairError
from flair.terminal.flags import positive_int
from flair.terminal.paths import path_flag

if TYPE_CHECKING:
    from benchmark.cluster.pool import WorkerPool
    from benchmark.cluster.runtime import RayRuntime, RoundTiming
    from benchmark.data.clients import BatchPlan
    from benchmark.rounds.config import FederatedConfig

COHORTS, MACHINES = (200, 5000), (1, 10, 100)


def main(argv: Sequence[str]) -> int:
    """Parses the flags, measures, prints tables (and JSON with --json)."""
    flags = _parse(argv)
    with tempfile.TemporaryDirectory(prefix="flair-speed-") as folder:
        report = _measure(flags, Path(folder))
    print(_format_rounds(report, flags))
    parts = sizing.Parts(**report["parts"])
    print(_format_parts(parts))
    per_machine = max(flags.workers)
    sizes = [sizing.size(parts, clients, machines, per_machine) for clients in COHORTS for machines in MACHINES]
    report["sizes"] = [one._asdict() for one in sizes]
    print(
        f"rounds of FLAIR on machines like this one with {per_machine} workers each, 2 epochs, at most 512 photos a "
        f"client, a link of 10 Gbit/s (computed; speed-up over one worker):\n{sizing.table(sizes)}"
    )
    if flags.json:
        from flair.files import atomic

        atomic.write_json(flags.json, report)
        print(f"JSON: {flags.json}")
    return 0


def _measure(flags: argparse.Namespace, folder: Path) -> dict[str, Any]:
    from benchmark.cluster.cluster import Cluster
    from benchmark.cluster.pool import WorkerPool
    from benchmark.cluster.runtime import RayRuntime
    from benchmark.data.source import ClientSource
    from benchmark.rounds.inprocess import InProcessRuntime

    records, plan = _make_records(flags, folder)
    source = ClientSource(str(records.root), records.digest())
    data = source.open()[1]
    cohort = data.client_ids[: flags.clients]
    config = _config(len(cohort))
    arguments = (flags.model, (flags.image_size, flags.image_size, 3), plan.task.num_outputs)
    settings: dict[str, Callable[[int], Any]] = {}
    local = InProcessRuntime(_model(arguments), config, data, plan, 0)
    settings["inprocess"] = lambda number: local.run_round(number, cohort)
    cluster = Cluster(None, num_cpus=sum(flags.workers))
    try:
        runtimes: dict[str, RayRuntime] = {}
        for count in flags.workers:
            pool = WorkerPool(cluster, count)
            runtimes[_name(count)] = RayRuntime(
                *(_model(arguments), arguments, config, data, source, plan, 0, None, pool)
            )
        settings |= {name: _round_of(runtime, cohort) for name, runtime in runtimes.items()}
        seconds, timings = _take_turns(settings, runtimes, flags.repeats)
        photos = sum(min(data.num_photos(client_id), plan.max_elements) for client_id in cohort)
        rounds = [_row(name, seconds, timings) for name in settings]
        largest = runtimes[_name(max(flags.workers))]
        one = timings[_name(min(flags.workers))]
        return {
            "cores": os.cpu_count(),
            "flags": vars(flags),
            "clients": len(cohort),
            "photos": photos,
            "rounds": rounds,
            "parts": _parts(one, timings[_name(max(flags.workers))], largest, local.weights()),
        }
    finally:
        cluster.close()


def _round_of(runtime: RayRuntime, cohort: Sequence[str]) -> Callable[[int], Any]:
    return lambda number: runtime.run_round(number, cohort)


def _take_turns(
    settings: dict[str, Callable[[int], Any]], runtimes: dict[str, RayRuntime], repeats: int
) -> tuple[dict[str, list[float]], dict[str, list[RoundTiming]]]:
    seconds: dict[str, list[float]] = {name: [] for name in settings}
    timings: dict[str, list[RoundTiming]] = {name: [] for name in runtimes}
    for repetition in range(repeats + 1):
        for name, run in settings.items():
            started = time.perf_counter()
            run(repetition)
            if repetition:
                seconds[name].append(time.perf_counter() - started)
                if name in runtimes:
                    timings[name].append(runtimes[name].timing)
    return seconds, timings


def _row(name: str, seconds: dict[str, list[float]], timings: dict[str, list[RoundTiming]]) -> dict[str, Any]:
    row: dict[str, Any] = {
        "name": name,
        "seconds": statistics.median(seconds[name]),
        "rounds_per_minute": 60 / statistics.median(seconds[name]),
    }
    if name in timings:
        base = seconds[next(iter(timings))]
        row |= {
            "speedup": statistics.median(one / mine for one, mine in zip(base, seconds[name], strict=True)),
            "planned_imbalance": timings[name][0].planned_imbalance,
            "imbalance": statistics.median(timing.imbalance for timing in timings[name]),
            "overhead": statistics.median(timing.overhead for timing in timings[name]),
        }
    return row


def _parts(
    one: Sequence[RoundTiming], most: Sequence[RoundTiming], runtime: RayRuntime, weights: Sequence[Any]
) -> dict[str, float]:
    import numpy as np

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
        "weights_bytes": sum(weight.nbytes for weight in weights),
        "aggregate_bytes": aggregate_bytes,
        "merge_seconds": merge_seconds,
        "fixed_seconds": statistics.median(timing.overhead for timing in most),
        "worker_bytes": max(_peak_bytes(runtime.pool)),
    }


def _merge(runtime: RayRuntime) -> tuple[float, int]:
    """Seconds that adding up two aggregates takes, and the bytes of one."""
    from benchmark.rounds.aggregation import Aggregation
    from benchmark.rounds.graph import GraphFunction

    spec = runtime.server.aggregation.spec
    server, aggregate = Aggregation(spec), GraphFunction(spec.zero)([])
    seconds = []
    for _ in range(6):
        started = time.perf_counter()
        merged = server.merge(aggregate, aggregate)
        merged[-1].numpy()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds[1:]), sum(tensor.numpy().nbytes for tensor in aggregate)


def _peak_bytes(pool: WorkerPool) -> list[int]:
    from benchmark.run.machine import peak_bytes

    return [peak_bytes(place.process) for place in pool.places()]


def _make_records(flags: argparse.Namespace, folder: Path) -> tuple[Any, BatchPlan]:
    from benchmark.data.clients import BatchPlan
    from benchmark.data.opening import make_task, open_records
    from flair.miniature.dataset import make_dataset
    from flair.records.tfrecord.writer import write_tfrecords

    # Four of five users train.
    make_dataset(folder / "dataset", num_users=max(5, -(-flags.clients * 5 // 4) + 1), distinct_photos=64)
    write_tfrecords(folder / "dataset", folder / "records")
    records = open_records(folder / "records")
    if len(records.users("train")) < flags.clients:
        raise FlairError(f"--clients={flags.clients}: only {len(records.users('train'))} were made; give fewer")
    size = (flags.image_size, flags.image_size)
    return records, BatchPlan(make_task(records, False, None), size, flags.batch_size, flags.epochs, 512)


def _model(arguments: tuple[Any, ...]) -> Any:
    from benchmark.model.networks import build_model

    return build_model(*arguments)


def _config(clients: int) -> FederatedConfig:
    from benchmark.privacy.request import Mechanism
    from benchmark.rounds.config import ClientConfig, FederatedConfig, NoiseConfig

    noise = NoiseConfig(Mechanism.GAUSSIAN, 0.5, float(clients), 0.1, 0.1, max(1.0, 0.05 * clients))
    return FederatedConfig(ClientConfig(learning_rates=(1e-3,), weighted=False), noise=noise)


def _name(workers: int) -> str:
    return f"ray, {workers}"


def _format_rounds(report: dict[str, Any], flags: argparse.Namespace) -> str:
    lines = [
        f"{flags.model}, {flags.image_size} x {flags.image_size}, batch {flags.batch_size}, {flags.epochs} epoch, "
        f"{report['clients']} clients of FLAIR's sizes with {report['photos']} photos, adaptive clipping and noise, "
        f"server Adam, workers of one core, medians of {flags.repeats}",
        f"{'runtime':>10} {'s a round':>10} {'rounds/min':>11} {'speed-up':>9} {'planned':>9} {'imbalance':>10} "
        f"{'overhead s':>11}",
    ]
    for row in report["rounds"]:
        line = f"{row['name']:>10} {row['seconds']:>10.2f} {60 / row['seconds']:>11.2f}"
        if "speedup" in row:
            line += (
                f" {row['speedup']:>9.2f} {row['planned_imbalance']:>9.1%} {row['imbalance']:>10.1%} "
                f"{row['overhead']:>11.2f}"
            )
        lines.append(line)
    return "\n".join(lines)


def _format_parts(parts: sizing.Parts) -> str:
    return (
        f"parts: a photo takes a worker {parts.photo_seconds * 1e3:.1f} ms, a client {parts.client_overhead:.2f} "
        f"photos more; {parts.weights_bytes / 1e6:.1f} MB of weights go to each machine, an aggregate of "
        f"{parts.aggregate_bytes / 1e6:.1f} MB comes from each worker and takes {parts.merge_seconds * 1e3:.0f} ms to "
        f"add; peak memory of a worker {parts.worker_bytes / 1e6:,.0f} MB"
    )


def _int_list(text: str) -> list[int]:
    return sorted({positive_int(part) for part in text.split(",")})


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmark.speed_main ray",
        description="Measures federated rounds by number of Ray workers, beside inprocess, and computes cluster sizes.",
    )
    parser.add_argument("--model", choices=("resnet18", "cnn"), default="resnet18", help="network (default: resnet18)")
    parser.add_argument("--image_size", type=positive_int, default=224, help="input pixels (default: 224)")
    parser.add_argument("--workers", type=_int_list, default=[1, 2], help="numbers of workers (default: 1,2)")
    parser.add_argument("--clients", type=positive_int, default=20, help="clients a round (default: 20)")
    parser.add_argument("--batch_size", type=positive_int, default=16, help="photos a step (default: 16)")
    parser.add_argument("--epochs", type=positive_int, default=1, help="passes a client a round (default: 1)")
    parser.add_argument("--repeats", type=positive_int, default=3, help="repetitions (default: 3)")
    parser.add_argument("--json", type=path_flag, metavar="FILE", help="also write the numbers as JSON")
    return parser.parse_args(argv)
