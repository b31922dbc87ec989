"""A script written for ml-flair runs, and finds the numbers that our own command found."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from benchmark.metrics.histogram import metric_names
from benchmark.model import loading, networks
from tests.support.commands import ROOT, run

SCRIPT = ROOT / "tests/commands/published_script.py"


@pytest.mark.slow
def test_a_script_written_for_ml_flair_runs_unchanged(tfrecords: Path, tmp_path: Path) -> None:
    pretrained = networks.build_model("resnet18", (224, 224, 3), 1000, pretrained_norm=True)
    loading.save_model(pretrained, tmp_path / "resnet18.h5")
    run(
        "benchmark.federated_main",
        *(f"--tfrecords_dir={tfrecords}", f"--save_model_dir={tmp_path}", f"--run_dir={tmp_path / 'run'}"),
        *("--total_rounds=1", "--rounds_per_eval=1", "--clients_per_round=2", "--max_elements_per_client=4"),
    )
    (saved,) = tmp_path.glob("resnet18_federated_*labels.h5")
    printed = _run(tfrecords, tmp_path / "resnet18.h5", saved, tmp_path)
    found = {name: float(value) for name, value in re.findall(r"^    (\S.*?) *: ([0-9.e-]+)$", printed, re.MULTILINE)}
    for setting in ("central test", "train", "federated val", "weights val", "model val"):
        assert {f"{setting} {name}" for name in metric_names(is_binary=False)} <= found.keys()
    assert (tmp_path / saved.name.replace("federated", "central")).exists()
    # Its photos, labels, network and metrics are those of the command.
    of_command = json.loads((tmp_path / "run" / "summary.json").read_text())["val"]
    for name in metric_names(is_binary=False):
        for way in ("weights", "model"):
            assert found[f"{way} val {name}"] == pytest.approx(of_command[name], abs=2e-3), name


def _run(*arguments: Path) -> str:
    """What the script prints; TFF's worker, which outlives it and holds its output, is ended."""
    output = arguments[-1] / "output.txt"
    with open(output, "w", encoding="utf-8") as file:
        process = subprocess.Popen(
            [sys.executable, SCRIPT, *arguments],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code = process.wait(timeout=1500)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    printed = output.read_text(encoding="utf-8")
    assert code == 0, printed
    return printed
