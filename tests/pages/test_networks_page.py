"""The network on the page about networks trains, from the folder that it lies in, and is evaluated."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.support.commands import ROOT, only_line, read_weights, run, run_process
from tests.support.markdown import blocks

PAGE = ROOT / "docs/networks.md"


def _write_network(folder: Path) -> None:
    """Writes the page's module."""
    (code,) = (block for block in blocks(PAGE.read_text()) if block.language == "python")
    (folder / "my_network.py").write_text("\n".join(code.lines))


def test_the_network_of_the_page_trains_and_is_evaluated_where_it_is_named(tfrecords: Path, tmp_path: Path) -> None:
    _write_network(tmp_path)
    data = f"--tfrecords_dir={tfrecords}"
    small = ("--image_height=32", "--image_width=32", "--num_epochs=1", "--train_batch_size=80", "--seed=1")
    run("benchmark.central_main", data, "--model=my_network:tiny", *small, cwd=tmp_path)
    (saved,) = tmp_path.glob("my_network_tiny_central_*labels.h5")
    evaluate = ("benchmark.evaluate_main", data, f"--models={saved.name}")
    refused = run(*evaluate, cwd=tmp_path, code=1)
    assert "if you trust that module, add --network=my_network:tiny" in only_line(refused)
    run(*evaluate, "--network=my_network:tiny", cwd=tmp_path)


@pytest.mark.slow
def test_every_runtime_trains_the_network_of_the_page(tfrecords: Path, tmp_path: Path) -> None:
    _write_network(tmp_path)
    flags = [f"--tfrecords_dir={tfrecords}", "--model=my_network:tiny", "--image_height=32", "--image_width=32"]
    flags += ["--total_rounds=2", "--clients_per_round=3", "--noaugment", "--client_learning_rate=0.05", "--seed=1"]
    weights = {}
    for runtime in ("inprocess", "ray", "tff"):
        places = (f"--save_model_dir={tmp_path}", f"--run_dir={tmp_path / runtime}")
        command = ("benchmark.federated_main", *flags, *places, f"--runtime={runtime}", "--overwrite")
        if runtime == "inprocess":
            run(*command, cwd=tmp_path)
        else:  # the processes of Ray and of TFF end with the one that started them
            run_process(*command, cwd=tmp_path, env={"PYTHONPATH": str(ROOT)})
        weights[runtime] = read_weights(tmp_path / runtime / "last.h5")
    for runtime in ("ray", "tff"):
        assert weights[runtime].keys() == weights["inprocess"].keys()
        for name, value in weights["inprocess"].items():
            np.testing.assert_allclose(weights[runtime][name], value, atol=1e-6)
