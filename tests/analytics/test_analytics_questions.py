"""A user moves the sums by no more than the stated bound, and the sums are what plain loops over users make them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from benchmark.analytics.questions import FINE_LABELS, LABELS, bin_ends, label_question, photo_question

COARSE, FINE = [f"coarse{n}" for n in range(17)], [f"fine{n}" for n in range(60)]
MOST_COARSE, MOST_FINE, MOST_PHOTOS = 17, 9, 4_151
SIZES = [1, 1, 2, 3, 5, 8, 40, 4_151, 6_000, 7]


def _population(seed=7):
    """User -> photos, each with coarse and fine labels; one has 4,151 photos, one even more, and one no label."""
    random = np.random.default_rng(seed)
    users = [
        [
            (
                random.choice(17, random.integers(0, 4), replace=False).tolist(),
                random.choice(60, random.integers(0, 6), replace=False).tolist(),
            )
            for _ in range(size)
        ]
        for size in SIZES
    ]
    users[3] = [([], [])] * SIZES[3]
    return users


def _sums(users):
    owner = np.repeat(np.arange(len(users)), [len(photos) for photos in users])
    photos = [photo for one in users for photo in one]
    return [
        label_question(LABELS, COARSE, owner, [coarse for coarse, _ in photos], MOST_COARSE),
        label_question(FINE_LABELS, FINE, owner, [fine for _, fine in photos], MOST_FINE),
        photo_question(np.array([len(one) for one in users]), MOST_PHOTOS),
    ]


def test_whoever_leaves_moves_no_sum_by_more_than_its_bound():
    users = _population()
    everybody = _sums(users)
    moved = []
    for left in range(len(users)):
        others = _sums(users[:left] + users[left + 1 :])
        moved.append(
            [np.linalg.norm(a.sums - b.sums) / a.bound for a, b in zip(everybody, others, strict=True)],
        )
    relative = np.array(moved)
    assert relative.max() <= 1 + 1e-9
    # All questions together are one vector, of which each has an equal part.
    assert np.linalg.norm(relative / math.sqrt(len(everybody)), axis=1).max() <= 1 + 1e-9
    heavy = SIZES.index(4_151)
    assert relative[heavy] == pytest.approx([1, 1, 1])  # the bound is attained, not merely kept
    assert relative[3] == pytest.approx([0, 0, 1])
    assert [question.bound for question in everybody] == pytest.approx([math.sqrt(17), math.sqrt(9), 1])


def test_sums_are_those_of_plain_loops():
    users = _population(seed=8)
    for question, kind, size, most in zip(_sums(users), (0, 1), (17, 60), (MOST_COARSE, MOST_FINE), strict=False):
        sums, exact = [0.0] * size, [0] * size
        for photos in users:
            mine = {label for photo in photos for label in photo[kind]}
            for label in mine:
                sums[label] += min(1.0, math.sqrt(most / len(mine)))
                exact[label] += 1
        np.testing.assert_allclose(question.sums, sums, rtol=1e-12)
        np.testing.assert_array_equal(question.exact, exact)


def test_a_user_with_thousands_of_photos_counts_once_for_a_label():
    owner = np.array([0] * 4_151 + [1])
    question = label_question(LABELS, COARSE, owner, [[2, 5]] * 4_152, most=17)
    assert question.sums[[2, 5]].tolist() == [2, 2] and question.sums.sum() == 4


def test_nobody_has_a_label():
    question = label_question(LABELS, COARSE, np.zeros(3, np.int64), [[], [], []], most=17)
    assert question.sums.tolist() == [0] * 17


def test_a_bound_above_the_number_of_labels_is_that_number():
    assert label_question(LABELS, COARSE[:4], np.zeros(1, np.int64), [[0]], most=100).bound == 2


def test_photos_are_counted_in_the_bin_that_holds_them():
    counts = np.array([1, 2, 2, 9, 10, 11, 4_151, 10**9])
    question = photo_question(counts, MOST_PHOTOS)
    last, found = 0, {}
    for end, sum_ in zip(question.cells, question.sums, strict=True):
        assert sum_ == sum(last < min(count, MOST_PHOTOS) <= end for count in counts)
        found[end], last = sum_, end
    assert (found[2], found[10], found[MOST_PHOTOS]) == (2, 2, 2)


@pytest.mark.parametrize("most", [2, 3, 40, 4_096, 4_151, 10**9])
def test_bins_rise_to_the_most_and_are_narrow(most):
    ends = bin_ends(most)
    assert ends[0] == 1 and ends[-1] == most and (np.diff(ends) > 0).all()
    wide = np.diff(ends) > 1
    assert (ends[1:][wide] / ends[:-1][wide] < 1.26).all()


@pytest.fixture
def tff() -> Iterator[Any]:
    """TFF with a worker that ends with the test."""
    import tensorflow_federated

    from benchmark.rounds.tff import guard_worker, stop_workers

    guard_worker()
    yield tensorflow_federated
    stop_workers()


@pytest.mark.slow
def test_tffs_own_analytics_count_the_same(tff):
    """TFF's IBLT, with each word of a user once, and its tree of histograms, both without noise."""
    import tensorflow as tf

    users = [photos[:40] for photos in _population()]
    coarse, _, photos = _sums(users)
    words = [[f"coarse{label}" for photo in one for label in photo[0]] for one in users]
    datasets = [tf.data.Dataset.from_tensor_slices(tf.constant(one, tf.string)).batch(1) for one in words]
    iblt = tff.analytics.heavy_hitters.iblt
    found = iblt.build_iblt_computation(string_max_bytes=10, multi_contribution=False)(datasets)
    pairs = zip(found.heavy_hitters, found.heavy_hitters_counts, strict=True)
    counted = {word.decode(): int(count) for word, count in pairs}
    assert counted == {name: int(count) for name, count in zip(COARSE, coarse.sums, strict=True) if count}

    histogram = tff.analytics.build_hierarchical_histogram_process(
        1.0, 9.0, 8, max_records_per_user=1, enable_secure_sum=False
    )
    sizes = [tf.data.Dataset.from_tensors(tf.constant(float(len(one)))) for one in users]
    counted_sizes, _ = histogram.next(histogram.initialize(), sizes)
    leaves = counted_sizes.aggregated_hierarchical_histogram["flat_values"][-8:]
    assert leaves.tolist() == photos.sums[:8].tolist()
