"""The calibration command: its tables count what was planted."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from flair.dataset.images import decode
from flair.duplicate_calibration import main
from flair.duplicates.calibration import calibrate, measure
from flair.duplicates.distance import mirror
from flair.duplicates.planted import KINDS, even_sky, jpeg, night
from flair.duplicates.rule import Thresholds


def test_the_command_counts_copies_and_strangers(
    miniature: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [f"--dataset_dir={miniature}", "--num_photos=2", f"--output_file={tmp_path / 'found.json'}"]
    assert main(flags) == 0
    output = capsys.readouterr().out
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["num_photos"] == {"photos": 2, "even skies": 2, "nights": 2}
    assert list(found["recall"]) == list(KINDS)
    for kind in KINDS:
        assert kind in output
    assert {row["pairs"] for row in found["false_pairs"].values()} == {1}
    assert found["recall"]["re-encoded, quality 75"]["photos"]["duplicates"] == 1.0
    assert found["recall"]["mirrored"]["photos"]["duplicates"] == 1.0
    assert found["false_pairs"]["photos"]["duplicates"] == 0
    assert json.loads(json.dumps(calibrate(miniature, 2, 0, Thresholds()))) == found


def test_thresholds_decide() -> None:
    rng = np.random.default_rng(1)
    sky = decode(jpeg(even_sky(rng)), "sky").data
    other = decode(jpeg(even_sky(rng)), "sky").data
    turned = decode(jpeg(mirror(night(rng)), 90), "night").data
    found = measure([(sky, sky), (sky, other), (turned, turned[:, ::-1])], Thresholds(), all_dssim=True)
    assert (found["l2"] == [0, found["l2"][1], 0]).all()
    assert found["l2"][1] > 0
    assert found["mirrored"].tolist() == [False, found["mirrored"][1], True]
    assert found["correlation"][[0, 2]] == pytest.approx(1)
    assert abs(found["correlation"][1]) < 0.3
