"""Weights & Biases and MLflow: what they store offline is metrics.csv, once, however often a run was stopped."""

from __future__ import annotations

import csv
import importlib.util
import math
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from benchmark.run import loggers
from benchmark.run.folder import RunFolder
from flair.errors import FlairError
from tests.support.commands import refused, run_program

FLAGS = ["--loggers=csv", "--seed=0", *(f"--flag_{number}={number}" for number in range(120))]
ROWS: dict[int, dict[str, float]] = {
    1: {"train_loss": 1 / 3, "not_private/cosine": -0.1},
    2: {"train_loss": 0.25, "not_private/cosine": 1e-12, "val_loss": 0.7, "mean_value/secure_upper": 3.0},
    3: {"train_loss": math.nan, "not_private/cosine": 0.3},
    4: {"train_loss": math.inf, "not_private/cosine": 0.1 + 0.2, "val_loss": 0.6},
    5: {"train_loss": 0.1, "not_private/cosine": 0.5},
}


def _wandb_rows(folder: Path) -> list[tuple[int, dict[str, float]]]:
    from wandb.proto import wandb_internal_pb2
    from wandb.sdk.internal.datastore import DataStore

    found = []
    for path in sorted((folder / "wandb").glob("offline-run-*/*.wandb")):
        store = DataStore()
        store.open_for_scan(str(path))
        while (data := store.scan_data()) is not None:
            record = wandb_internal_pb2.Record()
            record.ParseFromString(data)
            if record.WhichOneof("record_type") == "history":
                row = {
                    item.key or item.nested_key[0]: float(item.value_json.strip('"')) for item in record.history.item
                }
                found.append((int(row["_step"]), {name: v for name, v in row.items() if not name.startswith("_")}))
    return found


def _mlflow_rows(folder: Path) -> list[tuple[int, dict[str, float]]]:
    from mlflow import MlflowClient

    client = MlflowClient(str(folder / "mlflow"))
    (stored,) = client.search_runs(["0"])
    rows: dict[int, dict[str, float]] = {}
    for name in stored.data.metrics:
        for point in client.get_metric_history(stored.info.run_id, name):
            row = rows.setdefault(point.step, {})
            assert name not in row, f"{name} of step {point.step} is there twice"
            row[name] = point.value
    return sorted(rows.items())


STORED = {"wandb": _wandb_rows, "mlflow": _mlflow_rows}
KINDS = [
    pytest.param(name, marks=pytest.mark.skipif(not importlib.util.find_spec(name), reason=f"{name} is not installed"))
    for name in STORED
]


def _of_csv(folder: Path) -> list[tuple[int, dict[str, float]]]:
    with open(folder / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    return [(int(row.pop("round")), {name: float(cell) for name, cell in row.items() if cell}) for row in rows]


def _same(found: Any, expected: Any) -> bool:
    """Equal to the last bit, with a NaN equal to a NaN."""
    return repr([(step, sorted(row.items())) for step, row in found]) == repr(
        [(step, sorted(row.items())) for step, row in expected]
    )


def _add(folder: Path, name: str, steps: range, after: int = 0, overwrite: bool = False) -> None:
    with RunFolder(folder, FLAGS, "round", overwrite=overwrite, loggers=("csv", name)) as run:
        run.start_at(after)
        for step in steps:
            run.add_row(step, ROWS[step], float(step))
        if steps.stop > max(ROWS):
            run.finish({})


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith(("WANDB_", "MLFLOW_"))]:
        monkeypatch.delenv(name)


KILLED = """
import os, signal, sys
from pathlib import Path
from tests.run.test_loggers import FLAGS, ROWS
from benchmark.run.folder import RunFolder
with RunFolder(Path(sys.argv[1]), FLAGS, "round", loggers=("csv", sys.argv[2])) as run:
    run.start_at(0)
    for step in (1, 2, 3, 4):
        run.add_row(step, ROWS[step], float(step))
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_what_is_stored_is_metrics_csv_and_nothing_is_doubled_after_kills(tmp_path: Path, name: str) -> None:
    run = tmp_path / "run"
    # The checkpoint of round 2 is the newest; rounds 3 and 4 come again, with the same numbers.
    run_program(KILLED, run, name, code=-signal.SIGKILL)
    _add(run, name, range(3, 5), after=2)
    run_id = (run / f"{name}.id").read_text()
    _add(run, name, range(3, 6), after=2)
    assert (run / f"{name}.id").read_text() == run_id
    found = STORED[name](run)
    assert _same(found, _of_csv(run)) and [step for step, _ in found] == [1, 2, 3, 4, 5]
    assert _same(found, ROWS.items())


@pytest.mark.parametrize("name", KINDS)
def test_a_run_may_take_up_a_logger_later_and_start_over(tmp_path: Path, name: str) -> None:
    _add(tmp_path / "run", "tensorboard", range(1, 4))
    _add(tmp_path / "run", name, range(4, 6), after=3)
    assert _same(STORED[name](tmp_path / "run"), _of_csv(tmp_path / "run"))
    # Elsewhere, because MLflow does not notice that a store it has open is gone.
    moved = (tmp_path / "run").rename(tmp_path / "moved")
    before = (moved / f"{name}.id").read_text()
    _add(moved, name, range(1, 3), overwrite=True)
    assert (moved / f"{name}.id").read_text() != before
    assert [step for step, _ in STORED[name](moved)] == [1, 2]
    with RunFolder(moved, FLAGS, "round", overwrite=True):
        assert not any((moved / left).exists() for left in (name, f"{name}.id", "tensorboard"))


@pytest.mark.skipif(not importlib.util.find_spec("mlflow"), reason="mlflow is not installed")
def test_mlflow_knows_flags_and_state_and_a_store_without_the_run_is_refused(tmp_path: Path) -> None:
    from mlflow import MlflowClient

    run = tmp_path / "run"
    _add(run, "mlflow", range(1, 3))
    client = MlflowClient(str(run / "mlflow"))
    (stored,) = client.search_runs(["0"])
    assert stored.info.status == "KILLED" and stored.info.run_name == "run"
    assert stored.data.params == dict(flag.removeprefix("--").split("=") for flag in FLAGS)
    _add(run, "mlflow", range(3, 6), after=2)
    assert client.get_run(stored.info.run_id).info.status == "FINISHED"
    (run / "mlflow.id").write_text("0" * 32)  # of another store
    with pytest.raises(FlairError) as error:
        _add(run, "mlflow", range(3, 6), after=2)
    assert str(error.value).startswith("--loggers=mlflow: ") and "mlflow.id" in str(error.value)
    assert "\n" not in str(error.value)


def test_what_cannot_be_chosen_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert loggers.chosen("csv,csv") == ("csv",)
    for text, said in (("csv,neptune", "'neptune' is not one of csv, "), ("tensorboard", "csv cannot be left out")):
        with pytest.raises(FlairError, match=said):
            loggers.chosen(text)
    # A folder of this name, of W&B's own runs, is not the package.
    (tmp_path / "absent_package").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(loggers.KNOWN["wandb"], "package", "absent_package")
    with pytest.raises(FlairError, match=r"is not installed; add it with `make environment EXTRAS=wandb`"):
        loggers.chosen("csv,wandb")


@pytest.mark.parametrize("door", ["central", "federated"])
def test_trainings_refuse_before_they_begin(tfrecords: Path, tmp_path: Path, door: str) -> None:
    line = refused(f"benchmark.{door}_main", f"--tfrecords_dir={tfrecords}", "--loggers=tensorboard", "--dry_run")
    assert "--loggers=tensorboard: csv cannot be left out" in line
