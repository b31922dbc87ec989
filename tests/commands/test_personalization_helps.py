"""Adaptation helps where users have a style of their own, and not where there is nothing to learn."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from flair.miniature.files import write_metadata, write_photos
from flair.miniature.photos import Painter
from flair.miniature.population import make_users
from flair.miniature.taxonomy import make_taxonomy, relationship_text
from flair.records.tfrecord import example
from flair.records.tfrecord.frames import frame, read_payloads
from flair.records.tfrecord.writer import write_tfrecords
from tests.support.commands import run

TRAIN_USERS, VAL_USERS, TEST_USERS, PHOTOS = 72, 2, 36, 36


def _make_users_with_a_dialect(folder):
    """Users of one and the same taste, each of whom shows some labels by the motifs of others."""
    taxonomy = make_taxonomy(60)
    users = make_users(np.full(TRAIN_USERS + VAL_USERS + TEST_USERS, PHOTOS), taxonomy, 0, taste_concentration=1e6)
    partitions = ["train"] * TRAIN_USERS + ["val"] * VAL_USERS + ["test"] * TEST_USERS
    records = [
        record._replace(partition=partition)
        for user, partition in zip(users, partitions, strict=True)
        for record in user.records
    ]
    dataset = folder / "dataset"
    dataset.mkdir()
    (dataset / "label_relationship.txt").write_text(relationship_text(taxonomy), encoding="utf-8")
    write_photos(dataset, records, Painter(taxonomy, 0, dialect=0.5), None, 2)
    write_metadata(dataset / "labels_and_metadata.json", records)
    write_tfrecords(dataset, folder / "tfrecords")
    return folder / "tfrecords"


def _shuffle_labels_within_users(folder, source):
    """In all partitions: a model that had seen true labels would be too sure of itself, and could unlearn that."""
    shutil.copytree(source, folder, symlinks=True)
    rng = np.random.default_rng(1)
    for path in sorted(path for name in ("train", "dev", "test") for path in (folder / name).glob("*.tfrecords")):
        photos = [example.decode(payload) for payload in read_payloads(path)]
        donors = [photos[index] for index in rng.permutation(len(photos))]
        mixed = [photo._replace(labels=donor.labels) for photo, donor in zip(photos, donors, strict=True)]
        path.write_bytes(b"".join(frame(example.encode(photo)) for photo in mixed))
    return folder


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_a_style_can_be_learned_and_shuffled_labels_cannot(tmp_path):
    records = _make_users_with_a_dialect(tmp_path)
    shuffled = _shuffle_labels_within_users(tmp_path / "shuffled", records)
    found = {}
    # What shuffled labels can teach, their frequencies, is learned in a few epochs.
    for name, folder, epochs in (("style", records, 16), ("noise", shuffled, 5)):
        run(
            *("benchmark.central_main", f"--tfrecords_dir={folder}", "--model=cnn", "--image_height=64"),
            *("--image_width=64", f"--num_epochs={epochs}", "--train_batch_size=32", "--learning_rate=0.002"),
            f"--save_model_dir={tmp_path / name}",
        )
        (model,) = (tmp_path / name).glob("*.h5")
        run_dir = tmp_path / f"{name}_run"
        run(
            *("benchmark.personalize_main", f"--tfrecords_dir={folder}", f"--model={model}", f"--run_dir={run_dir}"),
            *("--trainable=all", "--steps=20", "--learning_rate=0.05", "--num_support=26", "--num_query=10"),
            f"--num_episodes={2 * TEST_USERS}",
        )
        found[name] = json.loads((run_dir / "summary.json").read_text())
    style, noise = found["style"], found["noise"]
    assert style["users"]["used"] == noise["users"]["used"] == TEST_USERS
    for metric in ("loss", "micro_ap"):
        assert style[metric]["difference"]["low"] > 0, style[metric]
        assert style[metric]["share_improved"] > 0.6
        assert noise[metric]["difference"]["low"] <= 0, noise[metric]
