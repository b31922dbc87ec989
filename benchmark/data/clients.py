"""Clients: whose photos each of them holds, and the batches that it trains on in a round.

Order and augmentation of a client's photos are functions of (seed, round, client) in TensorFlow's stateless random
operations, so that a graph (TFF's runtime) and Python (ours) make the same batches.
"""

from __future__ import annotations

import collections
import concurrent.futures
import functools
import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol, TypeVar, runtime_checkable

import numpy as np
import tensorflow as tf

from benchmark.data.artificial import Artificial, FreshClients
from benchmark.data.augmentation import decode_batch
from benchmark.data.opening import open_records
from benchmark.data.records import Records, Task
from benchmark.run.seeds import derive_generator, derive_seed
from flair.errors import FlairError
from flair.records.tfrecord import example

Batch = tuple[tf.Tensor, tf.Tensor]
_Decoder = Callable[[tf.Tensor, tf.Tensor], Batch]
_Item = TypeVar("_Item")
_READ_AHEAD = 3  # decoded batches waiting for the model


class ClientData(Protocol):
    """Clients and their serialized examples."""

    @property
    def client_ids(self) -> Sequence[str]:
        """Ids of the clients."""
        ...

    def read(self, client_id: str) -> list[bytes]:
        """The client's serialized examples, in a fixed order."""
        ...


class Clients(ClientData, Protocol):
    """Clients of whom it is known how many photos each has."""

    def num_photos(self, client_id: str) -> int:
        """How many examples the client has, found without reading them."""
        ...

    def rows(self, client_id: str) -> np.ndarray:
        """The client's rows of `Records.photo_index`."""
        ...


class ClientPhotos(Protocol):
    """The photos of one client, as a model is given them: pixels, or features that were computed before."""

    count: int

    def training(self, order: tf.Tensor, seeds: tf.Tensor) -> Batch:
        """Inputs [b, ...] and labels float32 [b, outputs] of the photos `order` int32 [b], to train on.

        `seeds` int64 [b, 2] decide the augmentation of each.
        """
        ...

    def whole(self, positions: Sequence[int] | np.ndarray) -> Batch:
        """The same of these photos as they are evaluated."""
        ...


class StoredPhotos:
    """Photos as records hold them, decoded when they are asked for: `ClientPhotos` of pixels.

    A photo to train on is uint8 with a random window and flips, or without `augment` as it is evaluated: float32.
    """

    def __init__(
        self, client_id: str, examples: Sequence[bytes], task: Task, image_size: tuple[int, int], augment: bool = True
    ) -> None:
        if not examples:
            raise FlairError(f"client {client_id}: has no photo; prepare the records again")
        self._client_id, self._examples = client_id, examples
        self._serialized = tf.constant(examples, tf.string)
        self._training, self._whole = decoder(task, image_size, augment), decoder(task, image_size, False)
        self.count = len(examples)

    def training(self, order: tf.Tensor, seeds: tf.Tensor) -> Batch:
        return self._decode(self._training, order, seeds)

    def whole(self, positions: Sequence[int] | np.ndarray) -> Batch:
        return self._decode(self._whole, tf.constant(positions, tf.int32), tf.zeros([len(positions), 2], tf.int64))

    def _decode(self, decode: _Decoder, order: tf.Tensor, seeds: tf.Tensor) -> Batch:
        try:
            return decode(tf.gather(self._serialized, order), seeds)
        except tf.errors.InvalidArgumentError as error:
            raise _bad_photo(self._client_id, self._examples, decode) or error from None


@runtime_checkable
class PreparedClients(ClientData, Protocol):
    """Clients whose photos need no decoding."""

    def photos(self, client_id: str) -> ClientPhotos:
        """The client's photos."""
        ...


class UserClients:
    """Every user of a partition is a client: FLAIR's own, non-IID split."""

    def __init__(self, records: Records, partition: str) -> None:
        self._records, self._partition = records, partition
        self._counts: dict[str, int] = {}  # found so far: it takes a look into the user's file
        self.client_ids: Sequence[str] = records.users(partition)

    def rows(self, client_id: str) -> np.ndarray:
        return self._records.rows_of(self._partition, client_id)

    def read(self, client_id: str) -> list[bytes]:
        return self._records.read_user(self._partition, client_id)

    def num_photos(self, client_id: str) -> int:
        if client_id not in self._counts:
            self._counts[client_id] = self._records.num_photos_of(self._partition, client_id)
        return self._counts[client_id]


