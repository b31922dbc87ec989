"""The measurement of the audit: the photos are as far apart as real ones, and planted copies are found."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmark.speed_main import main
from flair.dataset.metadata import load_records, photo_path


def test_planted_copies_are_found_among_photos_of_real_contrast(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    work, report = tmp_path / "work", tmp_path / "audit.json"
    flags = [f"--work_dir={work}", "--num_images=150", "--num_workers=1", f"--output_file={report}"]
    assert main(["audit", *flags]) == 0
    found = json.loads(report.read_text())
    records = load_records(work / "photos-150-0")
    sizes = {name: sum(record.partition == name for record in records) for name in ("train", "test")}
    assert (found["photos"], found["pairs"]) == (sum(sizes.values()), sizes["train"] * sizes["test"])
    assert found["planted_found"] == found["planted"] == found["duplicate_pairs"] == min(100, sizes["test"])
    printed = capsys.readouterr().out
    assert f"{found['planted']} of {found['planted']} planted copies found" in printed
    contrasts = []
    for record in records:
        with Image.open(photo_path(work / "photos-150-0", record.image_id)) as photo:
            contrasts.append(np.asarray(photo).std())
    assert 50 < np.median(contrasts) < 70  # 62 of real ones
