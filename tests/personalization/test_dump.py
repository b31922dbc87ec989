"""Dumped episodes: Meta-Dataset's decoder reads them, our reader gives back what was dumped, and damage is named."""

from __future__ import annotations

import collections
import json
import shutil

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st

from benchmark.personalization.dump import DumpedEpisodes, dump_episodes
from benchmark.personalization.sources import LabelEpisodeSource, UserEpisodeSource
from flair.errors import FlairError
from flair.records.tfrecord import example
from flair.records.tfrecord.frames import frame, read_payloads

COUNT = 8
# Quoted from google-research/meta-dataset at 1676095, meta_dataset/data/decoder.py, read_single_example:
META_DATASET_FEATURES = {
    "image": tf.io.FixedLenFeature([], dtype=tf.string),
    "label": tf.io.FixedLenFeature([], tf.int64),
}


@pytest.fixture(scope="module", params=["users", "labels"])
def dumped(request, records, miniature, tmp_path_factory):
    """A source of episodes, and the folder of its first ones."""
    if request.param == "users":
        episodes = UserEpisodeSource(records, "train", seed=3)
    else:
        fixed = {"ways": 3, "shots": 1, "num_query": 1}
        episodes = LabelEpisodeSource(records, "train", seed=3, label_set="train", taxonomy=str(miniature), **fixed)
    folder = tmp_path_factory.mktemp("dump") / "episodes"
    dump_episodes(folder, COUNT, episodes)
    return episodes, folder


def test_meta_datasets_decoder_reads_every_photo(dumped):
    episodes, folder = dumped
    # As its read_episodes.py does: by file names, counts by file name, keys of counts as whole numbers.
    files = sorted(path.name for path in folder.iterdir())
    for side in ("train", "test"):
        assert [f for f in files if f.endswith(f"{side}.tfrecords")] == [
            f"episode-{number:04d}-{side}.tfrecords" for number in range(COUNT)
        ]
    all_counts = json.loads((folder / "images_per_class.json").read_text())
    for number in range(COUNT):
        one = episodes.serialized(number)
        for side, photos, classes in (
            ("train", one.support, one.support_class),
            ("test", one.query, one.query_class),
        ):
            name = f"episode-{number:04d}-{side}.tfrecords"
            records = tf.data.TFRecordDataset(str(folder / name))
            parsed = [tf.io.parse_single_example(record, META_DATASET_FEATURES) for record in records]
            labels = [int(photo["label"]) for photo in parsed]
            assert labels == (list(classes) or [-1] * len(photos))
            assert {int(key): count for key, count in all_counts[name].items()} == collections.Counter(labels)
            for photo, stored in zip(parsed, photos, strict=True):
                assert photo["image"].numpy() == example.decode(stored).image
                assert tf.image.decode_image(photo["image"], channels=3).shape == (256, 256, 3)


def test_our_reader_gives_back_what_was_dumped(dumped):
    episodes, folder = dumped
    found = DumpedEpisodes(folder)
    assert found.num_episodes == COUNT
    assert (found.labels, found.fine_grained_labels) == (episodes.labels, episodes.fine_grained_labels)
    for number in range(COUNT):
        assert found.serialized(number) == episodes.serialized(number)
    with pytest.raises(FlairError, match=f"has no episode {COUNT}, but 0 to {COUNT - 1}"):
        found.serialized(COUNT)


def test_a_dump_that_was_stopped_goes_on_and_no_other_is_mixed_in(dumped, tmp_path):
    episodes, folder = dumped
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    (copy / "episodes.json").unlink()
    (copy / "episode-0002-train.tfrecords").unlink()
    with pytest.raises(FlairError, match=r"holds no complete dump of episodes, episodes\.json is missing"):
        DumpedEpisodes(copy)
    dump_episodes(copy, COUNT, episodes)
    assert {path.name: path.read_bytes() for path in copy.iterdir()} == {
        path.name: path.read_bytes() for path in folder.iterdir()
    }
    with pytest.raises(FlairError, match="holds episodes of other settings"):
        dump_episodes(copy, COUNT + 1, episodes)


