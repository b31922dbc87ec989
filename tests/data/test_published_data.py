"""The client data of `benchmark.flair_data` against the data set that the records were made of."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from benchmark import flair_data
from flair.errors import FlairError
from flair.records.tfrecord import example, frames
from flair.records.tfrecord.writer import write_tfrecords
from tests.support.published_records import write_published_records

SHAPE = (256, 256, 3)


def _columns(folder: Path, use_fine_grained_labels: bool = False) -> dict[str, int]:
    return flair_data.load_label_to_index(str(folder / "label_to_index.json"), use_fine_grained_labels)


@pytest.fixture(scope="module")
def published(miniature: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The miniature as ml-flair's own script writes it."""
    folder = tmp_path_factory.mktemp("published") / "records"
    write_published_records(miniature, folder)
    return folder


@pytest.mark.parametrize("writer", ["tfrecords", "published"])
@pytest.mark.parametrize("kind", ["labels", "fine_grained_labels"])
def test_every_user_has_their_photos_and_labels(miniature, writer, kind, request):
    folder = request.getfixturevalue(writer)
    metadata = json.loads((miniature / "labels_and_metadata.json").read_text())
    columns = _columns(folder, kind != "labels")
    assert columns == {name: i for i, name in enumerate(sorted({n for record in metadata for n in record[kind]}))}
    data = flair_data.load_tfrecords_data(str(folder), SHAPE, len(columns), kind != "labels")
    for partition, clients in zip(("train", "val", "test"), data, strict=True):
        of_partition = [record for record in metadata if record["partition"] == partition]
        assert clients.client_ids == sorted({record["user_id"] for record in of_partition})
        assert clients.element_type_structure == (tf.TensorSpec(SHAPE, tf.uint8), tf.TensorSpec(len(columns), tf.int32))
        for user_id in clients.client_ids[:3]:
            records = [record for record in of_partition if record["user_id"] == user_id]
            photos = list(clients.create_tf_dataset_for_client(user_id))
            for record, (image, labels) in zip(records, photos, strict=True):
                jpeg = (miniature / "small_images" / f"{record['image_id']}.jpg").read_bytes()
                np.testing.assert_array_equal(image, tf.io.decode_jpeg(jpeg))
                assert {name for name, column in columns.items() if labels[column]} == set(record[kind])
                assert set(labels.numpy()) <= {0, 1}


def test_a_partition_is_one_dataset_of_all_photos_in_tensorflow_operations(miniature, tfrecords):
    metadata = json.loads((miniature / "labels_and_metadata.json").read_text())
    columns = _columns(tfrecords)
    name = max(columns, key=lambda label: sum(label in record["labels"] for record in metadata))
    _, val, _ = flair_data.load_tfrecords_data(
        str(tfrecords), image_shape=SHAPE, num_labels=len(columns), use_fine_grained_labels=False,
        binary_label_index=columns[name],
    )  # fmt: skip
    dataset = val.create_tf_dataset_from_all_clients()
    assert dataset.element_spec == (tf.TensorSpec(SHAPE, tf.uint8), tf.TensorSpec((), tf.int32))
    expected = [name in record["labels"] for record in metadata if record["partition"] == "val"]
    assert sorted(int(label) for _, label in dataset) == sorted(expected)


def _one_photo(folder: Path, labels: tuple[int, ...] = (1,), mode: str = "RGB") -> str:
    buffer = io.BytesIO()
    Image.effect_noise(SHAPE[:2], 60).convert(mode).save(buffer, "JPEG")
    path = folder / "one.tfrecords"
    path.write_bytes(frames.frame(example.encode(example.Example(buffer.getvalue(), labels, (0,)))))
    return str(path)


def test_a_gray_photo_becomes_rgb(tmp_path):
    ((image, labels),) = flair_data.load_tfrecords(_one_photo(tmp_path, mode="L"), SHAPE, 3, False, None)
    assert (image[..., 0] == image[..., 2]).numpy().all()
    assert labels.numpy().tolist() == [0, 1, 0]


def test_a_label_that_is_not_in_the_label_file_is_an_error(tmp_path):
    with pytest.raises(tf.errors.InvalidArgumentError, match="does not index into shape"):
        list(flair_data.load_tfrecords(_one_photo(tmp_path, labels=(3,)), SHAPE, 3, False, None))


def test_what_is_no_folder_of_a_file_a_user_is_refused_in_one_line(miniature, tmp_path):
    write_tfrecords(miniature, tmp_path / "sharded", layout="sharded", num_workers=1)
    with pytest.raises(FlairError, match=r"sharded: has files of many users, .* --layout=per_user"):
        flair_data.load_tfrecords_data(str(tmp_path / "sharded"), SHAPE, 15, False)
    with pytest.raises(FlairError, match="no such directory"):
        flair_data.load_tfrecords_data(str(tmp_path / "none"), SHAPE, 15, False)
    for partition in ("train", "val", "test"):
        (tmp_path / "empty" / partition).mkdir(parents=True)
    with pytest.raises(FlairError, match="partition 'train' is empty"):
        flair_data.load_tfrecords_data(str(tmp_path / "empty"), SHAPE, 15, False)


@pytest.mark.parametrize("content", ["", "[]", '{"labels": 3}', '{"labels": {"a": 0}, "labels": {}}'])
def test_a_file_without_labels_is_refused_in_one_line(tmp_path, content):
    path = tmp_path / "label_to_index.json"
    path.write_text(content)
    with pytest.raises(FlairError, match=r"label_to_index\.json: lists no fine_grained_labels"):
        flair_data.load_label_to_index(str(path), True)
    with pytest.raises(FileNotFoundError):
        flair_data.load_label_to_index(str(tmp_path / "none.json"), True)
