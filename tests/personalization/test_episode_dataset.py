"""Episodes as a tf.data.Dataset: equal from records and from a dump, a function of the number, and never too early."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from benchmark.data.opening import open_records
from benchmark.personalization.dataset import episode_dataset
from benchmark.personalization.dump import DumpedEpisodes, dump_episodes
from benchmark.personalization.sources import LabelEpisodeSource, UserEpisodeSource
from flair.errors import FlairError
from flair.records.hdf5.writer import write_hdf5
from flair.records.tfrecord import example

SIZE = (32, 48)


@pytest.fixture(scope="module", params=["users", "labels"])
def episodes(request, records, miniature):
    if request.param == "users":
        return UserEpisodeSource(records, "train", seed=2)
    fixed = {"ways": 3, "shots": 1, "num_query": 1}
    return LabelEpisodeSource(records, "train", seed=2, label_set="train", taxonomy=str(miniature), **fixed)


def _equal(one, other):
    for name, first, second in zip(one._fields, one, other, strict=True):
        np.testing.assert_array_equal(first, second, name)


def test_photos_labels_and_ids_are_those_of_the_records(episodes):
    for number, one in enumerate(episode_dataset(episodes, SIZE).take(3)):
        stored = episodes.serialized(number)
        sides = (
            (one[:3], stored.support, stored.support_class),
            (one[3:], stored.query, stored.query_class),
        )
        for (photos, labels, ids), serialized, classes in sides:
            expected = [example.decode(photo) for photo in serialized]
            assert photos.shape == (len(expected), *SIZE, 3) and photos.dtype == tf.float32
            pixels = tf.keras.utils.img_to_array(tf.io.decode_jpeg(expected[0].image))
            # Keras's own: whole, the largest window of the aspect ratio.
            resized = tf.keras.preprocessing.image.smart_resize(pixels, SIZE)
            np.testing.assert_allclose(photos[0], resized, atol=1e-3)
            if episodes.has_classes:
                names = sorted(episodes.fine_grained_labels, key=episodes.fine_grained_labels.get)
                assert labels.numpy().tolist() == list(classes)
                assert [names[column] for column in ids.numpy()] == [stored.classes[place] for place in classes]
                assert all(
                    column in photo.fine_grained_labels for column, photo in zip(ids.numpy(), expected, strict=True)
                )
            else:
                assert [set(np.flatnonzero(row)) for row in labels.numpy()] == [set(p.labels) for p in expected]
                assert [one.decode() for one in ids.numpy()] == [photo.image_id for photo in expected]


def test_episode_n_is_the_same_wherever_one_begins_and_none_before_it_is_computed(episodes, monkeypatch):
    from_start = list(episode_dataset(episodes, SIZE).take(5))
    asked = []
    serialized = episodes.serialized
    monkeypatch.setattr(episodes, "serialized", lambda number: asked.append(number) or serialized(number))
    later = list(episode_dataset(episodes, SIZE, first=3).take(2))
    assert min(asked) == 3
    for one, other in zip(from_start[3:], later, strict=True):
        _equal(one, other)
    far = next(iter(episode_dataset(episodes, SIZE, first=10**9)))
    assert far.support_photos.shape[0] >= 1


def test_without_an_end_from_records_and_with_one_from_a_dump(episodes, tmp_path):
    dump_episodes(tmp_path / "dump", 4, episodes)
    found = list(episode_dataset(DumpedEpisodes(tmp_path / "dump"), SIZE))
    assert len(found) == 4
    for one, other in zip(found, episode_dataset(episodes, SIZE), strict=False):
        _equal(one, other)
    assert [one.query_ids.shape for one in episode_dataset(DumpedEpisodes(tmp_path / "dump"), SIZE, first=3)] == [
        found[3].query_ids.shape
    ]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (
            lambda records: UserEpisodeSource(records, "train", split="newest"),
            "split='newest': expected one of random, ",
        ),
        (lambda records: UserEpisodeSource(records, "train", split="duplicate_aware"), "and a file belong together"),
        (
            lambda records: LabelEpisodeSource(records, "train", label_set="dev"),
            "label_set='dev': expected one of train, ",
        ),
        (lambda records: LabelEpisodeSource(records, "train", ways=400), "no coarse label has 400 fine-grained ones"),
        (
            lambda records: episode_dataset(UserEpisodeSource(records, "train"), first=-1),
            "first=-1: episodes are numbered",
        ),
    ],
)
def test_what_cannot_be_meant_is_one_line(records, wrong, message):
    with pytest.raises(FlairError, match=message):
        wrong(records)


def test_users_have_fine_grained_labels_on_request(records):
    users = UserEpisodeSource(records, "train", num_support=2, num_query=2)
    one = next(iter(episode_dataset(users, SIZE, use_fine_grained_labels=True)))
    assert one.support_labels.shape == (2, len(records.fine_grained_labels))
    expected = [set(example.decode(photo).fine_grained_labels) for photo in users.serialized(0).support]
    assert [set(np.flatnonzero(row)) for row in one.support_labels.numpy()] == expected


def test_an_hdf5_file_of_pixels_has_the_same_episodes(records, miniature, tmp_path):
    write_hdf5(miniature, tmp_path / "flair.h5", num_workers=1)
    found, expected = (
        next(iter(episode_dataset(UserEpisodeSource(source, "val", num_support=1, num_query=2), SIZE)))
        for source in (open_records(tmp_path / "flair.h5"), records)
    )
    for name in ("support_labels", "support_ids", "query_labels", "query_ids"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
    # Two JPEG decoders differ by a few grey levels.
    np.testing.assert_allclose(found.query_photos, expected.query_photos, atol=8)