def _swap(folder):
    one, other = (folder / f"episode-000{number}-train.tfrecords" for number in (0, 1))
    one.write_bytes(other.read_bytes())


def _other_class(folder):
    path = folder / "episode-0000-train.tfrecords"
    photos = [example.decode_in_episode(payload)[0] for payload in read_payloads(path)]
    path.write_bytes(b"".join(frame(example.encode_in_episode(photo, 50)) for photo in photos))


def _flip(folder):
    path = folder / "episode-0000-train.tfrecords"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def _prepared(folder):
    path = folder / "episode-0000-train.tfrecords"
    photos = [example.decode_in_episode(payload)[0] for payload in read_payloads(path)]
    path.write_bytes(b"".join(frame(example.encode(photo)) for photo in photos))


def _rewrite(name, change):
    def damage(folder):
        value = json.loads((folder / name).read_text())
        change(value)
        (folder / name).write_text(json.dumps(value))

    return damage


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_swap, r"episode-0000-train\.tfrecords: does not hold the photos that episodes\.json lists"),
        (_other_class, r"episode-0000-train\.tfrecords: does not hold the photos"),
        (_flip, r"episode-0000-train\.tfrecords: damaged record"),
        (_prepared, r"episode-0000-train\.tfrecords: the record is no FLAIR photo: feature '(label|image)' is missing"),
        (lambda folder: (folder / "episode-0000-train.tfrecords").unlink(), r"train\.tfrecords: is missing"),
        (lambda folder: (folder / "label_index.json").unlink(), r"label_index\.json is missing"),
        (lambda folder: (folder / "episodes.json").write_text("["), r"episodes\.json: is not JSON"),
        (
            _rewrite("label_index.json", lambda value: value["labels"].update({next(iter(value["labels"])): -5})),
            r"label_index\.json: its columns are not 0, 1, 2, \.\.\.; dump the episodes again",
        ),
        (
            _rewrite("label_index.json", lambda value: value["labels"].clear()),
            r"train\.tfrecords has a label column outside 0 to -1",
        ),
        (
            _rewrite("episodes.json", lambda value: value.update(episodes=[3])),
            r"episodes\[0\]: expected dict, found int",
        ),
        (
            _rewrite("episodes.json", lambda value: value["episodes"][0].update(classes=["no such label"])),
            r"episodes\.json: episode 0 has other classes than label_index\.json",
        ),
    ],
)
def test_damage_is_named_in_one_line(dumped, tmp_path, damage, message):
    folder = tmp_path / "episodes"
    shutil.copytree(dumped[1], folder)
    damage(folder)
    with pytest.raises(FlairError, match=message) as refused:
        DumpedEpisodes(folder).serialized(0)
    assert "\n" not in str(refused.value)


columns = st.lists(st.integers(0, 2**31), min_size=1, max_size=5).map(tuple)
ids = st.none() | st.text("0123456789@N", min_size=1, max_size=9)
photos = st.builds(example.Example, st.binary(max_size=50), columns, columns, ids, ids)


@given(photos, st.integers(-1, 50))
def test_every_photo_and_class_comes_back(photo, label):
    payload = example.encode_in_episode(photo, label)
    assert example.decode_in_episode(payload) == (photo, label)
    parsed = tf.io.parse_single_example(payload, META_DATASET_FEATURES)
    assert (parsed["image"].numpy(), int(parsed["label"])) == (photo.image, label)


@given(st.binary(max_size=200))
def test_bytes_of_others_are_refused_not_a_crash(payload):
    with pytest.raises(example.MalformedExample):
        example.decode_in_episode(payload)


def test_raw_pixels_are_refused(dumped, tmp_path, monkeypatch):
    episodes, _ = dumped
    monkeypatch.setattr(episodes, "image_format", "raw")
    with pytest.raises(FlairError, match="holds pixels, not JPEGs"):
        dump_episodes(tmp_path / "episodes", 1, episodes)
    assert not np.any(list(tmp_path.iterdir()))
