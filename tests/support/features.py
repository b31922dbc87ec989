"""Clients with features, made from a seed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from benchmark.data.clients import BatchPlan
from benchmark.data.features import FeatureClients, Features, LabelColumns
from benchmark.data.records import Task
from benchmark.model.trainable import new_head
from benchmark.privacy.noise_key import NoiseKey
from benchmark.rounds.config import FederatedConfig
from benchmark.rounds.inprocess import InProcessRuntime
from benchmark.rounds.shard import ShardTrainer
from benchmark.speed.few_weights import MadeUpUsers

KEY = NoiseKey(bytes(range(32)))
"""Of `head_runtime`; it is no secret."""


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


def head_runtime(
    config: FederatedConfig, data: FeatureClients, plan: BatchPlan, one_by_one: bool = False
) -> InProcessRuntime:
    """Rounds of a head on `feature_clients`, whose clients train in groups, or `one_by_one` as on photos."""
    head = new_head(6, plan.task.num_outputs)
    head.set_weights([np.random.default_rng(3).normal(size=one.shape).astype(np.float32) for one in head.get_weights()])
    runtime = InProcessRuntime(head, config, data, plan, 5, KEY)
    if one_by_one:
        runtime._cohort = ShardTrainer(runtime.trainer, runtime.aggregation, data, plan, 5, runtime.local_key)
    return runtime
