"""Federated training comes nearly as far as central training, on a miniature, over seeds."""

from __future__ import annotations

import json

import pytest

from flair.miniature.dataset import make_dataset
from flair.records.tfrecord.writer import write_tfrecords
from tests.support.commands import read_csv, run_process

MACRO = "test_macro_averaged_precision_mean"


def _sweep(preset, folder, sweep_dir, *grid):
    flags = [f"--flagfile=benchmark/configs/{preset}.flags", f"--tfrecords_dir={folder}", f"--output_dir={sweep_dir}"]
    run_process("benchmark.sweep_main", *flags, "--seeds=3", "--jobs=2", *grid, timeout=None)
    return read_csv(sweep_dir / "results.csv")


@pytest.mark.long
def test_federated_averaging_has_nine_tenths_of_the_central_gain_and_iid_is_no_worse(tmp_path):
    make_dataset(tmp_path / "data", num_images=2000, seed=0)
    write_tfrecords(tmp_path / "data", tmp_path / "records")
    (central,) = _sweep("miniature_central", tmp_path / "records", tmp_path / "central")
    by_user, iid = _sweep(
        "miniature_federated", tmp_path / "records", tmp_path / "federated", "--grid", "iid=false,true"
    )
    summary = json.loads((tmp_path / "central" / "seed=0" / "summary.json").read_text())
    nothing = summary["know_nothing"]["test"]
    assert nothing < 0.25
    gain = float(central[MACRO]) - nothing
    assert float(by_user[MACRO]) - nothing >= 0.9 * gain
    # The spread of a mean of three seeds is about this wide.
    assert float(iid[MACRO]) >= float(by_user[MACRO]) - 0.02
