"""Records and clients of a TFDS data set: the same as those of TFRecords; damage and absence are named."""

from __future__ import annotations

import importlib.util
import json
import shutil

import numpy as np
import pytest

pytest.importorskip("tensorflow_datasets", reason="the extra 'tfds' is not installed")

import tensorflow_datasets as tfds

from benchmark.data.clients import ClientSource, IidClients, UserClients
from benchmark.data.opening import make_task, open_records
from benchmark.data.records import TFRecordRecords
from benchmark.data.tfds import TFDSRecords
from benchmark.flair_tfds import Flair
from flair.dataset.catalog import PARTITIONS
from flair.errors import FlairError


@pytest.fixture(scope="module")
def data_dir(miniature, tmp_path_factory):
    """FLAIR in four files a partition, so that some users lie in two."""
    folder = tmp_path_factory.mktemp("tfds")
    config = tfds.download.DownloadConfig(manual_dir=str(miniature), num_shards=4)
    Flair(data_dir=str(folder)).download_and_prepare(download_config=config)
    return folder


@pytest.fixture(scope="module")
def expected(tfrecords):
    return TFRecordRecords(tfrecords)


@pytest.fixture
def copy(data_dir, tmp_path):
    shutil.copytree(data_dir, tmp_path / "copy")
    return tmp_path / "copy"


def test_users_and_their_bytes_are_those_of_tfrecords(data_dir, expected):
    found = TFDSRecords(data_dir)
    across = 0
    for partition in PARTITIONS:
        assert found.users(partition) == expected.users(partition)
        assert found.num_photos(partition) == expected.num_photos(partition)
        ends = np.cumsum([shard.num_records for shard in found.shards(partition)])
        for user in found.users(partition):
            assert found.read_user(partition, user) == expected.read_user(partition, user)
            assert found.num_photos_of(partition, user) == expected.num_photos_of(partition, user)
            start, stop = found.place(partition, user)
            across += bool(((ends > start) & (ends < stop)).any())
    assert across > 0
    assert (found.labels, found.fine_grained_labels) == (expected.labels, expected.fine_grained_labels)
    assert make_task(found, False, None) == make_task(expected, False, None)


def test_rows_are_those_of_tfrecords(data_dir, expected):
    found = TFDSRecords(data_dir)
    index, other = found.photo_index("train"), expected.photo_index("train")
    assert index.users == other.users
    np.testing.assert_array_equal(index.user, other.user)
    rows = [131, 0, 44, 43, 7]
    assert found.read_photos("train", rows) == expected.read_photos("train", rows)


def test_artificial_clients_are_those_of_tfrecords(data_dir, expected):
    found, other = (IidClients(records, "train", seed=3) for records in (TFDSRecords(data_dir), expected))
    assert found.client_ids == other.client_ids
    assert [found.read(one) for one in found.client_ids] == [other.read(one) for one in other.client_ids]


def test_any_command_opens_it_and_another_machine_too(data_dir, expected):
    assert isinstance(open_records(data_dir), TFDSRecords)
    digest = TFDSRecords(data_dir).digest()
    _, clients = ClientSource(str(data_dir), digest).open()
    assert isinstance(clients, UserClients)
    assert clients.read(clients.client_ids[0]) == expected.read_user("train", expected.users("train")[0])
    with pytest.raises(FlairError, match="holds other data than on the machine that started the run"):
        ClientSource(str(data_dir), digest[::-1]).open()


def edit(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_the_digest_names_the_data(data_dir, copy):
    digest = TFDSRecords(data_dir).digest()
    assert TFDSRecords(copy).digest() == digest
    edit(copy / "flair/1.0.0/metadata.json", lambda content: content["shard_sha256"].popitem())
    assert TFDSRecords(copy).digest() != digest


def test_a_damaged_photo_is_named(copy):
    path = copy / "flair/1.0.0/flair-val.tfrecord-00000-of-00004"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    records = TFDSRecords(copy)
    with pytest.raises(FlairError, match=r"flair-val\.tfrecord-00000-of-00004: damaged record"):
        [records.read_user("val", user) for user in records.users("val")]
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(FlairError, match=r"flair-val\.tfrecord-00000-of-00004: "):
        TFDSRecords(copy).photo_index("val")
    path.unlink()
    with pytest.raises(FlairError, match=r"flair-val\.tfrecord-00000-of-00004: is missing"):
        TFDSRecords(copy).digest()


def swap(content):
    users = content["users"]["train"]
    first, second, *_ = users
    users[first], users[second] = users[second], users[first]


def rename(content):
    users = content["users"]["train"]
    content["users"]["train"] = {("0@N00" if row == 0 else name): users[name] for row, name in enumerate(users)}


def lengthen(content):
    users = content["users"]["train"]
    users[max(users)][1] += 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (swap, "does not begin where that of the user before ends"),
        (rename, "lies where metadata.json says that user 0@N00 is"),
        (lengthen, "has users with 133 photos, the files have 132"),
        (lambda content: content["users"]["train"].update({"../x": [132, 133]}), "'../x' is not an id"),
        (lambda content: content["users"]["train"].clear(), "has users with 0 photos, the files have 132"),
        (lambda content: content.pop("users"), "the description of its FLAIR data set is damaged"),
        (lambda content: content.update(users=[1]), "the description of its FLAIR data set is damaged"),
    ],
)
def test_users_that_do_not_fit_the_photos_are_refused(copy, change, message):
    edit(copy / "flair/1.0.0/metadata.json", change)
    with pytest.raises(FlairError, match=message.replace(".", r"\.")) as caught:
        TFDSRecords(copy).read_user("train", TFDSRecords(copy).users("train")[0])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "name", ["dataset_info.json", "metadata.json", "labels.labels.txt", "fine_grained_labels.labels.txt"]
)
@pytest.mark.parametrize("content", ["", "{", "[]", "\0"])
def test_a_damaged_description_is_one_line(copy, name, content):
    (copy / "flair/1.0.0" / name).write_text(content)
    with pytest.raises(FlairError) as caught:
        TFDSRecords(copy).users("train")
    assert "\n" not in str(caught.value)
    assert str(copy) in str(caught.value)


def test_files_outside_of_the_folder_are_not_read(copy):
    (copy / "outside").mkdir()
    for path in (copy / "flair/1.0.0").glob("flair-train*"):
        shutil.copy(path, copy / "outside")

    def change(content):
        content["splits"][0]["filepathTemplate"] = "../../outside/{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"

    edit(copy / "flair/1.0.0/dataset_info.json", change)
    with pytest.raises(FlairError, match="which is not there; build it again"):
        TFDSRecords(copy).users("train")


def test_places_without_the_data_set_are_named(tmp_path, expected):
    with pytest.raises(FlairError, match=r"no such folder; build FLAIR there with python -m benchmark\.tfds_main"):
        TFDSRecords(tmp_path / "none")
    with pytest.raises(FlairError, match=r"has no flair/1\.0\.0; build FLAIR there"):
        TFDSRecords(expected.root)


def test_another_file_format_is_named(miniature, tmp_path):
    builder = Flair(data_dir=str(tmp_path), file_format="array_record")
    config = tfds.download.DownloadConfig(manual_dir=str(miniature))
    builder.download_and_prepare(download_config=config)
    with pytest.raises(FlairError, match="is built with --file_format=array_record; build it again without that"):
        TFDSRecords(tmp_path).users("train")


def test_without_the_extra_one_line_says_how_to_install_it(data_dir, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(FlairError, match="tensorflow-datasets is not installed; add it with `make environment EXTRAS="):
        TFDSRecords(data_dir)
