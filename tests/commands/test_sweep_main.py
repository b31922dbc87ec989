"""Sweeps from the command line: one table, resuming after kills, failures that do not stop the rest, refusals."""

from __future__ import annotations

import fcntl
import json
import math
import signal
import statistics
from functools import partial

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmark.sweep import table as sweep_table
from benchmark.sweep.grid import Run, make_runs, parse_grid
from tests.support.commands import ROOT, only_line, read_csv, run, start, wait_for_checkpoint
from tests.support.tiny_network import TINY

SWEEP = "benchmark.sweep_main"
_sweep = partial(run, SWEEP)
SMALL = (f"--model={TINY}", "--image_height=32", "--image_width=32", "--train_batch_size=16", "--num_epochs=2")


@pytest.fixture(scope="module")
def flagfile(tfrecords, tmp_path_factory):
    path = tmp_path_factory.mktemp("flags") / "small.flags"
    path.write_text("# A comment.\n" + "\n".join([*SMALL, f"--tfrecords_dir={tfrecords}"]) + "\n")
    return path


def _results(sweep_dir):
    return read_csv(sweep_dir / "results.csv")


@pytest.mark.slow
def test_a_failed_run_is_listed_and_the_rest_goes_on(flagfile, tmp_path):
    flags = (f"--flagfile={flagfile}", "--grid", "best_metric=accuracy,loss", f"--output_dir={tmp_path / 's'}")
    done = _sweep(*flags, code=1)
    bad, good = tmp_path / "s" / "best_metric=accuracy,seed=0", tmp_path / "s" / "best_metric=loss,seed=0"
    assert f"log: {bad / 'sweep.log'}" in done.stderr
    assert "no such metric" in done.stderr
    summary = json.loads((good / "summary.json").read_text())
    failed, complete = _results(tmp_path / "s")
    assert (failed["best_metric"], failed["seeds"], failed["failed"]) == ("accuracy", "0", "1")
    assert (complete["best_metric"], complete["seeds"], complete["failed"]) == ("loss", "1", "0")
    assert float(complete["test_loss_mean"]) == summary["test"]["loss"]
    assert complete["test_loss_sd"] == ""
    assert failed["test_loss_mean"] == ""
    assert "1 of 2 runs complete" in done.stdout

    before = (good / "sweep.log").stat().st_mtime_ns, (tmp_path / "s" / "results.json").read_bytes()
    again = _sweep(*flags, code=1)
    assert f"{good.name}: complete already" in again.stdout
    assert ((good / "sweep.log").stat().st_mtime_ns, (tmp_path / "s" / "results.json").read_bytes()) == before

    # Other flags for a run that is complete: its own command refuses, and the table does not claim it.
    other = _sweep(*flags, "--learning_rate=0.5", code=1)
    assert "--learning_rate was 0.0001 and is 0.5" in other.stderr
    assert [row["seeds"] for row in _results(tmp_path / "s")] == ["0", "0"]


@pytest.fixture(scope="module")
def unbroken(flagfile, tmp_path_factory):
    """A whole sweep of one learning rate and two seeds, both at once, and the table it printed."""
    path = tmp_path_factory.mktemp("unbroken") / "sweep"
    done = _sweep(*_two(flagfile, path), "--jobs=2")
    return path, _table(done.stdout)


def _two(flagfile, path):
    grid = ("--grid", "learning_rate=0.01", "--seeds=2")
    return f"--flagfile={flagfile}", "--num_epochs=8", *grid, f"--output_dir={path}"


def _table(printed):
    return printed[printed.index("\nsettings") : printed.index("\nresults:")]


@pytest.mark.slow
def test_the_table_is_mean_and_deviation_over_seeds(unbroken):
    path, table = unbroken
    (row,) = _results(path)
    summaries = [json.loads((path / f"learning_rate=0.01,seed={seed}" / "summary.json").read_text()) for seed in (0, 1)]
    for partition, name in (("val", "loss"), ("test", "macro_averaged_precision")):
        values = [summary[partition][name] for summary in summaries]
        assert values[0] != values[1]
        mean, sd = statistics.mean(values), statistics.stdev(values)
        assert float(row[f"{partition}_{name}_mean"]) == pytest.approx(mean)
        assert float(row[f"{partition}_{name}_sd"]) == pytest.approx(sd)
        assert f"{mean:.4f} ± {sd:.4f}" in table


