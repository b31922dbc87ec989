"""Every public function and class of ml-flair, by name, parameters and defaults, and what its scripts' functions do."""

from __future__ import annotations

import collections
import importlib
import inspect
import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import h5py
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

import download_dataset
import prepare_dataset
import prepare_tfrecords
from flair.errors import FlairError
from flair.records.tfrecord import example
from tests.support.commands import ROOT
from tests.support.tiny_flair import make_photos, make_tar_gz, tree

_OF_METRIC = (
    "num_labels, multi_label, num_thresholds=200, name=None, dtype=None, thresholds=None, label_weights=None, "
    "from_logits=False"
)
# As of its last commit, afb9203; written as inspect shows parameters without their types.
PUBLISHED = {
    "download_dataset": """
        extract_tar(compressed_path, dataset_dir, keep_archive_after_decompress)
        decompress_images(dataset_dir, keep_archive_after_decompress)
    """,
    "prepare_dataset": """
        load_user_metadata(labels_file)
        preprocess_federated_dataset(image_dir, labels_file, output_file)
        preprocess_central_dataset(image_dir, labels_file, output_file)
    """,
    "prepare_tfrecords": """
        load_user_metadata_and_label_counters(labels_file)
        create_example(image_bytes, labels, fine_grained_labels)
        preprocess_federated_dataset(image_dir, labels_file, tfrecords_dir)
    """,
    "benchmark.flair_data": """
        load_tfrecords(filename, image_shape, num_labels, use_fine_grained_labels, binary_label_index)
        load_label_to_index(label_to_index_file, use_fine_grained_labels)
        load_tfrecords_data(tfrecords_dir, image_shape, num_labels, use_fine_grained_labels, binary_label_index=None)
    """,
    "benchmark.flair_metrics": f"""
        ConfusionMatrixMetrics({_OF_METRIC})
        AveragedPrecision({_OF_METRIC})
        Precision({_OF_METRIC})
        Recall({_OF_METRIC})
        F1({_OF_METRIC})
        metrics_builder(num_labels)
        flatten_metrics(nested_metrics, prefix=None)
        print_metrics(metrics, iteration=None)
    """,
    "benchmark.flair_model": """
        conv3x3(x, scope, out_planes, stride=1, groups=1, dilation=1, seed=0)
        conv1x1(x, scope, out_planes, stride=1, seed=0)
        norm(x, scope, use_batch_norm)
        relu(x, scope)
        basic_block(x, scope, out_planes, use_batch_norm, stride=1, downsample=None, seed=0)
        block_layers(x, scope, in_planes, out_planes, blocks, use_batch_norm, stride=1, seed=0)
        create_resnet(input_shape, num_classes, use_batch_norm, repetitions=None, initial_filters=64, seed=0)
        resnet18(input_shape, num_classes, pretrained, seed=0)
    """,
}
CONSTANTS = {
    "download_dataset": "DATA_URL NUM_IMAGE_BATCHES SMALL_IMAGE_URLS RAW_IMAGE_URLS LABELS_AND_METADATA_URL "
    "LABEL_RELATIONSHIP_URL",
    "prepare_dataset": "LABEL_DELIMITER",
    "prepare_tfrecords": "KEY_IMAGE_BYTES KEY_IMAGE_DECODED KEY_LABELS KEY_FINE_GRAINED_LABELS",
    "benchmark.flair_data": "KEY_IMAGE_BYTES KEY_IMAGE_DECODED KEY_LABELS KEY_FINE_GRAINED_LABELS",
    "benchmark.flair_model": "IMAGENET_MEAN IMAGENET_VARIANCE FrozenBatchNormalization",
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_each_has_its_published_name_and_parameters(name):
    module = importlib.import_module(name)
    for line in filter(None, map(str.strip, PUBLISHED[name].splitlines())):
        function = getattr(module, line.partition("(")[0])
        parameters = inspect.signature(function).parameters.values()
        plain = [parameter.replace(annotation=inspect.Parameter.empty) for parameter in parameters]
        assert f"{function.__name__}{inspect.Signature(plain)}" == line


@pytest.mark.parametrize("name", CONSTANTS)
def test_so_have_the_constants(name):
    module = importlib.import_module(name)
    assert not [constant for constant in CONSTANTS[name].split() if not hasattr(module, constant)]


def test_the_page_names_all_of_them():
    text = (ROOT / "docs/ml_flair.md").read_text(encoding="utf-8")
    names = {line.strip().partition("(")[0] for lines in PUBLISHED.values() for line in lines.splitlines()} - {""}
    names |= {constant for constants in CONSTANTS.values() for constant in constants.split()}
    assert not [name for name in sorted(names) if f"`{name}`" not in text]


@pytest.fixture(scope="module")
def metadata(miniature: Path) -> list[dict[str, object]]:
    return json.loads((miniature / "labels_and_metadata.json").read_text())


def _subset(
    miniature: Path, metadata: list[dict[str, object]], folder: Path
) -> tuple[str, str, list[dict[str, object]]]:
    """Photos and a file of every third user's records, under names and in places of somebody's own."""
    users = sorted({str(record["user_id"]) for record in metadata})
    records = [record for record in metadata if users.index(str(record["user_id"])) % 3 == 0]
    assert {record["partition"] for record in records} == {"train", "val", "test"}
    labels_file, image_dir = folder / "some.json", folder / "photos"
    labels_file.write_text(json.dumps(records))
    shutil.copytree(miniature / "small_images", image_dir)
    return str(image_dir), str(labels_file), records


def _pixels(image_dir: str, record: dict[str, object]) -> np.ndarray:
    return np.asarray(Image.open(Path(image_dir) / f"{record['image_id']}.jpg").convert("RGB"))


def test_records_are_given_by_user(miniature, metadata, tmp_path):
    expected = collections.defaultdict(list)
    for record in metadata:
        expected[record["user_id"]].append(record)
    labels_file = str(miniature / "labels_and_metadata.json")
    assert prepare_dataset.load_user_metadata(labels_file) == expected
    users, coarse, fine = prepare_tfrecords.load_user_metadata_and_label_counters(labels_file)
    assert users == expected
    assert coarse == Counter(label for record in metadata for label in record["labels"])
    assert fine == Counter(label for record in metadata for label in record["fine_grained_labels"])
    broken = tmp_path / "broken.json"
    broken.write_text(json.dumps([{**metadata[0], "image_id": "../x"}]))
    with pytest.raises(FlairError, match=r"broken\.json, record 0: image_id '\.\./x' is not an id"):
        prepare_dataset.load_user_metadata(str(broken))


def test_photos_from_anywhere_become_hdf5_by_user(miniature, metadata, tmp_path):
    image_dir, labels_file, records = _subset(miniature, metadata, tmp_path)
    output = tmp_path / "by_user.hdf5"
    output.write_bytes(b"of an earlier time")
    prepare_dataset.preprocess_federated_dataset(image_dir, labels_file, str(output))
    with h5py.File(output) as file:
        counts = Counter(label for record in records for label in record["labels"])
        assert json.loads(file["metadata/label_counter"][()]) == counts
        for user_id, of_user in prepare_dataset.load_user_metadata(labels_file).items():
            group = file[of_user[0]["partition"]][user_id]
            np.testing.assert_array_equal(group["images"], [_pixels(image_dir, record) for record in of_user])
            assert [name.decode() for name in group["image_ids"]] == [record["image_id"] for record in of_user]
            for kind in ("labels", "fine_grained_labels"):
                joined = [prepare_dataset.LABEL_DELIMITER.join(record[kind]) for record in of_user]
                assert [text.decode() for text in group[kind]] == joined


def test_a_script_may_prepare_at_its_top_level(miniature, metadata, tmp_path):
    """With processes, each of them would import the script and begin again."""
    image_dir, labels_file, records = _subset(miniature, metadata, tmp_path)
    output = tmp_path / "central.hdf5"
    script = tmp_path / "script.py"
    arguments = f"{image_dir!r}, {labels_file!r}, {str(output)!r}"
    script.write_text(f"import prepare_dataset\nprepare_dataset.preprocess_central_dataset({arguments})\n")
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    ended = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False, env=env, timeout=200)
    assert ended.returncode == 0, ended.stderr
    with h5py.File(output) as file:
        assert {image_id for part in ("train", "val", "test") for image_id in file[part]} == {
            record["image_id"] for record in records
        }
        for record in records[::10]:
            group = file[record["partition"]][record["image_id"]]
            np.testing.assert_array_equal(group["image"], _pixels(image_dir, record))
            assert group["user_id"][()].decode() == record["user_id"]


