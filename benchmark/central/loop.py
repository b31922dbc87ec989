"""Central training: the loop over epochs, checkpoints, stopping and resuming."""

from __future__ import annotations

import itertools
import math
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from benchmark.central.step import Batch, CentralTrainer
from benchmark.data.pipeline import EvaluationData, TrainingData
from benchmark.evaluation import passes
from benchmark.model import loading
from benchmark.run.devices import Devices
from benchmark.run.folder import RunFolder
from benchmark.run.interruption import STOPPING, SafePoints
from benchmark.run.names import BEST_FILE, LAST_FILE
from flair.errors import FlairError
from flair.terminal.progress import Progress


@dataclass(frozen=True)
class Options:
    """How to train.

    Attributes:
      num_epochs: passes over the training photos.
      learning_rates: float32 [num_epochs * steps_per_epoch], of each step.
      best_metric: name of the validation metric that chooses the best model; `loss` is minimized, others maximized.
      early_stopping: epochs without a better model after which training stops; 0 never stops early.
      seconds_per_checkpoint: time between checkpoints inside an epoch; every epoch ends with one.
    """

    num_epochs: int
    learning_rates: np.ndarray
    best_metric: str = "loss"
    early_stopping: int = 0
    seconds_per_checkpoint: float = 600.0


@dataclass
class Position:
    """Where a run stands: `step` batches into `epoch`, and the best model so far."""

    epoch: int = 0
    step: int = 0
    best_value: float = math.inf
    best_epoch: int = 0
    seconds: float = 0.0


def train(
    trainer: CentralTrainer,
    training: TrainingData,
    validation: EvaluationData,
    run: RunFolder,
    options: Options,
    safe_points: SafePoints,
) -> Position:
    """Trains to the end, from the run folder's newest checkpoint if there is one.

    Raises:
      FlairError: the loss is no number any more.
    """
    position = _resume(trainer, run)
    trainer.devices.check_equal(f"{position.epoch} {position.step}", f"a run folder ({run.path}) at one step")
    if position.step > 0 and position.epoch >= options.num_epochs:
        raise FlairError(
            f"--num_epochs={options.num_epochs}: {run.path} is past that already, {position.step} steps into epoch "
            f"{position.epoch + 1}; give at least {position.epoch + 1}, another --run_dir, or --overwrite"
        )
    sign = 1.0 if options.best_metric == "loss" else -1.0
    while position.epoch < options.num_epochs and not _has_stalled(position, options):
        _train_epoch(trainer, training, run, options, position, safe_points)
        position.epoch, position.step = position.epoch + 1, 0
        row = {f"train_{name}": value for name, value in trainer.metrics().items()}
        started = time.monotonic()
        with Progress(validation.num_photos, f"validating epoch {position.epoch}", "photo") as progress:
            metrics = passes.evaluate(trainer.model, validation, trainer.task, progress, trainer.devices)
        position.seconds += time.monotonic() - started
        row |= {f"val_{name}": value for name, value in metrics.items()}
        _check_finite(metrics["loss"], f"validation after epoch {position.epoch}")
        last_step = position.epoch * training.steps_per_epoch - 1
        row["learning_rate"] = float(options.learning_rates[last_step])
        if sign * metrics[options.best_metric] < position.best_value:
            position.best_value, position.best_epoch = sign * metrics[options.best_metric], position.epoch
            run.save_model(BEST_FILE, lambda path: loading.save_weights(trainer.model, path))
        trainer.reset_metrics()
        run.add_row(position.epoch, row, position.seconds)
        _save(trainer, run, position)
        if run.is_written:
            print(_epoch_line(position, options, row), flush=True)
        _stop_together(safe_points, trainer.devices)
    run.save_model(LAST_FILE, lambda path: loading.save_weights(trainer.model, path))
    return position


