"""Scores of single clients, whose photos go through the model together, against scikit-learn on each alone."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf
from scipy.special import expit
from sklearn.metrics import average_precision_score, log_loss

from benchmark.data.clients import BatchPlan, training_order
from benchmark.data.inputs import FeatureInputs
from benchmark.data.records import Task
from benchmark.federated.scoring import LocalScorer
from benchmark.model.trainable import new_head
from benchmark.rounds.config import ClientConfig
from benchmark.run.seeds import derive_generator, derive_seed
from tests.support.features import feature_clients

TASK = Task("labels", ("a", "b", "c"), 3)
PLAN = BatchPlan(TASK, (1, 1), 4, 2, 8)
SIZES = (1, 3, 70, 2, 64, 130, 5, 1)


@pytest.fixture
def data():
    return feature_clients(SIZES, TASK)


@pytest.fixture
def head():
    head = new_head(6, 3)
    head.set_weights([np.random.default_rng(3).normal(size=one.shape).astype(np.float32) for one in head.get_weights()])
    return head


@pytest.fixture
def scorer(data, head):
    index = SimpleNamespace(offset=np.zeros(sum(SIZES)))
    records = SimpleNamespace(photo_index=lambda _: index)
    return LocalScorer(head, records, FeatureInputs(records, {"train": data.features}), PLAN, data)


def _features(data, rows):
    return data.features.inputs(rows, np.zeros(len(rows), int)).astype(np.float64), data.features.labels(rows)


def _assert_scored(score, data, rows, kernel, bias):
    inputs, labels = _features(data, rows)
    scores, labels = expit(inputs @ kernel + bias).ravel(), labels.ravel()
    assert score.photos == len(rows)
    assert score.loss == pytest.approx(log_loss(labels, scores, labels=[0, 1]), rel=1e-5)
    if labels.any():
        precision = average_precision_score(labels, scores)
        assert score.micro_averaged_precision == pytest.approx(precision, rel=1e-6)


def test_small_and_large_clients_are_scored_each_by_itself(scorer, data, head):
    of_all = scorer.evaluate("train")
    found = scorer.score_clients("train", data.client_ids[::-1])
    assert [score.client_id for score in found] == data.client_ids[::-1]
    for score in found:
        _assert_scored(score, data, data.rows(score.client_id), *head.get_weights())
    assert scorer.score_clients("train", []) == []
    assert scorer.evaluate("train") == of_all


@pytest.mark.parametrize("one_by_one", [False, True], ids=["groups", "one by one"])
def test_each_client_trains_by_itself_on_half_of_its_photos(scorer, data, head, one_by_one, monkeypatch):
    if one_by_one:
        monkeypatch.setattr(scorer, "_compare_groups", scorer._compare_each)
    monkeypatch.setattr("benchmark.federated.scoring._CLIENTS_AT_ONCE", 4)
    config, start = ClientConfig(learning_rates=(9.0, 0.5), clipnorm=0.1), head.get_weights()
    found = scorer.compare_local_training("train", data.client_ids, config, 7)
    assert [one.after.client_id for one in found] == [name for name in data.client_ids if data.num_photos(name) > 1]
    for one in found:
        client_id, (kernel, bias) = one.before.client_id, (weight.astype(np.float64) for weight in start)
        rows = data.rows(client_id)
        order = derive_generator(7, "local split", client_id).permutation(len(rows))
        train, held_out = np.array_split(rows[order], 2)
        _assert_scored(one.before, data, held_out, kernel, bias)
        shown, _ = training_order(tf.constant(len(train)), derive_seed(7, "local training", client_id), PLAN)
        for at in range(0, len(shown), PLAN.batch_size):
            inputs, labels = _features(data, train[shown.numpy()[at : at + PLAN.batch_size]])
            error = (expit(inputs @ kernel + bias) - labels) / labels.size
            for weight, gradient in ((kernel, inputs.T @ error), (bias, error.sum(0))):
                weight -= 0.5 * gradient * min(1, 0.1 / np.linalg.norm(gradient))
        _assert_scored(one.after, data, held_out, kernel, bias)
        assert one.after.loss != one.before.loss
    assert scorer.compare_local_training("train", data.client_ids[:1], config, 7) == []
    for one, other in zip(start, head.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
