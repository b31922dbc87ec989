"""Groups of clients at once against one client after the other."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmark.data.clients import BatchPlan, training_order
from benchmark.data.group_orders import training_orders
from benchmark.data.records import Task
from benchmark.metrics.loss import LossConfig
from benchmark.model.trainable import new_head
from benchmark.privacy.noise_key import NoiseKey
from benchmark.privacy.request import Mechanism
from benchmark.rounds.client import LocalTrainer
from benchmark.rounds.config import FED_PROX, FED_SGD, ClientConfig, FederatedConfig, NoiseConfig
from benchmark.rounds.group import GroupTrainer, shard_trainer
from benchmark.rounds.inprocess import InProcessRuntime
from benchmark.rounds.server import RoundServer
from benchmark.rounds.shard import ShardTrainer
from tests.support.features import feature_clients

TASK = Task("labels", ("a", "b", "c"), 3)
BINARY = Task("labels", ("b",), 3, binary_index=1)
SIZES = (1, 2, 3, 5, 7, 11, 16, 17, 23, 40, 1, 1, 2, 70)
KEY = NoiseKey(bytes(range(32)))
_NOISE = NoiseConfig(Mechanism.GAUSSIAN, 0.8, 4.0, 0.05, target_unclipped_quantile=0.5, clipped_count_stddev=2.0)
WEIGHTED = FederatedConfig()
PRIVATE = FederatedConfig(ClientConfig(weighted=False), noise=_NOISE)
_OTHERS = (WEIGHTED, TASK), (PRIVATE, BINARY)


def _head(task=TASK, seed=3):
    head = new_head(6, task.num_outputs)
    rng = np.random.default_rng(seed)
    head.set_weights([rng.normal(size=weight.shape).astype(np.float32) for weight in head.get_weights()])
    return head


@settings(deadline=None, max_examples=60)
@given(
    sizes=st.lists(st.integers(1, 40), min_size=1, max_size=8),
    epochs=st.integers(1, 3),
    most=st.integers(1, 30),
    seed=st.integers(-(2**63), 2**63 - 1),
)
def test_orders_are_those_of_one_client(sizes, epochs, most, seed):
    plan = BatchPlan(TASK, (1, 1), 4, epochs, most)
    seeds = np.random.default_rng(abs(seed)).integers(-(2**63), 2**63 - 1, (len(sizes), 2))
    seeds[0, 0] = seed
    with np.errstate(over="ignore"):
        together = training_orders(sizes, seeds, plan)
    parts = np.cumsum(together.counts)[:-1]
    alone = [training_order(tf.constant(size), one, plan) for size, one in zip(sizes, seeds, strict=True)]
    for photos, draws, (order, augmentation) in zip(
        np.split(together.photos, parts), np.split(together.draws, parts), alone, strict=True
    ):
        np.testing.assert_array_equal(photos, order)
        np.testing.assert_array_equal(draws, augmentation[:, 0])


@functools.cache
def _server(config):
    """TFF's aggregator, compiled once per configuration."""
    return RoundServer(_head(), config, False, 5, KEY)


_CLIENTS = {
    "fed_avg": (WEIGHTED, {}, (4, 2, 512), 1),
    "global clip, batches of one": (WEIGHTED, {"clipnorm": 0.05, "global_clipnorm": True}, (1, 1, 9), 1),
    "fed_prox, private, views": (PRIVATE, {"algorithm": FED_PROX, "proximal_strength": 0.3}, (16, 3, 20), 3),
    "asymmetric, adjusted": (WEIGHTED, {"loss": LossConfig(2.0, 0.5, 0.1, (-3.0, 0.0, 1.0))}, (4, 2, 512), 1),
    "not clipped, three epochs": (PRIVATE, {"clipnorm": 0.0}, (3, 3, 2), 2),
}


@functools.cache
def _trainers(name):
    """The same shard trainer in groups and client by client, for clients of all sizes to 40."""
    config, changes, (batch_size, epochs, most), views = _CLIENTS[name]
    client = ClientConfig(learning_rates=(0.5,), **{"clipnorm": 10.0, "weighted": config.noise is None, **changes})
    plan = BatchPlan(TASK, (1, 1), batch_size, epochs, most)
    data, server, trainer = (
        feature_clients(range(1, 41), TASK, views=views),
        _server(config),
        LocalTrainer(_head(), client),
    )
    grouped = shard_trainer(trainer, server.aggregation, data, plan, 5)
    assert isinstance(grouped, GroupTrainer)
    return data, server, grouped, ShardTrainer(trainer, server.aggregation, data, plan, 5)


