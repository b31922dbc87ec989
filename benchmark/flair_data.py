"""The published module name of the input pipelines; the code is in the rooms that this imports from."""

from __future__ import annotations

from benchmark.data.augmentation import decode_batch
from benchmark.data.opening import make_task, open_records
from benchmark.data.pipeline import EvaluationData, TrainingData, evaluation_dataset
from benchmark.data.records import PhotoIndex, Records, Task
from benchmark.personalization.dataset import Episode, episode_dataset
from benchmark.personalization.dump import DumpedEpisodes
from benchmark.personalization.sources import LabelEpisodeSource, UserEpisodeSource

__all__ = [
    "DumpedEpisodes",
    "Episode",
    "EvaluationData",
    "LabelEpisodeSource",
    "PhotoIndex",
    "Records",
    "Task",
    "TrainingData",
    "UserEpisodeSource",
    "decode_batch",
    "episode_dataset",
    "evaluation_dataset",
    "make_task",
    "open_records",
]
