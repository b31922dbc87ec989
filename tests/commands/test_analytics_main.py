"""Private analytics from the command line: what is released, what is refused, and what a training adds up."""

from __future__ import annotations

import collections
import json
from functools import partial

import numpy as np
import pytest

from benchmark.privacy.spending import read_spending, total_epsilon
from flair.dataset.metadata import load_records
from tests.support.commands import refused, run
from tests.support.privacy import plan_of
from tests.support.tiny_network import TINY

ANALYTICS = "benchmark.analytics_main"
_run, _refused = partial(run, ANALYTICS), partial(refused, ANALYTICS)


def _answers(path):
    return json.loads(path.read_text(encoding="utf-8"))["questions"]


def test_with_next_to_no_noise_everything_is_what_the_metadata_file_says(miniature, tfrecords, tmp_path):
    """No normal number of ours is beyond 8.6 deviations, so that no luck is needed."""

    def ask(question, *flags):
        path = tmp_path / f"{question}.json"
        given = f"--tfrecords_dir={tfrecords}", f"--output_file={path}", f"--questions={question}"
        done = _run(*given, "--epsilon=1e6", "--compare_exact", *flags)
        assert done.stdout.startswith("NOT PRIVATE") and "--also_spent" not in done.stdout
        return _answers(path)[question]

    train = [record for record in load_records(miniature) if record.partition == "train"]
    for name, labels_of in (("labels", lambda one: one.labels), ("fine_labels", lambda one: one.fine_grained_labels)):
        pairs = {(record.user_id, label) for record in train for label in labels_of(record)}
        expected = {label: sum(one == label for _, one in pairs) for label in {label for _, label in pairs}}
        answer = ask(name)
        assert answer["noise_stddev"] < 0.08
        assert {row["label"]: row["exact"] for row in answer["labels"] if row["exact"]} == expected
        assert all(abs(row["users"] - row["exact"]) <= 9 * answer["noise_stddev"] for row in answer["labels"])
    photos = list(collections.Counter(record.user_id for record in train).values())
    for row in ask("photos", "--quantiles=0.26,0.52,0.77")["quantiles"]:  # none is a whole number of 32 users
        exact = np.quantile(photos, row["quantile"], method="inverted_cdf")
        assert row["low"] <= row["exact"] == exact <= row["photos"] == row["high"]


@pytest.fixture(scope="module")
def released(tfrecords, tmp_path_factory):
    """A private result in a folder of its own."""
    path = tmp_path_factory.mktemp("released") / "result.json"
    return path, _run(f"--tfrecords_dir={tfrecords}", f"--output_file={path}", "--epsilon=4", "--delta=1e-4")


def test_a_result_says_what_it_is_and_leaves_no_key(released):
    path, done = released
    assert list(path.parent.iterdir()) == [path]
    found = json.loads(path.read_text(encoding="utf-8"))
    assert (found["private"], found["users"], found["delta"]) == (True, 32, 1e-4)
    assert 3.9 < found["epsilon"]["pld"] <= 4 and list(found["questions"]) == ["labels", "fine_labels", "photos"]
    assert "(4, 0.0001)-differential privacy" in done.stdout
    assert f"{path}: 32 users, in " in done.stdout
    assert done.stdout.splitlines()[-1].startswith("next: python -m benchmark.federated_main --tfrecords_dir=")
    assert f"--also_spent={path}" in done.stdout
    (spent,) = read_spending([str(path)], 32)
    assert spent.noise_multiplier == found["noise_multiplier"]


def test_noise_is_fresh_and_a_result_is_not_replaced_by_accident(released, tfrecords, tmp_path):
    path = tmp_path / "again.json"
    flags = f"--tfrecords_dir={tfrecords}", f"--output_file={path}", "--epsilon=4", "--delta=1e-4"
    _run(*flags)
    first = _answers(path)
    assert "exists; another release spends epsilon once more" in _refused(*flags)
    assert _answers(path) == first
    _run(*flags, "--overwrite")
    for name in ("labels", "photos"):
        assert _answers(path)[name]["noise_stddev"] == first[name]["noise_stddev"]
    values = [
        [row["users"] for row in one["labels"]["labels"]] for one in (first, _answers(path), _answers(released[0]))
    ]
    assert values[0] != values[1] != values[2] != values[0]


