"""Scores of single clients, whose photos go through the model together, against scikit-learn on each alone."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, log_loss

from benchmark.data.clients import BatchPlan
from benchmark.data.inputs import FeatureInputs
from benchmark.data.records import Task
from benchmark.federated.scoring import LocalScorer
from benchmark.model.trainable import new_head
from tests.support.features import feature_clients

TASK = Task("labels", ("a", "b", "c"), 3)
PLAN = BatchPlan(TASK, (1, 1), 4, 2, 8)


def test_small_and_large_clients_are_scored_each_by_itself():
    data, head = feature_clients((1, 3, 70, 2, 64, 130, 5, 1), TASK), new_head(6, 3)
    head.set_weights([np.random.default_rng(3).normal(size=one.shape).astype(np.float32) for one in head.get_weights()])
    scorer = LocalScorer(head, FeatureInputs(None, {"train": data.features}), PLAN, data)
    found = scorer.score_clients("train", data.client_ids[::-1])
    assert [score.client_id for score in found] == data.client_ids[::-1]
    kernel, bias = head.get_weights()
    for score in found:
        rows = data.rows(score.client_id)
        inputs, labels = data.features.inputs(rows, np.zeros(len(rows), int)), data.features.labels(rows).ravel()
        scores = 1 / (1 + np.exp(-(inputs @ kernel + bias).astype(np.float64))).ravel()
        assert score.photos == len(rows)
        assert score.loss == pytest.approx(log_loss(labels, scores, labels=[0, 1]), rel=1e-5)
        if labels.any():
            precision = average_precision_score(labels, scores)
            assert score.micro_averaged_precision == pytest.approx(precision, rel=1e-6)
    assert scorer.score_clients("train", []) == []
