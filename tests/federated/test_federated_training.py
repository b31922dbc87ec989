"""The loop over rounds by itself, on a runtime that trains nothing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmark.federated import loop
from benchmark.federated.loop import LoopConfig, TrainingState
from benchmark.model import loading, networks
from benchmark.rounds.runtime import RoundResult
from benchmark.run.checkpoint import Checkpoints
from benchmark.run.folder import RunFolder
from benchmark.run.interruption import SafePoints


class _Runtime:
    """Its only weight and state is the number of rounds."""

    def __init__(self, shapes: Sequence[tuple[int, ...]]) -> None:
        self._shapes, self._rounds = shapes, 0

    def run_round(self, round_number: int, cohort: Sequence[str], looked_at: None = None) -> RoundResult:
        self._rounds += 1
        return RoundResult({"loss": 1.0}, {}, len(cohort))

    def weights(self) -> list[np.ndarray]:
        return [np.full(shape, self._rounds, np.float32) for shape in self._shapes]

    def state(self) -> list[np.ndarray]:
        return [np.array(self._rounds)]

    def restore(self, state: Sequence[np.ndarray]) -> None:
        self._rounds = int(state[0])

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
