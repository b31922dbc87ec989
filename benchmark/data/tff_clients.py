"""The users of a TFDS data set as a `tff.simulation.datasets.ClientData`, for TFF's own code and for this toolkit's."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import tensorflow as tf
import tensorflow_federated as tff

from benchmark.data.clients import UserClients
from benchmark.data.slices import StreamTable, slices_of
from benchmark.data.tfds import TFDSRecords


class FlairClientData(tff.simulation.datasets.ClientData):
    """Every user of a partition is a client.

    For TFF, a client's data are a `tf.data.Dataset` of dictionaries: `image` uint8 [256, 256, 3], `image_id` and
    `user_id` strings, `labels` and `fine_grained_labels` int64 [any number], columns as `records.labels` has them.
    For this toolkit's training it is a `benchmark.data.clients.Clients`: serialized photos, read without TensorFlow.

    Args:
      records: the data set; `TFDSRecords(tfds_data_dir)`.
      partition: `train`, `val` or `test`.

    Raises:
      FlairError: the partition is damaged.
    """

    def __init__(self, records: TFDSRecords, partition: str = "train") -> None:
        self._records, self._partition, self._client_ids = records, partition, records.users(partition)
        users = UserClients(records, partition)
        self.read, self.num_photos, self.rows = users.read, users.num_photos, users.rows

    @property
    def client_ids(self) -> list[str]:
        """Ids of the users, sorted."""
        return self._client_ids

    @property
    def serializable_dataset_fn(self) -> Callable[[Any], tf.data.Dataset]:
        """Client id -> dataset, in TensorFlow operations; an unknown id fails when the operations run."""
        return self._dataset_of

    @functools.cached_property
    def element_type_structure(self) -> Any:
        """The `tf.TensorSpec` of each feature."""
        return self._dataset_of(self._client_ids[0]).element_spec

    @functools.cached_property
    def _table(self) -> StreamTable:
        shards = self._records.shards(self._partition)
        slices = (self._records.place(self._partition, user) for user in self._client_ids)
        return StreamTable([slices_of(shards, *one) for one in slices])

    def _dataset_of(self, client_id: Any) -> tf.data.Dataset:
        # In TFF's graphs, == compares Python objects and an id may have any shape.
        row = tf.where(tf.equal(tf.constant(self._client_ids), tf.reshape(client_id, [])))[0, 0]
        features = self._records.builder.info.features
        return self._table.read(row).map(features.deserialize_example, tf.data.AUTOTUNE)
