"""How fast central training is from JPEG records to the step, and evaluation, beside the bare step on photos in memory.

The bare step is central training's own: forward, backward, clipping, Adam, metrics. Bare steps, training and evaluation
take turns within a repetition, so that a busy machine slows them alike; medians are over repetitions.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmark.run.machine import machine, number_of, peak_bytes
from benchmark.speed.step import ratio
from flair.files import atomic
from flair.terminal.flags import positive_int
from flair.terminal.paths import path_flag

if TYPE_CHECKING:
    from benchmark.central.step import CentralTrainer
    from benchmark.data.pipeline import TrainingData
    from benchmark.data.records import Records

COARSE, FINE = 17, 1628


def main(argv: Sequence[str]) -> int:
    """Parses the flags, measures, prints a table (and JSON with --json)."""
    flags = _parse(argv)
    with _records(flags) as records:
        report = _measure(records, flags)
    print(_format(report, flags))
    if flags.json:
        atomic.write_json(flags.json, {**machine(), "flags": vars(flags), "central": report})
        print(f"JSON: {flags.json}")
    return 0


@contextmanager
def _records(flags: argparse.Namespace) -> Iterator[Records]:
    """The records of --tfrecords_dir, or those of a synthetic dataset that is gone afterwards."""
    from benchmark.data.opening import open_records

    if flags.tfrecords_dir:
        yield open_records(flags.tfrecords_dir)
        return
    from flair.miniature.dataset import make_dataset
    from flair.records.tfrecord.writer import write_tfrecords

    with tempfile.TemporaryDirectory() as folder:
        make_dataset(Path(folder) / "dataset", num_images=flags.num_images, seed=0)
        write_tfrecords(Path(folder) / "dataset", Path(folder) / "records")
        yield open_records(Path(folder) / "records")


def _measure(records: Records, flags: argparse.Namespace) -> dict[str, Any]:
    from benchmark.central.step import CentralTrainer
    from benchmark.data.opening import make_task
    from benchmark.data.pipeline import TrainingData
    from benchmark.model import networks
    from benchmark.run.devices import Devices

    size = (flags.image_size, flags.image_size)
    task = make_task(records, False, None)

    def build() -> Any:
        return networks.build_model(flags.model, (*size, 3), task.num_outputs, compute_dtype=flags.compute_dtype)

    trainer = CentralTrainer(build, task, 10.0, Devices())
    training = TrainingData(records, "train", task, flags.batch_size, size, seed=0)
    epochs = itertools.count()
    batch = next(iter(training.batches(next(epochs))))
    evaluations = {labels: _Evaluation(records, labels, flags) for labels in (COARSE, FINE)}
    _bare(trainer, batch, 2)
    for passes in evaluations.values():
        passes.run()
    seconds: dict[str, list[float]] = {"bare": [], "pipeline": [], "training": []}
    seconds |= {f"evaluation {labels}": [] for labels in evaluations} | {
        f"metrics {labels}": [] for labels in evaluations
    }
    for _ in range(flags.repeats):
        seconds["bare"].append(_bare(trainer, batch, flags.steps) / (flags.steps * flags.batch_size))
        seconds["training"].append(_train(trainer, training, epochs, flags.steps))
        seconds["pipeline"].append(_read(training, epochs))
        for labels, passes in evaluations.items():
            whole, metrics = passes.run()
            seconds[f"evaluation {labels}"].append(whole)
            seconds[f"metrics {labels}"].append(metrics)
    report: dict[str, Any] = {
        "images_per_second": {name: 1 / statistics.median(values) for name, values in seconds.items()},
        "training_vs_bare": ratio(seconds["training"], seconds["bare"]),
        "peak_bytes": peak_bytes(),
    }
    for labels in evaluations:
        name = f"evaluation {labels}"
        report[f"{name} vs training"] = ratio(seconds[name], seconds["training"])
        # A share, so the inverse of a speed: the time of the metrics over the time of the whole.
        report[f"metrics {labels} share"] = 1 / ratio(seconds[f"metrics {labels}"], seconds[name])
    report["pipeline_photos"] = training.num_photos
    report["pipeline_bytes"] = number_of(
        "benchmark.speed.pipeline",
        f"--tfrecords_dir={records.root}",
        f"--batch_size={flags.memory_batch_size}",
        f"--image_size={flags.image_size}",
    )
    return report


def _bare(trainer: CentralTrainer, batch: Any, steps: int) -> float:
    started = time.perf_counter()
    for _ in range(steps):
        trainer.step([batch], 1e-4)
    return time.perf_counter() - started


def _train(trainer: CentralTrainer, training: TrainingData, epochs: Iterator[int], steps: int) -> float:
    """Seconds a photo of `steps` steps from records, the reading of the first batch left out."""
    done, started, photos = -1, 0.0, 0
    while done < steps:
        for batch in training.batches(next(epochs)):
            if done == -1:
                started = time.perf_counter()
            trainer.step([batch], 1e-4)
            photos += len(batch[1])
            done += 1
            if done == steps:
                break
    return (time.perf_counter() - started) / photos


def _read(training: TrainingData, epochs: Iterator[int]) -> float:
    started = time.perf_counter()
    photos = sum(len(labels) for _, labels in training.batches(next(epochs)))
    return (time.perf_counter() - started) / photos


class _Evaluation:
    """Evaluation of a model with `num_labels` outputs on the validation and test photos."""

    def __init__(self, records: Records, num_labels: int, flags: argparse.Namespace) -> None:
        from benchmark.data.pipeline import evaluation_dataset
        from benchmark.data.records import Task
        from benchmark.model import networks

        size = (flags.image_size, flags.image_size)
        feature = "labels" if num_labels == COARSE else "fine_grained_labels"
        names = tuple(f"label{number}" for number in range(num_labels))
        self._task = Task(feature, names, num_labels, image_format=records.image_format)
        self._model = networks.build_model(flags.model, (*size, 3), num_labels, compute_dtype=flags.compute_dtype)
        self._predictions: tuple[Any, Any] | None = None
        self._data = evaluation_dataset(records, flags.eval_partition, self._task, size, flags.eval_batch_size)

    def run(self) -> tuple[float, float]:
        """Seconds a photo of the whole, and of the update of the metrics in it."""
        from benchmark.evaluation import passes
        from benchmark.metrics import histogram

        started = time.perf_counter()
        passes.evaluate(self._model, self._data, self._task)
        whole = time.perf_counter() - started
        if self._predictions is None:
            self._predictions = passes.predict(self._model, self._data)
        scores, labels = self._predictions
        size = next(iter(self._data))[1].shape[0]
        started = time.perf_counter()
        for start in range(0, len(scores), size):
            histogram.histogram(scores[start : start + size], labels[start : start + size])
        metrics = time.perf_counter() - started
        return whole / self._data.num_photos, metrics / self._data.num_photos


def _format(report: dict[str, Any], flags: argparse.Namespace) -> str:
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
    lines = [
        f"{flags.model}, {flags.compute_dtype}, batch of {flags.batch_size}, {flags.image_size}x{flags.image_size}, "
        f"medians of {flags.repeats} repetitions of {flags.steps} steps",
        *(f"{name:<36}{value:>9.1f} images/s  {note}" for name, value, note in rows),
        f"peak memory of this process, with three models: {report['peak_bytes'] / 1e9:.2f} GB",
        f"memory of the input pipeline alone, {report['pipeline_photos']:,} photos shuffled in batches "
        f"of {flags.memory_batch_size}: {report['pipeline_bytes'] / 1e6:.0f} MB",
    ]
    return "\n".join(lines)


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "python -m benchmark.speed_main central",
        description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--tfrecords_dir", type=path_flag, help="records to read; a synthetic dataset without it")
    parser.add_argument("--num_images", type=positive_int, default=1500, help="photos of the synthetic dataset")
    parser.add_argument("--model", default="resnet18", help="network, resnet18 or cnn")
    parser.add_argument("--compute_dtype", choices=("float32", "bfloat16"), default="float32", help="of the layers")
    parser.add_argument("--batch_size", type=positive_int, default=16, help="photos a training step")
    parser.add_argument(
        "--memory_batch_size",
        type=positive_int,
        default=512,
        help="photos a batch for the memory of the pipeline",
    )
    parser.add_argument("--eval_batch_size", type=positive_int, default=512, help="photos a batch in evaluation")
    parser.add_argument("--eval_partition", choices=("val", "test"), default="val", help="photos to evaluate")
    parser.add_argument("--image_size", type=positive_int, default=224, help="height and width of the input, in pixels")
    parser.add_argument("--steps", type=positive_int, default=10, help="training steps a repetition")
    parser.add_argument("--repeats", type=positive_int, default=5, help="repetitions, of which medians are taken")
    parser.add_argument("--json", type=path_flag, help="write the numbers to this file too")
    return parser.parse_args(argv)
