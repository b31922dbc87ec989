"""The loop over rounds: cohort, round, evaluation, checkpoint; the same for every runtime."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import tensorflow as tf

from benchmark.federated.client_eval import ClientEvaluation
from benchmark.federated.flags import TRAIN_LOSS
from benchmark.federated.proximal import ProximalConfig, ProximalState
from benchmark.federated.scoring import Evaluator
from benchmark.model import loading
from benchmark.privacy.adaptive import check_noise
from benchmark.privacy.plan import PrivacyPlan
from benchmark.privacy.rounding import rounded_up
from benchmark.rounds.config import MAX_UPDATE_NORM
from benchmark.rounds.runtime import RoundResult, Runtime, next_clip_norm
from benchmark.run.folder import RunFolder
from benchmark.run.interruption import SafePoints
from benchmark.run.names import BEST_EMA_FILE, BEST_FILE, LAST_EMA_FILE, LAST_FILE
from benchmark.training.best import badness, is_over
from flair.errors import FlairError
from flair.terminal.counted import counted
from flair.terminal.progress import Progress

_AVERAGE = "ema/"  # begins the names of an average's arrays in a checkpoint


@dataclass(frozen=True)
class LoopConfig:
    """When to evaluate, to save and to stop, and what counts as best.

    `early_stopping` is rounds without a better model after which training ends, 0 never; `ema_decay` is that of a
    moving average of the weights, 0 without one.
    """

    total_rounds: int
    rounds_per_eval: int
    rounds_per_checkpoint: int
    best_metric: str
    initial_clip: float | None
    early_stopping: int = 0
    ema_decay: float = 0.0
    proximal: ProximalConfig | None = None

    def is_evaluated(self, round_number: int) -> bool:
        """Whether the model is evaluated after so many rounds."""
        return round_number == self.total_rounds or round_number % self.rounds_per_eval == 0


@dataclass
class TrainingState:
    """How far a run has come: rounds done, training seconds, the best model so far, the clipping norm of each round.

    `ema_best_value` and `ema_best_round` are of the best average of the weights. `proximal` are the fields of a
    `ProximalState`, empty where mu does not adapt.
    """

    round: int = 0
    seconds: float = 0.0
    best_value: float = math.inf
    best_round: int = 0
    clip_norms: list[float] = field(default_factory=list)
    next_clip: float | None = None
    ema_best_value: float = math.inf
    ema_best_round: int = 0
    proximal: list[float] = field(default_factory=list)

    def is_over(self, config: LoopConfig) -> bool:
        """Whether there is no further round."""
        stops = is_over(self.round, self.best_round, config.early_stopping) and config.is_evaluated(self.round)
        return self.round == config.total_rounds or stops


class WeightAverage:
    """The mean of the weights after each round so far, that of a round counting `decay` times as much as the next's.

    After round t that is (1 - decay) / (1 - decay^t) * sum over i of decay^(t - i) * weights_i: the average of Adam,
    with its correction (Kingma and Ba 2015, section 3, https://arxiv.org/abs/1412.6980), in which the weights before
    the first round have no part. It is a function of models that a private run releases, and costs no privacy.

    >>> average = WeightAverage(0.5)
    >>> for weight in (1.0, 4.0): average.add([np.float32([weight])])
    >>> average.weights
    [array([3.], dtype=float32)]
    """

    def __init__(self, decay: float) -> None:
        self.weights: list[np.ndarray] = []
        self._decay, self._rounds = decay, 0

    def add(self, weights: Sequence[np.ndarray]) -> None:
        """Takes the weights after one more round into the average, float32 of any shapes."""
        self._rounds += 1
        if self._rounds == 1:
            self.weights = [np.array(weight) for weight in weights]
            return
        share = np.float32((1 - self._decay) / (1 - self._decay**self._rounds))
        for average, weight in zip(self.weights, weights, strict=True):
            average += share * (weight - average)

    def arrays(self) -> dict[str, np.ndarray]:
        """The average, for a checkpoint."""
        return {f"{_AVERAGE}{index:05d}": weight for index, weight in enumerate(self.weights)}

    def restore(self, arrays: Mapping[str, np.ndarray], rounds: int) -> None:
        """Continues from the arrays of a checkpoint after so many rounds."""
        self.weights = [arrays[name] for name in sorted(arrays) if name.startswith(_AVERAGE)]
        self._rounds = rounds


def train(
    runtime: Runtime,
    model: tf.keras.Model,
    scorer: Evaluator,
    cohort_of: Callable[[int], Sequence[str]],
    privacy_plan: PrivacyPlan | None,
    run: RunFolder,
    config: LoopConfig,
    safe_points: SafePoints,
    before_release: Callable[[TrainingState], object] = lambda _state: None,
    client_eval: ClientEvaluation | None = None,
) -> TrainingState:
    """Runs the rounds, from the run folder's newest checkpoint if there is one.

    Args:
      model: takes the global weights to be evaluated and saved.
      scorer: evaluates it.
      cohort_of: round number -> client ids.
      privacy_plan: the privacy of the run, None without.
      before_release: called before a model or checkpoint of a round is written.
      client_eval: looks at clients in some rounds; None: nothing does.

    Raises:
      FlairError: training has diverged, or the noise was not what the privacy statement says.
    """
    average = WeightAverage(config.ema_decay) if config.ema_decay else None
    state = _resume(runtime, average, run, config)
    started, before = time.monotonic(), state.seconds

    def validate(weights: Sequence[np.ndarray], prefix: str, title: str, file: str) -> dict[str, float]:
        """Scores a model and saves it where it is the best of its kind, whose fields of `state` have the prefix."""
        _take_weights(model, weights, state.round)
        metrics = scorer.evaluate("val", title)
        value = badness(metrics, config.best_metric)
        if value < getattr(state, f"{prefix}best_value"):
            setattr(state, f"{prefix}best_value", value)
            setattr(state, f"{prefix}best_round", state.round)
            before_release(state)
            loading.save_model(model, run.path / file)
        return {f"{prefix}val_{name}": value for name, value in metrics.items()}

    with Progress(config.total_rounds, "training", "round", done=state.round) as progress:
        while not state.is_over(config):
            cohort = cohort_of(state.round)
            if state.proximal:
                runtime.proximal_strength = state.proximal[0]
            looked_at = None if client_eval is None else client_eval.looked_at(state.round, cohort)
            result = runtime.run_round(state.round, cohort, looked_at)
            _check_round(state.round, cohort, result, privacy_plan)
            _note_clip(state, result, config)
            state.round += 1
            row = _row(state, cohort, result)
            if average is not None:
                average.add(runtime.weights())
            if client_eval is not None and result.drift is not None:
                _take_weights(model, runtime.weights(), state.round)
                row |= client_eval.evaluate(state.round, cohort, result.drift, run)
            if config.is_evaluated(state.round):
                row |= validate(runtime.weights(), "", f"validating round {state.round}", BEST_FILE)
                if average is not None:
                    title = f"validating the average after round {state.round}"
                    row |= validate(average.weights, "ema_", title, BEST_EMA_FILE)
                if privacy_plan is not None and privacy_plan.noise_multiplier > 0:
                    row["epsilon"] = privacy_plan.own_epsilon_at(state.round)
                print(_line(state, config, row), flush=True)
            _adapt_proximal(state, row, config, len(cohort))
            state.seconds = before + time.monotonic() - started
            run.add_row(state.round, row, state.seconds)
            if state.is_over(config) or safe_points.requested or state.round % config.rounds_per_checkpoint == 0:
                before_release(state)
                # Without a name of its own: the copy of the state, three times the weights, goes when it is written.
                run.checkpoints.save(
                    state.round,
                    {f"{index:05d}": array for index, array in enumerate(runtime.state())}
                    | ({} if average is None else average.arrays()),
                    asdict(state),
                )
                runtime.forget(run.checkpoints.oldest_step())
            safe_points.stop()
            progress.add(1, _note(row))
    if state.round < config.total_rounds:
        print(f"stopped after round {state.round}: no better model since round {state.best_round}", flush=True)
    if average is not None:
        _take_weights(model, average.weights, state.round)
        loading.save_model(model, run.path / LAST_EMA_FILE)
    _take_weights(model, runtime.weights(), state.round)
    loading.save_model(model, run.path / LAST_FILE)
    return state


def _take_weights(model: tf.keras.Model, weights: Sequence[np.ndarray], round_number: int) -> None:
    """Gives global weights, or their average, to the Keras model."""
    if not all(np.isfinite(weight).all() for weight in weights):
        raise FlairError(
            f"round {round_number}: training has diverged, the global weights are no longer finite; lower "
            "--server_learning_rate or --client_learning_rate, and start in another --run_dir"
        )
    for variable, weight in zip(model.trainable_variables, weights, strict=True):
        variable.assign(weight)


def _row(state: TrainingState, cohort: Sequence[str], result: RoundResult) -> dict[str, float]:
    row = {f"train_{name}": value for name, value in result.metrics.items()}
    row |= {"clients": float(len(cohort)), "photos": float(result.num_examples)}
    if state.clip_norms:
        row["clip_norm"] = state.clip_norms[-1]
    row |= {name.removeprefix("aggregator/"): value for name, value in result.measurements.items()}
    return row | result.dp_metrics


def _check_round(
    round_number: int, cohort: Sequence[str], result: RoundResult, privacy_plan: PrivacyPlan | None
) -> None:
    refused = list(result.refused_clients)
    # One client by itself may be at fault, as under Poisson sampling it may make up a cohort.
    all_lost = len(cohort) > 1 and len(refused) == len(cohort)
    # Of nobody there is no mean: the server refuses that, and the weights stay.
    is_rejected = result.update_rejected and len(cohort) > len(refused)
    if all_lost or is_rejected or not math.isfinite(result.metrics["loss"]):
        named = f"clients {', '.join(refused[:5])}" if refused else f"cohort {', '.join(cohort[:5])}"
        more = f" and {len(refused or cohort) - 5} more" if len(refused or cohort) > 5 else ""
        raise FlairError(
            f"round {round_number + 1}: training has diverged, the numbers are no longer finite ({named}{more}); "
            "lower --client_learning_rate or --client_clipnorm, and start in another --run_dir"
        )
    if refused:
        shown = ", ".join(refused[:5])
        print(
            f"round {round_number + 1}: left out {counted(len(refused), 'client')} whose update is not finite or "
            f"longer than {MAX_UPDATE_NORM:g}: {shown}"
        )
    if privacy_plan is not None:
        check_noise(list(result.noise_multipliers), privacy_plan.run_noise_multiplier)


def _note_clip(state: TrainingState, result: RoundResult, config: LoopConfig) -> None:
    if config.initial_clip is None:
        return
    state.clip_norms.append(config.initial_clip if state.next_clip is None else state.next_clip)
    state.next_clip = next_clip_norm(result.measurements)


def _adapt_proximal(state: TrainingState, row: dict[str, float], config: LoopConfig, clients: int) -> None:
    """Notes the round's mu, and what follows from its loss for the next; nobody has no training loss."""
    if config.proximal is None:
        return
    strength, loss, falls = state.proximal
    before = ProximalState(strength, loss, int(falls))
    row["proximal_strength"] = before.strength
    if config.proximal.metric in row and (clients or config.proximal.metric != TRAIN_LOSS):
        state.proximal = [*before.after(row[config.proximal.metric], config.proximal)]


def _resume(runtime: Runtime, average: WeightAverage | None, run: RunFolder, config: LoopConfig) -> TrainingState:
    checkpoint = run.checkpoints.latest()
    if checkpoint is None:
        run.start_at(0)
        print(f"round 1 of {config.total_rounds} begins", flush=True)
        return TrainingState(proximal=[] if config.proximal is None else [*ProximalState(config.proximal.start)])
    names = sorted(name for name in checkpoint.arrays if not name.startswith(_AVERAGE))
    runtime.restore([checkpoint.arrays[name] for name in names])
    state = TrainingState(**checkpoint.state)
    if average is not None:
        average.restore(checkpoint.arrays, state.round)
    run.start_at(state.round)
    print(f"continuing after round {state.round} of {config.total_rounds}", flush=True)
    return state


def _note(row: dict[str, Any]) -> str:
    shown = {"loss": "train_loss", "clip": "clip_norm"}
    parts = [f"{name} {row[key]:.4g}" for name, key in shown.items() if key in row]
    return ", ".join([*parts, *([f"epsilon {rounded_up(row['epsilon'])}"] if "epsilon" in row else [])])


def _line(state: TrainingState, config: LoopConfig, row: dict[str, float]) -> str:
    parts = [f"round {state.round} of {config.total_rounds}: train_loss {row['train_loss']:.4f}"]
    parts.append(f"val_loss {row['val_loss']:.4f}")
    parts += [f"{n} {v:.4f}" for n, v in row.items() if n.startswith("val_") and n.endswith("averaged_precision")]
    parts += [f"ema_val_loss {row['ema_val_loss']:.4f}"] if "ema_val_loss" in row else []
    parts += [f"clip_norm {row['clip_norm']:.4g}"] if "clip_norm" in row else []
    parts += [f"epsilon {rounded_up(row['epsilon'])}"] if "epsilon" in row else []
    return ", ".join(parts) + (" (best so far)" if state.best_round == state.round else "")
