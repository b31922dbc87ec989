"""The two runtimes against each other, and the in-process one against NumPy and central training."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from benchmark.data.clients import BatchPlan, UserClients, client_batches
from benchmark.federated.cohort import sample_cohort
from benchmark.metrics.loss import LossConfig
from benchmark.model.networks import build_model
from benchmark.model.trainable import num_weights
from benchmark.privacy.noise_key import NoiseKey
from benchmark.privacy.request import Mechanism
from benchmark.rounds.client import LocalTrainer
from benchmark.rounds.config import (
    ALGORITHMS,
    FED_PROX,
    FED_SGD,
    SCAFFOLD,
    ClientConfig,
    FederatedConfig,
    NoiseConfig,
    OptimizerConfig,
)
from benchmark.rounds.inprocess import InProcessRuntime
from benchmark.run.user_states import UserStates
from tests.support.linear import NumpyLinear, clip, linear_model
from tests.support.rounds import MIME_LITE, SEED, SIZE, UNWEIGHTED, assert_equal_rounds, small_batch_plan
from tests.support.tiny_network import TINY

# Noise zero, so that both runtimes follow one path. TFF refuses an adaptive clip without noise, so next to none.
_ADAPTIVE = NoiseConfig(Mechanism.GAUSSIAN, 1e-12, 3.0, 0.05, target_unclipped_quantile=0.3, clipped_count_stddev=1e-9)

# The server goes where the clients' mean update says. Tests that share a configuration share its graphs, too.
AVERAGE = FederatedConfig(server_optimizer=OptimizerConfig("sgd", (1.0,)))
UNCLIPPED = FederatedConfig(ClientConfig(weighted=False, clipnorm=0.0, learning_rates=(1.0,)), AVERAGE.server_optimizer)
SLOW = {
    "fed_prox": FederatedConfig(client=ClientConfig(algorithm=FED_PROX, proximal_strength=0.5)),
    "fed_avg": FederatedConfig(),
    "fed_avg_unweighted": FederatedConfig(client=UNWEIGHTED),
    "fed_avg_global_clip": FederatedConfig(client=ClientConfig(clipnorm=0.1, global_clipnorm=True)),
    "fed_sgd": FederatedConfig(client=ClientConfig(algorithm=FED_SGD)),
    "asymmetric": FederatedConfig(client=ClientConfig(loss=LossConfig(4.0, 1.0, 0.05))),
    "mime_lite": MIME_LITE,
    "robust": FederatedConfig(aggregator="robust"),
    "robust_unweighted": FederatedConfig(client=UNWEIGHTED, aggregator="robust"),
    "scheduled": FederatedConfig(
        client=ClientConfig(learning_rates=(0.1, 0.05, 0.02)),
        server_optimizer=OptimizerConfig("momentum", (0.5, 0.3, 0.1)),
    ),
    "yogi": FederatedConfig(server_optimizer=OptimizerConfig("yogi", (0.01,))),
    "adagrad": FederatedConfig(server_optimizer=OptimizerConfig("adagrad", (0.01,))),
    "adamw": FederatedConfig(server_optimizer=OptimizerConfig("adamw", (0.01,))),
    "fixed_dp": FederatedConfig(client=UNWEIGHTED, noise=NoiseConfig(Mechanism.GAUSSIAN, 0.0, 3.0, 0.05)),
}


@pytest.fixture(scope="module")
def data(records):
    return UserClients(records, "train")


@pytest.fixture(scope="module")
def plan(task):
    return small_batch_plan(task)


def _cohort(data, round_number):
    return sample_cohort(data.client_ids, seed=SEED, round_number=round_number, clients_per_round=3)


@pytest.fixture(scope="module")
def one_step(task):
    """One step for every client, however many photos it has."""
    return BatchPlan(task, SIZE, batch_size=512, epochs=1, max_elements=512)


def _network(task, name=TINY):
    return build_model(name, (*SIZE, 3), task.num_outputs, seed=3)


def _assert_equal_runs(config, data, plan, model):
    from benchmark.rounds.tff import TffRuntime

    ours = InProcessRuntime(model(), config, data, plan, SEED)
    theirs = TffRuntime(model, config, data, plan, SEED)
    try:
        assert_equal_rounds(ours, theirs, [_cohort(data, round_number) for round_number in range(3)])
    finally:
        theirs.close()


def test_inprocess_equals_tff_under_adaptive_clipping(task, data, plan):
    # What TFF does it does for every tensor, which takes it long: a model of two is enough for that.
    config = FederatedConfig(client=UNWEIGHTED, noise=_ADAPTIVE)
    _assert_equal_runs(config, data, plan, lambda: linear_model(task.num_outputs))


# The server's optimizers are TFF's own code in both runtimes: one of each kind is enough for every change.
_LONG = ("adagrad", "adamw", "robust_unweighted")


@pytest.mark.slow
@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.long] if n in _LONG else []) for n in SLOW])
def test_inprocess_equals_tff_for_every_algorithm_and_aggregator(name, task, data, plan):
    # The network and what is done with its updates do not depend on each other: a deep one once is enough.
    _assert_equal_runs(SLOW[name], data, plan, lambda: _network(task, "cnn" if name == "fed_avg" else TINY))


def test_one_round_of_fed_avg_equals_numpy(task, data, plan):
    """Client SGD with per-weight clipnorm, mean weighted by examples, server Adam with epsilon 0.01: all by hand."""
    rate, clipnorm, server_rate, epsilon = 0.5, 0.02, 0.1, 0.01
    config = FederatedConfig(
        client=ClientConfig(learning_rates=(rate,), clipnorm=clipnorm),
        server_optimizer=OptimizerConfig("adam", (server_rate,), epsilon=epsilon),
    )
    runtime = InProcessRuntime(linear_model(task.num_outputs), config, data, plan, SEED)
    start = [weight.astype(np.float64) for weight in runtime.weights()]
    cohort = _cohort(data, 0)
    deltas, examples = [], []
    for client_id in cohort:
        local = NumpyLinear(*start)
        count = 0
        for batch in client_batches(data, [client_id], plan=plan, seed=SEED, round_number=0):
            kernel, bias = local.gradients(batch.inputs.numpy(), batch.labels.numpy().astype(np.float64))
            local.kernel = local.kernel - rate * clip(kernel, clipnorm)
            local.bias = local.bias - rate * clip(bias, clipnorm)
            count += len(batch.labels)
        deltas.append((start[0] - local.kernel, start[1] - local.bias))
        examples.append(count)
    runtime.run_round(0, cohort)
    for index, weight in enumerate(runtime.weights()):
        mean = sum(n * delta[index] for n, delta in zip(examples, deltas, strict=True)) / sum(examples)
        momentum, velocity = 0.1 * mean, 0.001 * mean**2
        corrected = server_rate * np.sqrt(1 - 0.999) / (1 - 0.9)
        expected = start[index] - corrected * momentum / (np.sqrt(velocity) + epsilon)
        np.testing.assert_allclose(weight, expected, atol=1e-6)


def test_one_client_with_one_step_is_central_sgd(task, data, one_step):
    """A cohort of one client, one batch, plain server averaging: a step of SGD on that batch."""
    client = max(data.client_ids, key=lambda client_id: len(data.read(client_id)))
    central = linear_model(task.num_outputs)
    runtime = InProcessRuntime(linear_model(task.num_outputs), UNCLIPPED, data, one_step, SEED)
    (batch,) = client_batches(data, [client], plan=one_step, seed=SEED, round_number=0)
    runtime.run_round(0, [client])
    with tf.GradientTape() as tape:
        loss = tf.keras.losses.BinaryCrossentropy(from_logits=True)(batch.labels, central(batch.inputs, training=True))
    gradients = tape.gradient(loss, central.trainable_variables)
    for weight, variable, gradient in zip(runtime.weights(), central.trainable_variables, gradients, strict=True):
        np.testing.assert_allclose(weight, variable.numpy() - gradient.numpy(), atol=1e-6)


@pytest.mark.parametrize(
    "config",
    [
        ClientConfig(learning_rates=(0.2,), clipnorm=0.05),
        ClientConfig(learning_rates=(0.2,), clipnorm=0.1, global_clipnorm=True),
        ClientConfig(learning_rates=(0.2,), clipnorm=0.0, algorithm=FED_PROX, proximal_strength=0.5),
    ],
    ids=lambda config: f"{config.algorithm}-{config.clipnorm}-{config.global_clipnorm}",
)
def test_the_update_of_a_clients_only_step_is_what_the_step_moves_the_weights_by(config, task):
    random = np.random.default_rng(2)
    pixels = tf.constant(random.integers(0, 256, (3, *SIZE, 3)), tf.float32)
    labels = tf.constant(random.integers(0, 2, (3, task.num_outputs)), tf.float32)
    model = linear_model(task.num_outputs)
    trainer, weights = LocalTrainer(model, config), [variable.read_value() for variable in model.trainable_variables]
    rate = tf.constant(config.learning_rates[0])
    trainer.start(weights)
    update = tf.function(trainer.only_update)(pixels, labels, rate)
    for variable, weight in zip(model.trainable_variables, weights, strict=True):
        np.testing.assert_array_equal(variable.numpy(), weight.numpy())
    scored = trainer.metrics.result()
    trainer.start(weights)
    trainer.run(lambda: iter([(pixels, labels)]), rate, weights)
    assert trainer.metrics.result() == scored
    assert max(np.abs(tensor).max() for tensor in update) > 1e-4
    for moved, weight, variable in zip(update, weights, model.trainable_variables, strict=True):
        np.testing.assert_allclose(moved, weight - variable, atol=1e-7)


def test_a_client_of_one_step_starts_from_the_global_weights_whoever_trained_before(task, data):
    plan = BatchPlan(task, SIZE, batch_size=4, epochs=1, max_elements=16)
    sizes = {client_id: len(data.read(client_id)) for client_id in data.client_ids}
    small = next(client_id for client_id, size in sizes.items() if size <= 4)
    large = next(client_id for client_id, size in sizes.items() if size > 4)

    def weights(cohorts):
        model = linear_model(task.num_outputs)
        runtime = InProcessRuntime(model, AVERAGE, data, plan, SEED)
        for number, cohort in enumerate(cohorts):
            runtime.run_round(number, cohort)
            for variable in model.trainable_variables:  # as an evaluation of other weights leaves it
                variable.assign(tf.ones_like(variable))
        return runtime.weights()

    # Of two addends the order does not matter, so the weights are equal to the bit.
    one, other = (weights([[small], pair, [small]]) for pair in ([small, large], [large, small]))
    for first, second in zip(one, other, strict=True):
        np.testing.assert_array_equal(first, second)


def test_a_strong_proximal_term_holds_clients_near_the_global_model(task, data, plan):
    """TFF 0.87's own FedProx has the opposite sign for Keras models and drives them away."""

    def moved(config):
        runtime = InProcessRuntime(linear_model(task.num_outputs), config, data, plan, SEED)
        start = runtime.weights()
        runtime.run_round(0, _cohort(data, 0))
        return np.sqrt(sum(np.sum((a - b) ** 2) for a, b in zip(runtime.weights(), start, strict=True)))

    free = moved(AVERAGE)
    client = ClientConfig(algorithm=FED_PROX, proximal_strength=2.0)
    held = moved(FederatedConfig(client, AVERAGE.server_optimizer))
    assert held < 0.95 * free


