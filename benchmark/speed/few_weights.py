"""How long private training of a head on cached features takes, at FLAIR's size.

Users have FLAIR's numbers of photos; features are normal numbers, and labels depend on them, so that there is something
to learn. All of `federated_main` runs but its flags and the network: cohorts, orders, groups of clients, clipping,
noise, the server's optimizer, validation, checkpoints. How fast features are computed from photos is measured before.
"""

from __future__ import annotations

import argparse
import itertools
import math
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmark.data.clients import BatchPlan
from benchmark.data.features import FeatureClients, FeatureEvaluation, Features, LabelColumns
from benchmark.data.opening import make_task
from benchmark.data.pipeline import EvaluationData
from benchmark.data.records import Task
from benchmark.evaluation import passes
from benchmark.features.extraction import compiled, fill
from benchmark.federated import loop
from benchmark.federated.cohort import sample_cohort
from benchmark.model.networks import build_model
from benchmark.model.trainable import body_and_head, new_head, num_weights
from benchmark.privacy.adaptive import clipped_count_stddev, noise_norm
from benchmark.privacy.noise_key import NoiseKey
from benchmark.privacy.plan import PrivacyPlan, make_plan
from benchmark.privacy.request import Mechanism, PrivacyRequest, Sampling
from benchmark.rounds.config import ClientConfig, FederatedConfig, NoiseConfig, OptimizerConfig
from benchmark.rounds.inprocess import InProcessRuntime
from benchmark.run.folder import RunFolder
from benchmark.run.interruption import SafePoints
from benchmark.run.machine import anonymous_bytes
from benchmark.speed.harness import made_up_records, ratio, take_turns
from flair.dataset.catalog import NUM_IMAGES, NUM_USERS
from flair.files import feature_file
from flair.miniature.population import user_sizes
from flair.terminal.progress import duration

NUM_LABELS = 17
_LABEL_FREQUENCY = 2.785 / NUM_LABELS  # FLAIR's coarse labels per photo
_ROWS_AT_ONCE = 8192
_PHOTOS_PER_BATCH = 64
_TASK = Task("labels", tuple(f"label{number:02d}" for number in range(NUM_LABELS)), NUM_LABELS)


class MadeUpUsers:
    """Clients of given numbers of photos, which follow each other; there is nothing to read but features."""

    def __init__(self, sizes: Sequence[int] | np.ndarray) -> None:
        width = len(str(len(sizes)))
        self.client_ids: Sequence[str] = [f"user{number:0{width}d}" for number in range(len(sizes))]
        first = np.concatenate([[0], np.cumsum(sizes)])
        self._rows = {name: np.arange(*first[number : number + 2]) for number, name in enumerate(self.client_ids)}

    def read(self, client_id: str) -> list[bytes]:
        """Refuses."""
        raise NotImplementedError(f"{client_id} has features only")

    def rows(self, client_id: str) -> np.ndarray:
        """The client's rows."""
        return self._rows[client_id]

    def num_photos(self, client_id: str) -> int:
        """How many photos the client has."""
        return len(self._rows[client_id])


class _Scorer:
    def __init__(self, head: Any, features: Features) -> None:
        self._head, self._photos = head, FeatureEvaluation(features, range(len(features)))

    def evaluate(self, partition: str, title: str | None = None) -> dict[str, float]:
        del partition, title
        return passes.evaluate(self._head, self._photos, _TASK)


def measure(flags: argparse.Namespace) -> dict[str, Any]:
    """Prints how fast features are computed, how long all rounds took for each number of them, and what memory."""
    extraction = _extraction(flags)
    print(
        f"{flags.num_users:,} users, {flags.rounds:,} rounds of {flags.clients} clients, 2 epochs, batch 16, epsilon "
        f"{flags.epsilon:g}, adaptive clipping and noise, a validation every {flags.rounds_per_eval} rounds",
        flush=True,
    )
    found = []
    for num_features in flags.features:
        with tempfile.TemporaryDirectory(dir=flags.work_dir) as folder:
            found.append(_train(flags, num_features, Path(folder)))
        print(_line(found[-1]), flush=True)
    return {"cores": os.cpu_count(), "extraction": extraction, "few_weights": found}


