"""The demo at a small size: every stage runs, and it ends with a report that a browser shows."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest

from flair.dataset.metadata import load_records
from tests.support.commands import only_line, read_weights, run_process


def _best(run):
    (path,) = run.glob("*/best.h5")
    return read_weights(path)


def _columns(run):
    (path,) = run.glob("*/metrics.csv")
    return path.read_text().splitlines()[0].split(",")


def _row(output, title):
    """Macro and micro AP in a row of the table."""
    return tuple(map(float, re.search(rf"^{title} +([\d.]+) +([\d.]+)", output, re.M).groups()))


def test_miniatures_of_different_labels_end_in_one_line(tmp_path):
    flags = ("--num_images=100", "--public_images=100", "--seed=2")
    refused = run_process("benchmark.demo_main", f"--output_dir={tmp_path}", *flags, code=1)
    assert "show labels that the other's do not (" in only_line(refused)


@pytest.mark.slow
def test_the_demo_ends_with_a_report_of_its_four_runs(tmp_path, browser):
    flags = (
        *("--num_images=200", "--num_epochs=1", "--total_rounds=4", "--image_size=32"),
        *("--public_images=500", "--public_epochs=1"),
    )
    done = run_process("benchmark.demo_main", f"--output_dir={tmp_path / 'demo'}", *flags, timeout=900)
    (path,) = re.findall(r"^report: (.*/demo/report/index\.html)$", done.stdout.partition("The demo took")[2], re.M)
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    complaints = []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto(Path(path).as_uri())
    widths = page.evaluate("[...document.images].map(image => image.naturalWidth)")
    assert len(widths) >= 15 and min(widths) > 0
    assert complaints == []
    assert page.locator("#table table").first.locator("tbody tr").count() == 8  # four runs, val and test
    text = page.locator("body").inner_text()
    for reason in ("no run is private", "no run has an evaluation.json", "no run clips", "no run recorded"):
        assert reason not in text
    page.screenshot(path=tmp_path / "demo.png", full_page=True)
    page.close()

    # The public photos are others than the users', and the same federated training is done twice, once privately.
    users, public = (load_records(tmp_path / "demo" / name) for name in ("dataset", "public"))
    assert len(public) == 500 and not {r.image_id for r in public} & {r.image_id for r in users}
    assert not {r.user_id for r in public} & {r.user_id for r in users}
    commands = [shlex.split(line)[1:] for line in re.findall(r"^\$ (.*)$", done.stdout, re.M)]
    federated, private = (set(each) for each in commands if "benchmark.federated_main" in each)
    assert {flag.partition("=")[0] for flag in private - federated} == {
        "--epsilon",
        "--l2_norm_clip",
        "--save_model_dir",
    }
    # It is of nearly all train users.
    num_users = len({record.user_id for record in users if record.partition == "train"})
    cohort = num_users * 19 // 20
    assert f"--clients_per_round={cohort}" in private & federated

    # What privacy costs is said in numbers of this very run.
    pattern = (
        r"central training gains (-?[\d.]+) of macro AP, federated training (-?[\d.]+).*private training (-?[\d.]+).*"
        r"On the (\d+) test users, federated less private is (-?[\d.]+); .* \[(-?[\d.]+), (-?[\d.]+)\]"
        r".*is ([\d.]+) times as"
    )
    *gains, num_test_users, cost, low, high, ratio = map(float, re.search(pattern, done.stdout, re.S).groups())
    assert num_test_users == len({record.user_id for record in users if record.partition == "test"})
    assert low <= cost <= high
    assert cost == pytest.approx(gains[1] - gains[2], abs=2e-3)
    titles = ("central +1 epochs", "federated +4 rounds", "federated, private +4 rounds")
    nothing = _row(done.stdout, "knowing nothing +-")
    expected = [_row(done.stdout, title)[0] - nothing[0] for title in titles]
    assert gains == pytest.approx(expected, abs=2e-3)  # of printed digits
    (statement,) = (json.loads(path.read_text()) for path in (tmp_path / "demo" / "private").glob("*/privacy.json"))
    assert statement["rounds"] == {"completed": 4, "planned": 4}
    assert (statement["users"], statement["clients_per_round"]) == (num_users, cohort)
    deviation = statement["noise"]["sum_noise_multiplier"] / cohort  # of each weight of the mean, in clip norms
    noise = np.random.default_rng(0).normal(0, deviation, 129 * 17)
    assert ratio == pytest.approx(np.linalg.norm(noise), rel=0.05)
    # The private run records no debug measurements, and marks what is not private.
    assert "average_client_norm" in _columns(tmp_path / "demo" / "federated")
    assert "average_client_norm" not in _columns(tmp_path / "demo" / "private")
    assert "not_private/cosine" in _columns(tmp_path / "demo" / "private")
    assert "not_private/cosine" not in _columns(tmp_path / "demo" / "federated")
    # All start from the public model; only central training moves more of it than the classifier.
    weights = {name: _best(tmp_path / "demo" / name) for name in ("public_model", "central", "federated", "private")}
    for name in ("central", "federated", "private"):
        moved = {key for key, value in weights["public_model"].items() if not np.array_equal(value, weights[name][key])}
        assert moved and (name == "central" or all("classifier" in key for key in moved)), name

    # What evaluation computes is what each training printed, and what the table says.
    content = json.loads((tmp_path / "demo" / "evaluation" / "evaluation.json").read_text())
    results = {(result["model"], result["partition"]): result["metrics"] for result in content["results"]}
    for name in ("central", "federated", "private"):
        summary = json.loads(next((tmp_path / "demo" / name).glob("*/summary.json")).read_text())
        for partition in ("val", "test"):
            found = {metric: results[name, partition][metric]["value"] for metric in summary[partition]}
            assert found == pytest.approx(summary[partition], abs=1e-6)
    for name, title in zip(weights, (r"the public model as it is +1 epochs", *titles), strict=True):
        metrics = results[name, "test"]
        means = (metrics["macro_averaged_precision"]["value"], metrics["micro_averaged_precision"]["value"])
        assert _row(done.stdout, title) == pytest.approx(means, abs=6e-4)
    assert nothing[0] == pytest.approx(_label_share(users, "test"), abs=6e-4)
    pairs = [("private", "public_model"), ("central", "federated"), ("federated", "private")]
    assert [(c["a"], c["b"]) for c in content["comparisons"]] == [pair for pair in pairs for _ in range(2)]


def _label_share(records, partition):
    """The mean frequency of the labels in a partition."""
    num_labels = len({label for record in records for label in record.labels})
    photos = [record for record in records if record.partition == partition]
    return sum(len(record.labels) for record in photos) / len(photos) / num_labels
