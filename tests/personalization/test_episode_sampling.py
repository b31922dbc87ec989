"""Sizes of episodes against Meta-Dataset's formulas, written down a second time here, over 10,000 draws."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from benchmark.personalization import sizes as episode_sampling

EPISODES = 10_000


@pytest.mark.parametrize(("num_classes", "most"), [(5, 5), (30, 30), (50, 50), (600, 50)])
def test_ways_are_uniform_from_5_to_the_classes_at_hand(num_classes, most):
    rng = np.random.default_rng(1)
    drawn = [episode_sampling.draw_ways(num_classes, rng) for _ in range(EPISODES)]
    assert (min(drawn), max(drawn)) == (5, most)
    if most > 5:
        counts = np.bincount(drawn, minlength=most + 1)[5:]
        assert stats.chisquare(counts).pvalue > 1e-3


def test_fewer_than_five_classes_are_refused():
    with pytest.raises(ValueError, match="4 classes"):
        episode_sampling.draw_ways(4, np.random.default_rng(0))


@given(st.lists(st.integers(2, 4000), min_size=1, max_size=60))
def test_queries_are_half_of_the_smallest_class_and_at_most_ten(sizes):
    assert episode_sampling.query_size(sizes) == min([10, *(size // 2 for size in sizes)])


@given(st.lists(st.integers(6, 4000), min_size=1, max_size=60), st.integers(1, 5))
def test_queries_beside_a_fixed_support_are_what_it_leaves(sizes, shots):
    assert episode_sampling.query_size(sizes, shots) == min([10, *(size - shots for size in sizes)])


def test_a_class_too_small_to_query_is_refused():
    with pytest.raises(ValueError, match="1 photos"):
        episode_sampling.query_size([1, 30])


@pytest.mark.parametrize("remaining", [[3], [99], [4000], [1, 1, 1, 1, 1], [7, 30, 250, 90, 12, 4], [300] * 50])
def test_support_sizes_are_metadatasets(remaining):
    rng, other = np.random.default_rng(2), random.Random(3)
    drawn = [episode_sampling.draw_support_size(remaining, rng) for _ in range(EPISODES)]
    expected = []
    for _ in range(EPISODES):
        beta = other.random()  # [0, 1): floor(beta x + 1) is ceil((1 - beta) x) in distribution
        expected.append(min(500, sum(math.floor(beta * min(100, one) + 1) for one in remaining)))
    assert min(drawn) >= len(remaining)
    assert max(drawn) == max(expected)
    assert stats.ks_2samp(drawn, expected).pvalue > 1e-3


def test_the_support_of_a_user_is_uniform():
    rng = np.random.default_rng(4)
    drawn = [episode_sampling.draw_support_size([40], rng) for _ in range(EPISODES)]
    assert stats.chisquare(np.bincount(drawn, minlength=41)[1:]).pvalue > 1e-3


SIZES = [4, 9, 20, 20, 55, 130, 700]


@pytest.mark.parametrize("support_size", [7, 23, 120, 500])
def test_shots_are_metadatasets(support_size):
    query = min(10, min(SIZES) // 2)
    remaining = [size - query for size in SIZES]
    rng, other = np.random.default_rng(5), random.Random(6)
    drawn = np.array([episode_sampling.draw_shots(SIZES, remaining, support_size, rng) for _ in range(EPISODES)])
    expected = np.empty_like(drawn)
    for episode in range(EPISODES):
        weights = [size * math.exp(other.uniform(math.log(1 / 2), math.log(2))) for size in SIZES]
        for index, weight in enumerate(weights):
            share = weight / sum(weights) * (support_size - len(SIZES))
            expected[episode, index] = min(math.floor(share) + 1, remaining[index])
    assert (drawn >= 1).all()
    assert (drawn <= remaining).all()
    assert (drawn.sum(axis=1) <= support_size).all()
    for column in range(len(SIZES)):
        assert stats.ks_2samp(drawn[:, column], expected[:, column], method="asymp").pvalue > 1e-3


def test_shots_follow_their_weights_and_not_only_the_sizes():
    rng = np.random.default_rng(7)
    shots = [episode_sampling.draw_shots([1000, 1000], [900, 900], 202, rng) for _ in range(EPISODES)]
    ratio = np.array([(first - 1) / (second - 1) for first, second in shots])
    assert ratio.max() == pytest.approx(4, rel=0.05)
    assert ratio.min() == pytest.approx(1 / 4, rel=0.05)


def test_more_ways_than_support_photos_are_refused():
    with pytest.raises(ValueError, match="cannot hold one of each"):
        episode_sampling.draw_shots([9, 9, 9], [5, 5, 5], 2, np.random.default_rng(0))