def _extraction(flags: argparse.Namespace) -> dict[str, Any]:
    """Prints how fast features are computed from records to the file, beside the bare forward pass; both take turns."""
    with tempfile.TemporaryDirectory(dir=flags.work_dir) as name:
        folder = Path(name)
        records = made_up_records(folder, num_images=flags.photos)
        task, size = make_task(records, False, None), (flags.image_size, flags.image_size)
        count = len(records.photo_index("train").offset) // _PHOTOS_PER_BATCH * _PHOTOS_PER_BATCH
        body, _ = body_and_head(build_model(flags.model, (*size, 3), task.num_outputs))
        photos = EvaluationData(records, "train", task, size, _PHOTOS_PER_BATCH, range(count))
        batch, _ = next(iter(photos))
        forward = compiled(body)
        numbers = itertools.count()

        def bare(_repetition: int) -> float:
            started = time.perf_counter()
            for _ in range(count // _PHOTOS_PER_BATCH):
                forward(batch).numpy()
            return (time.perf_counter() - started) / count

        def extract(_repetition: int) -> float:
            path = folder / f"{next(numbers)}.npy"
            growing = feature_file.growing(path, (count, int(body.output_shape[-1])), np.dtype(np.float32), {})
            started = time.perf_counter()
            fill(growing, forward, (pixels for pixels, _ in photos), np.dtype(np.float32), "features")
            return (time.perf_counter() - started) / count

        seconds = take_turns({"bare": bare, "features": extract}, flags.repeats)
    found = {name: 1 / statistics.median(of) for name, of in seconds.items()}
    found["of_bare"] = ratio(seconds["features"], seconds["bare"])
    print(
        f"{flags.model} at {flags.image_size}: {found['features']:.1f} photos/s from records to the file of features, "
        f"{found['bare']:.1f} the bare forward pass: {found['of_bare']:.2f} of it, median of {flags.repeats} ratios",
        flush=True,
    )
    return found


def _train(flags: argparse.Namespace, num_features: int, folder: Path) -> dict[str, Any]:
    photos = round(NUM_IMAGES["train"] * flags.num_users / NUM_USERS["train"])
    users = MadeUpUsers(np.random.default_rng(0).permutation(user_sizes(flags.num_users, photos)))
    training = _features(folder / "train.npy", photos, num_features, 0)
    validation = _features(folder / "val.npy", round(photos * NUM_IMAGES["val"] / NUM_IMAGES["train"]), num_features, 1)
    request = PrivacyRequest(flags.clients, flags.rounds, flags.epsilon)
    plan = make_plan(flags.num_users, request)
    head = new_head(num_features, NUM_LABELS)
    key = NoiseKey.draw()
    batch_plan = BatchPlan(_TASK, (0, 0), 16, 2, 512)
    before = anonymous_bytes()
    runtime = InProcessRuntime(head, _config(plan), FeatureClients(users, training), batch_plan, 0, key)
    seconds: list[float] = []
    most = before

    def cohort_of(round_number: int) -> list[str]:
        nonlocal most
        most = max(most, anonymous_bytes())
        seconds.append(time.perf_counter())
        return sample_cohort(
            users.client_ids,
            seed=key,
            round_number=round_number,
            clients_per_round=flags.clients,
            sampling=Sampling.POISSON,
        )

    config = loop.LoopConfig(flags.rounds, flags.rounds_per_eval, flags.rounds_per_eval, "loss", 0.1)
    scorer = _Scorer(head, validation)
    started = time.perf_counter()
    with RunFolder(folder / "run", [], "round") as run, SafePoints("round") as safe_points:
        loop.train(runtime, head, scorer, cohort_of, plan, run, config, safe_points)
    total = time.perf_counter() - started
    weights = num_weights(head)
    return {
        "features": num_features,
        "rounds": flags.rounds,
        "seconds": total,
        "median_round_seconds": float(np.median(np.diff(seconds))) if len(seconds) > 1 else total,
        "anonymous_bytes": most,
        "mapped_bytes": sum(view.nbytes for view in (*training.views, *validation.views)),
        "weights": weights,
        "noise_norm": noise_norm(plan.run_noise_multiplier, flags.clients, weights),
        "val": scorer.evaluate("val"),
    }


def _config(plan: PrivacyPlan) -> FederatedConfig:
    sigma, cohort = plan.run_noise_multiplier, plan.request.cohort
    noise = NoiseConfig(Mechanism.GAUSSIAN, sigma, float(cohort), 0.1, 0.5, clipped_count_stddev(cohort, sigma))
    return FederatedConfig(ClientConfig(weighted=False), OptimizerConfig("adam", (0.01,), epsilon=1e-3), noise=noise)


def _features(path: Path, photos: int, num_features: int, seed: int) -> Features:
    """Normal features; a label is there where its direction in them, with as much noise, is far enough."""
    values = np.lib.format.open_memmap(path, "w+", np.float32, (photos, num_features))
    directions = np.random.default_rng(0).normal(size=(num_features, NUM_LABELS)).astype(np.float32)
    rng, columns, counts = np.random.default_rng([1, seed]), [], []
    threshold = statistics.NormalDist(0, math.sqrt(2)).inv_cdf(1 - _LABEL_FREQUENCY)
    for start in range(0, photos, _ROWS_AT_ONCE):
        block = values[start : start + _ROWS_AT_ONCE]
        block[:] = rng.standard_normal(block.shape, np.float32)
        signal = block @ directions / math.sqrt(num_features)
        has_label = signal + rng.standard_normal(signal.shape, np.float32) > threshold
        counts.append(has_label.sum(1))
        columns.append(np.nonzero(has_label)[1])
    values.flush()
    starts = np.concatenate([[0], np.cumsum(np.concatenate(counts))])
    return Features(
        [np.load(path, mmap_mode="r")], LabelColumns(starts, np.concatenate(columns).astype(np.int32)), _TASK
    )


def _line(found: dict[str, Any]) -> str:
    return (
        f"{found['features']:,} features: {found['rounds']:,} rounds in {duration(found['seconds'])} (median round "
        f"{1000 * found['median_round_seconds']:.0f} ms); at most {found['anonymous_bytes'] / 1e9:.2f} GB beyond the "
        f"{found['mapped_bytes'] / 1e9:.2f} GB of mapped features; {found['weights']:,} weights, noise "
        f"{found['noise_norm']:.2f} clip norms long; val macro AP {found['val']['macro_averaged_precision']:.3f} "
        f"(knowing nothing: {_LABEL_FREQUENCY:.3f})"
    )
