"""How fast federated rounds are on this machine, beside the bare training steps on the same photos.

Bare steps are the compiled steps of a client on the batches of the same clients, JPEG decoding included, without
weights to set, updates to clip or an optimizer of the server.
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

import numpy as np
import tensorflow as tf
from PIL import Image

from benchmark.data.clients import BatchPlan, ClientData, UserClients, client_batches
from benchmark.data.opening import open_records
from benchmark.data.records import Task
from benchmark.federated.cohort import sample_cohort
from benchmark.model.networks import build_model
from benchmark.privacy.request import Mechanism
from benchmark.rounds.client import LocalTrainer
from benchmark.rounds.config import ClientConfig, FederatedConfig, NoiseConfig
from benchmark.run.machine import peak_bytes
from benchmark.speed.flags import FEDERATED_STAGES
from benchmark.speed.harness import ROOT, memory_of, ratio, take_turns
from flair.errors import FlairError
from flair.records.tfrecord.example import Example, encode
from flair.terminal.table import Columns

if TYPE_CHECKING:
    from benchmark.rounds.inprocess import InProcessRuntime

NUM_LABELS = 17


class MadeUpClients:
    """Clients in memory, each with the same number of JPEG photos of smooth noise and random labels."""

    def __init__(self, num_clients: int, photos: int) -> None:
        examples = _make_examples(photos * min(num_clients, 8))  # more clients have the same photos again
        groups = [examples[start : start + photos] for start in range(0, len(examples), photos)]
        self._of = {f"client{number:04d}": groups[number % len(groups)] for number in range(num_clients)}
        self.client_ids: Sequence[str] = list(self._of)

    def read(self, client_id: str) -> list[bytes]:
        """The client's serialized examples."""
        return self._of[client_id]


def measure(flags: argparse.Namespace) -> dict[str, Any]:
    """Prints rounds beside bare steps, the cost of a round and of a client, memory, and the start of a run."""
    report: dict[str, Any] = {"cores": os.cpu_count(), "rounds": [_size(flags, photos) for photos in flags.photos]}
    _print_rounds(report["rounds"], flags)
    report["overhead"] = overhead = _overhead(flags)
    print(
        f"overhead of inprocess beyond bare steps, from cohorts of {flags.fit_clients}: "
        f"{overhead['seconds_per_round']:.3f} s a round and {overhead['seconds_per_client']:.4f} s a client"
    )
    held = {stage: memory_of("federated", flags, stage) for stage in FEDERATED_STAGES}
    held["weights"] = sum(weight.nbytes for weight in _model(flags).get_weights())
    report["memory"] = held
    print(
        f"peak memory: bare steps {held['bare'] / 1e6:,.0f} MB; with TensorFlow Federated loaded and the server's "
        f"graphs built {held['loaded'] / 1e6:,.0f} MB; inprocess rounds {held['inprocess'] / 1e6:,.0f} MB, "
        f"{(held['inprocess'] - held['loaded']) / held['weights']:.1f} times the model's "
        f"{held['weights'] / 1e6:.1f} MB more"
    )
    if flags.tfrecords_dir:
        report["start"] = start = _start(flags)
        print(
            f"{flags.tfrecords_dir}: {start['users']:,} users found in {start['open_seconds']:.2f} s; a cohort of "
            f"{start['cohort']} sampled and read in {start['cohort_seconds']:.2f} s; the first round of "
            f"benchmark.federated_main begins {start['command_seconds']:.1f} s after the command"
        )
    return report


def memory(flags: argparse.Namespace) -> int:
    """Peak memory in bytes of this process: of bare steps, with TFF loaded beside them, or of inprocess rounds."""
    data, plan = MadeUpClients(flags.clients, 2 * flags.batch_size), _plan(flags)
    if flags.memory_of == "bare":
        trainer = LocalTrainer(_model(flags), private_config(flags.clients).client)
    else:
        runtime = _inprocess(flags, data)
        trainer = runtime.trainer
    for number in range(2):
        if flags.memory_of == "inprocess":
            runtime.run_round(number, data.client_ids)
        else:
            _bare(trainer, data, data.client_ids, plan, number)
    return peak_bytes()


def private_config(clients: int) -> FederatedConfig:
    """Adaptive clipping and noise, as a private run with cohorts of so many clients has them."""
    noise = NoiseConfig(Mechanism.GAUSSIAN, 0.5, float(clients), 0.1, 0.1, max(1.0, 0.05 * clients))
    return FederatedConfig(ClientConfig(learning_rates=(1e-3,), weighted=False), noise=noise)