class IidClients:
    """Artificial clients, to whom the partition's photos are dealt out after one shuffle: the IID control.

    Client sizes are the real users' sizes, or `photos_per_client` for all.
    """

    def __init__(self, records: Records, partition: str, seed: int, photos_per_client: int | None = None) -> None:
        self._records, self._partition = records, partition
        index = records.photo_index(partition)
        order = derive_generator(seed, "iid", partition).permutation(len(index.offset))
        if photos_per_client is None:
            borders = np.cumsum(np.bincount(index.user))[:-1]
        else:
            borders = np.arange(photos_per_client, len(order), photos_per_client)
        rows = np.split(order, borders)
        width = len(str(len(rows)))
        self._rows = {f"iid{number:0{width}d}": chunk for number, chunk in enumerate(rows)}
        self.client_ids: Sequence[str] = list(self._rows)

    def read(self, client_id: str) -> list[bytes]:
        return self._records.read_photos(self._partition, self._rows[client_id])

    def rows(self, client_id: str) -> np.ndarray:
        return self._rows[client_id]

    def num_photos(self, client_id: str) -> int:
        return len(self._rows[client_id])


class ClientSource(NamedTuple):
    """Training clients of a place with records, as plain data: another process, perhaps elsewhere, opens them with it.

    Attributes:
      place: absolute path of what `open_records` opens, the same on every machine.
      digest: `Records.digest()` of the data that is meant.
      artificial: how the clients are made; None: they are users.
    """

    place: str
    digest: str
    artificial: Artificial | None = None

    def open(self) -> tuple[Records, Clients]:
        """The records and their training clients.

        Raises:
          FlairError: there are no records at this path, or others than these.
        """
        records = open_records(self.place)
        if records.digest() != self.digest:
            raise FlairError(
                f"{self.place}: holds other data than on the machine that started the run; copy its files here"
            )
        return records, training_clients(records, self.artificial)


def training_clients(records: Records, artificial: Artificial | None) -> Clients:
    """The clients of the train partition: its users, or artificial ones."""
    if artificial is None:
        return UserClients(records, "train")
    if artificial.is_fresh:
        return FreshClients(records, "train", artificial)
    return IidClients(records, "train", artificial.seed, artificial.photos_per_client)


def content_digest(data: ClientData) -> str:
    """SHA-256 of every client's id and photos, in order: unlike `Records.digest`, it reads all of them."""
    sha = hashlib.sha256()
    for client_id in data.client_ids:
        sha.update(repr(client_id).encode())
        for serialized in data.read(client_id):
            sha.update(hashlib.sha256(serialized).digest())
    if isinstance(data, FreshClients):  # who may draw any photo later
        for serialized in data.all_photos():
            sha.update(hashlib.sha256(serialized).digest())
    return sha.hexdigest()


@dataclass(frozen=True)
class BatchPlan:
    """How a client goes through its photos in a round."""

    task: Task
    image_size: tuple[int, int]  # height and width of the model's input
    batch_size: int  # photos per step; the last batch of the round may be smaller
    epochs: int  # passes, each in a fresh order; batches run across their borders, as published
    max_elements: int  # most photos per pass: a larger client has a fresh random subset in each
    augment: bool = field(default=True, repr=False)  # random windows and flips; noise keys hash the rest as text


class ClientBatch(NamedTuple):
    """One step's photos."""

    inputs: tf.Tensor  # pixels [b, h, w, 3] or features [b, d]
    labels: tf.Tensor  # float32 [b, outputs]
    is_last: bool  # of a pass over a client's photos


def client_seed(seed: int, round_number: int, client_id: str) -> np.ndarray:
    """int64[2] seed of a client's order and augmentation in one round."""
    return derive_seed(seed, "client", round_number, client_id)


