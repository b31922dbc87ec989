"""TFF's aggregators as plain functions: clipping, noise, seeds, empty cohorts."""

from __future__ import annotations

import functools
import math

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_federated as tff
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmark.privacy.noise import FreshNoise
from benchmark.privacy.noise_key import NoiseKey
from benchmark.rounds.aggregation import Aggregation
from benchmark.rounds.algorithm import build_aggregation_factory
from benchmark.rounds.compilation import compile_round
from benchmark.rounds.config import ClientConfig, FederatedConfig
from benchmark.rounds.shard import Broadcast

SPECS = (tf.TensorSpec((30, 40), tf.float32), tf.TensorSpec((800,), tf.float32))
SIZE = 2000
CLIP, SIGMA, COHORT = 0.5, 1.3, 10.0
FRESH = FreshNoise(NoiseKey(bytes(32)))


def _parts(aggregator, optimizer=None):
    spec = compile_round(SPECS, aggregator, optimizer or tff.learning.optimizers.build_sgdm(1.0))
    return Aggregation(spec)


@pytest.fixture(scope="module")
def private():
    factory = tff.aggregators.DifferentiallyPrivateFactory.gaussian_fixed(SIGMA, COHORT, CLIP)
    return _parts(factory)


@functools.cache
def _of(name, weighted):
    """The aggregation of a name that users give. Read only."""
    return _parts(build_aggregation_factory(FederatedConfig(ClientConfig(weighted=weighted), aggregator=name).server))


def _seed(*numbers):
    return tf.constant(numbers, tf.int64)


def _flat(tensors):
    return np.concatenate([np.ravel(tensor) for tensor in tensors])


def _split(vector):
    return [tf.constant(vector[:1200].reshape(30, 40), tf.float32), tf.constant(vector[1200:], tf.float32)]


def _noise(aggregation, round_number, noise=FRESH):
    """What a round without clients does to zero weights."""
    state = aggregation.initialize([tf.zeros(spec.shape) for spec in SPECS])
    normals = functools.partial(noise.normals, round_number)
    new_state = aggregation.finish(state, aggregation.zero(), _seed(0, 0), normals).state
    return _flat(aggregation.weights(new_state))


def test_noise_of_zero_updates_has_the_stated_deviation(private):
    rounds = 300
    noise = np.stack([_noise(private, number) for number in range(rounds)])
    expected = SIGMA * CLIP / COHORT
    count = noise.size
    assert count == rounds * SIZE
    # For normal draws the sample variance has relative standard error sqrt(2 / count), the mean sigma / sqrt(count).
    assert noise.var() == pytest.approx(expected**2, rel=4 * math.sqrt(2 / count))
    assert abs(noise.mean()) < 4 * expected / math.sqrt(count)
    correlation = np.corrcoef(noise)[np.triu_indices(rounds, 1)]
    assert np.abs(correlation).max() < 6 / math.sqrt(SIZE)  # 44,850 pairs


def test_noise_is_a_function_of_key_and_round(private):
    np.testing.assert_array_equal(_noise(private, 2), _noise(private, 2))
    assert not np.array_equal(_noise(private, 2), _noise(private, 3))
    assert not np.array_equal(_noise(private, 2), _noise(private, 2, FreshNoise(NoiseKey(bytes([1] * 32)))))


def test_tensors_of_one_round_get_different_noise(private):
    noise = _noise(private, 4)
    assert not np.array_equal(noise[:800], noise[1200:])


def test_an_empty_cohort_is_survived_and_still_noised(private):
    noise = _noise(private, 9)
    assert np.isfinite(noise).all()
    assert noise.std() > 0


