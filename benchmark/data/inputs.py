"""What a model is given for the photos of some records: their pixels, or features that were computed before."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Protocol

import numpy as np

from benchmark.data.clients import Batch, ClientPhotos, StoredPhotos
from benchmark.data.features import FeatureClients, FeatureEvaluation, Features, FeatureTraining, PhotosOfClient
from benchmark.data.pipeline import EpochOrder, TrainingData, evaluation_dataset
from benchmark.data.records import Records, Task
from benchmark.data.source import Clients


class Training(Protocol):
    """Shuffled batches of the train partition."""

    num_photos: int
    steps_per_epoch: int

    def batches(self, epoch: int, start_step: int = 0) -> Iterator[Batch]:
        """Batches of one epoch, from a step on."""
        ...


class Evaluation(Iterable[Batch], Protocol):
    """Batches of photos in a fixed order."""

    @property
    def num_photos(self) -> int:
        """Photos in one pass."""
        ...

    def select(self, rows: Sequence[int] | np.ndarray) -> None:
        """Makes the next pass these rows of `Records.photo_index`."""
        ...


class Inputs(Protocol):
    """Batches for training and evaluation, and the photos of one user or client."""

    def training(self, batch_size: int, seed: int, replicas: Sequence[int] = (0,), num_replicas: int = 1) -> Training:
        """The train partition, as `pipeline.TrainingData` deals it out."""
        ...

    def evaluation(self, partition: str, replica: int = 0, num_replicas: int = 1) -> Evaluation:
        """Every `num_replicas`-th photo of a partition from `replica` on."""
        ...

    def user(self, partition: str, user_id: str) -> ClientPhotos:
        """The photos of one user."""
        ...

    def clients(self, clients: Clients) -> Clients:
        """Training clients whose photos are given like this."""
        ...


class PixelInputs:
    """Photos that are decoded when they are needed.

    Args:
      image_size: (height, width) of the model's input.
      eval_batch_size: photos per batch in evaluation.
      augment: random windows and flips in training; without, photos are as in evaluation.
    """

    def __init__(
        self, records: Records, task: Task, image_size: tuple[int, int], eval_batch_size: int, augment: bool = True
    ) -> None:
        self._records, self._task, self._image_size = records, task, image_size
        self._eval_batch_size, self._augment = eval_batch_size, augment

    def training(
        self, batch_size: int, seed: int, replicas: Sequence[int] = (0,), num_replicas: int = 1
    ) -> TrainingData:
        photos = self._records, "train", self._task, batch_size, self._image_size, seed
        return TrainingData(*photos, replicas, num_replicas, self._augment)

    def evaluation(self, partition: str, replica: int = 0, num_replicas: int = 1) -> Evaluation:
        size = self._image_size, self._eval_batch_size
        return evaluation_dataset(self._records, partition, self._task, *size, replica, num_replicas)

    def user(self, partition: str, user_id: str) -> ClientPhotos:
        examples = self._records.read_user(partition, user_id)
        return StoredPhotos(user_id, examples, self._task, self._image_size, self._augment)

    def clients(self, clients: Clients) -> Clients:
        return clients


class FeatureInputs:
    """Features of photos, by partition; those of train are the ones to train on."""

    def __init__(self, records: Records, features: Mapping[str, Features]) -> None:
        self._records, self.features = records, features

    def training(
        self, batch_size: int, seed: int, replicas: Sequence[int] = (0,), num_replicas: int = 1
    ) -> FeatureTraining:
        features = self.features["train"]
        return FeatureTraining(features, EpochOrder(len(features), batch_size, seed, replicas, num_replicas))

    def evaluation(self, partition: str, replica: int = 0, num_replicas: int = 1) -> Evaluation:
        features = self.features[partition]
        return FeatureEvaluation(features, range(replica, len(features), num_replicas))

    def user(self, partition: str, user_id: str) -> ClientPhotos:
        return PhotosOfClient(self.features[partition], self._records.rows_of(partition, user_id))

    def clients(self, clients: Clients) -> Clients:
        return FeatureClients(clients, self.features["train"])
