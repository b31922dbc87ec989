"""The loop over rounds: cohort, round, evaluation, checkpoint; the same for every runtime."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import tensorflow as tf

from benchmark.federated.scoring import Scorer
from benchmark.model import loading
from benchmark.privacy.accounting import rounded_up
from benchmark.privacy.adaptive import check_noise
from benchmark.privacy.plan import PrivacyPlan
from benchmark.privacy.request import Mechanism
from benchmark.rounds.config import MAX_UPDATE_NORM
from benchmark.rounds.runtime import RoundResult, Runtime, clipping_norm
from benchmark.run.folder import RunFolder
from benchmark.run.interruption import SafePoints
from benchmark.run.names import BEST_FILE, LAST_FILE
from flair.errors import FlairError
from flair.terminal.progress import Progress


@dataclass(frozen=True)
class Options:
    """When to evaluate and to save, and what counts as best."""

    total_rounds: int
    rounds_per_eval: int
    rounds_per_checkpoint: int
    best_metric: str
    initial_clip: float | None


@dataclass
class Position:
    """How far a run has come: rounds done, training seconds, the best model so far, the clipping norm of each round."""

    round: int = 0
    seconds: float = 0.0
    best_value: float = math.inf
    best_round: int = 0
    clip_norms: list[float] = field(default_factory=list)
    next_clip: float | None = None


def train(
    runtime: Runtime,
    model: tf.keras.Model,
    scorer: Scorer,
    cohort_of: Callable[[int], Sequence[str]],
    plan: PrivacyPlan | None,
    run: RunFolder,
    options: Options,
    safe_points: SafePoints,
    before_release: Callable[[Position], None] = lambda _position: None,
) -> Position:
    """Runs all rounds, from the run folder's newest checkpoint if there is one.

    Args:
      model: takes the global weights to be evaluated and saved.
      scorer: evaluates it.
      cohort_of: round number -> client ids.
      plan: the privacy of the run, None without.
      before_release: called before a model or checkpoint of a round is written.

    Raises:
      FlairError: training has diverged, or the noise was not what the privacy statement says.
    """
    position = _resume(runtime, run, options)
    started, before = time.monotonic(), position.seconds
    with Progress(options.total_rounds, "training", "round", done=position.round) as progress:
        while position.round < options.total_rounds:
            cohort = cohort_of(position.round)
            result = runtime.run_round(position.round, cohort)
            _check_round(position.round, cohort, result, plan)
            _note_clip(position, result, options)
            position.round += 1
            row = _row(position, cohort, result, plan)
            is_last = position.round == options.total_rounds
            if is_last or position.round % options.rounds_per_eval == 0:
                row |= _evaluate(runtime, model, scorer, position, run, options, before_release)
                if plan is not None:
                    row["epsilon"] = plan.own_epsilon_at(position.round)
                print(_line(position, options, row), flush=True)
            position.seconds = before + time.monotonic() - started
            run.add_row(position.round, row, position.seconds)
            if is_last or safe_points.requested or position.round % options.rounds_per_checkpoint == 0:
                before_release(position)
                _save(runtime, run, position)
            safe_points.stop()
            progress.add(1, _note(row))
    assign_weights(model, runtime.weights())
    loading.save_weights(model, run.path / LAST_FILE)
    return position


def assign_weights(model: tf.keras.Model, weights: Sequence[np.ndarray]) -> None:
    """Sets a Keras model's weights from a runtime's: trainable ones first."""
    variables = [*model.trainable_variables, *model.non_trainable_variables]
    for variable, weight in zip(variables, weights, strict=True):
        variable.assign(weight)


def _row(position: Position, cohort: Sequence[str], result: RoundResult, plan: PrivacyPlan | None) -> dict[str, float]:
    row = {f"train_{name}": value for name, value in result.metrics.items()}
    row |= {"clients": float(len(cohort)), "photos": float(result.num_examples)}
    if position.clip_norms:
        row["clip_norm"] = position.clip_norms[-1]
    row |= {name.removeprefix("aggregator/"): value for name, value in result.measurements.items()}
    return row


def _evaluate(
    runtime: Runtime,
    model: tf.keras.Model,
    scorer: Scorer,
    position: Position,
    run: RunFolder,
    options: Options,
    before_release: Callable[[Position], None],
) -> dict[str, float]:
    weights = runtime.weights()
    if not all(np.isfinite(weight).all() for weight in weights):
        raise FlairError(
            f"round {position.round}: training has diverged, the global weights are no longer finite; lower "
            "--server_learning_rate or --client_learning_rate, and start in another --run_dir"
        )
    assign_weights(model, weights)
    metrics = scorer.evaluate("val", f"validating round {position.round}")
    value = metrics[options.best_metric] * (1.0 if options.best_metric == "loss" else -1.0)
    if value < position.best_value:
        position.best_value, position.best_round = value, position.round
        before_release(position)
        loading.save_weights(model, run.path / BEST_FILE)
    return {f"val_{name}": value for name, value in metrics.items()}


def _check_round(round_number: int, cohort: Sequence[str], result: RoundResult, plan: PrivacyPlan | None) -> None:
    refused = list(result.refused_clients)
    # One client by itself may be at fault, as under Poisson sampling it may make up a cohort.
    all_lost = len(cohort) > 1 and len(refused) == len(cohort)
    if all_lost or result.update_rejected or not math.isfinite(result.metrics["loss"]):
        named = f"clients {', '.join(refused[:5])}" if refused else f"cohort {', '.join(cohort[:5])}"
        more = f" and {len(refused or cohort) - 5} more" if len(refused or cohort) > 5 else ""
        raise FlairError(
            f"round {round_number + 1}: training has diverged, the numbers are no longer finite ({named}{more}); "
            "lower --client_learning_rate or --client_clipnorm, and start in another --run_dir"
        )
    if refused:
        shown = ", ".join(refused[:5])
        print(
            f"round {round_number + 1}: left out {len(refused)} clients whose update is not finite or longer than "
            f"{MAX_UPDATE_NORM:g}: {shown}"
        )
    # TFF keeps no such record of tree aggregation; where it must, a missing one is a failed check.
    if plan is not None and (result.noise_multipliers or plan.mechanism is Mechanism.GAUSSIAN):
        check_noise(list(result.noise_multipliers), plan.run_noise_multiplier)


def _note_clip(position: Position, result: RoundResult, options: Options) -> None:
    if options.initial_clip is None:
        return
    position.clip_norms.append(options.initial_clip if position.next_clip is None else position.next_clip)
    position.next_clip = clipping_norm(result.measurements)


def _resume(runtime: Runtime, run: RunFolder, options: Options) -> Position:
    checkpoint = run.checkpoints.latest()
    if checkpoint is None:
        run.start_at(0)
        print(f"round 1 of {options.total_rounds} begins", flush=True)
        return Position()
    runtime.restore([checkpoint.arrays[name] for name in sorted(checkpoint.arrays)])
    position = Position(**checkpoint.state)
    run.start_at(position.round)
    print(f"continuing after round {position.round} of {options.total_rounds}", flush=True)
    return position


def _save(runtime: Runtime, run: RunFolder, position: Position) -> None:
    arrays = {f"{index:05d}": array for index, array in enumerate(runtime.state())}
    run.checkpoints.save(position.round, arrays, asdict(position))


def _note(row: dict[str, Any]) -> str:
    shown = {"loss": "train_loss", "clip": "clip_norm"}
    parts = [f"{name} {row[key]:.4g}" for name, key in shown.items() if key in row]
    return ", ".join([*parts, *([f"epsilon {rounded_up(row['epsilon'])}"] if "epsilon" in row else [])])


def _line(position: Position, options: Options, row: dict[str, float]) -> str:
    parts = [f"round {position.round} of {options.total_rounds}: train_loss {row['train_loss']:.4f}"]
    parts += [f"val_loss {row['val_loss']:.4f}"]
    parts += [f"{n} {v:.4f}" for n, v in row.items() if n.startswith("val_") and n.endswith("averaged_precision")]
    parts += [f"clip_norm {row['clip_norm']:.4g}"] if "clip_norm" in row else []
    parts += [f"epsilon {rounded_up(row['epsilon'])}"] if "epsilon" in row else []
    return ", ".join(parts) + (" (best so far)" if position.best_round == position.round else "")
