"""Photos as the features that a frozen network gave for them, read from memory-mapped arrays."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from benchmark.data.clients import Batch, ClientPhotos, Clients
from benchmark.data.pipeline import EpochOrder
from benchmark.data.records import Task

_EVALUATED_AT_ONCE = 4096  # photos: their features are small


class LabelColumns(NamedTuple):
    """Label columns int32 [m] of photos, one after the other; those of photo k begin at `starts` int64 [photos + 1]."""

    starts: np.ndarray
    columns: np.ndarray


class Features:
    """The photos of a partition, in the order of `Records.photo_index`.

    Args:
      views: one array or several, each [photos, d] of float32 or float16: whole photos, or augmented in several ways.
      labels: of the kind that the task predicts.
    """

    def __init__(self, views: Sequence[np.ndarray], labels: LabelColumns, task: Task) -> None:
        self.views, self._labels, self._task = views, labels, task

    def __len__(self) -> int:
        return len(self.views[0])

    @property
    def size(self) -> int:
        """Numbers per photo."""
        return int(self.views[0].shape[1])

    def inputs(self, rows: np.ndarray, draws: np.ndarray) -> np.ndarray:
        """Features float32 [k, d] of photos; `draws` int64 [k] choose the view of each."""
        if len(self.views) == 1:
            return self.views[0][rows].astype(np.float32, copy=False)
        found = np.empty((len(rows), self.size), np.float32)
        chosen = draws % len(self.views)
        for number, view in enumerate(self.views):
            found[chosen == number] = view[rows[chosen == number]]
        return found

    def labels(self, rows: np.ndarray) -> np.ndarray:
        """Labels float32 [k, outputs] of photos, 0 or 1."""
        starts = self._labels.starts[rows]
        counts = self._labels.starts[rows + 1] - starts
        photos = np.repeat(np.arange(len(rows)), counts)
        # Places 0, 1, ... of each photo's labels, added to where they begin.
        places = np.arange(len(photos)) - np.repeat(np.cumsum(counts) - counts, counts) + np.repeat(starts, counts)
        columns = self._labels.columns[places]
        found = np.zeros((len(rows), self._task.num_outputs), np.float32)
        if self._task.binary_index is not None:
            found[photos[columns == self._task.binary_index]] = 1
        else:
            found[photos, columns] = 1
        return found

    def batch(self, rows: np.ndarray, draws: np.ndarray) -> Batch:
        """Features and labels; rows -1 fill up, with labels of -1."""
        is_photo = rows >= 0
        if is_photo.all():
            return tf.constant(self.inputs(rows, draws)), tf.constant(self.labels(rows))
        inputs = np.zeros((len(rows), self.size), np.float32)
        labels = np.full((len(rows), self._task.num_outputs), -1, np.float32)
        inputs[is_photo], labels[is_photo] = self.inputs(rows[is_photo], draws[is_photo]), self.labels(rows[is_photo])
        return tf.constant(inputs), tf.constant(labels)


class PhotosOfClient:
    """The photos of one client: `ClientPhotos` of features."""

    def __init__(self, features: Features, rows: np.ndarray) -> None:
        self._features, self._rows = features, rows
        self.count = len(rows)

    def training(self, order: tf.Tensor, seeds: tf.Tensor) -> Batch:
        return self._features.batch(self._rows[np.asarray(order)], np.asarray(seeds)[:, 0])

    def whole(self, positions: Sequence[int] | np.ndarray) -> Batch:
        rows = self._rows[np.asarray(positions)]
        return self._features.batch(rows, np.zeros(len(rows), np.int64))


class FeatureClients:
    """Training clients whose photos are features; otherwise those that it is given."""

    def __init__(self, clients: Clients, features: Features) -> None:
        self._clients, self.features = clients, features
        self.client_ids = clients.client_ids
        self.read, self.num_photos, self.rows = clients.read, clients.num_photos, clients.rows

    def photos(self, client_id: str) -> ClientPhotos:
        """The client's photos."""
        return PhotosOfClient(self.features, self.rows(client_id))


class FeatureTraining:
    """Shuffled batches of features, in the order of `pipeline.TrainingData`, whose place it takes."""

    def __init__(self, features: Features, order: EpochOrder) -> None:
        self._features, self._order = features, order
        self.num_photos, self.steps_per_epoch = order.num_photos, order.steps_per_epoch

    def batches(self, epoch: int, start_step: int = 0) -> Iterator[Batch]:
        """Batches (float32 [b, d], labels float32 [b, num_outputs]) of one epoch, from `start_step` on."""
        rows, stream = self._order.rows(epoch, start_step), abs(self._order.stream(epoch)) >> 1
        for start in range(0, len(rows), self._order.batch_size):
            chosen = rows[start : start + self._order.batch_size]
            yield self._features.batch(chosen, stream + chosen)


class FeatureEvaluation:
    """Batches of the features of some rows in their order; it takes the place of `pipeline.EvaluationData`."""

    def __init__(self, features: Features, rows: Sequence[int] | np.ndarray) -> None:
        self._features = features
        self.select(rows)

    def select(self, rows: Sequence[int] | np.ndarray) -> None:
        """Makes the next iteration these rows."""
        self._rows = np.asarray(rows, np.int64)

    @property
    def num_photos(self) -> int:
        """Photos in one pass."""
        return len(self._rows)

    def __iter__(self) -> Iterator[Batch]:
        for start in range(0, len(self._rows), _EVALUATED_AT_ONCE):
            rows = self._rows[start : start + _EVALUATED_AT_ONCE]
            yield self._features.batch(rows, np.zeros(len(rows), np.int64))
