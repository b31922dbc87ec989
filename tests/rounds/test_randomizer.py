"""Updates that clients clip and add noise to themselves, against NumPy."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from benchmark.data.clients import BatchPlan
from benchmark.data.records import Task
from benchmark.privacy.noise import client_normals
from benchmark.rounds.client import Randomizer
from benchmark.rounds.config import ClientConfig, FederatedConfig, LocalNoiseConfig, OptimizerConfig
from benchmark.rounds.dp_metrics import PREFIX
from tests.support.features import KEY, feature_clients, head_runtime

TASK = Task("labels", ("a", "b", "c"), 3)
PLAN = BatchPlan(TASK, (1, 1), 4, 2, 512)
SIZES = (1, 2, 3, 5, 7, 11)
SIGMA, CLIP = 0.7, 0.45
NOISE = LocalNoiseConfig(SIGMA, CLIP)
PLAIN = FederatedConfig(ClientConfig(weighted=False, learning_rates=(0.5,)), OptimizerConfig("sgd", (1.0,)))
LOCAL = dataclasses.replace(PLAIN, client=dataclasses.replace(PLAIN.client, local_noise=NOISE))


def _runtime(config, data, one_by_one=False):
    return head_runtime(config, data, PLAN, one_by_one)


def _moved(runtime, round_number, cohort):
    start = runtime.weights()
    result = runtime.run_round(round_number, cohort)
    pairs = zip(start, runtime.weights(), strict=True)
    return np.concatenate([np.ravel(before - after) for before, after in pairs]), result


def _normals(round_number, client_id):
    return client_normals(KEY.derive("local noise"), round_number, client_id, 21)


@pytest.mark.parametrize("one_by_one", [pytest.param(False, marks=pytest.mark.slow), True])
def test_every_client_sends_its_clipped_update_with_noise_of_its_own(one_by_one):
    data = feature_clients(SIZES, TASK)
    cohort, expected, norms = data.client_ids[1:5], [], []
    unprotected = _runtime(PLAIN, data)
    start = unprotected.state()
    for client_id in cohort:
        unprotected.restore(start)
        update, _ = _moved(unprotected, 2, [client_id])
        norms.append(np.linalg.norm(update))
        expected.append(update * min(1, CLIP / norms[-1]) + SIGMA * CLIP * _normals(2, client_id))
    assert min(norms) < CLIP < max(norms)
    found, result = _moved(_runtime(LOCAL, data, one_by_one), 2, cohort)
    np.testing.assert_allclose(found, np.mean(expected, 0), atol=1e-6)
    means = {"fraction_clipped": np.mean(np.array(norms) > CLIP), "update_norm": np.mean(norms)}
    assert result.dp_metrics == pytest.approx({PREFIX + name: value for name, value in means.items()}, rel=1e-5)


@pytest.mark.parametrize("one_by_one", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_client_that_diverged_sends_noise_and_no_zero(one_by_one):
    data = feature_clients(SIZES, TASK)
    data.features.views[0][data.rows(data.client_ids[3])[0]] = np.nan
    found, result = _moved(_runtime(LOCAL, data, one_by_one), 0, [data.client_ids[3]])
    assert result.refused_clients == (data.client_ids[3],)
    np.testing.assert_allclose(found, SIGMA * CLIP * _normals(0, data.client_ids[3]), atol=1e-6)


def test_two_updates_are_at_most_two_clips_apart():
    randomizer, rng = Randomizer(NOISE, KEY), np.random.default_rng(0)
    normals = [tf.constant(rng.normal(size=(3, 7)), tf.float32)]

    def sent(update):
        square = tf.constant(np.sum(np.square(update)), tf.float32)
        return randomizer.apply([tf.constant(update, tf.float32)], square, normals)[0].numpy()

    updates = [scale * rng.normal(size=(3, 7)) for scale in (1e-3, 0.05, 1, 1e6) for _ in range(20)]
    apart = [np.linalg.norm(sent(one) - sent(other)) for one in updates for other in (*updates[:5], -one)]
    assert max(apart) == pytest.approx(2 * CLIP, rel=1e-4)


@pytest.mark.slow
def test_a_restored_run_continues_bit_for_bit():
    data = feature_clients(SIZES, TASK)
    unbroken, resumed = _runtime(LOCAL, data), _runtime(LOCAL, data)
    for number in range(3):
        unbroken.run_round(number, data.client_ids)
        if number == 1:
            resumed.restore(unbroken.state())
    resumed.run_round(2, data.client_ids)
    for one, other in zip(unbroken.weights(), resumed.weights(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_workers_are_given_a_key_of_clients_noise_and_not_the_runs():
    runtime = _runtime(LOCAL, feature_clients(SIZES, TASK))
    assert runtime.local_key.sha256 == KEY.derive("local noise").sha256 != KEY.sha256
    assert _runtime(PLAIN, feature_clients(SIZES, TASK)).local_key is None
