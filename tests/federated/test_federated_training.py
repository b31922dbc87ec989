"""The loop over rounds by itself, on a runtime that trains nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmark.federated import loop
from benchmark.federated.loop import LoopConfig, TrainingState
from benchmark.federated.proximal import ProximalConfig
from benchmark.model import loading, networks
from benchmark.rounds.runtime import RoundResult
from benchmark.run.checkpoint import Checkpoints
from benchmark.run.folder import RunFolder
from benchmark.run.interruption import SafePoints
from tests.support.commands import assert_equal_weights, read_csv
from tests.support.tiny_network import TINY

_LOSSES = (1.0, 0.9, 0.8, 0.7, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2)


class _Runtime:
    """Its only weight and state is the number of rounds."""

    proximal_strength = 0.0

    def __init__(self, shapes: Sequence[tuple[int, ...]]) -> None:
        self._shapes, self._rounds = shapes, 0
        self.strengths: list[float] = []

    def run_round(self, round_number: int, cohort: Sequence[str], looked_at: None = None) -> RoundResult:
        self._rounds += 1
        self.strengths.append(self.proximal_strength)
        return RoundResult({"loss": _LOSSES[round_number % len(_LOSSES)]}, {}, len(cohort))

    def weights(self) -> list[np.ndarray]:
        return [np.full(shape, self._rounds, np.float32) for shape in self._shapes]

    def state(self) -> list[np.ndarray]:
        return [np.array(self._rounds)]

    def restore(self, state: Sequence[np.ndarray]) -> None:
        self._rounds = int(state[0])

    def forget(self, round_number: int) -> None: ...

    def close(self) -> None: ...


class _Scorer:
    """Finds every model better than the one before."""

    def __init__(self) -> None:
        self._loss = 1.0

    def evaluate(self, *_: object) -> dict[str, float]:
        self._loss /= 2
        return {"loss": self._loss}


def test_a_statement_covers_a_round_before_a_model_of_it_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A killed run had best.h5 of round 16 beside a statement about 10 rounds."""
    model = networks.build_model(TINY, (8, 8, 3), 2)
    shapes = [tuple(weight.shape) for weight in [*model.trainable_variables, *model.non_trainable_variables]]
    stated, written = [0], []

    def write(name: str, round_number: int) -> None:
        written.append(name)
        assert stated[-1] >= round_number, f"{name} of round {round_number} is written, {stated[-1]} are stated"

    def save_model(model: Any, path: Path) -> None:
        write(path.name, int(model.get_weights()[0].flat[0]))

    monkeypatch.setattr(loading, "save_model", save_model)
    monkeypatch.setattr(Checkpoints, "save", lambda _self, step, *_: write("checkpoint", step))
    options = LoopConfig(7, rounds_per_eval=2, rounds_per_checkpoint=3, best_metric="loss", initial_clip=None)

    def state(state: TrainingState) -> None:
        stated.append(state.round)

    with RunFolder(tmp_path / "run", [], "round") as run, SafePoints("round") as safe_points:
        loop.train(*(_Runtime(shapes), model, _Scorer(), lambda _: ["a", "b"], None, run, options, safe_points), state)
    assert written == ["best.h5", "checkpoint", "best.h5", "best.h5", "checkpoint", "best.h5", "checkpoint", "last.h5"]


class _Drifting(_Runtime):
    """Its weights after each round are random numbers of that round's; it can fail before a round."""

    def __init__(self, shapes: Sequence[tuple[int, ...]], fails_at: int = -1) -> None:
        super().__init__(shapes)
        self._fails_at = fails_at

    def run_round(self, round_number: int, cohort: Sequence[str], looked_at: None = None) -> RoundResult:
        if round_number == self._fails_at:
            raise KeyboardInterrupt
        return super().run_round(round_number, cohort)

    def weights(self) -> list[np.ndarray]:
        generator = np.random.default_rng(self._rounds)
        return [generator.normal(size=shape).astype(np.float32) for shape in self._shapes]


class _Measured:
    """The loss is what `of` makes of the weights that the model has."""

    def __init__(self, model: Any, of: Callable[[np.ndarray], float]) -> None:
        self._model, self._of = model, of

    def evaluate(self, *_: object) -> dict[str, float]:
        return {"loss": self._of(_flat(self._model.get_weights()))}


def _flat(weights: Sequence[np.ndarray]) -> np.ndarray:
    return np.concatenate([np.ravel(weight) for weight in weights])


def _train(
    path: Path, config: LoopConfig, fails_at: int = -1, of: Callable[[np.ndarray], float] = lambda x: float(abs(x[0]))
) -> Any:
    model = networks.build_model(TINY, (8, 8, 3), 2)
    runtime = _Drifting([tuple(variable.shape) for variable in model.trainable_variables], fails_at)
    with RunFolder(path, [], "round") as run, SafePoints("round") as safe_points:
        return loop.train(runtime, model, _Measured(model, of), lambda _: ["a"], None, run, config, safe_points)


def _saved(path: Path) -> np.ndarray:
    model = networks.build_model(TINY, (8, 8, 3), 2)
    loading.load_by_name(model, path)
    return _flat(model.get_weights())


