"""Central training: the compiled step, the loop over epochs, and everything a resumed run needs."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from benchmark import evaluation, flair_model
from benchmark.flair_data import EvaluationData, TrainingData
from benchmark.flair_metrics import ScoreHistogram, losses_of
from benchmark.interruption import SafePoints
from benchmark.records import Task
from benchmark.run_folder import RunFolder
from flair.errors import FlairError
from flair.progress import Progress

BEST_FILE, LAST_FILE = "best.h5", "last.h5"


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


class CentralTrainer:
    """Trains a model with Adam, one compiled step a batch.

    Args:
      model: from `flair_model.build_model`.
      task: what it predicts.
      clipnorm: bound on the gradient of each weight.
    """

    def __init__(self, model: tf.keras.Model, task: Task, clipnorm: float) -> None:
        self.model, self.task, self.clipnorm = model, task, clipnorm
        # The new Keras optimizers take a dozen passes over the weights a step where this one takes one fused pass.
        self.optimizer = tf.keras.optimizers.legacy.Adam()
        self.histogram = ScoreHistogram(task.num_outputs, task.is_binary)
        tf.function(self._create_optimizer_variables).get_concrete_function()

    def step(self, images: tf.Tensor, labels: tf.Tensor, learning_rate: float) -> None:
        """One Adam step on a batch; its photos are scored before the step, into `histogram`."""
        self.optimizer.learning_rate.assign(learning_rate)
        self._step(images, labels)

    def mean_loss(self) -> float:
        """Mean training loss of the epoch so far."""
        return float(self.histogram.loss_sum) / max(int(self.histogram.num_photos), 1)

    def arrays(self) -> dict[str, np.ndarray]:
        """Every variable by name: model, optimizer, training metrics of the epoch so far."""
        return {name: variable.numpy() for name, variable in self._variables()}

    def restore(self, arrays: dict[str, np.ndarray]) -> None:
        """Takes the variables from a checkpoint."""
        for name, variable in self._variables():
            if name not in arrays or arrays[name].shape != tuple(variable.shape):
                raise FlairError(f"the checkpoint has no {name} of shape {tuple(variable.shape)}; use --overwrite")
            variable.assign(arrays[name])

    def _variables(self) -> Iterator[tuple[str, tf.Variable]]:
        for kind, variables in (
            ("model", self.model.variables),
            ("optimizer", self.optimizer.variables()),
            ("metrics", self.histogram.variables),
        ):
            for index, variable in enumerate(variables):
                yield f"{kind}/{index:03d}/{variable.name}", variable

    def _create_optimizer_variables(self) -> None:
        # The optimizer makes its variables when first used. A step would count, so it is traced and never run.
        gradients = [tf.zeros_like(variable) for variable in self.model.trainable_variables]
        self.optimizer.apply_gradients(zip(gradients, self.model.trainable_variables, strict=True))

    @tf.function(reduce_retracing=True)
    def _step(self, images: tf.Tensor, labels: tf.Tensor) -> None:
        variables = self.model.trainable_variables
        with tf.GradientTape() as tape:
            logits = self.model(images, training=True)
            loss = tf.reduce_mean(losses_of(labels, logits))
        gradients = tape.gradient(loss, variables)
        if self.clipnorm > 0:
            gradients = [tf.clip_by_norm(gradient, self.clipnorm) for gradient in gradients]
        self.optimizer.apply_gradients(zip(gradients, variables, strict=True))
        self.histogram.update_state(labels, logits)


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
    sign = 1.0 if options.best_metric == "loss" else -1.0
    while position.epoch < options.num_epochs and not _has_stalled(position, options):
        _train_epoch(trainer, training, run, options, position, safe_points)
        position.epoch, position.step = position.epoch + 1, 0
        row = {f"train_{name}": value for name, value in trainer.histogram.summary().items()}
        started = time.monotonic()
        with Progress(validation.num_photos, f"validating epoch {position.epoch}", "photo") as progress:
            metrics = evaluation.evaluate(trainer.model, validation, trainer.task, progress)
        position.seconds += time.monotonic() - started
        row |= {f"val_{name}": value for name, value in metrics.items()}
        _check_finite(row["train_loss"], metrics["loss"], position.epoch)
        last_step = position.epoch * training.steps_per_epoch - 1
        row["learning_rate"] = float(options.learning_rates[last_step])
        if sign * metrics[options.best_metric] < position.best_value:
            position.best_value, position.best_epoch = sign * metrics[options.best_metric], position.epoch
            flair_model.save_weights(trainer.model, run.path / BEST_FILE)
        trainer.histogram.reset_state()
        run.add_row(position.epoch, row, position.seconds)
        _save(trainer, run, position)
        print(_epoch_line(position, options, row), flush=True)
        safe_points.stop()
    flair_model.save_weights(trainer.model, run.path / LAST_FILE)
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
    done = int(trainer.histogram.num_photos.numpy())
    description = f"epoch {position.epoch + 1} of {options.num_epochs}"
    with Progress(training.num_photos, description, "photo", done=done) as progress:
        for images, labels in training.batches(position.epoch, position.step):
            trainer.step(images, labels, float(options.learning_rates[first + position.step]))
            position.step += 1
            loss = trainer.mean_loss()
            now = time.monotonic()
            position.seconds = before + now - started
            _check_finite(loss, loss, position.epoch + 1, position.step)
            progress.add(len(labels), f"loss {loss:.4f}")
            if safe_points.requested or now - saved > options.seconds_per_checkpoint:
                _save(trainer, run, position)
                saved = now
                safe_points.stop()


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
    run.checkpoints.save(int(trainer.optimizer.iterations.numpy()), trainer.arrays(), asdict(position))


def _has_stalled(position: Position, options: Options) -> bool:
    patience = options.early_stopping
    return patience > 0 and position.epoch - position.best_epoch >= patience


def _check_finite(train_loss: float, val_loss: float, epoch: int, step: int | None = None) -> None:
    if not (math.isfinite(train_loss) and math.isfinite(val_loss)):
        where = f"epoch {epoch}" + (f", step {step}" if step is not None else "")
        raise FlairError(
            f"{where}: the loss is no finite number any more (training {train_loss}, validation {val_loss}); "
            "lower --learning_rate or --clipnorm, and start in another --run_dir"
        )


def _epoch_line(position: Position, options: Options, row: dict[str, Any]) -> str:
    shown = {name: value for name, value in row.items() if name.endswith("averaged_precision") and "val_" in name}
    text = ", ".join(f"{name} {value:.4f}" for name, value in shown.items())
    mark = " (best so far)" if position.best_epoch == position.epoch else ""
    return (
        f"epoch {position.epoch} of {options.num_epochs}: train_loss {row['train_loss']:.4f}, "
        f"val_loss {row['val_loss']:.4f}, {text}{mark}"
    )
