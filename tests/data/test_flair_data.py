"""Input pipelines: which photos, in which order, with which pixels and labels."""

from __future__ import annotations

import io
import shutil

import numpy as np
import pytest
import tensorflow as tf
from keras.layers import RandomCrop
from PIL import Image

from benchmark.data import augmentation
from benchmark.data.opening import make_task, open_records
from benchmark.data.pipeline import EvaluationData, TrainingData, evaluation_dataset
from flair.errors import FlairError
from flair.records.tfrecord import example, frames

SIZE = (32, 32)


def _fingerprints(batches):
    """One number a photo, so that photos can be compared as sets and sequences."""
    return [float(tf.reduce_sum(tf.cast(image, tf.float64) * 0.1)) for images, _ in batches for image in images]


def _labels(batches):
    return np.concatenate([labels.numpy() for _, labels in batches])


def _expected_labels(records, task, partition):
    rows = records.read_photos(partition, range(records.num_photos(partition)))
    truth = np.zeros((len(rows), task.num_columns), np.float32)
    for row, payload in zip(truth, rows, strict=True):
        row[list(example.decode(payload).labels)] = 1
    return truth


def test_an_epoch_shows_every_photo_once(records, task):
    data = TrainingData(records, "train", task, 16, SIZE, seed=0)
    batches = list(data.batches(0))
    assert [len(labels) for _, labels in batches[:-1]] == [16] * (data.steps_per_epoch - 1)
    assert sum(len(labels) for _, labels in batches) == data.num_photos == records.num_photos("train")
    images, labels = batches[0]
    assert images.dtype == tf.uint8
    assert images.shape[1:] == (*SIZE, 3)
    assert labels.dtype == tf.float32
    np.testing.assert_array_equal(
        np.sort(_labels(batches), axis=0), np.sort(_expected_labels(records, task, "train"), axis=0)
    )


def test_equal_seeds_repeat_and_epochs_differ(records, task):
    one, same = (TrainingData(records, "train", task, 16, SIZE, seed=4) for _ in range(2))
    first = _fingerprints(one.batches(0))
    assert first == _fingerprints(same.batches(0)) == _fingerprints(one.batches(0))
    assert first != _fingerprints(one.batches(1))
    assert first != _fingerprints(TrainingData(records, "train", task, 16, SIZE, seed=5).batches(0))
    larger = TrainingData(records, "train", task, 32, SIZE, seed=4)
    assert first == _fingerprints(larger.batches(0))


def test_an_epoch_can_start_at_any_step(records, task):
    data = TrainingData(records, "train", task, 16, SIZE, seed=0)
    assert _fingerprints(data.batches(2, start_step=3)) == _fingerprints(data.batches(2))[48:]
    assert list(data.batches(2, start_step=data.steps_per_epoch)) == []


@pytest.mark.parametrize("num_replicas", [2, 4])
def test_replicas_share_each_batch_even_when_the_last_is_uneven(records, task, num_replicas):
    whole = TrainingData(records, "train", task, 16, SIZE, seed=0)
    shared = TrainingData(records, "train", task, 16, SIZE, 0, range(num_replicas), num_replicas)
    steps = list(whole.batches(1))
    parts = list(shared.batches(1))
    assert len(parts) == num_replicas * len(steps)
    for step, batch in enumerate(steps):
        mine = [_without_filler(part) for part in parts[step * num_replicas : (step + 1) * num_replicas]]
        assert sorted(_fingerprints(mine)) == sorted(_fingerprints([batch]))
    alone = TrainingData(records, "train", task, 16, SIZE, 0, [1], num_replicas)
    assert _fingerprints(alone.batches(1)) == _fingerprints(parts[1::num_replicas])


def _without_filler(batch):
    images, labels = batch
    return images[labels[:, 0] >= 0], labels[labels[:, 0] >= 0]


def test_batches_that_do_not_divide_among_devices_are_refused(records, task):
    with pytest.raises(FlairError, match="--train_batch_size=15: must be a multiple of the 2 devices"):
        TrainingData(records, "train", task, 15, SIZE, 0, [0, 1], 2)


def test_evaluation_keeps_the_order_of_the_index(records, task):
    data = evaluation_dataset(records, "val", task, SIZE, 7)
    np.testing.assert_array_equal(_labels(data), _expected_labels(records, task, "val"))
    assert _fingerprints(data) == _fingerprints(evaluation_dataset(records, "val", task, SIZE, 3))
    some = EvaluationData(records, "val", task, SIZE, 4, [1, 4])
    assert some.num_photos == 2
    np.testing.assert_array_equal(_labels(some), _expected_labels(records, task, "val")[[1, 4]])
    halves = [evaluation_dataset(records, "val", task, SIZE, 4, replica=r, num_replicas=2) for r in (0, 1)]
    assert sum(half.num_photos for half in halves) == data.num_photos
    with pytest.raises(FlairError, match="has no user 'nobody'"):
        records.read_user("val", "nobody")


