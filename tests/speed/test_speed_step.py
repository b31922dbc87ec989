"""The speed commands run, measure every variant and write their JSON."""

from __future__ import annotations

import json
from functools import partial

import pytest

from benchmark.run import machine
from tests.support.commands import run_process, run_program

# Peak memory is that of a process.
_run = partial(run_process, "benchmark.speed_main")


@pytest.mark.long
def test_step_measures_every_variant(tmp_path):
    path = tmp_path / "step.json"
    flags = ["--model=cnn", "--image_size=32", "--batch_size=4", "--repeats=2", f"--output_file={path}"]
    done = _run("step", *flags)
    report = json.loads(path.read_text())
    assert len(report["steps"]) == 8
    assert report["versions"]["tensorflow"] == "2.14.1"
    for row in report["steps"]:
        assert row["images_per_second"] > 0
        assert 0.1e9 < row["peak_bytes"] < 3e9
        assert f"{row['images_per_second']:.1f}" in done.stdout
    assert report["steps"][0]["ratio_to_ours"] == 1


@pytest.mark.slow
def test_central_measures_training_and_evaluation(tfrecords, tmp_path):
    path = tmp_path / "central.json"
    flags = [f"--tfrecords_dir={tfrecords}", "--model=cnn", "--image_size=32", "--batch_size=8"]
    done = _run("central", *flags, "--steps=3", "--repeats=2", f"--output_file={path}")
    report = json.loads(path.read_text())["central"]
    assert set(report["images_per_second"]) >= {"bare", "training", "pipeline", "evaluation 17", "evaluation 1628"}
    assert 0 < report["metrics 17 share"] < 1
    assert "of the bare step" in done.stdout
    # What it keeps are batches of 32x32 photos, nowhere near the 2 GB of a buffer of decoded photos.
    assert 0 < report["pipeline_bytes"] < 0.4e9


def test_peak_memory_is_that_of_this_process_alone():
    # The parent holds a gigabyte at its peak; a child's own peak must not show it.
    code = "from benchmark.run import machine; print(machine.peak_bytes())"
    ballast = bytearray(10**9)
    done = run_program(code)
    assert len(ballast) < machine.peak_bytes()
    assert int(done.stdout) < 0.5e9