def test_a_dataset_directory_becomes_the_tfrecords_of_the_command(miniature, tfrecords, tmp_path):
    where = str(miniature / "small_images"), str(miniature / "labels_and_metadata.json"), str(tmp_path / "records")
    for _ in range(2):  # the second time replaces the first
        prepare_tfrecords.preprocess_federated_dataset(*where)
    assert tree(tmp_path / "records") == tree(tfrecords)


@pytest.mark.parametrize("labels", [[3, 0], []])
def test_an_example_is_tensorflows_with_the_published_features(labels):
    made = prepare_tfrecords.create_example(b"jpeg", labels, fine_grained_labels=[7])
    assert isinstance(made, tf.train.Example)
    feature = {
        "image/encoded_jpeg": tf.train.Feature(bytes_list=tf.train.BytesList(value=[b"jpeg"])),
        "labels": tf.train.Feature(int64_list=tf.train.Int64List(value=labels)),
        "fine_grained_labels": tf.train.Feature(int64_list=tf.train.Int64List(value=[7])),
    }
    assert made == tf.train.Example(features=tf.train.Features(feature=feature))
    keys = prepare_tfrecords.KEY_IMAGE_BYTES, prepare_tfrecords.KEY_LABELS, prepare_tfrecords.KEY_FINE_GRAINED_LABELS
    assert keys == (example.IMAGE_KEY, example.LABELS_KEY, example.FINE_LABELS_KEY)


