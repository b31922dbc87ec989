"""The agreement of models as a score, and the test set that is made from it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.commands import ROOT

MAKE_MODELS = """
import sys
import tensorflow as tf
from benchmark import flair_model
for seed, path in enumerate(sys.argv[1:]):
    tf.keras.utils.set_random_seed(seed)
    flair_model.save_weights(flair_model.build_model("cnn", (32, 32, 3), 17), path)
"""


def run(*words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *map(str, words)], cwd=ROOT, capture_output=True, text=True, timeout=280)


@pytest.mark.long
def test_a_top_set_has_the_photos_that_models_agree_on(miniature: Path, tmp_path: Path) -> None:
    records, a, b = tmp_path / "records", tmp_path / "a.h5", tmp_path / "b.h5"
    columns = tmp_path / "records" / "label_index.json"
    prepared = run(
        "prepare_tfrecords.py", f"--dataset_dir={miniature}", f"--tfrecords_dir={records}", "--num_workers=1"
    )
    assert prepared.returncode == 0, prepared.stderr
    num_labels = len(json.loads(columns.read_text())["labels"])
    assert run("-c", MAKE_MODELS.replace("17", str(num_labels)), a, b).returncode == 0
    scores = {}
    for name, models in (("a", f"{a}"), ("b", f"{b}"), ("both", f"{a},{b}")):
        place = tmp_path / f"{name}.json"
        result = run(
            "-m",
            "benchmark.agreement_main",
            f"--tfrecords_dir={records}",
            f"--models={models}",
            f"--output_file={place}",
        )
        assert result.returncode == 0, result.stderr
        scores[name] = json.loads(place.read_text())
    photos = {
        item["image_id"]: item["labels"]
        for item in json.loads((miniature / "labels_and_metadata.json").read_text())
        if item["partition"] == "test"
    }
    assert {image_id: sorted(found) for image_id, found in scores["both"].items()} == {
        image_id: sorted(labels) for image_id, labels in photos.items()
    }
    for image_id, labels in photos.items():
        for label in labels:
            mean = (scores["a"][image_id][label] + scores["b"][image_id][label]) / 2
            assert scores["both"][image_id][label] == pytest.approx(mean, abs=1e-6)
    sample = ["-m", "flair.sample_testset", "top", f"--dataset_dir={miniature}", f"--output_dir={tmp_path / 'sets'}"]
    drawn = run(*sample, "--name=f", f"--scores={tmp_path / 'both.json'}")
    assert drawn.returncode == 0, drawn.stderr
    assert "both.json: the set favours models that made these scores" in drawn.stdout
    testset = json.loads((tmp_path / "sets" / "f-0.json").read_text())
    assert testset["image_ids"] and testset["parameters"]["scores"]["file"] == "both.json"
    wrong = run(
        *("-m", "benchmark.agreement_main", f"--models={a}", f"--tfrecords_dir={records}"),
        *("--use_fine_grained_labels", f"--output_file={tmp_path / 'w.json'}"),
    )
    assert wrong.returncode == 1 and f"has {num_labels} outputs" in wrong.stderr
    assert not (tmp_path / "w.json").exists()
