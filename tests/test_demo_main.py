"""The demo at a small size: every stage runs, and it ends with a report that a browser shows."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.slow
def test_the_demo_ends_with_a_report_of_its_three_runs(tmp_path, browser):
    flags = ("--num_images=240", "--num_epochs=2", "--total_rounds=3", "--clients_per_round=4", "--image_size=32")
    command = [sys.executable, "-m", "benchmark.demo_main", f"--demo_dir={tmp_path / 'demo'}", *flags]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr
    (path,) = re.findall(r"^report: (.*/demo/report/index\.html)$", done.stdout.partition("The demo took")[2], re.M)
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    complaints = []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto(Path(path).as_uri())
    widths = page.evaluate("[...document.images].map(image => image.naturalWidth)")
    assert len(widths) >= 15 and min(widths) > 0
    assert complaints == []
    assert page.locator("#table table").first.locator("tbody tr").count() == 6  # three runs, val and test
    text = page.locator("body").inner_text()
    for reason in ("no run is private", "no run has an evaluation.json", "no run clips", "no run recorded"):
        assert reason not in text
    page.screenshot(path=tmp_path / "demo.png", full_page=True)
    page.close()

    # What evaluation computes is what each training printed.
    content = json.loads((tmp_path / "demo" / "evaluation" / "evaluation.json").read_text())
    for name in ("central", "federated", "private"):
        summary = json.loads(next((tmp_path / "demo" / name).glob("*/summary.json")).read_text())
        for partition in ("val", "test"):
            result = next(r for r in content["results"] if (r["model"], r["partition"]) == (name, partition))
            found = {metric: result["metrics"][metric]["value"] for metric in summary[partition]}
            assert found == pytest.approx(summary[partition], abs=1e-6)
    assert [(c["a"], c["b"]) for c in content["comparisons"]] == [("central", "federated")] * 2 + [
        ("federated", "private")
    ] * 2
