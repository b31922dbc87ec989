"""The agreement of models as a score, and the test set that is made from it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.commands import run, run_program

AGREEMENT = "benchmark.agreement_main"
MAKE_MODELS = """
import sys
import tensorflow as tf
from benchmark.model import loading, networks
for seed, path in enumerate(sys.argv[1:]):
    tf.keras.utils.set_random_seed(seed)
    loading.save_model(networks.build_model("cnn", (32, 32, 3), 17), path)
"""


@pytest.mark.long
def test_a_top_set_has_the_photos_that_models_agree_on(miniature: Path, tfrecords: Path, tmp_path: Path) -> None:
    a, b = tmp_path / "a.h5", tmp_path / "b.h5"
    columns = tfrecords / "label_index.json"
    num_labels = len(json.loads(columns.read_text())["labels"])
    run_program(MAKE_MODELS.replace("17", str(num_labels)), a, b)
    scores = {}
    for name, models in (("a", f"{a}"), ("b", f"{b}"), ("both", f"{a},{b}")):
        place = tmp_path / f"{name}.json"
        run(AGREEMENT, f"--tfrecords_dir={tfrecords}", f"--models={models}", f"--output_file={place}")
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
    places = (f"--dataset_dir={miniature}", f"--testsets_dir={tmp_path / 'sets'}", f"--scores={tmp_path / 'both.json'}")
    drawn = run("flair.sample_testset", "top", *places, "--name=f")
    assert "both.json: the set favours models that made these scores" in drawn.stdout
    testset = json.loads((tmp_path / "sets" / "f-0.json").read_text())
    assert testset["image_ids"] and testset["parameters"]["scores"]["file"] == "both.json"
    flags = ("--use_fine_grained_labels", f"--output_file={tmp_path / 'w.json'}")
    wrong = run(AGREEMENT, f"--models={a}", f"--tfrecords_dir={tfrecords}", *flags, code=1)
    assert f"has {num_labels} outputs" in wrong.stderr
    assert not (tmp_path / "w.json").exists()
