"""Drift of a round's clients, against NumPy on the updates that they send."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
import pytest

from benchmark.data.clients import BatchPlan
from benchmark.data.records import Task
from benchmark.privacy.request import Mechanism
from benchmark.rounds.config import (
    FED_AVG,
    FED_PROX,
    ClientConfig,
    FederatedConfig,
    LocalNoiseConfig,
    NoiseConfig,
    OptimizerConfig,
)
from tests.support.features import feature_clients, head_runtime

TASK = Task("labels", ("a", "b", "c"), 3)
PLAN = BatchPlan(TASK, (1, 1), 4, 2, 8)
SIZES = (1, 2, 3, 5, 7, 11, 16, 17)
PLAIN = FederatedConfig(ClientConfig(learning_rates=(0.5,)), OptimizerConfig("sgd", (1.0,)))
PRIVATE = dataclasses.replace(
    PLAIN,
    client=ClientConfig(learning_rates=(0.5,), weighted=False),
    noise=NoiseConfig(Mechanism.GAUSSIAN, 0.8, 4.0, 0.05),
)
PROXIMAL = dataclasses.replace(PLAIN, client=ClientConfig(FED_PROX, (0.5,), proximal_strength=0.3, weighted=False))
LOCALLY_PRIVATE = dataclasses.replace(
    PROXIMAL, client=dataclasses.replace(PROXIMAL.client, local_noise=LocalNoiseConfig(1.0, 0.05))
)


def _runtime(config, data, one_by_one=False):
    return head_runtime(config, data, PLAN, one_by_one)


@functools.cache
def _recorded(algorithm):
    """The clients' updates, each taken from a round of its client alone: the server moves by its mean update."""
    data = feature_clients(SIZES, TASK)
    runtime, found = _runtime(PLAIN if algorithm == FED_AVG else PROXIMAL, data), []
    start, before = runtime.state(), runtime.weights()
    for client_id in data.client_ids:
        runtime.restore(start)
        runtime.run_round(0, [client_id])
        moved = [then - now for then, now in zip(before, runtime.weights(), strict=True)]
        found.append(np.concatenate([np.ravel(one) for one in moved]).astype(np.float64))
    return np.stack(found)


@pytest.mark.parametrize("one_by_one", [False, True], ids=["groups", "one by one"])
@pytest.mark.parametrize(
    "config",
    [PLAIN, *(pytest.param(config, marks=pytest.mark.slow) for config in (PRIVATE, LOCALLY_PRIVATE))],
    ids=["plain", "private", "locally private"],
)
def test_norms_cosines_and_diversity_are_those_of_numpy(config, one_by_one):
    data = feature_clients(SIZES, TASK)
    cohort, looked_at = data.client_ids[::-1], [6, 0, 3]
    updates = _recorded(config.client.algorithm)[::-1]
    norms, mean = np.linalg.norm(updates, axis=1), updates.mean(0)
    found = _runtime(config, data, one_by_one).run_round(0, cohort, looked_at).drift
    np.testing.assert_allclose(found.norms, norms, rtol=1e-4)
    cosines = updates @ mean / norms / np.linalg.norm(mean)
    np.testing.assert_allclose(found.cosines, cosines[looked_at], atol=1e-4)
    assert found.looked_at.tolist() == looked_at
    diversity = np.square(norms).sum() / np.square(updates.sum(0)).sum()
    assert found.diversity == pytest.approx(diversity, rel=1e-4)
    assert 1 / len(SIZES) < diversity and np.ptp(cosines) > 0.05  # or agreement would mean little


@pytest.mark.parametrize("one_by_one", [False, True], ids=["groups", "one by one"])
def test_looking_changes_nothing_of_the_round(one_by_one):
    data = feature_clients(SIZES, TASK)
    runtime = _runtime(PRIVATE, data, one_by_one)
    start = runtime.state()
    plain, after = [runtime.run_round(number, data.client_ids) for number in range(2)], runtime.state()
    runtime.restore(start)
    for number, one in enumerate(plain):
        other = runtime.run_round(number, data.client_ids, [1, 2])
        assert one.drift is None
        assert dataclasses.replace(other, drift=None) == one
    for one, other in zip(after, runtime.state(), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("one_by_one", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_client_that_is_left_out_has_no_norm_and_no_part_in_the_sum(one_by_one):
    data = feature_clients((2, 3, 5), TASK)
    others = [data.client_ids[place] for place in (0, 2)]
    runtime = _runtime(PLAIN, data, one_by_one)
    start = runtime.state()
    expected = runtime.run_round(0, others, [0, 1]).drift
    runtime.restore(start)
    data.features.views[0][data.rows(data.client_ids[1])[0]] = np.nan
    result = runtime.run_round(0, data.client_ids, [0, 1, 2])
    assert result.refused_clients == (data.client_ids[1],)
    np.testing.assert_allclose(result.drift.norms[[0, 2]], expected.norms, rtol=1e-6)
    assert np.isnan([result.drift.norms[1], result.drift.cosines[1]]).all()
    np.testing.assert_allclose(result.drift.cosines[[0, 2]], expected.cosines, atol=1e-6)
    assert result.drift.diversity == pytest.approx(expected.diversity, rel=1e-6)


def test_a_round_without_clients_has_no_diversity():
    found = _runtime(PRIVATE, feature_clients((2, 3), TASK)).run_round(0, [], []).drift
    assert len(found.norms) == len(found.cosines) == 0 and np.isnan(found.diversity)
