"""Input pipelines: shuffled training batches, evaluation batches in a fixed order, and one client's photos.

Training draws a fresh permutation of *all* photos of the partition each epoch, so batches are not correlated by user
and nothing is dropped; only positions are permuted, so no buffer of photos exists. Everything random comes from
(seed, epoch, photo), so an epoch can be resumed at any step and split over machines without changing a number.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import tensorflow as tf

from benchmark import augmentation
from benchmark.augmentation import decode_training_batch
from benchmark.records import PhotoIndex, Records, Span, Task, make_task, open_records
from benchmark.seeds import derive_generator, derive_seed
from flair.errors import FlairError

__all__ = [
    "PhotoIndex",
    "Records",
    "Task",
    "client_dataset_fn",
    "decode_training_batch",
    "evaluation_dataset",
    "make_task",
    "open_records",
    "training_dataset",
]
_READ_AHEAD = 64  # photos read from disk at once


def training_dataset(
    records: Records,
    partition: str,
    task: Task,
    batch_size: int,
    image_size: tuple[int, int],
    seed: int,
    epoch: int,
    *,
    start_step: int = 0,
    shard: int = 0,
    num_shards: int = 1,
) -> tf.data.Dataset:
    """One epoch of shuffled, augmented batches: (photos uint8 [b, h, w, 3], labels float32 [b, num_outputs]).

    Args:
      batch_size: of the whole job; the last batch of the epoch may be smaller.
      start_step: batches of the epoch to leave out, when resuming.
      shard, num_shards: take only every num_shards-th photo of each batch, from `shard` on.
    """
    index = records.photo_index(partition)
    order = derive_generator(seed, "order", epoch).permutation(len(index.offset))
    batches = [order[i : i + batch_size][shard::num_shards] for i in range(0, len(order), batch_size)][start_step:]
    rows = np.concatenate(batches) if batches else np.zeros(0, np.int64)
    photo_seed = int(derive_seed(seed, "augmentation", epoch)[0])

    def decode(serialized: tf.Tensor, row: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        jpeg, labels = augmentation.parse(serialized, task)
        return augmentation.decode_training(jpeg, tf.stack([photo_seed, row]), image_size), labels

    photos = _serialized(records, partition, rows).map(decode, tf.data.AUTOTUNE, deterministic=True)
    return photos.batch(max(len(batches[0]), 1) if batches else 1).prefetch(tf.data.AUTOTUNE)


def evaluation_dataset(
    records: Records,
    partition: str,
    task: Task,
    image_size: tuple[int, int],
    batch_size: int,
    users: Sequence[str] | None = None,
) -> tf.data.Dataset:
    """Whole photos scaled to the input size, in index order: (float32 [b, h, w, 3], float32 [b, num_outputs])."""
    rows = evaluation_rows(records, partition, users)

    def decode(serialized: tf.Tensor, _row: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        jpeg, labels = augmentation.parse(serialized, task)
        return augmentation.resize(augmentation.decode(jpeg)[tf.newaxis], image_size)[0], labels

    photos = _serialized(records, partition, rows).map(decode, tf.data.AUTOTUNE, deterministic=True)
    return photos.batch(batch_size).prefetch(1)


def evaluation_rows(records: Records, partition: str, users: Sequence[str] | None = None) -> np.ndarray:
    """Rows of `records.photo_index(partition)` in the order `evaluation_dataset` has them."""
    index = records.photo_index(partition)
    if users is None:
        return np.arange(len(index.offset))
    row_of = {user: row for row, user in enumerate(index.users)}
    unknown = [user for user in users if user not in row_of]
    if unknown:
        raise FlairError(f"{records.root}: partition {partition!r} has no user {unknown[0]!r}")
    return np.flatnonzero(np.isin(index.user, [row_of[user] for user in users]))


def client_dataset_fn(
    task: Task,
    image_size: tuple[int, int],
    batch_size: int,
    max_elements: int,
    epochs: int,
) -> Callable[[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor], tf.data.Dataset]:
    """A function (path, skip, count, seed) -> one client's training batches, made of TensorFlow operations only.

    For TFF's own runtime, where a client is a struct of scalars: the file, how many records of it come before the
    user's own, how many are the user's (-1: all to the end) and an int64 seed for order and augmentation.
    """

    def dataset(path: tf.Tensor, skip: tf.Tensor, count: tf.Tensor, seed: tf.Tensor) -> tf.data.Dataset:
        photos = tf.data.TFRecordDataset(path).skip(skip).take(count)
        photos = photos.shuffle(max_elements, seed=seed, reshuffle_each_iteration=False).take(max_elements)
        photos = photos.repeat(epochs).enumerate()

        def decode(position: tf.Tensor, serialized: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            jpeg, labels = augmentation.parse(serialized, task)
            return augmentation.decode_training(jpeg, tf.stack([seed, position]), image_size), labels

        return photos.map(decode, tf.data.AUTOTUNE, deterministic=True).batch(batch_size)

    return dataset


def client_arguments(span: Span) -> tuple[str, int, int]:
    """(path, skip, count) of one user for the function that `client_dataset_fn` makes."""
    return str(span.path), span.skip, -1 if span.count is None else span.count


def _serialized(records: Records, partition: str, rows: np.ndarray) -> tf.data.Dataset:
    """(serialized example, row) for each of `rows`, read a few dozen at a time ahead of their use."""

    def read() -> Iterator[tuple[list[bytes], np.ndarray]]:
        for start in range(0, len(rows), _READ_AHEAD):
            chunk = rows[start : start + _READ_AHEAD]
            yield records.read_photos(partition, chunk), chunk

    signature = (tf.TensorSpec([None], tf.string), tf.TensorSpec([None], tf.int64))
    return tf.data.Dataset.from_generator(read, output_signature=signature).prefetch(4).unbatch()
