"""The TFDS data set: built by TFDS's own command, compared with the TFRecords and the photos of the same folder."""

from __future__ import annotations

import collections
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.support.commands import ROOT

pytest.importorskip("tensorflow_datasets", reason="the extra 'tfds' is not installed")

import tensorflow as tf
import tensorflow_datasets as tfds
from tensorflow_datasets.core import shuffle

from benchmark.data.tfds_builder import CITATION, COMMAND, LICENSE
from benchmark.flair_tfds import Flair
from flair.dataset.catalog import PARTITIONS
from flair.dataset.metadata import load_taxonomy, load_users
from flair.errors import FlairError
from flair.files import npy_file
from flair.records.tfrecord import example
from flair.records.tfrecord.reader import TFRecords
from flair.records.tfrecord.writer import write_tfrecords

JPEG = {"image": tfds.decode.SkipDecoding()}
# What the script `tfds` calls for `tfds build`; its other commands want apache-beam as soon as it is started.
TFDS_BUILD = """
from absl import app
from tensorflow_datasets.scripts.cli import build, cli_utils
app.run(lambda args: args.execute(), flags_parser=cli_utils.make_flags_parser(build.Args, "tfds build"))
"""


@pytest.fixture(scope="module")
def built(miniature, tmp_path_factory):
    """FLAIR in three files a partition, by the documented command."""
    data_dir = tmp_path_factory.mktemp("tfds")
    words = COMMAND.replace("DATASET_DIR", str(miniature)).replace("TFDS_DATA_DIR", str(data_dir)).split()
    assert words[:2] == ["tfds", "build"]
    command = [sys.executable, "-c", TFDS_BUILD, *words[2:], "--num_shards=3"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return Flair(data_dir=str(data_dir))


@pytest.fixture(scope="module")
def records(tfrecords):
    return TFRecords(tfrecords)


def build(dataset_dir, data_dir, **options):
    """Builds in this process, one file a partition."""
    builder = Flair(data_dir=str(data_dir))
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(manual_dir=str(dataset_dir), **options))
    return builder


def photos(dataset):
    """The photos of a dataset of JPEG bytes, in the form of the TFRecords' reader."""
    return [
        example.Example(
            photo["image"],
            tuple(photo["labels"].tolist()),
            tuple(photo["fine_grained_labels"].tolist()),
            photo["image_id"].decode(),
            photo["user_id"].decode(),
        )
        for photo in dataset.as_numpy_iterator()
    ]


@pytest.mark.parametrize("partition", PARTITIONS)
def test_every_user_equals_their_tfrecords(built, records, partition):
    spans = records.users(partition)
    assert list(built.users(partition)) == sorted(spans)
    for user_id, span in spans.items():
        assert photos(built.as_user_dataset(partition, user_id, decoders=JPEG)) == records.read_user(span)


def test_users_lie_one_after_the_other(built, miniature):
    users = load_users(miniature)
    for partition in PARTITIONS:
        members = sorted((user for user in users if user.partition == partition), key=lambda user: user.user_id)
        expected = [record.image_id for user in members for record in user.records]
        assert [photo.image_id for photo in photos(built.as_dataset(split=partition, decoders=JPEG))] == expected
        start = 0
        for user in members:
            assert tuple(built.users(partition)[user.user_id]) == (start, start + len(user.records))
            start += len(user.records)
    total = sum(len(user.records) for user in users)
    assert built.as_dataset(split="all").cardinality().numpy() == total == 160


def test_photos_are_the_files(built, miniature):
    user_id = next(iter(built.users("train")))
    for photo in photos(built.as_user_dataset("train", user_id, decoders=JPEG)):
        assert photo.image == (miniature / "small_images" / f"{photo.image_id}.jpg").read_bytes()
    decoded = next(iter(built.as_user_dataset("train", user_id)))["image"]
    assert decoded.shape == (256, 256, 3) and decoded.dtype == tf.uint8


def test_labels_have_the_names_of_the_taxonomy(built, miniature):
    users = load_users(miniature)
    by_id = {record.image_id: record for user in users for record in user.records}
    for feature in ("labels", "fine_grained_labels"):
        names = built.info.features[feature].feature.names
        assert names == sorted({name for record in by_id.values() for name in getattr(record, feature)})
        for photo in built.as_dataset(split="val", decoders=JPEG).as_numpy_iterator():
            record = by_id[photo["image_id"].decode()]
            assert tuple(names[column] for column in photo[feature]) == getattr(record, feature)
    taxonomy = load_taxonomy(miniature)
    assert {name: set(coarse) for name, coarse in built.info.metadata["taxonomy"].items()} == taxonomy


def test_citation_and_licence_are_those_of_the_readme(built):
    readme = (ROOT / "README.md").read_text()
    assert CITATION.strip() in readme
    assert built.info.citation == CITATION.strip()
    assert " ".join(LICENSE.split()).startswith("FLAIR's annotations are Apple's, under CC BY-NC 4.0")
    assert (Path(built.data_dir) / "LICENSE").read_text().split() == LICENSE.split()