def _size(flags: argparse.Namespace, photos: int) -> dict[str, Any]:
    data, plan = MadeUpClients(flags.clients, photos), _plan(flags)
    runtime = _inprocess(flags, data)
    settings: dict[str, Callable[[int], None]] = {
        "bare": lambda number: _bare(runtime.trainer, data, data.client_ids, plan, number),
        "inprocess": round_of(runtime, data.client_ids),
    }
    if "tff" in flags.runtimes:
        from benchmark.rounds.tff import TffRuntime

        tff = TffRuntime(lambda: _model(flags), private_config(flags.clients), data, plan, 0)
        settings["tff"] = round_of(tff, data.client_ids)
    seconds = take_turns(settings, flags.repeats)
    row: dict[str, Any] = {"photos": photos}
    for name, times in seconds.items():
        row[name] = {
            "seconds": statistics.median(times),
            "images_per_second": flags.clients * photos * flags.epochs / statistics.median(times),
            "over_bare": ratio(seconds["bare"], times),
        }
    return row


def round_of(runtime: Any, cohort: Sequence[str]) -> Callable[[int], None]:
    """What runs a round of a runtime by its number."""

    def run(number: int) -> None:
        runtime.run_round(number, cohort)

    return run


def _bare(trainer: LocalTrainer, data: ClientData, cohort: Sequence[str], plan: BatchPlan, number: int) -> None:
    batches = client_batches(data, cohort, plan=plan, seed=0, round_number=number)
    trainer.run(lambda: ((b.inputs, b.labels) for b in batches), tf.constant(1e-3), [])
    # The steps are asynchronous on some devices; reading a weight waits for them.
    trainer.trainable[-1].numpy()


def _overhead(flags: argparse.Namespace) -> dict[str, float]:
    """What a round and a client cost beyond their steps: a line through cohorts of one photo per client."""
    data, plan = MadeUpClients(max(flags.fit_clients), 1), _plan(flags)
    runtime = _inprocess(flags, data)

    def beyond_steps(size: int) -> Callable[[int], float]:
        cohort = data.client_ids[:size]

        def run(number: int) -> float:
            started = time.perf_counter()
            _bare(runtime.trainer, data, cohort, plan, number)
            middle = time.perf_counter()
            runtime.run_round(number, cohort)
            return (time.perf_counter() - middle) - (middle - started)

        return run

    extra = take_turns({size: beyond_steps(size) for size in flags.fit_clients}, flags.repeats)
    slope, intercept = np.polyfit(list(extra), [statistics.median(values) for values in extra.values()], 1)
    return {"seconds_per_round": float(intercept), "seconds_per_client": float(slope)}


def _start(flags: argparse.Namespace) -> dict[str, float]:
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


def _inprocess(flags: argparse.Namespace, data: ClientData) -> InProcessRuntime:
    # Loads TensorFlow Federated, which the memory of bare steps leaves out.
    from benchmark.rounds.inprocess import InProcessRuntime

    return InProcessRuntime(_model(flags), private_config(flags.clients), data, _plan(flags), 0)


def _model(flags: argparse.Namespace) -> tf.keras.Model:
    shape = (flags.image_size, flags.image_size, 3)
    return build_model(flags.model, shape, NUM_LABELS, compute_dtype=flags.compute_dtype)


def _plan(flags: argparse.Namespace) -> BatchPlan:
    task = Task("labels", tuple(f"label{number:02d}" for number in range(NUM_LABELS)), NUM_LABELS)
    return BatchPlan(task, (flags.image_size, flags.image_size), flags.batch_size, flags.epochs, 512)


def _make_examples(count: int) -> list[bytes]:
    generator = np.random.default_rng(0)
    examples = []
    for number in range(count):
        small = Image.fromarray(generator.integers(0, 256, (32, 32, 3), np.uint8))
        jpeg = io.BytesIO()
        small.resize((256, 256), Image.Resampling.BICUBIC).save(jpeg, "JPEG", quality=75)
        labels = sorted(generator.choice(NUM_LABELS, 3, replace=False).tolist())
        examples.append(encode(Example(jpeg.getvalue(), tuple(labels), tuple(labels), str(number), "user")))
    return examples


def _print_rounds(rows: Sequence[dict[str, Any]], flags: argparse.Namespace) -> None:
    print(
        f"{flags.model} {flags.compute_dtype}, {flags.image_size} x {flags.image_size}, batch {flags.batch_size}, "
        f"{flags.clients} clients, adaptive clipping and noise, server Adam, {os.cpu_count()} cores, "
        f"medians of {flags.repeats}"
    )
    columns = Columns(">16", ">10", ">10.2f", ">9.1f", ">10.3f", gap=" ")
    print(columns.line("photos a client", "setting", "s a round", "images/s", "over bare"))
    for row in rows:
        for name, found in row.items():
            if name != "photos":
                print(columns.line(row["photos"], name, *found.values()))
