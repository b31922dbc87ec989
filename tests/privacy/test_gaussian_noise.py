"""The noise of private runs: its distribution, its independence, and tree aggregation against TensorFlow Privacy's."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
import tensorflow as tf
from tensorflow_privacy.privacy.dp_query import tree_aggregation

from benchmark.privacy.noise import FreshNoise, TreeNoise, standard_normals
from benchmark.privacy.noise_key import NoiseKey

KEY = NoiseKey(bytes(range(32)))


def test_normals_are_standard_normal():
    normals = FreshNoise(KEY).normals(0, 1_000_000)
    assert normals.dtype == np.float32
    assert scipy.stats.kstest(normals, "norm").pvalue > 1e-3
    # Moments within four standard errors, the fourth one for the tails.
    assert abs(normals.mean()) < 4 / 1000
    assert normals.var() == pytest.approx(1, abs=4 * np.sqrt(2) / 1000)
    assert np.mean(normals.astype(np.float64) ** 4) == pytest.approx(3, abs=4 * np.sqrt(96) / 1000)
    assert 4 < np.abs(normals).max() < 8.6


def test_blocks_rounds_purposes_and_keys_are_unrelated():
    """Blocks of one stream, above all: a cipher whose counters overlap would repeat itself."""
    size = 1 << 16
    drawn = [
        *FreshNoise(KEY).normals(3, 3 * size).reshape(3, size),
        FreshNoise(KEY).normals(4, size),
        FreshNoise(NoiseKey(bytes(32))).normals(3, size),
        standard_normals(KEY.stream("cohort", 3), size),
    ]
    shifted = [np.roll(drawn[0], shift) for shift in (1, 2, 3, 4, 6, 8, size // 2)]  # overlaps by some bytes
    correlation = np.corrcoef([*drawn, *shifted])[np.triu_indices(len(drawn) + len(shifted), 1)]
    assert np.abs(correlation).max() < 5 / np.sqrt(size)


@pytest.mark.parametrize("noise", [FreshNoise, TreeNoise])
def test_a_round_is_the_same_whatever_ran_before(noise):
    in_order = noise(KEY)
    rounds = [in_order.normals(number, 10) for number in range(9)]
    for number in (5, 2, 8, 8, 0):
        np.testing.assert_array_equal(noise(KEY).normals(number, 10), rounds[number])
        np.testing.assert_array_equal(in_order.normals(number, 10), rounds[number])


def test_the_first_numbers_do_not_depend_on_how_many_are_drawn():
    few, many = (FreshNoise(KEY).normals(0, count) for count in (1000, 500_000))
    np.testing.assert_array_equal(few, many[:1000])


def test_tree_noise_equals_tensorflow_privacys_efficient_tree():
    """The same node vectors given to both, in the order in which TensorFlow Privacy asks for them."""
    rounds, count = 37, 5
    asked: list[tuple[int, int]] = []

    def expected_order(leaf):
        levels = [0]
        while leaf & 1:
            leaf >>= 1
            levels.append(len(levels))
        return levels

    for leaf in range(rounds + 1):
        asked += [(level, leaf) for level in expected_order(leaf)]
    vectors = iter([standard_normals(KEY.stream("tree noise", level, leaf), count) for level, leaf in asked])
    theirs = tree_aggregation.EfficientTreeAggregator(
        lambda: tf.numpy_function(lambda: next(vectors), [], tf.float32, stateful=True)
    )
    state, ours, total = theirs.init_state(), TreeNoise(KEY), np.zeros(count)
    for number in range(rounds):
        cumulative, state = theirs.get_cumsum_and_update(state)
        total = total + ours.normals(number, count)
        np.testing.assert_allclose(total, cumulative, atol=1e-5)


def test_tree_noise_on_the_sum_grows_with_the_logarithm_of_the_rounds():
    """Exactly: a sum of t rounds carries the complete nodes of t, each of variance 1 / (2 - 2^-level)."""
    count, tree, total = 40_000, TreeNoise(KEY), np.zeros(40_000)
    for number in range(24):
        total += tree.normals(number, count)
        nodes = [level for level in range(6) if (number + 1) >> level & 1]
        variance = sum(1 / (2 - 0.5**level) for level in nodes)
        assert total.var() == pytest.approx(variance, rel=5 * np.sqrt(2 / count))
