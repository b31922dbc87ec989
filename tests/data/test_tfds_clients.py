"""FLAIR as TFF's own kind of client data: over TFDS, and through TFF's loader of FLAIR."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("tensorflow_datasets", reason="the extra 'tfds' is not installed")

import tensorflow as tf
import tensorflow_datasets as tfds
import tensorflow_federated as tff

import prepare_tfrecords
from benchmark.data.clients import BatchPlan, UserClients
from benchmark.data.opening import make_task
from benchmark.data.records import TFRecordRecords
from benchmark.data.tfds import TFDSRecords
from benchmark.data.tff_clients import FlairClientData
from benchmark.flair_tfds import Flair
from flair.errors import FlairError
from flair.records.tfrecord import example, reader
from flair.records.tfrecord.writer import write_tfrecords
from tests.support.tiny_network import TINY


@pytest.fixture(scope="module")
def records(tfrecords):
    return TFRecordRecords(tfrecords)


@pytest.fixture(scope="module")
def found(miniature, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tfds")
    config = tfds.download.DownloadConfig(manual_dir=str(miniature), num_shards=4)
    Flair(data_dir=str(folder)).download_and_prepare(download_config=config)
    return TFDSRecords(folder)


def users_with(records, partition, most):
    return [user for user in records.users(partition) if records.num_photos_of(partition, user) <= most]


def test_it_is_client_data_of_tff_and_of_this_toolkit(found, records):
    data, other = FlairClientData(found), UserClients(records, "train")
    assert isinstance(data, tff.simulation.datasets.ClientData)
    assert data.client_ids == other.client_ids
    for client_id in data.client_ids:
        assert data.read(client_id) == other.read(client_id)
        assert data.num_photos(client_id) == other.num_photos(client_id)


def test_datasets_of_clients_are_their_photos(found, records):
    data = FlairClientData(found)
    assert data.element_type_structure["image"] == tf.TensorSpec([256, 256, 3], tf.uint8)
    # Some of these users' photos lie in two files.
    ends = np.cumsum([shard.num_records for shard in found.shards("train")])
    slices = {user: found.place("train", user) for user in data.client_ids}
    across = [user for user, (start, stop) in slices.items() if ((start < ends) & (ends < stop)).any()]
    for client_id in {*users_with(records, "train", 2)[:3], *across}:
        expected = [example.decode(payload) for payload in records.read_user("train", client_id)]
        photos = list(data.create_tf_dataset_for_client(client_id).as_numpy_iterator())
        assert [photo["image_id"].decode() for photo in photos] == [photo.image_id for photo in expected]
        assert [tuple(photo["labels"]) for photo in photos] == [photo.labels for photo in expected]
        assert {photo["user_id"].decode() for photo in photos} == {client_id}
        np.testing.assert_array_equal(photos[-1]["image"], tf.io.decode_jpeg(expected[-1].image))
    assert across


def test_what_tff_does_with_client_data_works(found):
    data = FlairClientData(found, "val")
    train, test = tff.simulation.datasets.ClientData.train_test_client_split(data, 1, seed=1)
    assert sorted([*train.client_ids, *test.client_ids]) == data.client_ids
    ids = data.preprocess(lambda dataset: dataset.map(lambda photo: photo["image_id"]))
    pooled = list(ids.create_tf_dataset_from_all_clients(seed=1).as_numpy_iterator())
    assert len(pooled) == len(set(pooled)) == found.num_photos("val")
    with pytest.raises(ValueError, match="is not a client"):
        data.create_tf_dataset_for_client("9@N00")
    with pytest.raises(tf.errors.InvalidArgumentError):
        data.serializable_dataset_fn("9@N00")


@pytest.mark.slow
def test_its_computation_runs_in_tff(found):
    from benchmark.rounds.tff import guard_worker, stop_workers

    guard_worker()
    data = FlairClientData(found, "val")
    client_id = max(data.client_ids, key=data.num_photos)

    @tff.tensorflow.computation(np.str_)
    def count(client):
        return data.serializable_dataset_fn(client).reduce(np.int64(0), lambda total, _: total + 1)

    try:
        assert count(client_id) == data.num_photos(client_id) > 1
    finally:
        stop_workers()


@pytest.mark.slow
def test_training_on_it_gives_the_round_of_tfrecords(found, records):
    from benchmark.model.networks import build_model
    from benchmark.rounds.config import FederatedConfig
    from benchmark.rounds.inprocess import InProcessRuntime

    task = make_task(records, False, None)
    plan = BatchPlan(task, (32, 32), batch_size=8, epochs=1, max_elements=16)
    results = []
    for data in (FlairClientData(found), UserClients(records, "train")):
        runtime = InProcessRuntime(
            build_model(TINY, (32, 32, 3), task.num_outputs), FederatedConfig(), data, plan, 1, "noise"
        )
        results.append(runtime.run_round(1, data.client_ids[:4]))
    assert results[0].metrics == results[1].metrics


@pytest.fixture(scope="module")
def for_tff(miniature, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tff") / "records"
    flags = [f"--dataset_dir={miniature}", f"--tfrecords_dir={folder}", "--feature_names=tff"]
    assert prepare_tfrecords.main(flags) == 0
    return folder


def test_tffs_own_loader_reads_records_with_its_feature_names(for_tff, records):
    loaded = dict(zip(("train", "val", "test"), tff.simulation.datasets.flair.load_data(str(for_tff)), strict=True))
    for partition, data in loaded.items():
        assert sorted(data.client_ids) == records.users(partition)
    user = users_with(records, "test", 6)[0]
    photos = list(loaded["test"].create_tf_dataset_for_client(user).as_numpy_iterator())
    expected = [example.decode(payload) for payload in records.read_user("test", user)]
    assert len(photos) == len(expected)
    for photo, one in zip(photos, expected, strict=True):
        np.testing.assert_array_equal(photo["image"], tf.io.decode_jpeg(one.image))
        assert tuple(np.flatnonzero(photo["label"])) == tuple(sorted(one.labels))
        assert tuple(np.flatnonzero(photo["fine_grained_label"])) == tuple(sorted(one.fine_grained_labels))


def test_records_with_tffs_feature_names_are_the_same_photos(for_tff, records):
    found = reader.TFRecords(for_tff)
    for user, span in found.users("train").items():
        assert found.read_user(span) == [example.decode(payload) for payload in records.read_user("train", user)]
    assert TFRecordRecords(for_tff).labels == records.labels


def test_feature_names_are_a_parameter_of_the_output(for_tff, miniature, tmp_path):
    with pytest.raises(FlairError, match="feature_names"):
        write_tfrecords(miniature, for_tff)
    with pytest.raises(FlairError, match="TFF reads one file a user; leave --layout=sharded out"):
        write_tfrecords(miniature, tmp_path / "new", layout="sharded", feature_names="tff")
