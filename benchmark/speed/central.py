"""How fast central training is from JPEG records to the step, and evaluation, beside the bare step.

The bare step is central training's own, on photos in memory: forward, backward, clipping, Adam, metrics. All times are
seconds per photo. The memory of the input pipeline is measured in a process of its own.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import tensorflow as tf

from benchmark.central.step import CentralTrainer
from benchmark.data.opening import make_task, open_records
from benchmark.data.pipeline import TrainingData, evaluation_dataset
from benchmark.data.records import Records, Task
from benchmark.evaluation import passes
from benchmark.metrics import histogram
from benchmark.model import networks
from benchmark.run.devices import Devices
from benchmark.run.machine import peak_bytes
from benchmark.speed.harness import made_up_records, memory_of, ratio, take_turns

COARSE, FINE = 17, 1628


def measure(flags: argparse.Namespace) -> dict[str, Any]:
    """Prints a table of training and evaluation; returns its numbers."""
    with tempfile.TemporaryDirectory() as folder:
        if flags.tfrecords_dir:
            records = open_records(flags.tfrecords_dir)
        else:
            records = made_up_records(Path(folder), num_images=flags.num_images)
        training = _Training(records, flags)
        settings = {"bare": training.bare, "training": training.train, "pipeline": training.read}
        for labels in (COARSE, FINE):
            evaluation = _Evaluation(records, labels, flags)
            settings |= {f"evaluation {labels}": evaluation.run, f"metrics {labels}": evaluation.update_metrics}
        seconds = take_turns(settings, flags.repeats)
        report: dict[str, Any] = {
            "images_per_second": {name: 1 / statistics.median(values) for name, values in seconds.items()},
            "training_vs_bare": ratio(seconds["training"], seconds["bare"]),
            "peak_bytes": peak_bytes(),
            "pipeline_photos": training.data.num_photos,
        }
        reads = argparse.Namespace(**{**vars(flags), "tfrecords_dir": records.root})
        report["pipeline_bytes"] = memory_of("central", reads, "pipeline")
    for labels in (COARSE, FINE):
        name = f"evaluation {labels}"
        report[f"{name} vs training"] = ratio(seconds[name], seconds["training"])
        # A share, so the inverse of a speed: the time of the metrics over the time of the whole.
        report[f"metrics {labels} share"] = 1 / ratio(seconds[f"metrics {labels}"], seconds[name])
    _print(report, flags)
    return {"central": report}


def memory(flags: argparse.Namespace) -> int:
    """By how many bytes this process grows when it goes once through the training photos, shuffled in batches."""
    for _ in tf.data.Dataset.range(2).map(lambda number: number + 1, tf.data.AUTOTUNE):
        pass  # TensorFlow's own threads and buffers do not count
    before = peak_bytes()
    for _ in _training_data(open_records(flags.tfrecords_dir), flags, flags.memory_batch_size).batches(0):
        pass
    return peak_bytes() - before


def _training_data(records: Records, flags: argparse.Namespace, batch_size: int) -> TrainingData:
    size = (flags.image_size, flags.image_size)
    return TrainingData(records, "train", make_task(records, False, None), batch_size, size, seed=0)


def _build(flags: argparse.Namespace, num_labels: int) -> tf.keras.Model:
    shape = (flags.image_size, flags.image_size, 3)
    return networks.build_model(flags.model, shape, num_labels, compute_dtype=flags.compute_dtype)


class _Training:
    """Three ways to spend time on training photos; each returns seconds per photo."""

    def __init__(self, records: Records, flags: argparse.Namespace) -> None:
        task = make_task(records, False, None)
        self.data = _training_data(records, flags, flags.batch_size)
        self._trainer = CentralTrainer(_build(flags, task.num_outputs), task, 10.0, Devices())
        self._epochs, self._steps = itertools.count(), flags.steps
        self._batch = next(iter(self.data.batches(next(self._epochs))))

    def bare(self, _repetition: int) -> float:
        """Steps on one batch in memory."""
        started = time.perf_counter()
        for _ in range(self._steps):
            self._trainer.step([self._batch], 1e-4)
        return (time.perf_counter() - started) / (self._steps * len(self._batch[1]))

    def train(self, _repetition: int) -> float:
        """Steps from records, the reading of the first batch left out."""
        batches = itertools.chain.from_iterable(self.data.batches(epoch) for epoch in self._epochs)
        photos, started = 0, 0.0
        for batch in itertools.islice(batches, self._steps + 1):
            started = started or time.perf_counter()
            self._trainer.step([batch], 1e-4)
            photos += len(batch[1])
        return (time.perf_counter() - started) / photos

    def read(self, _repetition: int) -> float:
        """An epoch of batches without steps."""
        started = time.perf_counter()
        photos = sum(len(labels) for _, labels in self.data.batches(next(self._epochs)))
        return (time.perf_counter() - started) / photos


class _Evaluation:
    """Evaluation of a model with `num_labels` outputs on the validation or test photos; seconds per photo."""

    def __init__(self, records: Records, num_labels: int, flags: argparse.Namespace) -> None:
        feature = "labels" if num_labels == COARSE else "fine_grained_labels"
        names = tuple(f"label{number}" for number in range(num_labels))
        self._task = Task(feature, names, num_labels, image_format=records.image_format)
        self._model = _build(flags, num_labels)
        size = (flags.image_size, flags.image_size)
        self._data = evaluation_dataset(records, flags.eval_partition, self._task, size, flags.eval_batch_size)
        self._predictions: tuple[Any, Any] | None = None

    def run(self, _repetition: int) -> float:
        """The whole evaluation."""
        started = time.perf_counter()
        passes.evaluate(self._model, self._data, self._task)
        return (time.perf_counter() - started) / self._data.num_photos

    def update_metrics(self, _repetition: int) -> float:
        """The update of the metrics in it."""
        self._predictions = self._predictions or passes.predict(self._model, self._data)
        scores, labels = self._predictions
        size = next(iter(self._data))[1].shape[0]
        started = time.perf_counter()
        for start in range(0, len(scores), size):
            histogram.histogram(scores[start : start + size], labels[start : start + size])
        return (time.perf_counter() - started) / self._data.num_photos


def _print(report: dict[str, Any], flags: argparse.Namespace) -> None:
    speed = report["images_per_second"]
    rows = [
        ("bare step, photos in memory", speed["bare"], ""),
        ("training from JPEG records", speed["training"], f"{report['training_vs_bare']:.3f} of the bare step"),
        ("input pipeline alone", speed["pipeline"], ""),
    ]
    for labels in (COARSE, FINE):
        note = f"{report[f'evaluation {labels} vs training']:.2f} of training, "
        note += f"metrics {100 * report[f'metrics {labels} share']:.2f}% of its time"
        rows.append((f"evaluation with {labels:,} labels", speed[f"evaluation {labels}"], note))
    print(
        f"{flags.model}, {flags.compute_dtype}, batch of {flags.batch_size}, {flags.image_size}x{flags.image_size}, "
        f"medians of {flags.repeats} repetitions of {flags.steps} steps"
    )
    for name, value, note in rows:
        print(f"{name:<36}{value:>9.1f} images/s  {note}")
    print(f"peak memory of this process, with three models: {report['peak_bytes'] / 1e9:.2f} GB")
    print(
        f"memory of the input pipeline alone, {report['pipeline_photos']:,} photos shuffled in batches "
        f"of {flags.memory_batch_size}: {report['pipeline_bytes'] / 1e6:.0f} MB"
    )
