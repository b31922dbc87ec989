"""How fast federated rounds are on this machine, beside the bare training steps on the same photos.

Bare steps are the compiled steps of `benchmark.rounds.client` on the batches of the same clients, JPEG decoding
included, without weights to set, updates to clip or an optimizer of the server. Within a repetition all settings take
turns, so that a busy machine slows them alike; medians are over repetitions, the first of which is left out.
"""

from __future__ import annotations

import argparse
import io
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from benchmark.run.machine import peak_bytes
from benchmark.speed.command import ROOT
from flair.errors import FlairError
from flair.terminal.flags import positive_int
from flair.terminal.paths import path_flag

if TYPE_CHECKING:
    from benchmark.data.clients import BatchPlan, ClientData
    from benchmark.rounds.client import LocalTrainer
    from benchmark.rounds.config import FederatedConfig
    from benchmark.rounds.inprocess import InProcessRuntime

NUM_LABELS = 17
RUNTIMES = ("inprocess", "tff")
MEMORY_OF = ("bare", "loaded", "inprocess")


class MadeUpClients:
    """Clients in memory, each with the same number of JPEG photos of smooth noise and random labels."""

    def __init__(self, num_clients: int, photos: int, seed: int = 0) -> None:
        self.client_ids: Sequence[str] = [f"client{number:04d}" for number in range(num_clients)]
        examples = _make_examples(photos * min(num_clients, 8), seed)
        self._of = {
            client_id: [examples[(number * photos + index) % len(examples)] for index in range(photos)]
            for number, client_id in enumerate(self.client_ids)
        }

    def read(self, client_id: str) -> list[bytes]:
        """The client's serialized examples."""
        return self._of[client_id]


def main(argv: Sequence[str]) -> int:
    """Parses the flags, measures, prints a table (and JSON with --json)."""
    flags = _parse(argv)
    if flags.memory_of:
        return _print_memory(flags)
    rows = [_measure_size(flags, photos) for photos in flags.photos]
    report: dict[str, Any] = {"cores": os.cpu_count(), "flags": vars(flags), "rounds": rows}
    print(_format_rounds(rows, flags))
    report["overhead"] = _measure_overhead(flags)
    print(
        f"overhead of inprocess beyond bare steps, from cohorts of {flags.fit_clients}: "
        f"{report['overhead']['seconds_per_round']:.3f} s a round and "
        f"{report['overhead']['seconds_per_client']:.4f} s a client"
    )
    report["memory"] = _measure_memory(flags)
    print(_format_memory(report["memory"]))
    if flags.tfrecords_dir:
        report["start"] = _measure_start(flags)
        print(_format_start(report["start"], flags))
    if flags.json:
        from flair.files import atomic

        atomic.write_json(flags.json, report)
        print(f"JSON: {flags.json}")
    return 0


def _measure_size(flags: argparse.Namespace, photos: int) -> dict[str, Any]:
    data = MadeUpClients(flags.clients, photos)
    settings = _settings(flags, data)
    seconds: dict[str, list[float]] = {name: [] for name in settings}
    for repetition in range(flags.repeats + 1):
        for name, run in settings.items():
            started = time.perf_counter()
            run(repetition)
            if repetition:
                seconds[name].append(time.perf_counter() - started)
    shown = flags.clients * photos * flags.epochs
    bare = seconds["bare"]
    return {
        "photos": photos,
        **{
            name: {
                "seconds": statistics.median(times),
                "images_per_second": shown / statistics.median(times),
                "over_bare": statistics.median(t / b for t, b in zip(times, bare, strict=True)),
            }
            for name, times in seconds.items()
        },
    }


def _settings(flags: argparse.Namespace, data: ClientData) -> dict[str, Callable[[int], Any]]:
    plan, config = _plan(flags), _config(flags)
    runtime = _inprocess(flags, config, data, plan)
    cohort = data.client_ids
    settings: dict[str, Callable[[int], Any]] = {
        "bare": lambda number: _bare(runtime.trainer, data, plan, number),
        "inprocess": lambda number: runtime.run_round(number, cohort),
    }
    if "tff" in flags.runtimes:
        from benchmark.rounds.tff import TffRuntime

        reference = TffRuntime(lambda: _model(flags), config, data, plan, 0)
        settings["tff"] = lambda number: reference.run_round(number, cohort)
    return settings


def _bare(trainer: LocalTrainer, data: ClientData, plan: BatchPlan, number: int) -> None:
    import tensorflow as tf

    from benchmark.data.clients import client_batches

    batches = client_batches(data, data.client_ids, plan=plan, seed=0, round_number=number)
    trainer.run(lambda: ((b.pixels, b.labels) for b in batches), tf.constant(1e-3), [])
    # The steps are asynchronous on some devices; reading a weight waits for them.
    trainer.trainable[-1].numpy()


