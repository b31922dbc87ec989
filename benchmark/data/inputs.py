"""What a model is given for the photos of some records: their pixels, or features that were computed before."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from benchmark.data.clients import ClientPhotos, Clients, StoredPhotos
from benchmark.data.features import FeatureClients, FeatureEvaluation, Features, FeatureTraining, PhotosOfClient
from benchmark.data.pipeline import EpochOrder, EvaluationData, TrainingData, evaluation_dataset
from benchmark.data.records import Records, Task

Training = TrainingData | FeatureTraining  # shuffled batches of the train partition
Evaluation = EvaluationData | FeatureEvaluation  # batches of photos in a fixed order


class PixelInputs:
    """Photos that are decoded when they are needed: batches for training and evaluation, one user's, and clients'.

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
        """The train partition, as `pipeline.TrainingData` deals it out."""
        photos = self._records, "train", self._task, batch_size, self._image_size, seed
        return TrainingData(*photos, replicas, num_replicas, self._augment)

    def evaluation(self, partition: str, replica: int = 0, num_replicas: int = 1) -> Evaluation:
        """Every `num_replicas`-th photo of a partition from `replica` on."""
        size = self._image_size, self._eval_batch_size
        return evaluation_dataset(self._records, partition, self._task, *size, replica, num_replicas)

    def user(self, partition: str, user_id: str) -> ClientPhotos:
        """The photos of one user."""
        examples = self._records.read_user(partition, user_id)
        return StoredPhotos(user_id, examples, self._task, self._image_size, self._augment)

    def clients(self, clients: Clients) -> Clients:
        """Training clients whose photos are given like this."""
        return clients


class FeatureInputs:
    """Features of photos, by partition, as `PixelInputs`; those of train are the ones to train on."""

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


Inputs = PixelInputs | FeatureInputs
