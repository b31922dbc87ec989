"""Slices of TFRecord files that are sorted by user, and reading them in tf.data: one by one, or many in turns.

A photo has several labels, so that a label is no slice of the photos; it is a slice of a file of its own,
`label_rows-<partition>.npy`: rows int64 of all labels one after another, those of a label ascending, then four bytes of
CRC-32C, where NumPy does not look.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from flair.dataset.metadata import Record
from flair.errors import FlairError
from flair.files import npy_file

if TYPE_CHECKING:
    import tensorflow as tf

LabelSlices = dict[str, dict[str, tuple[int, int]]]
_ROW = np.dtype(np.int64)
LABEL_FEATURES = ("labels", "fine_grained_labels")  # of the data set that benchmark.data.tfds_builder describes


class Shard(NamedTuple):
    """A TFRecord file and how many records it has."""

    path: Path
    num_records: int


class Slice(NamedTuple):
    """`take` records of a file, after `skip` others."""

    path: Path
    skip: int
    take: int


def slices_of(shards: Iterable[Shard], start: int, stop: int) -> list[Slice]:
    """Where records [start, stop) of all shards together lie.

    >>> [(one.path.name, one.skip, one.take) for one in slices_of([Shard(Path("a"), 5), Shard(Path("b"), 3)], 3, 7)]
    [('a', 3, 2), ('b', 0, 2)]
    """
    slices, before = [], 0
    for shard in shards:
        first, last = max(start - before, 0), min(stop - before, shard.num_records)
        if first < last:
            slices.append(Slice(shard.path, first, last - first))
        before += shard.num_records
    return slices


def equal_streams(shards: Sequence[Shard], num_streams: int) -> list[list[Slice]]:
    """All records as at most `num_streams` runs of equal length, up to one record; with as many shards, the shards.

    >>> streams = equal_streams([Shard(Path("a"), 5), Shard(Path("b"), 1)], 2)
    >>> [[(one.path.name, one.skip, one.take) for one in stream] for stream in streams]
    [[('a', 0, 3)], [('a', 3, 2), ('b', 0, 1)]]
    """
    total = sum(shard.num_records for shard in shards)
    count = min(num_streams, total)
    # TFDS rounds in this way, too, where it cuts a split into shards.
    bounds = [round(total * stream / count) for stream in range(count + 1)]
    return [slices_of(shards, start, stop) for start, stop in itertools.pairwise(bounds)]


class StreamTable:
    """Streams, each a list of slices, as arrays from which a TensorFlow graph reads any one."""

    def __init__(self, streams: Sequence[Sequence[Slice]]) -> None:
        slices = [one for stream in streams for one in stream]
        self._paths = sorted({str(one.path) for one in slices})
        row = {path: number for number, path in enumerate(self._paths)}
        self._table = np.array([(row[str(one.path)], one.skip, one.take) for one in slices], np.int64)
        self._first = np.cumsum([0, *(len(stream) for stream in streams)])
        self.num_streams = len(streams)
        self.num_records = int(self._table[:, 2].sum())

    def read(self, stream: tf.Tensor) -> tf.data.Dataset:
        """Serialized examples of the stream of this number, in order."""
        import tensorflow as tf

        # Made here, not once: a graph of TFF cannot take in tensors from outside.
        paths, table, first = (tf.constant(array) for array in (self._paths, self._table, self._first))

        def read_slice(row: tf.Tensor) -> tf.data.Dataset:
            # Not one tf.unstack of the row: tf.data's optimizer crashes on a skip that is an operation's second output.
            path, skip, take = (table[row, column] for column in range(3))
            return tf.data.TFRecordDataset(paths[path]).skip(skip).take(take)

        return tf.data.Dataset.range(first[stream], first[stream + 1]).flat_map(read_slice)


def interleaved(table: StreamTable, seed: int, epochs: Iterable[int], shuffle_buffer: int) -> tf.data.Dataset:
    """Serialized examples of all streams, once per epoch: a record of each in turns, in blocks that are shuffled.

    Everything random comes from (seed, epoch, block) in stateless operations: TensorFlow's global seed has no part.
    Blocks have `shuffle_buffer` records; 1 leaves them in turns.
    """
    import tensorflow as tf

    def one_epoch(epoch: tf.Tensor) -> tf.data.Dataset:
        epoch_seed = tf.stack([tf.constant(seed, tf.int64), epoch])
        order = tf.argsort(tf.random.stateless_uniform([table.num_streams], epoch_seed))
        records = tf.data.Dataset.from_tensor_slices(order).interleave(
            table.read, cycle_length=table.num_streams, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True
        )
        if shuffle_buffer <= 1:
            return records

        def shuffled(block: tf.Tensor, photos: tf.Tensor) -> tf.Tensor:
            block_seed = tf.random.experimental.stateless_fold_in(epoch_seed, block)
            return tf.random.experimental.stateless_shuffle(photos, block_seed)

        return records.batch(shuffle_buffer).enumerate().map(shuffled).unbatch()

    listed = list(epochs)
    records = tf.data.Dataset.from_tensor_slices(tf.constant(listed, tf.int64)).flat_map(one_epoch)
    return records.apply(tf.data.experimental.assert_cardinality(len(listed) * table.num_records))


def label_rows_path(folder: str | os.PathLike[str], partition: str) -> Path:
    """The file of a partition."""
    return Path(folder) / f"label_rows-{partition}.npy"


def write_label_rows(path: Path, records: Iterable[Record]) -> LabelSlices:
    """Writes the places of each label's photos; returns [start, stop) in the file of each feature's labels."""
    rows: dict[tuple[str, str], list[int]] = {}
    for row, record in enumerate(records):
        for feature in LABEL_FEATURES:
            for name in getattr(record, feature):
                rows.setdefault((feature, name), []).append(row)
    npy_file.write_rows(path, np.array([row for of_label in rows.values() for row in of_label], _ROW))
    slices: LabelSlices = {feature: {} for feature in LABEL_FEATURES}
    borders = itertools.accumulate(map(len, rows.values()), initial=0)
    for (feature, name), slice_ in zip(rows, itertools.pairwise(borders), strict=True):
        slices[feature][name] = slice_
    return slices


def read_label_rows(path: Path, slice_: Sequence[int], num_photos: int) -> np.ndarray:
    """The rows of a slice, int64; a FlairError that names the file where it is not what was written."""
    start, stop = slice_
    again = "build the data set again with python -m benchmark.tfds_main --overwrite"
    try:
        rows = npy_file.read_rows(path, _ROW)[start:stop]
    except FileNotFoundError:
        raise FlairError(f"{path}: is missing; {again}") from None
    except FlairError:
        raise FlairError(f"{path}: is damaged; {again}") from None
    if not 0 < len(rows) == stop - start or rows.min() < 0 or rows.max() >= num_photos:
        raise FlairError(f"{path}: is not what was built; {again}")
    return rows