def _jpeg(height=256, width=256, seed=0, mode="RGB"):
    noise = np.random.default_rng(seed).integers(0, 256, (height // 8, width // 8, 3)).astype(np.uint8)
    image = Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC).convert(mode)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def test_evaluation_pixels_are_those_of_keras_random_crop_at_inference():
    jpeg = _jpeg()
    pixels = tf.io.decode_jpeg(jpeg)
    for size in ((224, 224), (96, 160), (64, 64)):
        expected = RandomCrop(*size)(pixels[tf.newaxis], training=False)[0]
        np.testing.assert_allclose(augmentation.decode_evaluation(jpeg, size), expected, atol=1e-3)


def test_training_pixels_are_a_window_of_the_photo_flipped():
    jpeg = _jpeg()
    pixels = tf.io.decode_jpeg(jpeg).numpy().astype(int)
    windows, flips = set(), set()
    for index in range(24):
        image = augmentation.decode_training(jpeg, tf.constant([3, index], tf.int64), (224, 224)).numpy()
        errors = {
            (top, left, down, right): np.abs(image[::down, ::right][8:-8:19, 8:-8:19] - whole).max()
            for top in range(33)
            for left in range(33)
            for whole in [pixels[top + 8 : top + 216 : 19, left + 8 : left + 216 : 19]]
            for down in (1, -1)
            for right in (1, -1)
        }
        top, left, down, right = min(errors, key=errors.__getitem__)
        # At a window's border the decoder interpolates chroma a little differently, inside not at all.
        assert np.array_equal(image[::down, ::right][2:-2, 2:-2], pixels[top + 2 : top + 222, left + 2 : left + 222])
        windows.add((top, left))
        flips.add((down, right))
    assert len(windows) > 20
    assert len(flips) == 4
    assert min(top for top, _ in windows) < 8
    assert max(top for top, _ in windows) > 24


@pytest.mark.parametrize(("height", "width", "mode"), [(100, 300, "RGB"), (40, 33, "RGB"), (256, 256, "L")])
def test_photos_of_other_sizes_and_gray_ones_are_scaled(height, width, mode):
    jpeg = _jpeg(height, width, mode=mode)
    for index in range(5):
        image = augmentation.decode_training(jpeg, tf.constant([0, index], tf.int64), (48, 64))
        assert image.shape == (48, 64, 3)
        assert image.dtype == tf.uint8
    assert augmentation.decode_evaluation(jpeg, (48, 64)).shape == (48, 64, 3)


def test_a_client_batch_equals_photos_decoded_one_by_one(records, task):
    serialized = records.read_user("train", records.users("train")[0]) * 3
    seeds = tf.constant([[9, index] for index in range(len(serialized))], tf.int64)
    compiled = tf.function(lambda s, k: augmentation.decode_batch(s, k, task, (224, 224), True))
    images, labels = compiled(tf.constant(serialized), seeds)
    for payload, seed, image, row in zip(serialized, seeds, images, labels, strict=True):
        jpeg, truth = augmentation.parse(payload, task)
        np.testing.assert_array_equal(image, augmentation.decode_training(jpeg, seed, (224, 224)))
        np.testing.assert_array_equal(row, truth)


@pytest.mark.parametrize(
    "names", [("image/encoded_jpeg", "labels", "fine_grained_labels"), ("image", "label", "fine_grained_label")]
)
def test_feature_names_of_ml_flair_and_of_tff_are_parsed(records, names):
    jpeg = _jpeg()
    features = {
        names[0]: tf.train.Feature(bytes_list=tf.train.BytesList(value=[jpeg])),
        names[1]: tf.train.Feature(int64_list=tf.train.Int64List(value=[2, 0, 2])),
        names[2]: tf.train.Feature(int64_list=tf.train.Int64List(value=[5])),
    }
    payload = tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString()
    found, labels = augmentation.parse(payload, make_task(records, False, None))
    assert found.numpy() == jpeg
    assert np.flatnonzero(labels).tolist() == [0, 2]
    assert labels.numpy().max() == 1
    assert np.flatnonzero(augmentation.parse(payload, make_task(records, True, None))[1]).tolist() == [5]
    for column, expected in ((2, 1.0), (1, 0.0)):
        binary = make_task(records, False, sorted(records.labels)[column])
        assert augmentation.parse(payload, binary)[1].numpy().tolist() == [expected]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda photo: photo._replace(image=photo.image[:60]), r"image .* is no photo that can be decoded"),
        (lambda photo: photo._replace(image=b"text"), r"image .* is no photo that can be decoded"),
        (lambda photo: photo._replace(labels=(400,)), r"label column outside 0 to"),
    ],
)
def test_a_bad_photo_is_named(tfrecords, tmp_path, change, message):
    copy = shutil.copytree(tfrecords, tmp_path / "bad", symlinks=True)
    user = open_records(copy).users("train")[3]
    path = copy / "train" / f"{user}.tfrecords"
    photos = [example.decode(payload) for payload in frames.read_payloads(path)]
    photos[-1] = change(photos[-1])
    path.write_bytes(b"".join(frames.frame(example.encode(photo)) for photo in photos))
    records = open_records(copy)
    data = TrainingData(records, "train", make_task(records, False, None), 16, SIZE, seed=0)
    with pytest.raises(FlairError, match=f"{user}.*{message}"):
        list(data.batches(0))


def test_a_damaged_record_is_named(tfrecords, tmp_path):
    copy = shutil.copytree(tfrecords, tmp_path / "bad", symlinks=True)
    records = open_records(copy)
    user = records.users("train")[3]
    path = copy / "train" / f"{user}.tfrecords"
    data = bytearray(path.read_bytes())
    data[200] ^= 255
    path.write_bytes(data)
    with pytest.raises(FlairError, match=f"{user}.tfrecords: damaged record"):
        list(TrainingData(records, "train", make_task(records, False, None), 16, SIZE, seed=0).batches(0))
