"""The loop over rounds by itself, on a runtime that trains nothing."""

from __future__ import annotations

from collections.abc import Sequence
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
from tests.support.commands import read_csv

_LOSSES = (1.0, 0.9, 0.8, 0.7, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2)


class _Runtime:
    """Its only weight and state is the number of rounds."""

    proximal_strength = 0.0

    def __init__(self, shapes: Sequence[tuple[int, ...]]) -> None:
        self._shapes, self._rounds = shapes, 0
        self.strengths: list[float] = []

    def run_round(self, round_number: int, cohort: Sequence[str]) -> RoundResult:
        self._rounds += 1
        self.strengths.append(self.proximal_strength)
        return RoundResult({"loss": _LOSSES[round_number]}, {}, len(cohort))

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
    model = networks.build_model("cnn", (8, 8, 3), 2)
    shapes = [tuple(weight.shape) for weight in [*model.trainable_variables, *model.non_trainable_variables]]
    stated, written = [0], []

    def write(name: str, round_number: int) -> None:
        written.append(name)
        assert stated[-1] >= round_number, f"{name} of round {round_number} is written, {stated[-1]} are stated"

    def save_weights(model: Any, path: Path) -> None:
        write(path.name, int(model.get_weights()[0].flat[0]))

    monkeypatch.setattr(loading, "save_weights", save_weights)
    monkeypatch.setattr(Checkpoints, "save", lambda _self, step, *_: write("checkpoint", step))
    options = LoopConfig(7, rounds_per_eval=2, rounds_per_checkpoint=3, best_metric="loss", initial_clip=None)

    def state(state: TrainingState) -> None:
        stated.append(state.round)

    with RunFolder(tmp_path / "run", [], "round") as run, SafePoints("round") as safe_points:
        loop.train(*(_Runtime(shapes), model, _Scorer(), lambda _: ["a", "b"], None, run, options, safe_points), state)
    assert written == ["best.h5", "checkpoint", "best.h5", "best.h5", "checkpoint", "best.h5", "checkpoint", "last.h5"]


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
    model = networks.build_model("cnn", (8, 8, 3), 2)
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