def test_tfds_reads_it_without_this_toolkit(built):
    plain = tfds.builder_from_directory(built.data_dir)
    assert plain.info.metadata["users"]["test"] == {user: list(place) for user, place in built.users("test").items()}
    assert plain.info.splits["train"].num_shards == 3
    start, stop = next(iter(plain.info.metadata["users"]["train"].values()))
    assert plain.as_dataset(split=f"train[{start}:{stop}]").cardinality().numpy() == stop - start


@pytest.mark.parametrize("feature", ["labels", "fine_grained_labels"])
def test_the_photos_of_a_label_are_those_that_carry_it_in_order(built, feature):
    names = built.info.features[feature].feature.names
    stored = photos(built.as_dataset(split="train", decoders=JPEG))
    counts = collections.Counter(column for photo in stored for column in getattr(photo, feature))
    assert set(built.info.metadata["label_slices"]["train"][feature]) == {names[column] for column in counts}
    for column in (counts.most_common()[0][0], counts.most_common()[-1][0]):
        expected = [row for row, photo in enumerate(stored) if column in getattr(photo, feature)]
        assert built.label_rows("train", names[column], feature).tolist() == expected
        dataset = built.as_label_dataset("train", names[column], feature, decoders=JPEG)
        assert photos(dataset) == [stored[row] for row in expected]
        assert dataset.cardinality().numpy() == len(expected)
        # Without this toolkit: the rows by NumPy, a photo as TFDS's slice.
        start, stop = built.info.metadata["label_slices"]["train"][feature][names[column]]
        rows = np.load(Path(built.data_dir) / "label_rows-train.npy")[start:stop]
        assert photos(built.as_dataset(split=f"train[{rows[-1]}:{rows[-1] + 1}]", decoders=JPEG)) == [stored[rows[-1]]]


def test_a_build_of_before_labels_had_places_says_so(built, monkeypatch):
    before = {name: value for name, value in built.info.metadata.items() if name != "label_slices"}
    monkeypatch.setattr(type(built.info), "metadata", before)
    with pytest.raises(FlairError, match=r"an earlier version built it, .* --overwrite"):
        built.label_rows("train", "animal")


def test_damaged_places_of_labels_are_named(built, tmp_path):
    shutil.copytree(built.data_dir, tmp_path / "flair" / "1.0.0")
    copy = Flair(data_dir=str(tmp_path))
    label = next(iter(copy.info.metadata["label_slices"]["val"]["labels"]))
    with pytest.raises(FlairError, match="no photo of 'val' has 'nothing' among its labels"):
        copy.label_rows("val", "nothing")
    path = Path(copy.data_dir) / "label_rows-val.npy"
    for damaged, message in (
        (np.full(len(np.load(path)), 10**6), "is not what was built"),
        (np.arange(0), "is not what was built"),
    ):
        npy_file.write_rows(path, damaged)
        with pytest.raises(FlairError, match=message):
            copy.label_rows("val", label)
        with pytest.raises(FlairError, match=message):
            copy.verify_checksums()
    path.write_bytes(b"nonsense")
    with pytest.raises(FlairError, match=r"label_rows-val\.npy: is damaged"):
        copy.label_rows("val", label)
    path.unlink()
    with pytest.raises(FlairError, match=r"label_rows-val\.npy: is missing; build the data set again"):
        copy.label_rows("val", label)


def users_of_batches(dataset, size=32):
    ids = [photo["user_id"].decode() for photo in dataset.as_numpy_iterator()]
    return [set(ids[first : first + size]) for first in range(0, len(ids), size)]


@pytest.mark.parametrize("shuffle_buffer", [1, 4096])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_every_batch_of_32_holds_photos_of_many_users(built, seed, shuffle_buffer):
    dataset = built.as_partition_dataset("train", seed=seed, shuffle_buffer=shuffle_buffer, decoders=JPEG)
    *full, _rest = users_of_batches(dataset)
    assert len(full) == 4
    assert min(map(len, full)) >= 8, [len(users) for users in full]
    # In stored order, the user with most photos fills batches alone: the miniature can tell the difference.
    assert min(map(len, users_of_batches(built.as_dataset(split="train", decoders=JPEG))[:-1])) < 8


def order(dataset):
    return [image_id.decode() for image_id in dataset.map(lambda photo: photo["image_id"]).as_numpy_iterator()]


def test_an_epoch_has_every_photo_once_in_an_order_of_its_own(built):
    def epoch(number, **options):
        return order(built.as_partition_dataset("train", first_epoch=number, decoders=JPEG, **options))

    stored = order(built.as_dataset(split="train", decoders=JPEG))
    first, second = epoch(0), epoch(1)
    assert sorted(first) == sorted(second) == sorted(stored)
    assert len({tuple(one) for one in (stored, first, second, epoch(0, seed=1))}) == 4
    assert epoch(0, num_epochs=2) == first + second
    tf.random.set_seed(5)
    try:
        assert epoch(0) == first
    finally:
        tf.random.set_seed(None)
    in_turns = epoch(0, shuffle_buffer=1, cycle_length=4)
    assert sorted(in_turns) == sorted(stored) and in_turns not in (stored, first)


