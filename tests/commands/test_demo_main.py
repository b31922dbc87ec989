"""The demo at a small size: every stage runs, and it ends with a report that a browser shows."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from tests.support.commands import read_weights, run, run_process


def test_private_and_federated_training_see_as_many_clients():
    done = run("benchmark.demo_main", "--help")

    def default(name):
        return int(re.search(rf"--{name}=int\n.*\(default: (\d+)\)", done.stdout).group(1))

    visits = default("total_rounds") * default("clients_per_round")
    assert visits == default("private_rounds") * default("private_clients_per_round") == 1200
    assert default("total_rounds") >= 200  # the server learns once a round


def _weights(run):
    (path,) = run.glob("*/best.h5")
    return sum(array.size for array in read_weights(path).values())


def _columns(run):
    (path,) = run.glob("*/metrics.csv")
    return path.read_text().splitlines()[0].split(",")


@pytest.mark.slow
def test_the_demo_ends_with_a_report_of_its_three_runs(tmp_path, browser):
    flags = (
        *("--num_images=240", "--num_epochs=2", "--total_rounds=3", "--clients_per_round=4", "--image_size=32"),
        *("--private_rounds=2", "--private_clients_per_round=6"),
    )
    done = run_process("benchmark.demo_main", f"--demo_dir={tmp_path / 'demo'}", *flags, timeout=900)
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

    # What privacy costs is said in numbers of this very run.
    pattern = r"Privacy leaves (-?[\d.]+) of the (-?[\d.]+) of macro AP .*update is ([\d.]+) times as long"
    kept, gained, ratio = map(float, re.search(pattern, done.stdout, re.S).groups())
    lines = ("know nothing +-", "federated +3 rounds", "federated, private +2 rounds")
    nothing, federated, private = (
        float(re.search(rf"^{line} +([\d.]+)", done.stdout, re.M).group(1)) for line in lines
    )
    assert (kept, gained) == pytest.approx((private - nothing, federated - nothing), abs=2e-3)  # of printed digits
    (statement,) = (json.loads(path.read_text()) for path in (tmp_path / "demo" / "private").glob("*/privacy.json"))
    assert statement["rounds"] == {"completed": 2, "planned": 2}
    assert statement["clients_per_round"] == 6
    deviation = statement["noise"]["sum_noise_multiplier"] / 6  # of each weight of the mean, in clip norms
    noise = np.random.default_rng(0).normal(0, deviation, _weights(tmp_path / "demo" / "private"))
    assert ratio == pytest.approx(np.linalg.norm(noise), rel=0.02)
    # The private run does not record its updates before noise.
    assert "average_client_norm" in _columns(tmp_path / "demo" / "federated")
    assert "average_client_norm" not in _columns(tmp_path / "demo" / "private")

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
