"""What it costs to look at single clients while a federated run trains, beside the rounds between two looks.

The parts are measured, not ten rounds: a round as it is, the same with its updates added up and some of its clients
trained again, and the scores of clients with all that is written, without and with local training.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tensorflow as tf

from benchmark.data.clients import BatchPlan, UserClients
from benchmark.data.inputs import Inputs, PixelInputs
from benchmark.data.opening import make_task, open_records
from benchmark.data.records import Records, Task
from benchmark.features.cache import FeatureCache, Network
from benchmark.federated.client_eval import ClientEvalConfig, ClientEvaluation, LabelDistance
from benchmark.federated.cohort import sample_cohort
from benchmark.federated.scoring import LocalScorer
from benchmark.model.identity import network_digest
from benchmark.model.networks import build_model
from benchmark.model.trainable import body_and_head
from benchmark.rounds.config import ClientConfig, FederatedConfig
from benchmark.run.folder import RunFolder
from benchmark.speed.harness import made_up_records, take_turns
from flair.terminal.table import Columns

if TYPE_CHECKING:
    from benchmark.rounds.drift import Drift

_EVAL_BATCH_SIZE = 512


def measure(flags: argparse.Namespace) -> dict[str, Any]:
    """Prints the parts and what share of the rounds between two looks they are; returns both."""
    with tempfile.TemporaryDirectory() as folder:
        seconds = _seconds(flags, Path(folder))
    median = {part: statistics.median(times) for part, times in seconds.items()}
    between = flags.rounds * median["round"]
    # Of times measured side by side, so that a busy machine slows both alike.
    extra = [looked - plain for looked, plain in zip(seconds["looked at"], seconds["round"], strict=True)]
    parts = {"drift": statistics.median(extra), "scores": median["scores"], "local training": median["with training"]}
    parts["local training"] -= parts["scores"]
    shares = {part: found / between for part, found in parts.items()}
    total = {"without local training": shares["drift"] + shares["scores"], "with it": sum(shares.values())}
    print(
        f"{flags.model}{', cached features' if flags.features else ''}, {flags.image_size} x {flags.image_size}, "
        f"{flags.clients} clients a round, 2 epochs, batch 16, a look at {flags.looked_at} validation users and "
        f"{flags.looked_at} clients every {flags.rounds} rounds, {os.cpu_count()} cores, medians of {flags.repeats}"
    )
    columns = Columns("<40", ">10.4g", ">12.2f", gap=" ")
    print(columns.line("part", "seconds", "% of rounds"))
    print(columns.line(f"{flags.rounds} rounds", between, 100.0))
    for part, found in parts.items():
        print(columns.line(part, found, 100 * shares[part]))
    for part, share in total.items():
        print(columns.line(f"a look, {part}", share * between, 100 * share))
    print(f"reading all labels, once a process: {median['labels']:.3g} s")
    return {"cores": os.cpu_count(), "seconds": median, "between": between, "shares": shares, "total": total}


def _seconds(flags: argparse.Namespace, folder: Path) -> dict[str, list[float]]:
    # Loads TensorFlow Federated.
    from benchmark.rounds.inprocess import InProcessRuntime

    if flags.tfrecords_dir:
        records = open_records(flags.tfrecords_dir)
    else:
        records = made_up_records(folder, num_users=flags.num_users, num_images=flags.num_images)
    task, size = make_task(records, False, None), (flags.image_size, flags.image_size)
    users, plan = UserClients(records, "train"), BatchPlan(task, size, 16, 2, 512)
    model, inputs = _model(flags, records, task, folder)
    data, config = inputs.clients(users), FederatedConfig(ClientConfig(learning_rates=(1e-3,)))
    runtime = InProcessRuntime(model, config, data, plan, 0)
    scorer = LocalScorer(model, records, inputs, plan, data)
    how = ClientEvalConfig(1, flags.looked_at, None, 0, is_private=False)
    plain = ClientEvaluation(how, scorer, records, users)
    trained = ClientEvaluation(replace(how, local_training=config.client), scorer, records, users)
    cohorts: dict[int, list[str]] = {}
    drifts: dict[int, Drift] = {}

    def cohort(number: int) -> list[str]:
        if number not in cohorts:
            size = min(flags.clients, len(users.client_ids))
            cohorts[number] = sample_cohort(users.client_ids, seed=0, round_number=number, clients_per_round=size)
        return cohorts[number]

    def plain_round(number: int) -> None:
        runtime.run_round(number, cohort(number))

    def look(number: int) -> None:
        result = runtime.run_round(number, cohort(number), plain.looked_at(number, cohort(number)))
        assert result.drift is not None
        drifts[number] = result.drift

    def scores(evaluation: ClientEvaluation, run: RunFolder) -> Callable[[int], None]:
        def run_once(number: int) -> None:
            evaluation.evaluate(number + 1, cohort(number), drifts[number], run)

        return run_once

    def labels(_number: int) -> float:
        started = time.perf_counter()
        LabelDistance(records, users).of_clients(users.client_ids[:1])
        return time.perf_counter() - started

    with RunFolder(folder / "run", [], "round") as run:
        settings: dict[str, Callable[[int], float | None]] = {
            "round": plain_round,
            "looked at": look,
            "scores": scores(plain, run),
            "with training": scores(trained, run),
            "labels": labels,
        }
        # Groups of clients come in sizes, of which each is compiled where it comes first.
        return take_turns(settings, flags.repeats, warm_up=3)


def _model(flags: argparse.Namespace, records: Records, task: Task, folder: Path) -> tuple[tf.keras.Model, Inputs]:
    size = (flags.image_size, flags.image_size)
    model = build_model(flags.model, (*size, 3), task.num_outputs)
    if not flags.features:
        return model, PixelInputs(records, task, size, _EVAL_BATCH_SIZE)
    body, head = body_and_head(model)
    network = Network(flags.model, network_digest(body), size, int(body.output_shape[-1]), "float32", "float32")
    return head, FeatureCache(folder / "features", records, network, body).inputs(task)