def test_batches_have_whole_images_and_ragged_labels(built):
    batches = built.as_partition_dataset("val", batch_size=5)
    sizes = []
    for batch in batches:
        sizes.append(batch["image"].shape[0])
        assert batch["image"].shape[1:] == (256, 256, 3)
        assert batch["labels"].row_lengths().shape == batch["image"].shape[:1]
    assert sizes == [5, 5, 2]


def test_the_checksums_notice_a_changed_byte(built, tmp_path):
    folder = tmp_path / "flair" / "1.0.0"
    shutil.copytree(built.data_dir, folder)
    copy = Flair(data_dir=str(tmp_path))
    copy.verify_checksums()
    path = folder / "flair-val.tfrecord-00001-of-00003"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(FlairError, match=r"flair-val\.tfrecord-00001-of-00003: is not what was built"):
        copy.verify_checksums()


def test_the_build_holds_a_small_part_of_a_partition_in_memory(miniature, built, tmp_path, monkeypatch):
    read_at_once = collections.Counter()
    read_values = shuffle._Bucket.read_values

    def counted(bucket):
        for value in read_values(bucket):
            read_at_once[bucket] += 1
            yield value

    monkeypatch.setattr(shuffle, "MAX_MEM_BUFFER_SIZE", 50_000)  # TFDS's own is 1 GB; beyond it, it sorts on disk
    monkeypatch.setattr(shuffle._Bucket, "read_values", counted)
    other = build(miniature, tmp_path, num_shards=3)
    assert sum(read_at_once.values()) == 160
    assert max(read_at_once.values()) == 1
    assert other.info.metadata["shard_sha256"] == built.info.metadata["shard_sha256"]


def damaged(miniature, tmp_path, change):
    """The miniature with other metadata, its photos linked."""
    folder = tmp_path / "dataset"
    folder.mkdir()
    for path in miniature.iterdir():
        (folder / path.name).symlink_to(path)
    records = json.loads((folder / "labels_and_metadata.json").read_text())
    (folder / "labels_and_metadata.json").unlink()
    (folder / "labels_and_metadata.json").write_text(json.dumps(change(records)))
    return folder


def changed(field, value):
    def change(records):
        return [{**records[0], field: value}, *records[1:]]

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (changed("user_id", "../../etc/passwd"), "is not an id"),
        (changed("image_id", "1/2"), "is not an id"),
        (changed("labels", [" plant"]), "label ' plant': begins or ends with a space"),
        (changed("fine_grained_labels", ["a\nb"]), "control characters"),
        (changed("image_id", "404"), "image 404 of user .* the photo is missing"),
        (lambda records: [one for one in records if one["partition"] != "val"], "partition 'val' is empty"),
    ],
)
def test_bad_data_is_named_and_leaves_nothing(miniature, tmp_path, change, message):
    folder = damaged(miniature, tmp_path, change)
    with pytest.raises(FlairError, match=message):
        build(folder, tmp_path / "tfds")
    assert not any((tmp_path / "tfds").rglob("*.tfrecord*"))


def test_a_folder_without_metadata_is_named(tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").touch()
    with pytest.raises(FlairError, match=r"other: has no labels_and_metadata\.json"):
        build(tmp_path / "other", tmp_path / "tfds")


def test_a_part_of_the_photos_is_refused(miniature, tmp_path):
    with pytest.raises(FlairError, match="--max_examples_per_split would cut users apart"):
        build(miniature, tmp_path, max_examples_per_split=10)


def test_a_grayscale_photo_is_stored_as_prepare_tfrecords_stores_it(miniature, tmp_path):
    folder = damaged(miniature, tmp_path, lambda records: records)
    (folder / "small_images").unlink()
    shutil.copytree(miniature / "small_images", folder / "small_images")
    user = next(user for user in load_users(folder) if user.partition == "test")
    path = folder / "small_images" / f"{user.records[0].image_id}.jpg"
    with Image.open(path) as image:
        image.convert("L").save(path)
    write_tfrecords(folder, tmp_path / "records")
    records = TFRecords(tmp_path / "records")
    builder = build(folder, tmp_path / "tfds")
    found = photos(builder.as_user_dataset("test", user.user_id, decoders=JPEG))
    assert found == records.read_user(records.users("test")[user.user_id])
    assert np.asarray(Image.open(path)).ndim == 2


def test_unknown_users_partitions_and_places_are_named(built, tmp_path):
    with pytest.raises(FlairError, match="partition 'train' has no user '9@N00'"):
        built.as_user_dataset("train", "9@N00")
    with pytest.raises(FlairError, match="partition 'dev': expected one of train, val, test"):
        built.as_partition_dataset("dev")
    with pytest.raises(FlairError, match=re.escape(f"is not built there; build it with `{COMMAND}`")):
        Flair(data_dir=str(tmp_path)).as_user_dataset("train", "9@N00")
