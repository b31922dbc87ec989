"""Opening prepared records of every layout, without TensorFlow."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import pytest
import tensorflow as tf

from benchmark.data.opening import make_task, open_records
from flair.dataset import metadata
from flair.errors import FlairError
from flair.records.tfrecord import frames
from flair.records.tfrecord.writer import write_tfrecords


@pytest.fixture(scope="module")
def sharded(miniature, tmp_path_factory):
    folder = tmp_path_factory.mktemp("records") / "sharded"
    write_tfrecords(miniature, folder, layout="sharded", images_per_shard=30)
    return folder


@pytest.fixture(scope="module", params=["tfrecords", "sharded"])
def records(request):
    return open_records(request.getfixturevalue(request.param))


def _unsealed(path, content):
    """Replaces an index file and the checksums of all, as another writer's folder would have it."""
    path.write_text(content)
    (path.parent / "prepare_info.json").unlink()


def _published(folder, names):
    """The layout of ml-flair's own code: `val`, label_to_index.json, and the feature names given."""
    for entry in ("label_index.json", "label_to_index.json", "val"):
        (folder / entry).unlink()
    (folder / "dev").rename(folder / "val")
    (folder / "prepare_info.json").unlink()
    columns = {"labels": {"animal": 0, "art": 1}, "fine_grained_labels": {"cat": 0}}
    (folder / "label_to_index.json").write_text(json.dumps(columns))
    for path in folder.glob("*/*.tfrecords"):
        with tf.io.TFRecordWriter(str(path)) as writer:
            features = {
                names[0]: tf.train.Feature(bytes_list=tf.train.BytesList(value=[b"jpeg"])),
                names[1]: tf.train.Feature(int64_list=tf.train.Int64List(value=[1])),
                names[2]: tf.train.Feature(int64_list=tf.train.Int64List(value=[0])),
            }
            writer.write(tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString())


def test_users_and_photos_are_those_of_the_dataset(miniature, records):
    users = metadata.load_users(miniature)
    for partition in ("train", "val", "test"):
        wanted = {user.user_id: len(user.records) for user in users if user.partition == partition}
        assert records.users(partition) == sorted(wanted)
        assert {user: len(records.read_user(partition, user)) for user in wanted} == wanted
        assert records.num_photos(partition) == sum(wanted.values())


def test_every_photo_can_be_read_by_its_row(records):
    index = records.photo_index("train")
    by_user = [payload for user in records.users("train") for payload in records.read_user("train", user)]
    assert records.read_photos("train", range(len(index.offset))) == by_user
    assert [index.users[row] for row in index.user][::7] == [
        user for user in records.users("train") for _ in records.read_user("train", user)
    ][::7]
    assert records.read_photos("train", [5, 2]) == [by_user[5], by_user[2]]


def test_both_layouts_hold_the_same_photos(tfrecords, sharded):
    one, other = open_records(tfrecords), open_records(sharded)
    for partition in ("train", "val", "test"):
        assert one.users(partition) == other.users(partition)
        for user in one.users(partition):
            assert one.read_user(partition, user) == other.read_user(partition, user)


def test_the_digest_names_the_data(tfrecords, tmp_path):
    copy = shutil.copytree(tfrecords, tmp_path / "copy", symlinks=True)
    assert open_records(copy).digest() == open_records(tfrecords).digest()
    next((copy / "train").glob("*.tfrecords")).unlink()
    assert open_records(copy).digest() != open_records(tfrecords).digest()


def test_the_published_layout_is_read(tfrecords, tmp_path):
    folder = shutil.copytree(tfrecords, tmp_path / "published", symlinks=True)
    _published(folder, ("image/encoded_jpeg", "labels", "fine_grained_labels"))
    records = open_records(folder)
    assert records.labels == {"animal": 0, "art": 1}
    assert records.users("val") == open_records(tfrecords).users("val")
    assert len(records.read_user("val", records.users("val")[0])) == 1


def test_a_changed_index_of_users_is_found_by_its_checksum(sharded, tmp_path):
    folder = shutil.copytree(sharded, tmp_path / "changed", symlinks=True)
    path = folder / "train" / "user_index.json"
    path.write_text(path.read_text().replace(", 0, ", ", 1, ", 1))
    with pytest.raises(frames.DamagedRecord, match=r"user_index\.json: damaged: its checksum"):
        open_records(folder).users("train")


def test_tasks(tfrecords):
    records = open_records(tfrecords)
    coarse, fine = make_task(records, False, None), make_task(records, True, None)
    assert coarse.label_names == tuple(sorted(records.labels))
    assert coarse.num_outputs == len(records.labels)
    assert fine.feature == "fine_grained_labels"
    assert fine.num_outputs == len(records.fine_grained_labels)
    name = coarse.label_names[2]
    binary = make_task(records, False, name)
    assert (binary.num_outputs, binary.binary_index, binary.is_binary) == (1, 2, True)
    with pytest.raises(FlairError, match=f"--binary_label=dragon: no such coarse label; .*{name}"):
        make_task(records, False, "dragon")


@pytest.mark.parametrize("layout", ["tfrecords", "sharded"])
def test_damage_is_found_and_named(layout, request, tmp_path):
    folder = shutil.copytree(request.getfixturevalue(layout), tmp_path / "damaged", symlinks=True)
    user = open_records(folder).users("train")[0]
    path, location = open_records(folder).place("train", user)
    data = bytearray(path.read_bytes())
    data[(location.offset if location else 0) + 100] ^= 1
    path.write_bytes(data)
    with pytest.raises(frames.DamagedRecord, match=path.name):
        open_records(folder).read_user("train", user)
    path.write_bytes(data[:-5])
    with pytest.raises(frames.DamagedRecord, match=path.name):
        open_records(folder).photo_index("train")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: shutil.rmtree(f), "no such directory"),
        (lambda f: [(f / n).unlink() for n in ("label_index.json", "label_to_index.json")], "has no label_index.json"),
        (lambda f: (f / "label_index.json").write_text("{"), "label_index.json: (damaged|is not an index)"),
        (lambda f: (f / "label_index.json").write_text("[1]"), "label_index.json: (damaged|is not an index)"),
        (
            lambda f: _unsealed(f / "label_index.json", '{"labels": {"a": 1}, "fine_grained_labels": {}}'),
            "label_index.json: is not an index of sorted labels",
        ),
        (lambda f: shutil.rmtree(f / "test"), "has no folder test"),
        (lambda f: [p.unlink() for p in (f / "test").iterdir()], "partition 'test' is empty"),
        (lambda f: (f / "test" / "user_index.json").write_text('{"u": 3}'), "is no index of users"),
        (lambda f: (f / "test" / "user_index.json").write_text('{"u": ["../x", 0, 1, 1]}'), "is no index of users"),
    ],
)
def test_wrong_folders_are_one_line(tfrecords, tmp_path, damage, message):
    folder = shutil.copytree(tfrecords, tmp_path / "wrong", symlinks=True)
    damage(folder)
    with pytest.raises(FlairError, match=message) as caught:
        open_records(folder).users("test")
    assert "\n" not in str(caught.value)


def test_opening_needs_no_tensorflow():
    code = "import sys, benchmark.data.records; sys.exit('tensorflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