def _measure_overhead(flags: argparse.Namespace) -> dict[str, float]:
    import numpy as np

    largest = max(flags.fit_clients)
    data = MadeUpClients(largest, 1)
    plan, config = _plan(flags), _config(flags)
    runtime = _inprocess(flags, config, data, plan)
    extra: dict[int, list[float]] = {size: [] for size in flags.fit_clients}
    for repetition in range(flags.repeats + 1):
        for size in flags.fit_clients:
            part = _Part(data, data.client_ids[:size])
            started = time.perf_counter()
            _bare(runtime.trainer, part, plan, repetition)
            middle = time.perf_counter()
            runtime.run_round(repetition, part.client_ids)
            if repetition:
                extra[size].append((time.perf_counter() - middle) - (middle - started))
    sizes = list(extra)
    slope, intercept = np.polyfit(sizes, [statistics.median(extra[size]) for size in sizes], 1)
    return {"seconds_per_round": float(intercept), "seconds_per_client": float(slope)}


class _Part:
    def __init__(self, data: ClientData, client_ids: Sequence[str]) -> None:
        self.client_ids, self.read = client_ids, data.read


def _measure_memory(flags: argparse.Namespace) -> dict[str, int]:
    found = {}
    for name in MEMORY_OF:
        command = [sys.executable, "-m", "benchmark.speed.federated", f"--memory_of={name}"]
        command += [f"--model={flags.model}", f"--image_size={flags.image_size}", f"--clients={flags.clients}"]
        command += [f"--batch_size={flags.batch_size}", f"--epochs={flags.epochs}"]
        command += [f"--compute_dtype={flags.compute_dtype}"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise FlairError(f"measuring the memory of {name} failed: {done.stderr.strip().splitlines()[-1:]}")
        found[name], found["weights"] = map(int, done.stdout.split()[-2:])
    return found


def _print_memory(flags: argparse.Namespace) -> int:
    from benchmark.rounds.client import LocalTrainer

    data, plan, config = MadeUpClients(flags.clients, 2 * flags.batch_size), _plan(flags), _config(flags)
    model = _model(flags)
    model_bytes = sum(weight.nbytes for weight in model.get_weights())
    if flags.memory_of == "bare":
        runtime, trainer = None, LocalTrainer(model, config.client)
    else:
        from benchmark.rounds.inprocess import InProcessRuntime

        runtime = InProcessRuntime(model, config, data, plan, 0)
        trainer = runtime.trainer
    for number in range(2):
        if runtime is not None and flags.memory_of == "inprocess":
            runtime.run_round(number, data.client_ids)
        else:
            _bare(trainer, data, plan, number)
    print(peak_bytes(), model_bytes)
    return 0


def _measure_start(flags: argparse.Namespace) -> dict[str, float]:
    from benchmark.data.clients import UserClients
    from benchmark.data.opening import open_records
    from benchmark.federated.cohort import sample_cohort

    started = time.perf_counter()
    data = UserClients(open_records(flags.tfrecords_dir), "train")
    opened = time.perf_counter()
    size = min(200, len(data.client_ids))
    for client_id in sample_cohort(data.client_ids, seed=0, round_number=0, clients_per_round=size):
        data.read(client_id)
    return {
        "users": len(data.client_ids),
        "open_seconds": opened - started,
        "cohort": size,
        "cohort_seconds": time.perf_counter() - opened,
        "command_seconds": statistics.median(_seconds_to_round_1(flags, size) for _ in range(flags.repeats)),
    }


def _seconds_to_round_1(flags: argparse.Namespace, clients: int) -> float:
    """From starting the published command, with privacy, to its saying that the first round begins."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "benchmark.federated_main", f"--tfrecords_dir={flags.tfrecords_dir}"]
        command += [f"--run_dir={folder}/run", f"--save_model_dir={folder}", "--epsilon=2", "--l2_norm_clip=0.1"]
        command += [f"--clients_per_round={clients}", f"--model={flags.model}", "--total_rounds=5000"]
        started = time.perf_counter()
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        try:
            assert process.stdout is not None
            for line in process.stdout:
                if line.startswith("round 1 of"):
                    return time.perf_counter() - started
        finally:
            process.kill()
            _, errors = process.communicate()
        raise FlairError(f"benchmark.federated_main ended before its first round: {errors.strip().splitlines()[-1:]}")


def _inprocess(
    flags: argparse.Namespace, config: FederatedConfig, data: ClientData, plan: BatchPlan
) -> InProcessRuntime:
    from benchmark.rounds.inprocess import InProcessRuntime

    return InProcessRuntime(_model(flags), config, data, plan, 0)


def _model(flags: argparse.Namespace) -> Any:
    from benchmark.model.networks import build_model

    size = flags.image_size
    return build_model(flags.model, (size, size, 3), NUM_LABELS, compute_dtype=flags.compute_dtype)


def _plan(flags: argparse.Namespace) -> BatchPlan:
    from benchmark.data.clients import BatchPlan
    from benchmark.data.records import Task

    task = Task("labels", tuple(f"label{number:02d}" for number in range(NUM_LABELS)), NUM_LABELS)
    return BatchPlan(task, (flags.image_size, flags.image_size), flags.batch_size, flags.epochs, 512)


def _config(flags: argparse.Namespace) -> FederatedConfig:
    from benchmark.privacy.request import Mechanism
    from benchmark.rounds.config import ClientConfig, FederatedConfig, NoiseConfig

    noise = NoiseConfig(Mechanism.GAUSSIAN, 0.5, float(flags.clients), 0.1, 0.1, max(1.0, 0.05 * flags.clients))
    return FederatedConfig(ClientConfig(learning_rates=(1e-3,), weighted=False), noise=noise)


def _make_examples(count: int, seed: int) -> list[bytes]:
    import numpy as np
    from PIL import Image

    from flair.records.tfrecord.example import Example, encode

    generator = np.random.default_rng(seed)
    examples = []
    for number in range(count):
        small = Image.fromarray(generator.integers(0, 256, (32, 32, 3), np.uint8))
        jpeg = io.BytesIO()
        small.resize((256, 256), Image.Resampling.BICUBIC).save(jpeg, "JPEG", quality=75)
        labels = sorted(generator.choice(NUM_LABELS, 3, replace=False).tolist())
        examples.append(encode(Example(jpeg.getvalue(), tuple(labels), tuple(labels), str(number), "user")))
    return examples


def _format_rounds(rows: Sequence[dict[str, Any]], flags: argparse.Namespace) -> str:
    names = [name for name in rows[0] if name != "photos"]
    lines = [
        f"{flags.model} {flags.compute_dtype}, {flags.image_size} x {flags.image_size}, batch {flags.batch_size}, "
        f"{flags.clients} clients, adaptive clipping and noise, server Adam, {os.cpu_count()} cores, "
        f"medians of {flags.repeats}",
        f"{'photos a client':>16} {'setting':>10} {'s a round':>10} {'images/s':>9} {'over bare':>10}",
    ]
    lines += [
        f"{row['photos']:>16} {name:>10} {row[name]['seconds']:>10.2f} {row[name]['images_per_second']:>9.1f} "
        f"{row[name]['over_bare']:>10.3f}"
        for row in rows
        for name in names
    ]
    return "\n".join(lines)


def _format_memory(memory: dict[str, int]) -> str:
    beyond = (memory["inprocess"] - memory["loaded"]) / memory["weights"]
    return (
        f"peak memory: bare steps {memory['bare'] / 1e6:,.0f} MB; with TensorFlow Federated loaded and the server's "
        f"graphs built {memory['loaded'] / 1e6:,.0f} MB; inprocess rounds {memory['inprocess'] / 1e6:,.0f} MB, "
        f"{beyond:.1f} times the model's {memory['weights'] / 1e6:.1f} MB more"
    )


def _format_start(start: dict[str, float], flags: argparse.Namespace) -> str:
    return (
        f"{flags.tfrecords_dir}: {start['users']:,} users found in {start['open_seconds']:.2f} s; a cohort of "
        f"{start['cohort']} sampled and read in {start['cohort_seconds']:.2f} s; the first round of "
        f"benchmark.federated_main begins {start['command_seconds']:.1f} s after the command"
    )


def _int_list(text: str) -> list[int]:
    return [positive_int(part) for part in text.split(",")]


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmark.speed_main federated",
        description="Measures federated rounds beside the bare training steps on the same photos.",
    )
    parser.add_argument("--model", choices=("resnet18", "cnn"), default="resnet18", help="network (default: resnet18)")
    parser.add_argument("--image_size", type=positive_int, default=224, help="input pixels (default: 224)")
    parser.add_argument("--compute_dtype", choices=("float32", "bfloat16"), default="float32", help="default: float32")
    parser.add_argument("--photos", type=_int_list, default=[16, 2], help="photos a client (default: 16,2)")
    parser.add_argument("--clients", type=positive_int, default=24, help="clients a round (default: 24)")
    parser.add_argument("--fit_clients", type=_int_list, default=[2, 8, 16], help="cohorts to fit (default: 2,8,16)")
    parser.add_argument("--batch_size", type=positive_int, default=16, help="photos a step (default: 16)")
    parser.add_argument("--epochs", type=positive_int, default=1, help="passes a client a round (default: 1)")
    parser.add_argument("--runtimes", default="inprocess", help="inprocess, or inprocess,tff (default: inprocess)")
    parser.add_argument("--repeats", type=positive_int, default=5, help="repetitions (default: 5)")
    parser.add_argument(
        "--tfrecords_dir",
        type=path_flag,
        help="also measure opening these records, reading a cohort of 200, and the start of a run",
    )
    parser.add_argument("--json", type=path_flag, metavar="FILE", help="also write the numbers as JSON")
    parser.add_argument("--memory_of", choices=MEMORY_OF, help=argparse.SUPPRESS)
    flags = parser.parse_args(argv)
    flags.runtimes = flags.runtimes.split(",")
    unknown = set(flags.runtimes) - set(RUNTIMES)
    if unknown:
        parser.error(f"--runtimes: expected some of {', '.join(RUNTIMES)}, found {', '.join(sorted(unknown))}")
    return flags


if __name__ == "__main__":
    from flair.terminal.command import run

    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    run(main)
