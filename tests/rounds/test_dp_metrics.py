"""The metrics of a private round that are not private, against NumPy."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from benchmark.data.clients import BatchPlan
from benchmark.data.records import Task
from benchmark.privacy.adaptive import sum_noise_multiplier
from benchmark.privacy.request import Mechanism
from benchmark.rounds.config import ClientConfig, FederatedConfig, NoiseConfig, OptimizerConfig
from benchmark.rounds.dp_metrics import PREFIX
from tests.support.features import feature_clients, head_runtime

TASK = Task("labels", ("a", "b", "c"), 3)
PLAN = BatchPlan(TASK, (1, 1), 512, 1, 512)
RATE, COHORT, SIGMA, CLIP = 0.5, 4.0, 0.8, 0.2
FIXED = NoiseConfig(Mechanism.GAUSSIAN, SIGMA, COHORT, CLIP)
NOISES = {
    "fixed": FIXED,
    "adaptive": dataclasses.replace(FIXED, target_unclipped_quantile=0.5, clipped_count_stddev=2.0),
    "tree": dataclasses.replace(FIXED, mechanism=Mechanism.TREE),
}
NAMES = ["fraction_clipped", "update_norm", "signal_to_noise", "cosine"]


def _runtime(noise, data, one_by_one=False, debug=False):
    config = FederatedConfig(
        ClientConfig(weighted=False, learning_rates=(RATE,), clipnorm=0.0),
        OptimizerConfig("sgd", (1.0,)),
        noise=noise,
        debug_measurements=debug,
    )
    return head_runtime(config, data, PLAN, one_by_one)


def _update(weights, data, client_id):
    """What a client of one step of logistic regression sends, as one vector."""
    (kernel, bias), rows = weights, data.rows(client_id)
    inputs, labels = data.features.inputs(rows, np.zeros(len(rows), int)), data.features.labels(rows)
    error = (1 / (1 + np.exp(-(inputs.astype(np.float64) @ kernel + bias))) - labels) / labels.size
    return RATE * np.concatenate([np.ravel(inputs.T @ error), error.sum(0)])


def _flat(weights):
    return np.concatenate([np.ravel(one) for one in weights]).astype(np.float64)


@pytest.mark.parametrize(
    ("name", "one_by_one", "debug"),
    [
        pytest.param("fixed", False, True, marks=pytest.mark.slow),
        ("fixed", True, False),
        pytest.param("adaptive", True, True, marks=pytest.mark.slow),
        ("adaptive", False, False),
        pytest.param("tree", False, False, marks=pytest.mark.slow),
    ],
)
def test_the_metrics_are_those_of_numpy(name, one_by_one, debug):
    noise, data = NOISES[name], feature_clients((1, 2, 3, 5, 7, 11, 16, 17), TASK)
    runtime, clip, fractions = _runtime(noise, data, one_by_one, debug), CLIP, []
    for number in range(3):
        cohort, start = data.client_ids[number : number + 6], runtime.weights()
        updates = [_update(start, data, client_id) for client_id in cohort]
        result = runtime.run_round(number, cohort)
        norms = np.linalg.norm(updates, axis=1)
        clean = sum(one * min(1, clip / norm) for one, norm in zip(updates, norms, strict=True)) / COHORT
        noised = _flat(start) - _flat(runtime.weights())
        multiplier = sum_noise_multiplier(SIGMA, 2.0) if name == "adaptive" else SIGMA
        expected_noise = multiplier * clip / COHORT * math.sqrt(len(clean))
        if name == "tree":
            expected_noise = np.linalg.norm(noised - clean)
        expected = [
            np.mean(norms > clip),
            norms.mean(),
            np.linalg.norm(clean) / expected_noise,
            clean @ noised / np.linalg.norm(clean) / np.linalg.norm(noised),
        ]
        fractions.append(expected[0])
        assert list(result.dp_metrics) == [PREFIX + one for one in NAMES]
        np.testing.assert_allclose(list(result.dp_metrics.values()), expected, rtol=1e-4)
        clip = result.measurements.get("aggregator/dp_query_metrics/clip", clip)
    assert any(0 < fraction < 1 for fraction in fractions)


@pytest.mark.slow
def test_the_expected_noise_is_about_what_was_drawn():
    """Of 21 weights the norm drawn spreads by 1 / sqrt(42) around the expected one: the mean of 40 rounds by 0.024."""
    data = feature_clients((3,), TASK)
    runtime, ratios = _runtime(FIXED, data), []
    for number in range(40):
        start = runtime.weights()
        clean = _update(start, data, data.client_ids[0])
        clean *= min(1, CLIP / np.linalg.norm(clean)) / COHORT
        metrics = runtime.run_round(number, data.client_ids).dp_metrics
        drawn = np.linalg.norm(_flat(start) - _flat(runtime.weights()) - clean)
        ratios.append(metrics[f"{PREFIX}signal_to_noise"] * drawn / np.linalg.norm(clean))
    assert np.mean(ratios) == pytest.approx(1, abs=3 * 0.025)


def test_what_means_nothing_in_a_round_is_left_out():
    data = feature_clients((2, 3, 5), TASK)
    assert _runtime(FIXED, data).run_round(0, []).dp_metrics == {f"{PREFIX}signal_to_noise": 0.0}
    assert _runtime(None, data).run_round(0, data.client_ids).dp_metrics == {}
    without_noise = dataclasses.replace(FIXED, noise_multiplier=0.0)
    assert list(_runtime(without_noise, data).run_round(0, data.client_ids).dp_metrics) == [
        f"{PREFIX}fraction_clipped",
        f"{PREFIX}update_norm",
    ]


@pytest.mark.parametrize("one_by_one", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_client_that_is_left_out_does_not_count(one_by_one):
    data = feature_clients((2, 3, 5), TASK)
    data.features.views[0][data.rows(data.client_ids[1])[0]] = np.nan
    runtime = _runtime(FIXED, data, one_by_one)
    norms = [np.linalg.norm(_update(runtime.weights(), data, data.client_ids[place])) for place in (0, 2)]
    result = runtime.run_round(0, data.client_ids)
    assert result.refused_clients == (data.client_ids[1],)
    assert result.dp_metrics[f"{PREFIX}update_norm"] == pytest.approx(np.mean(norms), rel=1e-5)