@pytest.mark.parametrize(
    "noise",
    [
        pytest.param(NoiseConfig(Mechanism.GAUSSIAN, 0.5, 3.0, 0.05, 0.3, 1.0), marks=pytest.mark.slow),
        NoiseConfig(Mechanism.TREE, 0.5, 3.0, 0.05),
        NoiseConfig(Mechanism.BANDED, 0.5, 3.0, 0.05, column=(0.8, 0.5, 0.332)),
    ],
)
def test_a_restored_runtime_continues_bit_for_bit(noise, task, data, one_step):
    config = FederatedConfig(client=UNWEIGHTED, noise=noise)

    key = NoiseKey.draw()

    def runtime():
        return InProcessRuntime(linear_model(task.num_outputs), config, data, one_step, SEED, key)

    unbroken = runtime()
    for round_number in range(4):
        unbroken.run_round(round_number, _cohort(data, round_number))
        if round_number == 1:
            saved = unbroken.state()
    resumed = runtime()
    resumed.restore(saved)
    for round_number in (2, 3):
        resumed.run_round(round_number, _cohort(data, round_number))
    for one, other in zip(unbroken.state(), resumed.state(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_diverged_client_is_left_out_and_named(task, data, plan):
    config = FederatedConfig(client=ClientConfig(learning_rates=(float("inf"),)))
    runtime = InProcessRuntime(linear_model(task.num_outputs), config, data, plan, SEED)
    start = runtime.weights()
    cohort = _cohort(data, 0)
    result = runtime.run_round(0, cohort)
    assert result.refused_clients == tuple(cohort)
    assert result.metrics["loss"] == 0
    for one, other in zip(runtime.weights(), start, strict=True):
        np.testing.assert_array_equal(one, other)


def test_an_empty_cohort_changes_nothing_without_noise(task, data, plan):
    runtime = InProcessRuntime(linear_model(task.num_outputs), AVERAGE, data, plan, SEED)
    start = runtime.weights()
    result = runtime.run_round(0, [])
    assert result.num_examples == 0
    for one, other in zip(runtime.weights(), start, strict=True):
        np.testing.assert_array_equal(one, other)


def _noise(config, plan, data, task, rounds, key=None):
    """What rounds without clients do to the weights of a small model: [rounds, weights]."""
    model = _network(task)
    runtime = InProcessRuntime(model, config, data, plan, SEED, key)
    noise = []
    for round_number in range(rounds):
        before = runtime.weights()
        runtime.run_round(round_number, [])
        noise.append(np.concatenate([np.ravel(a - b) for a, b in zip(runtime.weights(), before, strict=True)]))
    return np.stack(noise)


def _private(mechanism, rate=0.1, **changes):
    noise = NoiseConfig(mechanism, 0.5, 3.0, 0.05, **changes)
    client = ClientConfig(weighted=False, learning_rates=(rate,))
    return FederatedConfig(client=client, server_optimizer=AVERAGE.server_optimizer, noise=noise)


_PRIVATE = {
    "fixed": _private(Mechanism.GAUSSIAN),
    "adaptive": _private(Mechanism.GAUSSIAN, target_unclipped_quantile=0.3, clipped_count_stddev=1.0),
    "tree": _private(Mechanism.TREE),
}


@pytest.mark.parametrize("name", _PRIVATE)
def test_noise_of_different_rounds_and_different_runs_is_unrelated(name, task, data, plan):
    """Two runs that shared their noise would show the clients' updates in the difference of their models.

    What two runs of equal settings do not share, no others do. Under the tree, consecutive rounds share nodes, so that
    only sums of other runs' rounds are looked at.
    """
    runs = [_noise(_PRIVATE[name], plan, data, task, 3) for _ in range(2)]
    size = runs[0].shape[1]
    rounds = np.concatenate(runs)
    correlation = np.corrcoef(rounds)
    own = [correlation[3 * run : 3 * run + 3, 3 * run : 3 * run + 3] for run in range(2)]
    for block in own if name != "tree" else []:
        assert np.abs(block[np.triu_indices(3, 1)]).max() < 5 / np.sqrt(size)
    for block in own:
        block[:] = 0
    assert np.abs(correlation).max() < 5 / np.sqrt(size)
    totals = np.corrcoef([run.sum(0) for run in runs])
    assert np.abs(totals[np.triu_indices(2, 1)]).max() < 5 / np.sqrt(size)


def test_fresh_noise_has_the_stated_deviation(task, data, plan):
    noise = _noise(_PRIVATE["fixed"], plan, data, task, 3)
    assert noise.std() == pytest.approx(0.5 * 0.05 / 3.0, rel=0.02)


@pytest.mark.parametrize("name", _PRIVATE)
def test_noise_follows_from_the_key_and_the_round_alone(name, task, data, plan):
    key = NoiseKey(bytes(range(32)))
    first, second = (_noise(_PRIVATE[name], plan, data, task, 2, key) for _ in range(2))
    np.testing.assert_array_equal(first, second)


def test_tree_noise_on_the_sum_of_rounds_is_that_of_its_nodes(task, data, plan):
    noise = _noise(_PRIVATE["tree"], plan, data, task, 4).cumsum(0) / (0.5 * 0.05 / 3.0)
    expected = [1, 1 / 1.5, 1 + 1 / 1.5, 1 / 1.75]  # of 1, 2, 3 and 4 rounds: nodes of levels 0; 1; 0 and 1; 2
    np.testing.assert_allclose(noise.var(1), expected, rtol=6 * np.sqrt(2 / noise.shape[1]))


def test_a_client_with_a_huge_update_is_left_out_by_name_and_the_others_train(task, data, one_step):
    """Its norm is finite, its square is not: clipping would scale it by infinity."""
    key, cohort = NoiseKey(bytes(32)), data.client_ids[:6]
    plain = InProcessRuntime(linear_model(task.num_outputs), UNCLIPPED, data, one_step, SEED)
    state, start = plain.state(), plain.weights()

    def moved(client_id):
        plain.restore(state)
        plain.run_round(0, [client_id])
        return np.sqrt(sum(np.sum((a - b) ** 2) for a, b in zip(plain.weights(), start, strict=True)))

    norms = sorted((moved(client_id), client_id) for client_id in cohort)
    (second, _), (first, huge) = norms[-2:]
    client = dataclasses.replace(UNCLIPPED.client, learning_rates=(1e19 / np.sqrt(first * second),))
    config = FederatedConfig(client, noise=_ADAPTIVE)
    private = InProcessRuntime(linear_model(task.num_outputs), config, data, one_step, SEED, key)
    untouched = private.state()

    def weights(clients):
        private.restore(untouched)
        result = private.run_round(0, clients)
        return private.weights(), result

    found, result = weights(cohort)
    expected, _ = weights([client_id for client_id in cohort if client_id != huge])
    assert result.refused_clients == (huge,)
    assert not result.update_rejected
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


_ALL_HUGE = [pytest.param(name, marks=pytest.mark.slow if name == FED_PROX else []) for name in ALGORITHMS]


@pytest.mark.parametrize("algorithm", _ALL_HUGE)  # FedProx's clients go the way of FedAvg's
def test_updates_that_are_all_huge_change_nothing(algorithm, task, data, plan, tmp_path):
    strength = 0.5 if algorithm == FED_PROX else 0.0
    config = FederatedConfig(ClientConfig(algorithm, (1e30,), clipnorm=0.0, proximal_strength=strength))
    model = linear_model(task.num_outputs)
    states = UserStates(tmp_path / "states", tmp_path, data.client_ids, num_weights(model))
    kept = {"user_states": states} if algorithm == SCAFFOLD else {}
    runtime = InProcessRuntime(model, config, data, plan, SEED, **kept)
    start, cohort = runtime.weights(), _cohort(data, 0)
    result = runtime.run_round(0, cohort)
    if algorithm == FED_SGD:  # its clients send gradients, which no rate makes huge
        assert result.refused_clients == ()
        return
    assert result.refused_clients == tuple(cohort)
    assert all(states.get(client_id) is None for client_id in cohort)
    assert all(np.isfinite(array).all() for array in runtime.state())
    for one, other in zip(runtime.weights(), start, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.slow
def test_tffs_runtime_leaves_out_huge_updates_too(task, data, plan):
    from benchmark.rounds.tff import TffRuntime

    client = ClientConfig(learning_rates=(1e25,), clipnorm=0.0, weighted=False)
    config = FederatedConfig(client, noise=_ADAPTIVE)
    runtime = TffRuntime(lambda: linear_model(task.num_outputs), config, data, plan, SEED)
    try:
        start = runtime.weights()
        result = runtime.run_round(0, _cohort(data, 0))
        assert len(result.refused_clients) == 3
        assert not result.update_rejected
        for one, other in zip(runtime.weights(), start, strict=True):
            np.testing.assert_allclose(one, other, atol=1e-6)
    finally:
        runtime.close()


@pytest.mark.slow
def test_two_runs_of_tffs_runtime_share_no_noise(task, data, plan):
    from benchmark.rounds.tff import TffRuntime

    def model():
        return _network(task)

    moved = []
    for _ in range(2):
        runtime = TffRuntime(model, _private(Mechanism.GAUSSIAN, rate=0.0), data, plan, SEED)
        start = runtime.weights()
        runtime.run_round(0, _cohort(data, 0))
        moved.append(np.concatenate([np.ravel(a - b) for a, b in zip(runtime.weights(), start, strict=True)]))
        runtime.close()
    assert abs(np.corrcoef(moved)[0, 1]) < 5 / np.sqrt(len(moved[0]))
