"""Input pipelines: shuffled training batches and evaluation batches in a fixed order.

Training draws a fresh permutation of *all* photos of the partition each epoch, so batches are not correlated by user
and nothing is dropped; only positions are permuted, so no buffer of photos exists. Everything random comes from
(seed, epoch, photo), so an epoch can be resumed at any step and split over machines without changing a number.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import tensorflow as tf

from benchmark.data import augmentation
from benchmark.data.labels import check_labels
from benchmark.data.records import Records, Task
from benchmark.run.seeds import derive_generator, derive_seed
from flair.errors import FlairError
from flair.records.tfrecord import example

_READ_AHEAD = 64  # photos read from disk at once
_BATCHES_AHEAD = 2  # decoded; a batch of 512 has 77 MB


class TrainingData:
    """Shuffled, augmented batches of one partition; one TensorFlow graph serves all epochs.

    A step has `batch_size` photos, the last one of an epoch perhaps fewer. All of the `num_replicas` replicas share
    them: those of this process, whose numbers are `replicas`, get one batch each, in this order. An uneven last batch
    is filled up with black photos whose labels are all -1, because convolutions of oneDNN refuse an empty batch.
    """

    def __init__(
        self,
        records: Records,
        partition: str,
        task: Task,
        batch_size: int,
        image_size: tuple[int, int],
        seed: int,
        replicas: Sequence[int] = (0,),
        num_replicas: int = 1,
        augment: bool = True,
    ) -> None:
        self._order = EpochOrder(len(records.photo_index(partition).offset), batch_size, seed, replicas, num_replicas)
        self.num_photos, self.steps_per_epoch = self._order.num_photos, self._order.steps_per_epoch
        self._reader = _Reader(records, partition)

        def decode(serialized: tf.Tensor, seed: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            return augmentation.parse_and_decode(serialized, seed, task, image_size, augment)

        def decode_or_fill(serialized: tf.Tensor, seed: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            black = tf.zeros((*image_size, 3), tf.uint8 if augment else tf.float32)
            filler = black, tf.fill([task.num_outputs], -1.0)
            return tf.cond(tf.strings.length(serialized) > 0, lambda: decode(serialized, seed), lambda: filler)

        photos = self._reader.photos(decode if num_replicas == 1 else decode_or_fill)
        self._dataset = photos.batch(self._order.batch_size).prefetch(_BATCHES_AHEAD)

    def batches(self, epoch: int, start_step: int = 0) -> Iterator[tuple[tf.Tensor, tf.Tensor]]:
        """Batches (photos uint8 [b, h, w, 3], labels float32 [b, num_outputs]) of one epoch, from `start_step` on.

        Without `augment` photos are float32.
        """
        self._reader.rows, self._reader.stream = self._order.rows(epoch, start_step), self._order.stream(epoch)
        return self._reader.guard(self._dataset)


class EpochOrder:
    """In which order the photos of an epoch are trained on, and how a step's photos are dealt out to replicas."""

    def __init__(
        self, num_photos: int, batch_size: int, seed: int, replicas: Sequence[int] = (0,), num_replicas: int = 1
    ) -> None:
        if batch_size % num_replicas:
            raise FlairError(f"--train_batch_size={batch_size}: must be a multiple of the {num_replicas} devices")
        self.num_photos, self.steps_per_epoch = num_photos, -(-num_photos // batch_size)
        self.batch_size = batch_size // num_replicas  # of a replica
        self._step_size, self._seed = batch_size, seed
        self._replicas, self._num_replicas = replicas, num_replicas

    def rows(self, epoch: int, start_step: int) -> np.ndarray:
        """Rows int64 of the epoch from a step on, in the order of this process's batches; -1 fills up the last ones."""
        order = derive_generator(self._seed, "order", epoch).permutation(self.num_photos)
        order = order[start_step * self._step_size :]
        if self._num_replicas == 1:
            return order
        # Rows [steps, photos of a replica, replicas], filled up: a step's photos are dealt out to the replicas.
        filled = np.pad(order, (0, -len(order) % self._step_size), constant_values=-1)
        dealt = filled.reshape(-1, self.batch_size, self._num_replicas)
        return dealt[:, :, list(self._replicas)].transpose(0, 2, 1).ravel()

    def stream(self, epoch: int) -> int:
        """The first half of the seed of each photo's augmentation in an epoch; the other one is its row."""
        return int(derive_seed(self._seed, "augmentation", epoch)[0])


def evaluation_dataset(
    records: Records,
    partition: str,
    task: Task,
    image_size: tuple[int, int],
    batch_size: int,
    replica: int = 0,
    num_replicas: int = 1,
) -> EvaluationData:
    """Every `num_replicas`-th photo of a partition from `replica` on, whole and scaled to the input size."""
    rows = range(replica, len(records.photo_index(partition).offset), num_replicas)
    return EvaluationData(records, partition, task, image_size, batch_size, rows)


class EvaluationData:
    """Batches (photos float32 [b, height, width, 3], labels float32 [b, num_outputs]) of `rows`, in their order.

    With `view`, a number, photos are uint8 with a random window and flips that follow from it and the row.
    """

    def __init__(
        self,
        records: Records,
        partition: str,
        task: Task,
        image_size: tuple[int, int],
        batch_size: int,
        rows: Sequence[int] | np.ndarray,
        view: int | None = None,
    ) -> None:
        self._reader = _Reader(records, partition)
        self.select(rows)
        if view is not None:
            self._reader.stream = int(derive_seed(0, "view", view)[0])
        augment = view is not None
        decode = functools.partial(augmentation.parse_and_decode, task=task, image_size=image_size, augment=augment)
        self._dataset = self._reader.photos(decode).batch(min(batch_size, _largest_batch())).prefetch(1)

    def select(self, rows: Sequence[int] | np.ndarray) -> None:
        """Makes the next iteration these rows of `records.photo_index(partition)`."""
        self._reader.rows = np.asarray(rows, np.int64)

    @property
    def num_photos(self) -> int:
        """Photos in one pass."""
        return len(self._reader.rows)

    def __iter__(self) -> Iterator[tuple[tf.Tensor, tf.Tensor]]:
        return self._reader.guard(self._dataset)


class _Reader:
    """Feeds serialized examples of chosen rows to a tf.data graph, and says which photo was to blame when it fails."""

    def __init__(self, records: Records, partition: str) -> None:
        self.records, self.partition = records, partition
        self.rows = np.zeros(0, np.int64)
        self.stream = 0
        self._failure: Exception | None = None

    def photos(self, decode: Callable[[tf.Tensor, tf.Tensor], tuple[tf.Tensor, tf.Tensor]]) -> tf.data.Dataset:
        """`decode` of each row's serialized example and seed int64 [2]; row -1 has an empty string."""
        signature = (tf.TensorSpec([None], tf.string), tf.TensorSpec([None, 2], tf.int64))
        read = tf.data.Dataset.from_generator(self._read, output_signature=signature).prefetch(4).unbatch()
        return read.map(decode, tf.data.AUTOTUNE, deterministic=True)

    def guard(self, dataset: tf.data.Dataset) -> Iterator[tuple[tf.Tensor, tf.Tensor]]:
        """Iterates, turning TensorFlow's error about a bad photo into one line that names it."""
        consumed = 0
        try:
            for batch in dataset:
                yield batch
                consumed += int(batch[1].shape[0])
        except tf.errors.OpError as error:
            raise self._failure or self._blame(consumed) or error from None

    def _read(self) -> Iterator[tuple[list[bytes], np.ndarray]]:
        rows, stream = self.rows, self.stream
        try:
            for start in range(0, len(rows), _READ_AHEAD):
                chunk = rows[start : start + _READ_AHEAD]
                wanted = iter(self.records.read_photos(self.partition, chunk[chunk >= 0]))
                serialized = [next(wanted) if row >= 0 else b"" for row in chunk]
                yield serialized, np.stack([np.full(len(chunk), stream), chunk], axis=1)
        except Exception as error:
            self._failure = error
            raise

    def _blame(self, consumed: int) -> FlairError | None:
        index = self.records.photo_index(self.partition)
        for row in self.rows[consumed:]:
            if row < 0:
                continue
            place = f"{index.paths[index.path[row]]}: a photo of user {index.users[index.user[row]]}"
            serialized = self.records.read_photos(self.partition, [row])[0]
            try:
                photo = example.decode(serialized)
            except FlairError as error:
                return FlairError(f"{place}: {error}; prepare the records again")
            try:
                augmentation.decode(photo.image, self.records.image_format)
            except tf.errors.OpError:
                return FlairError(f"{place} (image {photo.image_id}) is no photo that can be decoded; prepare it again")
            try:
                check_labels(photo, self.records, f"{place} (image {photo.image_id})")
            except FlairError as error:
                return error
        return None


def _largest_batch() -> int:
    # A forward pass of 64 photos already fills a CPU; 512 of them would only fill its memory.
    return 1 << 30 if tf.config.list_physical_devices("GPU") else 64