def _train_epoch(
    trainer: CentralTrainer,
    training: TrainingData,
    run: RunFolder,
    options: Options,
    position: Position,
    safe_points: SafePoints,
) -> None:
    first = position.epoch * training.steps_per_epoch
    saved = started = time.monotonic()
    before = position.seconds
    description = f"epoch {position.epoch + 1} of {options.num_epochs}"
    with Progress(training.num_photos, description, "photo", done=trainer.num_photos) as progress:
        for parts in _parts(training.batches(position.epoch, position.step), len(trainer.devices.replicas)):
            wish = safe_points.requested is not None or time.monotonic() - saved > options.seconds_per_checkpoint
            learning_rate = float(options.learning_rates[first + position.step])
            loss, must_save = _step_within_memory(trainer, parts, learning_rate, wish)
            position.step += 1
            position.seconds = before + time.monotonic() - started
            _check_finite(loss, f"epoch {position.epoch + 1}, step {position.step}")
            progress.add(trainer.num_photos - progress.done, f"loss {trainer.mean_loss:.4f}")
            if must_save:
                _save(trainer, run, position)
                saved = time.monotonic()
                _stop_together(safe_points, trainer.devices)


def _stop_together(safe_points: SafePoints, devices: Devices) -> None:
    """Stops every process of the job where any of them was asked to; all come here after the same step."""
    asked = np.array([safe_points.requested == number for number in STOPPING], np.float32)
    # Only what all processes know counts: a signal that arrives here waits for the next step.
    (processes,) = devices.sum_over_workers([asked])
    if not processes.any():
        return
    if safe_points.requested is None:
        safe_points.requested = STOPPING[int(np.argmax(processes))]
        print("another machine of TF_CONFIG was asked to stop", file=sys.stderr, flush=True)
    devices.leave()
    safe_points.stop()


def _step_within_memory(
    trainer: CentralTrainer, parts: Sequence[Batch], learning_rate: float, wish: bool
) -> tuple[float, bool]:
    try:
        return trainer.step(parts, learning_rate, wish)
    except tf.errors.ResourceExhaustedError:
        photos = min(trainer.microbatch_size, parts[0][0].shape[0])
        raise FlairError(
            f"out of memory with {photos} photos at once; give a --microbatch_size below that (with the same result), "
            "and the run goes on from its newest checkpoint"
        ) from None


def _parts(batches: Iterator[Batch], count: int) -> Iterator[list[Batch]]:
    """Groups batches by training step, one a device."""
    while parts := list(itertools.islice(batches, count)):
        yield parts


def _resume(trainer: CentralTrainer, run: RunFolder) -> Position:
    checkpoint = run.checkpoints.latest()
    if checkpoint is None:
        run.start_at(0)
        return Position()
    trainer.restore(checkpoint.arrays)
    position = Position(**checkpoint.state)
    run.start_at(position.epoch)
    print(f"continuing after {position.epoch} epochs and {position.step} steps", flush=True)
    return position


def _save(trainer: CentralTrainer, run: RunFolder, position: Position) -> None:
    if run.is_written:
        run.checkpoints.save(int(trainer.optimizer.iterations.numpy()), trainer.arrays(), asdict(position))


def _has_stalled(position: Position, options: Options) -> bool:
    patience = options.early_stopping
    return patience > 0 and position.epoch - position.best_epoch >= patience


def _check_finite(loss: float, where: str) -> None:
    if not math.isfinite(loss):
        raise FlairError(
            f"{where}: the loss is {loss}, no finite number; lower --learning_rate or --clipnorm and start over in "
            "another --run_dir or with --overwrite"
        )


def _epoch_line(position: Position, options: Options, row: dict[str, Any]) -> str:
    shown = {name: value for name, value in row.items() if name.endswith("averaged_precision") and "val_" in name}
    text = ", ".join(f"{name} {value:.4f}" for name, value in shown.items())
    mark = " (best so far)" if position.best_epoch == position.epoch else ""
    return (
        f"epoch {position.epoch} of {options.num_epochs}: train_loss {row['train_loss']:.4f}, "
        f"val_loss {row['val_loss']:.4f}, {text}{mark}"
    )