@given(scale=st.floats(1e-3, 1e6), seed=st.integers(0, 10_000))
@settings(max_examples=25, deadline=None)
def test_a_clipped_update_never_exceeds_the_bound(private, scale, seed):
    aggregation = private
    state = aggregation.initialize([tf.zeros(spec.shape) for spec in SPECS])
    vector = np.random.default_rng(seed).normal(size=SIZE) * scale
    result = [*_split(vector), tf.constant(1.0)]
    aggregate = aggregation.accumulate(
        aggregation.zero(), result, aggregation.broadcast(state, _seed(0, 0)), _seed(0, 0)
    )
    summed = _flat(aggregate)
    assert np.linalg.norm(summed) <= CLIP * (1 + 1e-5)
    np.testing.assert_allclose(summed, vector * min(1, CLIP / np.linalg.norm(vector)), rtol=1e-4, atol=1e-7)


def test_the_sum_is_divided_by_the_expected_cohort_whoever_takes_part(private):
    aggregation = private
    state = aggregation.initialize([tf.zeros(spec.shape) for spec in SPECS])
    vector = np.random.default_rng(0).normal(size=SIZE)
    vector *= 0.9 * CLIP / np.linalg.norm(vector)
    aggregate = aggregation.zero()
    for _ in range(3):
        result = [*_split(vector), tf.constant(1.0)]
        aggregate = aggregation.accumulate(aggregate, result, aggregation.broadcast(state, _seed(0, 0)), _seed(0, 0))
    ended = aggregation.finish(state, aggregate, _seed(0, 0), functools.partial(np.zeros, dtype=np.float32))
    np.testing.assert_allclose(_flat(aggregation.weights(ended.state)), -3 * vector / COHORT, rtol=1e-5, atol=1e-8)


def test_what_the_server_optimizer_was_given_is_told(private):
    vector = np.random.default_rng(0).normal(size=SIZE) / 1e3
    state = private.initialize([tf.zeros(spec.shape) for spec in SPECS])
    broadcast = private.broadcast(state, _seed(0, 0))
    aggregate = private.accumulate(private.zero(), [*_split(vector), tf.constant(1.0)], broadcast, _seed(0, 0))
    ended = private.finish(state, aggregate, _seed(0, 0), functools.partial(FRESH.normals, 5))
    expected = (vector + SIGMA * CLIP * FRESH.normals(5, SIZE)) / COHORT
    np.testing.assert_allclose(_flat(ended.update), expected, atol=1e-6)
    np.testing.assert_allclose(_flat(private.weights(ended.state)), -expected, atol=1e-6)
    assert not any(name.startswith("update") for name in ended.measurements)


def test_merging_two_halves_equals_adding_all():
    aggregation = _of("mean", True)
    state = aggregation.initialize([tf.zeros(spec.shape) for spec in SPECS])
    generator = np.random.default_rng(1)
    results = [[*_split(generator.normal(size=SIZE)), tf.constant(float(weight))] for weight in (1, 5, 2, 4)]

    def add(chosen):
        aggregate = aggregation.zero()
        for result in chosen:
            aggregate = aggregation.accumulate(
                aggregate, result, aggregation.broadcast(state, _seed(0, 0)), _seed(0, 0)
            )
        return aggregate

    whole = aggregation.finish(state, add(results), _seed(0, 0)).state
    merged = aggregation.finish(state, aggregation.merge(add(results[:1]), add(results[1:])), _seed(0, 0)).state
    for one, other in zip(whole, merged, strict=True):
        if one.dtype.is_floating:
            np.testing.assert_allclose(one, other, atol=1e-6)