def _start(flagfile, path):
    return start(SWEEP, *_two(flagfile, path))


def _trainings_in(path):
    found = [process for process in psutil.process_iter(["cmdline"]) if process.info["cmdline"]]
    return [process for process in found if any(f"--run_dir={path}" in part for part in process.info["cmdline"])]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "code"),
    [
        pytest.param(signal.SIGKILL, -9, marks=pytest.mark.long),
        (signal.SIGINT, 130),
        pytest.param(signal.SIGTERM, 143, marks=pytest.mark.long),
    ],
)
def test_a_stopped_sweep_continues_to_the_same_table(flagfile, unbroken, tmp_path, number, code):
    path = tmp_path / "sweep"
    process = _start(flagfile, path)
    run = path / "learning_rate=0.01,seed=1"
    wait_for_checkpoint(process, run, 1)
    assert process.poll() is None
    process.send_signal(number)
    _, errors = process.communicate()
    assert process.returncode == code
    assert "Traceback" not in errors
    _, alive = psutil.wait_procs(_trainings_in(path), timeout=20)
    assert not alive
    assert not (path / "results.csv").exists()
    assert not (run / "summary.json").exists()
    done = _sweep(*_two(flagfile, path))
    assert "learning_rate=0.01,seed=0: complete already" in done.stdout
    assert "continuing after" in (run / "sweep.log").read_text()
    assert _table(done.stdout) == unbroken[1]
    for name in ("results.csv", "results.json"):
        assert (path / name).read_bytes() == (unbroken[0] / name).read_bytes()