def test_fewer_questions_have_less_noise(released, tfrecords, tmp_path):
    path = tmp_path / "photos.json"
    flags = "--epsilon=4", "--delta=1e-4", "--questions=photos", "--max_photos=100", "--quantiles=0.5"
    _run(f"--tfrecords_dir={tfrecords}", f"--output_file={path}", *flags)
    found = _answers(path)
    assert list(found) == ["photos"] and len(found["photos"]["quantiles"]) == 1
    assert found["photos"]["max_photos"] == 100
    assert found["photos"]["noise_stddev"] == pytest.approx(_answers(released[0])["photos"]["noise_stddev"] / 3**0.5)


@pytest.mark.parametrize(
    ("flags", "code", "message"),
    [
        ([], 1, "--epsilon: is missing; expected a number"),
        (["--epsilon=0"], 2, "--epsilon=0: expected a number of at least 0.01"),
        (["--epsilon=-1"], 2, "--epsilon=-1: expected a number of at least 0.01"),
        (["--epsilon=nan"], 2, "--epsilon=nan: expected a number of at least 0.01"),
        (["--epsilon=1", "--delta=1"], 2, "--delta=1: expected a number above 0 and below 1"),
        (
            ["--epsilon=1", "--questions=labels,colors"],
            1,
            "'colors' is none; expected some of labels,fine_labels,photos",
        ),
        (["--epsilon=1", "--questions=photos,photos"], 1, "asks twice"),
        (["--epsilon=1", "--questions=photos", "--max_labels=3"], 1, "--max_labels=3 has no effect without labels"),
        (["--epsilon=1", "--questions=labels", "--quantiles=0.5"], 1, "--quantiles=0.5 has no effect without photos"),
        (["--epsilon=1", "--quantiles=0.5,nan"], 1, "expected numbers above 0 and below 1"),
        (["--epsilon=1", "--quantiles=half"], 1, "expected numbers above 0 and below 1"),
        (["--epsilon=1", "--max_photos=1"], 2, "--max_photos"),
        (["--epsilon=1", "--tfrecords_dir=missing"], 1, "missing"),
    ],
)
def test_what_cannot_be_meant_is_refused_in_one_line(tfrecords, tmp_path, flags, code, message):
    place = f"--output_file={tmp_path / 'result.json'}"
    assert message in _refused(f"--tfrecords_dir={tfrecords}", place, *flags, code=code)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_training_adds_up_what_was_spent_before_and_hands_it_on(released, tfrecords, tmp_path):
    path = tmp_path / "spent.json"
    path.write_bytes(released[0].read_bytes())
    small = f"--model={TINY}", "--image_height=32", "--image_width=32", "--clients_per_round=4", "--rounds_per_eval=2"
    flags = *small, f"--tfrecords_dir={tfrecords}", f"--save_model_dir={tmp_path}", f"--run_dir={tmp_path / 'run'}"
    flags = *flags, "--epsilon=8", "--total_rounds=2", f"--also_spent={path}"
    done = run("benchmark.federated_main", *flags)
    statement = json.loads((tmp_path / "run" / "privacy.json").read_text(encoding="utf-8"))
    plan = plan_of(num_users=32, cohort=4, total_rounds=2, epsilon=8.0)
    spent = read_spending([str(path)], 32)
    assert statement["epsilon"]["completed"]["pld"] == plan.epsilon_at(2, "pld") <= 8
    assert statement["total_epsilon"]["completed"]["pld"] == total_epsilon(plan, 2, spent, "pld") > 8
    assert statement["noise"]["noise_multiplier"] == plan.noise_multiplier
    assert "with what was spent on these users before (--also_spent): epsilon" in done.stdout
    assert "Together with what was spent" in " ".join((tmp_path / "run" / "privacy.txt").read_text().split())
    after = read_spending([str(tmp_path / "run" / "privacy.json")], 32)
    assert after[1:] == spent and after[0].compositions == 2
    (tmp_path / "run" / "summary.json").unlink()
    other = [release._replace(noise_multiplier=2 * release.noise_multiplier)._asdict() for release in spent]
    path.write_text(json.dumps({"users": 32, "spending": other}), encoding="utf-8")
    assert "the run was begun with other spending" in run("benchmark.federated_main", *flags, code=1).stderr