@pytest.mark.parametrize("weighted", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_secure_sum_is_the_plain_one_up_to_its_rounding(weighted):
    """TFF rounds what lies in a range to 2^32 - 1 steps, so that each client is off by half a step at most.

    A whole weight is a little less than a whole number of the steps of its range, [0, 2^20 - 1], and loses a part in
    2^20, by which a weighted mean is too large.
    """
    secure, plain = (_of(name, weighted) for name in ("secure", "mean"))
    states = [one.initialize([tf.zeros(spec.shape) for spec in SPECS]) for one in (secure, plain)]
    generator, errors = np.random.default_rng(2), []
    for _ in range(3):
        updates = generator.normal(size=(8, SIZE)) * 0.01
        weights = generator.integers(1, 9, 8) if weighted else np.ones(8)
        aggregates = []
        for one, state in zip((secure, plain), states, strict=True):
            halves = [one.zero(), one.zero()]
            for place, (update, weight) in enumerate(zip(updates, weights, strict=True)):
                result = [*_split(update), tf.constant(float(weight))]
                broadcast = one.broadcast(state, _seed(0, 0))
                halves[place % 2] = one.accumulate(halves[place % 2], result, broadcast, _seed(0, 0))
            aggregates.append(one.merge(*halves))
        ended = [
            one.finish(state, aggregate, _seed(0, 0))
            for one, state, aggregate in zip((secure, plain), states, aggregates, strict=True)
        ]
        states = [one.state for one in ended]
        bound = ended[0].measurements["aggregator/mean_value/secure_upper_threshold"]
        error = np.abs(_flat(ended[0].update) - np.average(updates, 0, weights)).max()
        half_a_step = bound / (2**32 - 1) * 8 / weights.sum()
        largest = np.abs(_flat(ended[1].update)).max()
        assert 0 < error <= half_a_step + largest * (weighted * 2**-20 + 2**-23)  # and float32
        errors.append(error)
    print(f"largest error of a secure mean of 8 clients: {max(errors):.3g}")


def test_bits_of_a_secure_sum_are_those_of_its_largest_possible_sum():
    secure = _of("secure", False)
    numbers = [one for one in secure.spec.secure_sums for _ in range(int(np.prod(one.shape)))]
    assert sum(one.bits == 32 for one in numbers) >= SIZE
    for cohort in (1, 2, 3, 200):
        expected = sum(math.ceil(math.log2(cohort * (2**one.bits - 1) + 1)) for one in numbers)
        assert secure.spec.secure_bits(cohort) == expected


def test_a_number_beyond_the_range_of_a_secure_sum_is_cut_and_counted():
    secure = _of("secure", False)
    state = secure.initialize([tf.zeros(spec.shape) for spec in SPECS])
    vector = np.zeros(SIZE)
    vector[[0, 1500]] = 3e4, 0.5
    broadcast = secure.broadcast(state, _seed(0, 0))
    aggregate = secure.accumulate(secure.zero(), [*_split(vector), tf.constant(1.0)], broadcast, _seed(0, 0))
    ended = secure.finish(state, aggregate, _seed(0, 0))
    assert _flat(ended.update)[[0, 1500]] == pytest.approx([100.0, 0.5], abs=1e-5)
    assert ended.measurements["aggregator/mean_value/secure_upper_clipped_count"] == 1


def test_stochastic_rounding_of_compression_is_a_function_of_its_seed():
    specs = (tf.TensorSpec((300, 100), tf.float32),)
    factory = tff.learning.compression_aggregator(zeroing=False, clipping=False)
    spec = compile_round(specs, factory, tff.learning.optimizers.build_sgdm(1.0))
    aggregation = Aggregation(spec)
    state = aggregation.initialize([tf.zeros((300, 100))])
    update = tf.random.stateless_normal((300, 100), [1, 1])

    def weights(seed):
        result = [update, tf.constant(1.0)]
        aggregate = aggregation.accumulate(aggregation.zero(), result, aggregation.broadcast(state, _seed(0, 0)), seed)
        return aggregation.weights(aggregation.finish(state, aggregate, _seed(0, 0)).state)[0].numpy()

    np.testing.assert_array_equal(weights(_seed(1, 1)), weights(_seed(1, 1)))
    assert not np.array_equal(weights(_seed(1, 1)), weights(_seed(2, 1)))
    assert np.abs(weights(_seed(1, 1)) + update.numpy()).max() < 0.1


def test_the_numbers_of_a_broadcast_stay_what_they_are():
    """A round number that became a tensor gave other seeds, and a learning rate of NumPy's a tensor of float64."""
    sent = Broadcast(np.int64(3), np.float64(0.1), [np.zeros(2, np.float32)], [], []).tensors()
    assert (sent.round_number, sent.learning_rate) == (3, 0.1)
    assert not tf.is_tensor(sent.round_number) and not tf.is_tensor(sent.learning_rate)
    assert tf.is_tensor(sent.weights[0])
