"""Clients with features, made from a seed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from benchmark.data.features import FeatureClients, Features, LabelColumns
from benchmark.data.records import Task
from benchmark.speed.few_weights import MadeUpUsers


def feature_clients(
    sizes: Sequence[int], task: Task, num_features: int = 6, views: int = 1, seed: int = 0
) -> FeatureClients:
    """Clients with normal features, and each label on about a third of the photos."""
    rng = np.random.default_rng(seed)
    photos = sum(sizes)
    arrays = [rng.normal(size=(photos, num_features)).astype(np.float32) for _ in range(views)]
    has_label = rng.random((photos, task.num_columns)) < 1 / 3
    starts = np.concatenate([[0], np.cumsum(has_label.sum(1))])
    labels = LabelColumns(starts, np.nonzero(has_label)[1].astype(np.int32))
    return FeatureClients(MadeUpUsers(sizes), Features(arrays, labels, task))