def test_archives_are_unpacked_where_the_download_puts_them(tmp_path):
    photos = make_photos(6)
    ids = list(photos)
    archives = {"small_images-00.tar.gz": ids[:2], "small_images-01.tar.gz": ids[2:4], "images-00.tar.gz": ids[4:]}
    for name, of_archive in archives.items():
        (tmp_path / name).write_bytes(make_tar_gz({image_id: photos[image_id] for image_id in of_archive}))
    first = str(tmp_path / "small_images-00.tar.gz")
    download_dataset.extract_tar(first, str(tmp_path), keep_archive_after_decompress=True)
    assert set(tree(tmp_path / "small_images")) == {f"{image_id}.jpg" for image_id in ids[:2]}
    download_dataset.decompress_images(str(tmp_path), keep_archive_after_decompress=False)
    assert not list(tmp_path.glob("*.tar.gz"))
    assert tree(tmp_path / "small_images") == {f"{image_id}.jpg": photos[image_id] for image_id in ids[:4]}
    assert tree(tmp_path / "raw_images") == {f"{image_id}.jpg": photos[image_id] for image_id in ids[4:]}


@pytest.mark.parametrize("harm", [lambda data: data[:-20], lambda data: make_tar_gz({"../../out": b"x"})])
def test_a_damaged_or_hostile_archive_stays_and_leaves_nothing(tmp_path, harm):
    archive = tmp_path / "small_images-00.tar.gz"
    archive.write_bytes(harm(make_tar_gz(make_photos(3))))
    with pytest.raises(FlairError, match=r"small_images-00\.tar\.gz: "):
        download_dataset.decompress_images(str(tmp_path), keep_archive_after_decompress=False)
    assert archive.exists()
    assert tree(tmp_path / "small_images") == {}


def test_addresses_are_apples():
    base = "https://docs-assets.developer.apple.com/ml-research/datasets/flair/"
    assert base == download_dataset.DATA_URL
    assert download_dataset.SMALL_IMAGE_URLS[7] == f"{base}images/small/small_images-07.tar.gz"
    assert download_dataset.RAW_IMAGE_URLS[-1] == f"{base}images/raw/images-42.tar.gz"
    assert len(download_dataset.RAW_IMAGE_URLS) == download_dataset.NUM_IMAGE_BATCHES == 43
    assert f"{base}labels/labels_and_metadata.json" == download_dataset.LABELS_AND_METADATA_URL
    assert f"{base}labels/label_relationship.txt" == download_dataset.LABEL_RELATIONSHIP_URL