def training_order(num_examples: tf.Tensor, seed: tf.Tensor, plan: BatchPlan) -> tuple[tf.Tensor, tf.Tensor]:
    """The round's photos of a client, int32 [photos shown], and a seed for augmenting each, int64 [photos shown, 2]."""
    draws = tf.random.stateless_uniform([plan.epochs, num_examples], seed)
    order = tf.reshape(tf.argsort(draws, axis=1)[:, : plan.max_elements], [-1])
    shown = tf.range(1, tf.size(order, tf.int64) + 1)
    return order, tf.stack([seed[0] + shown, tf.repeat(seed[1], tf.size(shown))], axis=1)


def client_dataset(serialized: tf.Tensor, seed: tf.Tensor, plan: BatchPlan) -> tf.data.Dataset:
    """A client's batches, from string [photos] by TensorFlow's operations only, for TFF's own runtime."""
    order, seeds = training_order(tf.size(serialized), seed, plan)
    examples = tf.data.Dataset.from_tensor_slices((tf.gather(serialized, order), seeds)).batch(plan.batch_size)
    return examples.map(
        lambda photos, photo_seeds: decode_batch(photos, photo_seeds, plan.task, plan.image_size, plan.augment)
    )


def client_batches(
    data: ClientData, cohort: Iterable[str], *, plan: BatchPlan, seed: int, round_number: int, passes: int = 1
) -> Iterator[ClientBatch]:
    """All batches of a round, client after client, each `passes` times; read and decoded ahead in a thread."""

    def produce() -> Iterator[ClientBatch]:
        for client_id in cohort:
            photos = photos_of(data, client_id, plan)
            order, seeds = training_order(tf.constant(photos.count), client_seed(seed, round_number, client_id), plan)
            starts = range(0, int(order.shape[0]), plan.batch_size)
            for start in [*starts] * passes:
                part = slice(start, start + plan.batch_size)
                yield ClientBatch(*photos.training(order[part], seeds[part]), start == starts[-1])

    return prefetched(produce(), _READ_AHEAD)


def prefetched(items: Iterator[_Item], depth: int) -> Iterator[_Item]:
    """The same items, computed up to `depth` ahead in a thread that ends when the consumer stops or fails."""
    end = object()
    with concurrent.futures.ThreadPoolExecutor(1, "prefetch") as pool:
        try:
            ahead = collections.deque(pool.submit(next, items, end) for _ in range(depth))
            while (item := ahead.popleft().result()) is not end:
                ahead.append(pool.submit(next, items, end))
                yield item  # type: ignore[misc]
        finally:
            pool.shutdown(cancel_futures=True)


def photos_of(data: ClientData, client_id: str, plan: BatchPlan) -> ClientPhotos:
    """A client's photos, decoded when they are asked for where that is needed."""
    if isinstance(data, PreparedClients):
        return data.photos(client_id)
    return StoredPhotos(client_id, data.read(client_id), plan.task, plan.image_size, plan.augment)


def _bad_photo(client_id: str, examples: Sequence[bytes], decode: _Decoder) -> FlairError | None:
    """Which photo of a client TensorFlow could not decode, in one line; None if each can be by itself."""
    for number, serialized in enumerate(examples):
        try:
            decode(tf.constant([serialized]), tf.zeros([1, 2], tf.int64))
        except tf.errors.InvalidArgumentError:
            try:
                image_id = example.decode(serialized).image_id
            except FlairError:
                image_id = None
            name = f"image {image_id}" if image_id else f"record {number}"
            return FlairError(
                f"client {client_id}: {name} cannot be decoded or has a label outside the label file; "
                "check the records with flair.verify and prepare them again"
            )
    return None


@functools.cache
def decoder(task: Task, image_size: tuple[int, int], augment: bool) -> _Decoder:
    """(serialized string [b], seeds int64 [b, 2]) -> (pixels, labels), compiled once for all of these."""
    return tf.function(
        lambda photos, seeds: decode_batch(photos, seeds, task, image_size, augment),
        input_signature=[tf.TensorSpec([None], tf.string), tf.TensorSpec([None, 2], tf.int64)],
    )
