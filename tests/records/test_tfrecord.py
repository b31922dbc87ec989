"""TFRecords against TensorFlow's own reader and protocol buffers, and against flipped bytes."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flair.errors import FlairError
from flair.files import checked_json
from flair.records.tfrecord import frames
from flair.records.tfrecord.example import Example, MalformedExample, decode, encode
from flair.records.tfrecord.layout import parse_user_index
from flair.records.tfrecord.reader import TFRecords
from flair.records.tfrecord.writer import write_tfrecords

tf = pytest.importorskip("tensorflow")

PARTITIONS = {"train": "train", "val": "dev", "test": "test"}
EXAMPLES = st.builds(
    Example,
    st.binary(max_size=200),
    st.lists(st.integers(0, 1 << 40), min_size=1, max_size=5).map(tuple),
    st.lists(st.integers(0, 1 << 40), min_size=1, max_size=40).map(tuple),
    st.none() | st.text("0123456789", min_size=1),
    st.none() | st.text("0123456789@N", min_size=1),
)


def published_reader(path: str) -> Iterator[dict[str, Any]]:
    """Reads a file by the five features of the documented schema."""
    schema = {
        "image/encoded_jpeg": tf.io.FixedLenFeature([], tf.string),
        "labels": tf.io.VarLenFeature(tf.int64),
        "fine_grained_labels": tf.io.VarLenFeature(tf.int64),
        "image_id": tf.io.FixedLenFeature([], tf.string),
        "user_id": tf.io.FixedLenFeature([], tf.string),
    }
    for serialized in tf.data.TFRecordDataset([path]):
        example = tf.io.parse_single_example(serialized, schema)
        yield {
            key: (tf.sparse.to_dense(value) if isinstance(value, tf.SparseTensor) else value).numpy()
            for key, value in example.items()
        }


def expected_users(dataset_dir: Path) -> dict[str, list[dict[str, Any]]]:
    users: dict[str, list[dict[str, Any]]] = {}
    for item in json.loads((dataset_dir / "labels_and_metadata.json").read_text()):
        users.setdefault(item["user_id"], []).append(item)
    return users


def check_example(found: dict[str, Any], item: dict[str, Any], columns: dict[str, Any], dataset_dir: Path) -> None:
    assert found["image_id"].decode() == item["image_id"]
    assert found["user_id"].decode() == item["user_id"]
    assert found["image/encoded_jpeg"] == (dataset_dir / f"small_images/{item['image_id']}.jpg").read_bytes()
    for key in ("labels", "fine_grained_labels"):
        assert found[key].tolist() == [columns[key][name] for name in item[key]]


@pytest.mark.parametrize("dataset", ["flair_sample", "miniature"])
def test_per_user_files_are_read_by_tensorflow_photo_by_photo(
    dataset: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    source: Path = request.getfixturevalue(dataset)
    write_tfrecords(source, tmp_path / "records", num_workers=1)
    columns = json.loads((tmp_path / "records/label_index.json").read_text())
    for key in ("labels", "fine_grained_labels"):
        names = sorted({name for items in expected_users(source).values() for item in items for name in item[key]})
        assert columns[key] == {name: column for column, name in enumerate(names)}
    photos = 0
    for user_id, items in expected_users(source).items():
        path = tmp_path / "records" / PARTITIONS[items[0]["partition"]] / f"{user_id}.tfrecords"
        found = list(published_reader(str(path)))
        assert len(found) == len(items)
        for example, item in zip(found, items, strict=True):
            check_example(example, item, columns, source)
            photos += 1
    assert photos == {"flair_sample": 35, "miniature": 160}[dataset]
    files = [path.name for folder in PARTITIONS.values() for path in (tmp_path / "records" / folder).iterdir()]
    assert sorted(files) == sorted(f"{user_id}.tfrecords" for user_id in expected_users(source))


def test_a_user_of_a_shard_is_read_from_its_bytes_alone(flair_sample: Path, tmp_path: Path) -> None:
    write_tfrecords(flair_sample, tmp_path / "records", layout="sharded", images_per_shard=10, num_workers=1)
    columns = json.loads((tmp_path / "records/label_index.json").read_text())
    indexes = {
        partition: json.loads((tmp_path / "records" / folder / "user_index.json").read_text())
        for partition, folder in PARTITIONS.items()
    }
    users = expected_users(flair_sample)
    assert [user for index in indexes.values() for user in index] == [
        user for partition in PARTITIONS for user, items in users.items() if items[0]["partition"] == partition
    ]
    for user_id, items in users.items():
        partition = items[0]["partition"]
        name, offset, num_bytes, count = indexes[partition][user_id]
        path = tmp_path / "records" / PARTITIONS[partition] / name
        with open(path, "rb") as shard:
            shard.seek(offset)
            (tmp_path / "user").write_bytes(shard.read(num_bytes))
        found = list(published_reader(str(tmp_path / "user")))
        assert count == len(found) == len(items)
        for example, item in zip(found, items, strict=True):
            check_example(example, item, columns, flair_sample)
    sizes = [
        path.stat().st_size for name in PARTITIONS.values() for path in (tmp_path / "records" / name).glob("*.tf*")
    ]
    assert sum(sizes) == sum(entry[2] for index in indexes.values() for entry in index.values())


def test_names_of_ml_flair_are_links(flair_sample: Path, tmp_path: Path) -> None:
    write_tfrecords(flair_sample, tmp_path, num_workers=1)
    assert (tmp_path / "val").readlink() == Path("dev")
    assert (tmp_path / "label_to_index.json").readlink() == Path("label_index.json")


@given(EXAMPLES)
def test_examples_are_those_of_protocol_buffers(example: Example) -> None:
    parsed = tf.train.Example.FromString(encode(example))
    features = parsed.features.feature
    assert features["image/encoded_jpeg"].bytes_list.value == [example.image]
    assert tuple(features["labels"].int64_list.value) == example.labels
    assert tuple(features["fine_grained_labels"].int64_list.value) == example.fine_grained_labels
    for key, value in (("image_id", example.image_id), ("user_id", example.user_id)):
        assert (key in features) == (value is not None)
        assert value is None or features[key].bytes_list.value == [value.encode()]
    assert decode(parsed.SerializeToString()) == decode(encode(example)) == example


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (
            "flair",
            b"\nx\n\x1e\n\x13fine_grained_labels\x12\x07\x1a\x05\n\x03\xc8\x01\x01\n\x1b\n\x12image/encoded_jpeg"
            b"\x12\x05\n\x03\n\x01J\n\x12\n\x08image_id\x12\x06\n\x04\n\x0215\n\x0f\n\x06labels\x12\x05\x1a\x03\n"
            b"\x01\x03\n\x14\n\x07user_id\x12\t\n\x07\n\x059@N00",
        ),
        (
            "tff",
            b"\ni\n\x1d\n\x12fine_grained_label\x12\x07\x1a\x05\n\x03\xc8\x01\x01\n\x0e\n\x05image\x12\x05\n\x03\n\x01J"
            b"\n\x12\n\x08image_id\x12\x06\n\x04\n\x0215\n\x0e\n\x05label\x12\x05\x1a\x03\n\x01\x03\n\x14\n\x07user_id\x12"
            b"\t\n\x07\n\x059@N00",
        ),
    ],
)
def test_an_example_has_the_bytes_it_always_had(names: str, expected: bytes) -> None:
    """The features are sorted by name: protobuf 4.25 itself puts image_id before image."""
    assert encode(Example(b"J", (3,), (200, 1), "15", "9@N00"), names) == expected


def test_examples_of_tensorflow_federated_are_read() -> None:
    def ints(values: list[int]) -> Any:
        return tf.train.Feature(int64_list=tf.train.Int64List(value=values))

    features = {
        "image": tf.train.Feature(bytes_list=tf.train.BytesList(value=[b"jpeg"])),
        "label": ints([3, 1]),
        "fine_grained_label": ints([-1]),
        "score": tf.train.Feature(float_list=tf.train.FloatList(value=[0.5])),
    }
    payload = tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString()
    assert decode(payload) == Example(b"jpeg", (3, 1), (-1,))


def test_a_folder_of_tensorflow_federated_is_read(tmp_path: Path) -> None:
    def example(image: bytes, label: int) -> bytes:
        features = {
            "image": tf.train.Feature(bytes_list=tf.train.BytesList(value=[image])),
            "label": tf.train.Feature(int64_list=tf.train.Int64List(value=[label])),
            "fine_grained_label": tf.train.Feature(int64_list=tf.train.Int64List(value=[label, 7])),
        }
        serialized: bytes = tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString()
        return serialized

    for partition in PARTITIONS:
        (tmp_path / partition).mkdir()
        with tf.io.TFRecordWriter(str(tmp_path / partition / "7@N00.tfrecords")) as writer:
            writer.write(example(b"one", 1))
            writer.write(example(b"two", 2))
    records = TFRecords(tmp_path)
    assert records.columns is None
    for partition in PARTITIONS:
        ((user_id, span),) = records.users(partition).items()
        assert user_id == "7@N00"
        assert records.read_user(span) == [Example(b"one", (1,), (1, 7)), Example(b"two", (2,), (2, 7))]


def test_numbers_that_are_not_packed_are_read() -> None:
    def field(number: int, *content: bytes) -> bytes:
        joined = b"".join(content)
        return bytes([number << 3 | 2, len(joined)]) + joined

    def feature(key: bytes, value: bytes) -> bytes:
        return field(1, field(1, key), field(2, value))

    one, two = b"\x08\x05", b"\x08\x85\x01"
    payload = field(
        1,
        feature(b"labels", field(3, one, two)),
        feature(b"image/encoded_jpeg", field(1, field(1, b"x"))),
        feature(b"fine_grained_labels", field(3, two)),
    )
    assert tf.train.Example.FromString(payload).features.feature["labels"].int64_list.value == [5, 133]
    assert decode(payload) == Example(b"x", (5, 133), (133,))


@given(st.binary(max_size=60))
def test_bytes_that_are_no_example_are_refused(payload: bytes) -> None:
    with pytest.raises(MalformedExample):
        decode(payload)


@given(st.lists(st.binary(max_size=50), max_size=5))
@settings(max_examples=30)
def test_frames_are_those_of_tensorflow(tmp_path_factory: pytest.TempPathFactory, payloads: list[bytes]) -> None:
    folder = tmp_path_factory.mktemp("frames")
    with tf.io.TFRecordWriter(str(folder / "theirs")) as writer:
        for payload in payloads:
            writer.write(payload)
    (folder / "ours").write_bytes(b"".join(map(frames.frame, payloads)))
    assert (folder / "ours").read_bytes() == (folder / "theirs").read_bytes()
    assert list(frames.read_payloads(folder / "theirs")) == payloads


@pytest.fixture(scope="module")
def tiny_records(flair_sample: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny") / "records"
    write_tfrecords(flair_sample, folder, layout="sharded", limit_users=6, num_workers=1)
    return folder


def read_all(folder: Path) -> list[Example]:
    records = TFRecords(folder)
    return [
        example
        for partition in PARTITIONS
        for span in records.users(partition).values()
        for example in records.read_user(span)
    ]


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_a_flipped_byte_in_any_file_is_noticed(tiny_records: Path, data: st.DataObject) -> None:
    files = sorted(path for path in tiny_records.rglob("*") if path.is_file() and not path.is_symlink())
    path = data.draw(st.sampled_from([path for path in files if "val" not in path.parts]))
    good = path.read_bytes()
    at = data.draw(st.integers(0, len(good) - 1))
    flipped = bytes([good[at] ^ data.draw(st.integers(1, 255))])
    try:
        path.write_bytes(good[:at] + flipped + good[at + 1 :])
        with pytest.raises(FlairError, match=path.name):
            read_all(tiny_records)
    finally:
        path.write_bytes(good)


@given(st.integers(1, 100_000))
@settings(max_examples=50, deadline=None)
def test_a_shard_cut_anywhere_is_noticed(tiny_records: Path, cut: int) -> None:
    path = next(tiny_records.glob("train/*.tfrecords"))
    good = path.read_bytes()
    try:
        path.write_bytes(good[: -min(cut, len(good))])
        with pytest.raises(FlairError, match=path.name):
            read_all(tiny_records)
    finally:
        path.write_bytes(good)


def test_a_length_that_was_forged_does_not_exhaust_memory(tmp_path: Path) -> None:
    length = struct.pack("<Q", 1 << 60)
    (tmp_path / "forged").write_bytes(length + struct.pack("<I", frames.masked_crc32c(length)) + b"x" * 100)
    with pytest.raises(frames.DamagedRecord, match="longer than its file"):
        list(frames.read_payloads(tmp_path / "forged"))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        '{"u": 1}',
        '{"u": ["a", 0, 1]}',
        '{"u": ["../a", 0, 1, 1]}',
        '{"u": ["a", -1, 1, 1]}',
        '{"u": ["a", 0, 1, true]}',
    ],
)
def test_a_malformed_user_index_is_refused(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - json's own error and ours
        parse_user_index(text)


@given(
    st.dictionaries(
        st.text(max_size=5).filter(lambda key: key != "crc32c"),
        st.integers(-(2**63) + 1, 2**63 - 1) | st.text() | st.none(),
    )
)
@settings(max_examples=50)
def test_checked_json_round_trips(tmp_path_factory: pytest.TempPathFactory, value: dict[str, Any]) -> None:
    path = tmp_path_factory.mktemp("json") / "file.json"
    checked_json.write(path, value)
    assert checked_json.read(path) == value
    assert json.loads(path.read_text()).items() >= value.items()
