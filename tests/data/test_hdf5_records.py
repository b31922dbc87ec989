"""HDF5 files as records: the same photos and labels as in TFRecords, whatever the format of the file."""

from __future__ import annotations

import h5py
import numpy as np
import pytest

from benchmark.data import augmentation
from benchmark.data.opening import make_task, open_records
from benchmark.data.pipeline import TrainingData, evaluation_dataset
from flair.errors import FlairError
from flair.records.hdf5.writer import write_hdf5
from flair.records.tfrecord import example

SIZE = (32, 32)


@pytest.fixture(scope="module")
def per_user(tfrecords):
    return open_records(tfrecords)


FORMATS = [("jpeg", True, "names"), ("raw", True, "indices"), ("jpeg", False, "names"), ("raw", False, "names")]


@pytest.fixture(scope="module", params=FORMATS, ids=str)
def records(request, miniature, tmp_path_factory):
    image_format, by_user, label_format = request.param
    path = tmp_path_factory.mktemp("hdf5") / "flair.hdf5"
    write_hdf5(miniature, path, image_format=image_format, by_user=by_user, label_format=label_format)
    return open_records(path)


def _facts(records, partition, user):
    photos = [example.decode(payload) for payload in records.read_user(partition, user)]
    return sorted((photo.image_id, set(photo.labels), set(photo.fine_grained_labels)) for photo in photos)


def test_users_photos_and_labels_are_those_of_the_tfrecords(records, per_user):
    assert (records.labels, records.fine_grained_labels) == (per_user.labels, per_user.fine_grained_labels)
    for partition in ("train", "val", "test"):
        assert records.users(partition) == per_user.users(partition)
        assert records.num_photos(partition) == per_user.num_photos(partition)
        for user in records.users(partition):
            assert _facts(records, partition, user) == _facts(per_user, partition, user)


def test_rows_are_the_photos_of_the_users(records):
    index = records.photo_index("train")
    rows = [9, 3, len(index.offset) - 1]
    for row, payload in zip(rows, records.read_photos("train", rows), strict=True):
        user = index.users[index.user[row]]
        assert payload == records.read_user("train", user)[index.offset[row]]


def _pixels(records, partition):
    photos = map(example.decode, records.read_photos(partition, range(records.num_photos(partition))))
    return {p.image_id: augmentation.decode(p.image, records.image_format).numpy().astype(int) for p in photos}


def test_pixels_are_those_of_the_tfrecords(records, per_user):
    found, wanted = _pixels(records, "val"), _pixels(per_user, "val")
    assert found.keys() == wanted.keys()
    for image_id in found:
        # Pillow decodes exactly, TensorFlow with the fast integer transform.
        assert np.abs(found[image_id] - wanted[image_id]).mean() < 3


def test_pipelines_read_every_photo(records):
    task = make_task(records, False, None)
    batches = list(TrainingData(records, "train", task, 16, (224, 224), seed=0).batches(0))
    assert sum(len(labels) for _, labels in batches) == records.num_photos("train")
    assert batches[0][0].shape == (16, 224, 224, 3)
    assert np.std(batches[0][0].numpy()) > 10
    evaluated = list(evaluation_dataset(records, "val", task, SIZE, 64))
    assert sum(len(labels) for _, labels in evaluated) == records.num_photos("val")


def test_damage_is_found(records, tmp_path):
    copy = tmp_path / "flair.hdf5"
    copy.write_bytes(records.root.read_bytes())
    with h5py.File(copy, "r+") as file:
        entry = next(iter(file["train"].values()))
        dataset = entry["images" if "images" in entry else "image"]
        row = 0 if "images" in entry else ()
        photo = np.array(dataset[row])
        photo.reshape(-1)[40] ^= 255
        dataset[row] = photo
    damaged = open_records(copy)
    with pytest.raises(FlairError, match="checksum of image"):
        damaged.read_photos("train", range(damaged.num_photos("train")))


def test_wrong_files_are_one_line(tmp_path):
    (tmp_path / "a.hdf5").write_text("text")
    with pytest.raises(FlairError, match=r"a\.hdf5: is not an HDF5 file"):
        open_records(tmp_path / "a.hdf5")
    with h5py.File(tmp_path / "b.hdf5", "w") as file:
        file.create_group("metadata")
    with pytest.raises(FlairError, match=r"has no /metadata/label_counter"):
        open_records(tmp_path / "b.hdf5")