@pytest.mark.parametrize("name", [pytest.param(n, marks=[] if "fed" in n else [pytest.mark.slow]) for n in _CLIENTS])
@settings(deadline=None, max_examples=8)
@given(cohort=st.lists(st.integers(0, 39), min_size=1, max_size=12, unique=True), round_number=st.integers(0, 9))
def test_a_shard_is_that_of_single_clients(name, cohort, round_number):
    data, server, grouped, single = _trainers(name)
    sent = server.broadcast(round_number)._replace(proximal_strength=None)  # the clients' own, not the server's
    clients = [data.client_ids[place] for place in cohort]
    found, expected = (one.train(sent, clients) for one in (grouped, single))
    assert found.num_examples == expected.num_examples
    # Updates are weighted by examples before they are added up.
    scale = max(float(np.max(np.abs(tensor))) for tensor in expected.aggregate)
    for mine, theirs in zip(found.aggregate, expected.aggregate, strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-6 * max(scale, 1), rtol=1e-6)
    assert found.metric_sums[0].sum() == expected.metric_sums[0].sum()
    np.testing.assert_allclose(found.metric_sums[1], expected.metric_sums[1], rtol=1e-5)
    assert found.metric_sums[2] == expected.metric_sums[2]
    assert len(found.client_seconds) == len(clients)


@pytest.mark.parametrize(
    ("config", "task"),
    [(PRIVATE, TASK), (WEIGHTED, BINARY), *(pytest.param(*of, marks=pytest.mark.slow) for of in _OTHERS)],
    ids=["private, all labels", "weighted, one label", "weighted, all labels", "private, one label"],
)
def test_rounds_equal_those_of_single_clients_and_a_restored_run_the_unbroken_one(config, task):
    data, plan = feature_clients(SIZES, task), BatchPlan(task, (1, 1), 4, 2, 512)
    arguments = config, data, plan, 5, KEY
    grouped, single = (InProcessRuntime(_head(task), *arguments) for _ in range(2))
    single._cohort = ShardTrainer(single.trainer, single.aggregation, data, plan, 5)
    for number in range(4):
        cohort = data.client_ids[number : number + 9]
        mine, theirs = grouped.run_round(number, cohort), single.run_round(number, cohort)
        assert mine.metrics == pytest.approx(theirs.metrics, abs=1e-5)
        assert mine.measurements == pytest.approx(theirs.measurements, abs=1e-5)
        if number == 1:
            saved = grouped.state()
    unbroken = grouped.weights()
    grouped.restore(saved)  # what a round kept outside of the state would now be that of the last one
    for number in (2, 3):
        grouped.run_round(number, data.client_ids[number : number + 9])
    for mine, theirs, again in zip(unbroken, single.weights(), grouped.weights(), strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-5)
        np.testing.assert_array_equal(mine, again)
    assert np.abs(grouped.weights()[0] - _head(task).get_weights()[0]).max() > 1e-3


def test_a_diverged_client_is_left_out_by_name_and_an_empty_cohort_is_a_round():
    data, plan = feature_clients(SIZES, TASK), BatchPlan(TASK, (1, 1), 4, 2, 512)
    data.features.views[0][data.rows("user03")[0]] = np.nan
    data.features.views[0][data.rows("user08")[-1]] = 1e30
    grouped, single = (InProcessRuntime(_head(), WEIGHTED, data, plan, 5) for _ in range(2))
    single._cohort = ShardTrainer(single.trainer, single.aggregation, data, plan, 5)
    mine, theirs = (runtime.run_round(0, data.client_ids) for runtime in (grouped, single))
    assert mine.refused_clients == theirs.refused_clients
    assert "user03" in mine.refused_clients
    assert mine.metrics == pytest.approx(theirs.metrics, abs=1e-5)
    for one, other in zip(grouped.weights(), single.weights(), strict=True):
        assert np.isfinite(one).all()
        np.testing.assert_allclose(one, other, atol=1e-5)
    before = InProcessRuntime(_head(), PRIVATE, data, plan, 5, KEY)
    empty = before.run_round(0, [])
    assert empty.num_examples == 0
    assert empty.metrics["loss"] == 0


def test_other_algorithms_go_client_by_client():
    data, plan = feature_clients((2, 3), TASK), BatchPlan(TASK, (1, 1), 4, 2, 512)
    config = ClientConfig(algorithm=FED_SGD)
    trainer = LocalTrainer(_head(), config)
    assert isinstance(shard_trainer(trainer, _server(WEIGHTED).aggregation, data, plan, 5), ShardTrainer)