def test_the_average_of_weights_is_numpys_is_scored_and_saved_and_survives_a_stop(tmp_path: Path) -> None:
    decay, rounds = 0.6, 7
    config = LoopConfig(rounds, 2, 3, "loss", None, ema_decay=decay)
    state = _train(tmp_path / "unbroken", config)
    with pytest.raises(KeyboardInterrupt):
        _train(tmp_path / "broken", config, fails_at=5)
    continued = _train(tmp_path / "broken", config)

    shapes = [variable.shape for variable in networks.build_model(TINY, (8, 8, 3), 2).trainable_variables]
    drifting = _Drifting([tuple(shape) for shape in shapes])
    after = []
    for number in range(rounds):
        drifting.run_round(number, ["a"])
        after.append(_flat(drifting.weights()).astype(np.float64))
    averages = [np.average(after[:t], axis=0, weights=decay ** np.arange(t)[::-1]) for t in range(1, rounds + 1)]
    assert np.abs(_saved(tmp_path / "unbroken" / "last_ema.h5") - averages[-1]).max() < 1e-6
    assert np.abs(_saved(tmp_path / "unbroken" / "last.h5") - after[-1]).max() == 0
    losses = {t: abs(averages[t - 1][0]) for t in (2, 4, 6, 7)}
    rows = {int(row["round"]): row for row in read_csv(tmp_path / "unbroken" / "metrics.csv")}
    for number, row in rows.items():
        assert (row["ema_val_loss"] and float(row["ema_val_loss"])) == (
            pytest.approx(losses[number]) if number in losses else ""
        )
    best = min(losses, key=losses.__getitem__)
    assert (state.ema_best_round, state.ema_best_value) == (best, pytest.approx(losses[best]))
    assert np.abs(_saved(tmp_path / "unbroken" / "best_ema.h5") - averages[best - 1]).max() < 1e-6

    assert replace(continued, seconds=0) == replace(state, seconds=0)
    assert (tmp_path / "broken" / "metrics.csv").read_text() == (tmp_path / "unbroken" / "metrics.csv").read_text()
    for name in ("best", "last", "best_ema", "last_ema"):
        assert_equal_weights(tmp_path / "broken" / f"{name}.h5", tmp_path / "unbroken" / f"{name}.h5")


def test_without_an_average_the_others_are_the_same_and_it_leaves_nothing(tmp_path: Path) -> None:
    _train(tmp_path / "with", LoopConfig(4, 2, 2, "loss", None, ema_decay=0.9))
    _train(tmp_path / "without", LoopConfig(4, 2, 2, "loss", None))
    rows = [read_csv(tmp_path / name / "metrics.csv") for name in ("with", "without")]
    assert [{n: v for n, v in row.items() if not n.startswith("ema_")} for row in rows[0]] == rows[1]
    assert sorted(path.name for path in (tmp_path / "without").glob("*.h5")) == ["best.h5", "last.h5"]
    arrays = [Checkpoints(tmp_path / name / "checkpoints").latest().arrays for name in ("with", "without")]
    assert {name for name in arrays[0] if not name.startswith("ema/")} == arrays[1].keys()


@pytest.mark.parametrize(("patience", "last"), [(0, 20), (1, 8), (3, 10), (4, 10), (5, 12), (20, 20)])
def test_training_stops_after_an_evaluation_that_found_no_better_model_for_so_many_rounds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], patience: int, last: int
) -> None:
    """Evaluated every second round, the model of round 6 is the best."""
    rounds = {float(np.random.default_rng(r).normal(size=(1,)).astype(np.float32)[0]): r for r in range(1, 21)}
    config = LoopConfig(20, 2, 3, "loss", None, early_stopping=patience)

    def loss(weights: np.ndarray) -> float:
        return abs(rounds[float(weights[0])] - 6)

    state = _train(tmp_path / "run", config, of=loss)
    assert (state.round, state.best_round) == (last, 6)
    assert ("no better model since round 6" in capsys.readouterr().out) == (last < 20)
    assert len(read_csv(tmp_path / "run" / "metrics.csv")) == last
    assert Checkpoints(tmp_path / "run" / "checkpoints").latest().step == last
    # Continued, as after a kill before summary.json, it stays where it stopped.
    assert replace(_train(tmp_path / "run", config, of=loss), seconds=0) == replace(state, seconds=0)


@pytest.mark.parametrize(
    ("metric", "expected"),
    [
        # pfl-research's rules by hand: the second fall in a row takes 0.4, and so does every one after it;
        # 0.7 after 0.7 is none; the first loss counts as a fall.
        ("train_loss", [0.5, 0.5, 0.1, 0.0, 0.0, 0.4, 0.4, 0.0, 0.0, 0.0]),
        ("val_loss", [0.5, 0.5, 0.5, 0.5, 0.1, 0.1, 0.0, 0.0, 0.0, 0.0]),
    ],
)
def test_mu_follows_the_loss_and_a_continued_run_goes_on_from_it(
    tmp_path: Path, metric: str, expected: list[float]
) -> None:
    model = networks.build_model(TINY, (8, 8, 3), 2)
    shapes = [tuple(weight.shape) for weight in model.trainable_variables]
    proximal, used, scorer = ProximalConfig(metric, 0.5, step=0.4, patience=2), [], _Scorer()
    for total in (4, 10):
        options = LoopConfig(total, 2, 3, best_metric="loss", initial_clip=None, proximal=proximal)
        runtime = _Runtime(shapes)
        with RunFolder(tmp_path / "run", [], "round") as run, SafePoints("round") as safe_points:
            loop.train(runtime, model, scorer, lambda _: ["a", "b"], None, run, options, safe_points)
        used += runtime.strengths
    assert used == pytest.approx(expected)
    rows = read_csv(tmp_path / "run" / "metrics.csv")
    assert [float(row["proximal_strength"]) for row in rows] == used
