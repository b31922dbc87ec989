"""How fast features of photos are computed from records to the file, beside the bare forward pass."""

from __future__ import annotations

import argparse
import itertools
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmark.data.opening import make_task, open_records
from benchmark.data.pipeline import EvaluationData
from benchmark.features.extraction import compiled, fill
from benchmark.model.networks import build_model
from benchmark.model.trainable import body_and_head
from benchmark.speed.harness import ratio, take_turns
from flair.files import feature_file
from flair.miniature.dataset import make_dataset
from flair.records.tfrecord.writer import write_tfrecords

_BATCH_SIZE = 64


def measure_extraction(flags: argparse.Namespace) -> dict[str, Any]:
    """Prints both, which take turns, and their ratio."""
    with tempfile.TemporaryDirectory(dir=flags.work_dir) as name:
        folder = Path(name)
        make_dataset(folder / "dataset", num_images=flags.photos, seed=0)
        write_tfrecords(folder / "dataset", folder / "records")
        records = open_records(folder / "records")
        task, size = make_task(records, False, None), (flags.image_size, flags.image_size)
        count = len(records.photo_index("train").offset) // _BATCH_SIZE * _BATCH_SIZE
        body, _ = body_and_head(build_model(flags.model, (*size, 3), task.num_outputs))
        photos = EvaluationData(records, "train", task, size, _BATCH_SIZE, range(count))
        batch, _ = next(iter(photos))
        forward = compiled(body)
        numbers = itertools.count()

        def bare(_repetition: int) -> float:
            started = time.perf_counter()
            for _ in range(count // _BATCH_SIZE):
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
