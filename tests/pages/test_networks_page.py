"""The network on the page about networks trains, from the folder that it lies in, and is evaluated."""

from __future__ import annotations

from pathlib import Path

from tests.support.commands import ROOT, only_line, run_process
from tests.support.markdown import blocks

PAGE = ROOT / "docs/networks.md"


def test_the_network_of_the_page_trains_and_is_evaluated_where_it_is_named(tfrecords: Path, tmp_path: Path) -> None:
    (code,) = (block for block in blocks(PAGE.read_text()) if block.language == "python")
    (tmp_path / "my_network.py").write_text("\n".join(code.lines))
    there = {"cwd": tmp_path, "env": {"PYTHONPATH": str(ROOT)}}
    data = f"--tfrecords_dir={tfrecords}"
    small = ("--image_height=32", "--image_width=32", "--num_epochs=1", "--train_batch_size=80", "--seed=1")
    run_process("benchmark.central_main", data, "--model=my_network:tiny", *small, **there)
    (saved,) = tmp_path.glob("my_network_tiny_central_*labels.h5")
    evaluate = ("benchmark.evaluate_main", data, f"--models={saved.name}")
    refused = run_process(*evaluate, **there, code=1)
    assert "if you trust that module, add --network=my_network:tiny" in only_line(refused)
    run_process(*evaluate, "--network=my_network:tiny", **there)