def test_a_folder_in_use_is_refused(flagfile, tmp_path):
    with open(tmp_path / "sweep.lock", "a", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        line = only_line(_sweep(f"--flagfile={flagfile}", f"--output_dir={tmp_path}", code=1))
    assert line == f"benchmark.sweep_main: {tmp_path}: another sweep is running here; choose another --output_dir"


@pytest.mark.parametrize(
    ("flags", "code", "message"),
    [
        (["--grid", "learning_rate"], 1, "expected flag=value,value"),
        (["--grid", "learning_rate=0.1,1e-1"], 1, "given twice"),
        (["--grid", "learning_rate=nan,NaN"], 1, "given twice"),
        (["--grid", "use_fine_grained_labels=true,1"], 1, "given twice"),
        (["--grid", "learning_rate=1", "--grid", "learning_rate=2"], 1, "in the grid already"),
        (["--grid", "save_model_dir=a,b"], 1, "a folder of its own"),
        (["--grid", "eval_batch_size=8,16"], 1, "changes no result"),
        (["--grid", "seed=1,2"], 1, "--seeds=N"),
        (["--grid", "learning_rates=1,2"], 1, "--learning_rates: no such flag of benchmark.central_main"),
        (["--grid", "learning_rate=1,2", "--learning_rate=3"], 1, "leave one out"),
        (["--total_rounds=3"], 1, "no such flag"),
        (["--run_dir=x"], 1, "a folder of its own"),
        (["--overwrite"], 1, "delete the folder of a run"),
        (["--flagfile=/none.flags"], 1, "/none.flags"),
        (["--seeds=0"], 2, "at least 1"),
        (["--jobs=x"], 2, "at least 1"),
        (["learning_rate=1"], 2, "--flag=value"),
    ],
)
def test_refusals_are_one_line_and_start_nothing(flagfile, tmp_path, flags, code, message):
    done = _sweep(f"--flagfile={flagfile}", *flags, code=code, cwd=tmp_path, env={"PYTHONPATH": str(ROOT)})
    assert message in done.stderr.strip().splitlines()[-1]
    assert code == 2 or done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_the_training_is_found_from_the_flags(tmp_path):
    for flag, module in (("--num_epochs=1", "central"), ("--clients_per_round=0", "federated")):
        done = _sweep("--tfrecords_dir=/none", flag, f"--output_dir={tmp_path / module}", code=1)
        assert f"1 run of benchmark.{module}_main" in done.stdout
    done = _sweep("--tfrecords_dir=/none", f"--output_dir={tmp_path / 'both'}", code=None)
    assert "give --setting=central or --setting=federated" in done.stderr


def test_a_table_holds_what_is_complete_and_no_times(tmp_path):
    runs = make_runs({"learning_rate": ["0.1", "1"]}, 0, 3)
    losses = dict(zip(runs, (1.0, 2.0, 6.0, 5.0, 7.0, 9.0), strict=True))
    for one, loss in losses.items():
        (tmp_path / one.folder).mkdir()
        summary = {"val": {"loss": loss}, "test": {"macro_averaged_precision": loss / 10}, "seconds": loss * 1000}
        (tmp_path / one.folder / "summary.json").write_text(json.dumps(summary))
    rows = sweep_table.rows_of(tmp_path, runs, complete=set(runs[:4]))
    sweep_table.write(tmp_path, rows)
    first, second = _results(tmp_path)
    assert (float(first["val_loss_mean"]), float(first["val_loss_sd"])) == (3.0, pytest.approx(7**0.5))
    assert (second["seeds"], second["failed"], second["val_loss_mean"], second["val_loss_sd"]) == ("1", "2", "5.0", "")
    assert not [name for name in first if "seconds" in name]
    assert json.loads((tmp_path / "results.json").read_text())[1]["failed_seeds"] == [1, 2]
    printed = sweep_table.table(rows).splitlines()
    assert printed[0].split() == ["settings", "seeds", "val_loss", "test_macro_AP"]
    assert printed[1].split() == ["learning_rate=0.1", "3", "3.0000", "±", "2.6458", "0.3000", "±", "0.2646"]
    assert printed[2].split() == ["learning_rate=1", "1,", "2", "failed", "5.0000", "0.5000"]


@pytest.mark.parametrize("values", [(math.inf, 1.0), (math.nan, 1.0), (math.inf, -math.inf), (1.7e308, 1.7e308)])
def test_a_table_of_numbers_without_a_mean_is_a_table(tmp_path, values):
    """An epsilon may be infinite: after all runs were done, the table ended in a traceback."""
    runs = make_runs({"learning_rate": ["0.1"]}, 0, 2)
    for one, value in zip(runs, values, strict=True):
        (tmp_path / one.folder).mkdir()
        summary = {"val": {"loss": value}, "test": {}, "epsilon": value}
        (tmp_path / one.folder / "summary.json").write_text(json.dumps(summary))
    rows = sweep_table.rows_of(tmp_path, runs, complete=set(runs))
    assert "val_loss" in sweep_table.table(rows)
    sweep_table.write(tmp_path, rows)


_VALUES = st.text(st.characters(codec="utf-8", exclude_characters=","), min_size=1, max_size=80).map(str.strip)


@given(st.lists(_VALUES.filter(bool), min_size=1, max_size=4, unique=True), st.integers(1, 3))
def test_every_run_has_a_folder_name_of_its_own(values, num_seeds):
    runs = make_runs({"binary_label": values}, 5, num_seeds)
    names = [run.folder for run in runs]
    assert len(set(names)) == len(values) * num_seeds
    assert all("/" not in name and len(name.encode()) <= 255 and not name.startswith(".") for name in names)
    assert [run.seed for run in runs[:num_seeds]] == list(range(5, 5 + num_seeds))


def test_long_names_stay_apart():
    one, other = (Run((("restore_model_path", "/a" * 200 + end),), 0).folder for end in "xy")
    assert one != other
    assert max(len(one), len(other)) <= 255


def test_a_grid_is_parsed_in_order():
    grid = parse_grid(["a=1,2", "b=x"], {})
    assert [run.flags for run in make_runs(grid, 3, 1)] == [
        ["--a=1", "--b=x", "--seed=3"],
        ["--a=2", "--b=x", "--seed=3"],
    ]
