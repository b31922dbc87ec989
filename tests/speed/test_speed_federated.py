"""The measurement of federated rounds, from the command line to the numbers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.commands import run_process


@pytest.mark.long
def test_rounds_memory_and_the_start_of_a_run_are_measured(tfrecords: Path, tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    sizes = ["--model=cnn", "--image_size=32", "--photos=2", "--clients=2", "--fit_clients=1,2", "--repeats=1"]
    flags = (*sizes, f"--output_file={report}", f"--tfrecords_dir={tfrecords}")
    result = run_process("benchmark.speed_main", "federated", *flags)
    assert "the first round of benchmark.federated_main begins" in result.stdout
    measured = json.loads(report.read_text())
    (row,) = measured["rounds"]
    assert row["photos"] == 2 and row["inprocess"]["over_bare"] > 0
    assert measured["memory"]["inprocess"] > measured["memory"]["weights"] > 0
    start = measured["start"]
    assert start["users"] == start["cohort"] and start["command_seconds"] > start["open_seconds"]


def test_records_on_which_no_run_can_start_are_told_in_a_line(tmp_path: Path) -> None:
    from argparse import Namespace

    from benchmark.speed.federated import _seconds_to_round_1
    from flair.errors import FlairError

    with pytest.raises(FlairError, match=r"ended before its first round: .*nowhere"):
        _seconds_to_round_1(Namespace(tfrecords_dir=tmp_path / "nowhere", model="cnn"), 2)


@pytest.mark.slow
def test_few_weights_trains_on_made_up_features(tmp_path):
    path = tmp_path / "few.json"
    flags = [
        "--model=cnn",
        "--image_size=32",
        "--photos=200",
        "--num_users=400",
        "--features=8,16",
        "--rounds=6",
        "--clients=20",
        "--rounds_per_eval=3",
    ]
    done = run_process("benchmark.speed_main", "few_weights", *flags, f"--work_dir={tmp_path}", f"--output_file={path}")
    report = json.loads(path.read_text())
    assert 0 < report["extraction"]["of_bare"] < 2
    found = report["few_weights"]
    assert [row["features"] for row in found] == [8, 16]
    for row in found:
        assert row["seconds"] > 0
        assert row["weights"] == (row["features"] + 1) * 17
        assert 0.1e9 < row["anonymous_bytes"] < 3e9
        assert f"{row['features']} features: 6 rounds in" in done.stdout
    assert sorted(tmp_path.iterdir()) == [path]
