"""Federated training from the command line: the published commands, resuming after kills, refusals, statements."""

from __future__ import annotations

import collections
import contextlib
import csv
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import psutil
import pytest

from benchmark.checkpoint import Checkpoints
from flair import example, tfrecord
from flair.tfrecord_writer import write_tfrecords
from tests.published_records import write_published_records

ROOT = Path(__file__).resolve().parents[1]
SMALL = ("--model=cnn", "--image_height=32", "--image_width=32", "--clients_per_round=4", "--client_batch_size=8")


@pytest.fixture(scope="module")
def folder(miniature, tmp_path_factory):
    path = tmp_path_factory.mktemp("records") / "records"
    write_tfrecords(miniature, path)
    return path


def _command(*flags):
    return [sys.executable, "-m", "benchmark.federated_main", *map(str, flags)]


def _places(folder, out):
    return f"--tfrecords_dir={folder}", f"--save_model_dir={out}", f"--run_dir={out / 'run'}"


def _run(*flags, check=True):
    done = subprocess.run(_command(*flags), cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    if check:
        assert done.returncode == 0, done.stderr
    return done


def _refused(*flags):
    done = _run(*flags, check=False)
    assert done.returncode == 1, done
    assert "Traceback" not in done.stderr
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, lines
    return lines[0]


def _saved_model(out):
    (path,) = out.glob("cnn_federated_*labels.h5")
    return path


def _rows(run_dir):
    with open(run_dir / "metrics.csv", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _final_state(run_dir):
    checkpoint = Checkpoints(run_dir / "checkpoints").latest()
    return checkpoint.arrays


def _assert_same_run(one, other):
    assert (one / "metrics.csv").read_text() == (other / "metrics.csv").read_text()
    first, second = _final_state(one), _final_state(other)
    assert first.keys() == second.keys()
    for name in first:
        np.testing.assert_array_equal(first[name], second[name])
    for name in ("privacy.json", "privacy.txt"):
        assert (one / name).read_text() == (other / name).read_text()
    for name in ("best.h5", "last.h5"):
        _assert_equal_weights(one / name, other / name)
    summaries = [json.loads((run / "summary.json").read_text()) for run in (one, other)]
    for name in ("best_round", "val", "test", "epsilon"):
        assert summaries[0][name] == summaries[1][name]


def _assert_equal_weights(one, other):
    def read(path):
        found = {}
        with h5py.File(path) as file:
            file.visititems(lambda name, x: found.update({name: x[()]}) if isinstance(x, h5py.Dataset) else None)
        return found

    first, second = read(one), read(other)
    assert first.keys() == second.keys()
    for name in first:
        np.testing.assert_array_equal(first[name], second[name])


PRIVATE = (*SMALL, "--total_rounds=4", "--rounds_per_eval=2", "--rounds_per_checkpoint=1", "--epsilon=8")


@pytest.fixture(scope="module")
def finished(folder, tmp_path_factory):
    """A complete private run of four rounds."""
    out = tmp_path_factory.mktemp("finished")
    done = _run(*_places(folder, out), *PRIVATE)
    return out, out / "run", done.stdout


def test_a_private_run_leaves_model_metrics_and_statement(finished):
    out, run_dir, printed = finished
    assert _saved_model(out).is_file()
    rows = _rows(run_dir)
    assert [row["round"] for row in rows] == ["1", "2", "3", "4"]
    assert all(np.isfinite(float(row["train_loss"])) for row in rows)
    assert rows[0]["val_loss"] == "" and float(rows[3]["val_loss"]) > 0
    statement = json.loads((run_dir / "privacy.json").read_text())
    summary = json.loads((run_dir / "summary.json").read_text())
    assert 7.9 < summary["epsilon"] <= 8.0
    assert float(rows[3]["epsilon"]) == summary["epsilon"]
    assert float(rows[1]["epsilon"]) < summary["epsilon"]
    assert statement["unit"] == "user"
    assert statement["rounds"] == {"completed": 4, "planned": 4}
    text = (run_dir / "privacy.txt").read_text()
    assert "Poisson" in text
    assert "privacy.txt" in printed
    assert "final test metrics" in printed


def test_a_private_run_repeated_from_its_folder_alone_gives_the_same_numbers(finished, tmp_path):
    out, run_dir, _ = finished
    # flags.txt names the folder of the run; a --save_model_dir on the command line leads away from it.
    assert f"--run_dir={run_dir}" in (run_dir / "flags.txt").read_text()
    _run(f"--flagfile={run_dir / 'flags.txt'}", f"--save_model_dir={tmp_path}")
    _assert_same_run(tmp_path / _saved_model(out).stem, run_dir)
    facts = json.loads((run_dir / "run.json").read_text())
    assert (facts["seed"], facts["cohort_seed"], facts["restored_model"]) == (0, 0, None)


def test_the_clip_norm_of_the_statement_is_the_one_in_force(finished):
    _, run_dir, _ = finished
    rows = _rows(run_dir)
    assert float(rows[0]["clip_norm"]) == pytest.approx(0.1)
    for before, after in itertools.pairwise(rows):
        assert float(after["clip_norm"]) == float(before["dp_query_metrics/clip"])


def test_a_complete_run_is_not_repeated(folder, finished):
    out, run_dir, _ = finished
    before = (run_dir / "metrics.csv").read_bytes()
    done = _run(*_places(folder, out), *PRIVATE)
    assert "complete already" in done.stdout
    assert (run_dir / "metrics.csv").read_bytes() == before


def test_other_flags_in_the_same_folder_are_refused(folder, finished):
    out, _, _ = finished
    line = _refused(*_places(folder, out), *PRIVATE, "--client_learning_rate=0.5")
    assert "client_learning_rate" in line and "--overwrite" in line


def _kill_after(flags, run_dir, round_number, number):
    """Starts a run and signals it when the checkpoint of that round is there."""
    process = subprocess.Popen(_command(*flags), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wanted = run_dir / "checkpoints" / f"checkpoint-{round_number:010d}.npz"
    while process.poll() is None and not wanted.exists():
        try:
            process.wait(0.02)
        except subprocess.TimeoutExpired:
            continue
    process.send_signal(number)
    process.communicate(timeout=120)
    return process.returncode


# Killed ten times: test_ten_kills_change_nothing.
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_run_continues_to_the_same_result(folder, finished, tmp_path, number, code):
    run_dir = tmp_path / "run"
    flags = (*_places(folder, tmp_path), *PRIVATE)
    assert _kill_after(flags, run_dir, 1, number) == code
    done = _run(*flags)
    assert "continuing after round" in done.stdout
    _assert_same_run(run_dir, finished[1])


@pytest.mark.slow
def test_ten_kills_change_nothing(folder, tmp_path):
    """SIGKILL at ten seeded places of a twelve-round private run, resumed each time."""
    flags = (*PRIVATE, "--total_rounds=12")
    unbroken, broken = tmp_path / "unbroken", tmp_path / "broken"
    _run(*flags, *_places(folder, unbroken))
    for round_number in range(1, 11):
        assert _kill_after((*flags, *_places(folder, broken)), broken / "run", round_number, signal.SIGKILL) == -9
    _run(*flags, *_places(folder, broken))
    _assert_same_run(broken / "run", unbroken / "run")


def _processes_with(name, value):
    """The processes that inherited this environment variable; a zombie has none."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
            if process.environ().get(name) == value:
                found.append(process)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, pytest.param(signal.SIGTERM, marks=pytest.mark.long)])
def test_no_worker_of_tff_outlives_the_run(folder, tmp_path, monkeypatch, number):
    monkeypatch.setenv("RUN_UNDER_TEST", str(tmp_path))
    flags = (*_places(folder, tmp_path), *PRIVATE, "--runtime=tff")
    _kill_after(flags, tmp_path / "run", 1, number)
    _, alive = psutil.wait_procs(_processes_with("RUN_UNDER_TEST", str(tmp_path)), timeout=20)
    assert not alive


@pytest.mark.slow
@pytest.mark.parametrize("runtime", ["inprocess", "tff"])
def test_the_published_commands_as_written(folder, tmp_path, runtime):
    shared = (f"--tfrecords_dir={folder}", "--total_rounds=2", f"--runtime={runtime}", *SMALL)
    _run(*shared, "--epsilon=2.0", "--l2_norm_clip=0.1", f"--save_model_dir={tmp_path / 'private'}")
    model = _saved_model(tmp_path / "private")
    restored = _run(*shared, f"--restore_model_path={model}", f"--save_model_dir={tmp_path / 'restored'}")
    assert "loaded" in restored.stdout
    _run(*shared, "--binary_label=structure", f"--save_model_dir={tmp_path / 'binary'}")
    summary = json.loads((tmp_path / "binary" / "cnn_federated_1labels" / "summary.json").read_text())
    assert set(summary["test"]) == {"loss", "precision", "recall", "f1", "averaged_precision"}


def test_records_of_the_published_code_train(miniature, tmp_path):
    write_published_records(miniature, tmp_path / "published")
    out = tmp_path / "out"
    _run(f"--tfrecords_dir={tmp_path / 'published'}", f"--save_model_dir={out}", *SMALL, "--total_rounds=1")
    assert _saved_model(out).is_file()


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (("--epsilon=-1",), "--epsilon"),
        (("--epsilon=2", "--delta=1.5"), "--delta"),
        (("--epsilon=2", "--clients_per_round=1000"), "--clients_per_round"),
        (("--clients_per_round=0",), "--clients_per_round"),
        (("--epsilon=2", "--noise_multiplier=1"), "--noise_multiplier"),
        (("--epsilon=2", "--simulated_clients_per_round=2"), "--simulated_clients_per_round"),
        (("--noise_multiplier=1", "--clipped_count_stddev=0.1"), "--clipped_count_stddev"),
        (("--epsilon=2", "--algorithm=mime_lite"), "--algorithm"),
        (("--epsilon=2", "--l2_norm_clip=0"), "--l2_norm_clip"),
        (("--aggregator=tree",), "--aggregator"),
        (("--aggregator=tree", "--epsilon=2", "--client_sampling=poisson"), "--client_sampling"),
        (("--algorithm=fed_prox",), "--proximal_strength"),
        (("--proximal_strength=1",), "--proximal_strength"),
        (("--mean_datapoints_per_user=5",), "--mean_datapoints_per_user"),
        (("--reuse_clients", "--client_sampling=uniform"), "--reuse_clients"),
        (("--best_metric=accuracy",), "--best_metric"),
        (("--binary_label=dragon",), "structure"),
        (("--restore_model_path=/nowhere.h5",), "--restore_model_path"),
    ],
)
def test_what_cannot_work_is_refused_in_one_line(folder, tmp_path, flags, named):
    line = _refused(f"--tfrecords_dir={folder}", f"--save_model_dir={tmp_path}", *SMALL, *flags)
    assert named in line


def test_a_refusal_comes_before_any_heavy_import(folder, tmp_path):
    program = (
        "import sys, benchmark.federated_main as m\n"
        "from benchmark import command\n"
        "try: command.run(m.main)\n"
        "finally: assert 'tensorflow' not in sys.modules, 'tensorflow was imported'\n"
    )
    flags = [f"--tfrecords_dir={folder}", f"--save_model_dir={tmp_path}", "--epsilon=2", "--delta=2"]
    done = subprocess.run(
        [sys.executable, "-c", program, *flags], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 1
    assert "--delta" in done.stderr and "imported" not in done.stderr


def test_an_empty_partition_is_refused(folder, tmp_path):
    copied = tmp_path / "records"
    shutil.copytree(folder, copied, symlinks=True)
    for path in (copied / "dev").iterdir():
        os.unlink(path)
    line = _refused(f"--tfrecords_dir={copied}", f"--save_model_dir={tmp_path}", *SMALL)
    assert "val" in line and "empty" in line


def test_federated_evaluation_scores_every_test_client(folder, miniature, tmp_path):
    _run(
        *_places(folder, tmp_path),
        *SMALL,
        "--total_rounds=1",
        "--federated_eval",
        "--federated_eval_local_training",
    )
    records = json.loads((miniature / "labels_and_metadata.json").read_text())
    photos = collections.Counter(record["user_id"] for record in records if record["partition"] == "test")
    with open(tmp_path / "run" / "clients.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert {row["client_id"]: int(row["photos"]) for row in rows} == photos
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    total = sum(photos.values())
    pooled = sum(float(row["loss"]) * int(row["photos"]) for row in rows) / total
    assert pooled == pytest.approx(summary["test"]["loss"], abs=1e-6)
    mean = sum(float(row["loss"]) for row in rows) / len(rows)
    assert summary["clients"]["test"]["loss"]["mean"] == pytest.approx(mean)
    for name in ("before", "after"):
        assert summary["clients"][f"{name}_local_training"]["count"] == sum(count > 1 for count in photos.values())


def test_a_run_that_starts_over_leaves_no_old_statement(folder, tmp_path):
    few = (*SMALL, "--total_rounds=1", *_places(folder, tmp_path))
    _run(*few, "--epsilon=8")
    assert (tmp_path / "run" / "privacy.txt").is_file()
    _run(*few, "--overwrite")
    assert not list((tmp_path / "run").glob("privacy.*"))


def test_the_statement_says_what_the_flags_asked_for(folder, tmp_path):
    done = _run(
        *_places(folder, tmp_path),
        *(*SMALL, "--total_rounds=2", "--rounds_per_eval=1", "--epsilon=8", "--simulated_clients_per_round=10"),
        *("--delta=0.01", "--accountant=rdp", "--iid"),
    )
    statement = json.loads((tmp_path / "run" / "privacy.json").read_text())
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert statement["delta"] == 0.01
    assert statement["accountant"]["name"] == "rdp"
    assert statement["unit"] == "artificial user"
    assert statement["simulated_clients_per_round"] == 10
    # The run has 4 clients a round, not 10: its own epsilon is the one shown, and it is larger.
    assert summary["simulated_epsilon"] == pytest.approx(8, rel=1e-3)
    assert summary["epsilon"] > 8
    assert float(_rows(tmp_path / "run")[-1]["epsilon"]) == summary["epsilon"]
    assert "simulated cohort of 10" in done.stdout


def test_a_run_is_not_continued_on_other_data(folder, tmp_path):
    copied = tmp_path / "records"
    shutil.copytree(folder, copied, symlinks=True)
    flags = (*_places(copied, tmp_path), *PRIVATE, "--total_rounds=40")
    assert _kill_after(flags, tmp_path / "run", 2, signal.SIGTERM) == 143
    sorted((copied / "train").iterdir())[0].unlink()
    assert "other data" in _refused(*flags)


def test_a_photo_that_cannot_be_decoded_is_named(folder, tmp_path):
    copied = tmp_path / "records"
    shutil.copytree(folder, copied, symlinks=True)
    user = sorted((copied / "train").iterdir())[0]
    broken = example.Example(b"no photo", (0,), (0,), "4711", user.stem)
    user.write_bytes(tfrecord.frame(example.encode(broken)))
    done = _run(*_places(copied, tmp_path), *SMALL, "--total_rounds=1", "--clients_per_round=32", check=False)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    line = done.stderr.strip().splitlines()[-1]  # libjpeg has its say before
    assert "4711" in line and user.stem in line
