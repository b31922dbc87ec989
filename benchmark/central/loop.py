"""The loop of central training: epochs, checkpoints, stopping and resuming."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from benchmark.central.step import Batch, CentralTrainer
from benchmark.data.inputs import Evaluation, Training
from benchmark.evaluation import passes
from benchmark.model import loading
from benchmark.run.devices import Devices
from benchmark.run.folder import RunFolder
from benchmark.run.interruption import STOPPING, SafePoints
from benchmark.run.names import BEST_FILE, LAST_FILE
from benchmark.training.best import badness, is_over
from flair.errors import FlairError
from flair.terminal.progress import Progress


@dataclass(frozen=True)
class LoopConfig:
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
class TrainingState:
    """Where a run stands: `step` batches into `epoch`, and the best model so far."""

    epoch: int = 0
    step: int = 0
    best_value: float = math.inf
    best_epoch: int = 0
    seconds: float = 0.0


def train(
    trainer: CentralTrainer,
    training: Training,
    validation: Evaluation,
    run: RunFolder,
    config: LoopConfig,
    safe_points: SafePoints,
) -> TrainingState:
    """Trains to the end, from the run folder's newest checkpoint if there is one.

    Raises:
      FlairError: the loss is not a number any more.
    """
    state = _resume(trainer, run)
    trainer.devices.check_equal(f"{state.epoch} {state.step}", f"a run folder ({run.path}) at one step")
    if state.step > 0 and state.epoch >= config.num_epochs:
        raise FlairError(
            f"--num_epochs={config.num_epochs}: {run.path} is past that already, {state.step} steps into epoch "
            f"{state.epoch + 1}; give at least {state.epoch + 1}, another --run_dir, or --overwrite"
        )
    while state.epoch < config.num_epochs and not is_over(state.epoch, state.best_epoch, config.early_stopping):
        _train_epoch(trainer, training, run, config, state, safe_points)
        state.epoch, state.step = state.epoch + 1, 0
        row = {f"train_{name}": value for name, value in trainer.metrics().items()}
        started = time.monotonic()
        with Progress(validation.num_photos, f"validating epoch {state.epoch}", "photo") as progress:
            metrics = passes.evaluate(trainer.model, validation, trainer.task, progress, trainer.devices)
        state.seconds += time.monotonic() - started
        row |= {f"val_{name}": value for name, value in metrics.items()}
        _check_finite(metrics["loss"], f"validation after epoch {state.epoch}")
        last_step = state.epoch * training.steps_per_epoch - 1
        row["learning_rate"] = float(config.learning_rates[last_step])
        value = badness(metrics, config.best_metric)
        if value < state.best_value:
            state.best_value, state.best_epoch = value, state.epoch
            if run.is_written:
                loading.save_model(trainer.network, run.path / BEST_FILE)
        trainer.reset_metrics()
        run.add_row(state.epoch, row, state.seconds)
        _save(trainer, run, state)
        if run.is_written:
            print(_epoch_line(state, config, row), flush=True)
        _stop_together(safe_points, trainer.devices)
    if run.is_written:
        loading.save_model(trainer.network, run.path / LAST_FILE)
    return state


def _train_epoch(
    trainer: CentralTrainer,
    training: Training,
    run: RunFolder,
    config: LoopConfig,
    state: TrainingState,
    safe_points: SafePoints,
) -> None:
    first = state.epoch * training.steps_per_epoch
    saved = started = time.monotonic()
    before = state.seconds
    description = f"epoch {state.epoch + 1} of {config.num_epochs}"
    with Progress(training.num_photos, description, "photo", done=trainer.num_photos) as progress:
        for parts in passes.grouped(training.batches(state.epoch, state.step), len(trainer.devices.replicas)):
            save_requested = (
                safe_points.requested is not None or time.monotonic() - saved > config.seconds_per_checkpoint
            )
            learning_rate = float(config.learning_rates[first + state.step])
            loss, must_save = _step_within_memory(trainer, parts, learning_rate, save_requested)
            state.step += 1
            state.seconds = before + time.monotonic() - started
            _check_finite(loss, f"epoch {state.epoch + 1}, step {state.step}")
            progress.add(trainer.num_photos - progress.done, f"loss {trainer.mean_loss:.4f}")
            if must_save:
                _save(trainer, run, state)
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
    trainer: CentralTrainer, parts: Sequence[Batch], learning_rate: float, save_requested: bool
) -> tuple[float, bool]:
    try:
        return trainer.step(parts, learning_rate, save_requested)
    except tf.errors.ResourceExhaustedError:
        photos = min(trainer.microbatch_size, parts[0][0].shape[0])
        raise FlairError(
            f"out of memory with {photos} photos at once; give a --microbatch_size below that (with the same result), "
            "and the run goes on from its newest checkpoint"
        ) from None


def _resume(trainer: CentralTrainer, run: RunFolder) -> TrainingState:
    checkpoint = run.checkpoints.latest()
    if checkpoint is None:
        run.start_at(0)
        return TrainingState()
    trainer.restore(checkpoint.arrays)
    state = TrainingState(**checkpoint.state)
    run.start_at(state.epoch)
    print(f"continuing after {state.epoch} epochs and {state.step} steps", flush=True)
    return state


def _save(trainer: CentralTrainer, run: RunFolder, state: TrainingState) -> None:
    if run.is_written:
        run.checkpoints.save(int(trainer.optimizer.iterations.numpy()), trainer.arrays(), asdict(state))


def _check_finite(loss: float, where: str) -> None:
    if not math.isfinite(loss):
        raise FlairError(
            f"{where}: the loss is {loss}, not a finite number; lower --learning_rate or --clipnorm and start over in "
            "another --run_dir or with --overwrite"
        )


def _epoch_line(state: TrainingState, config: LoopConfig, row: dict[str, Any]) -> str:
    shown = ["train_loss", "val_loss", *(n for n in row if n.startswith("val_") and n.endswith("averaged_precision"))]
    text = ", ".join(f"{name} {row[name]:.4f}" for name in shown)
    mark = " (best so far)" if state.best_epoch == state.epoch else ""
    return f"epoch {state.epoch} of {config.num_epochs}: {text}{mark}"
