"""How far users are from the population, and the shuffled control beside them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy.spatial.distance import jensenshannon

from flair.dataset.metadata import load_records
from flair.miniature.dataset import make_dataset
from flair.statistics import divergence
from flair.statistics.divergence import by_size, divergences, measure, shuffle_photos
from flair.statistics.labels import Annotations, encode, labels_of_users


@given(arrays.arrays(np.int64, st.tuples(st.integers(1, 6), st.integers(1, 5)), elements=st.integers(0, 40)))
def test_it_is_scipys_jensen_shannon_distance_squared(counts: np.ndarray) -> None:
    counts = counts[counts.sum(axis=1) > 0][:, :]
    counts = counts[:, counts.sum(axis=0) > 0]
    if not counts.size:
        return
    population = counts.sum(axis=0) / counts.sum()
    expected = [jensenshannon(row / row.sum(), population, base=2) ** 2 for row in counts]
    # SciPy's square root turns a rounding error of 1e-17 below zero into NaN.
    np.testing.assert_allclose(divergences(counts), np.nan_to_num(expected), atol=1e-12)


@given(
    arrays.arrays(np.int64, (3, 4), elements=st.integers(0, 9)), arrays.arrays(np.int64, 4, elements=st.integers(0, 99))
)
def test_a_population_need_not_hold_the_users(counts: np.ndarray, population: np.ndarray) -> None:
    counts[:, 0] += 1
    population[1] += 1
    expected = [jensenshannon(row / row.sum(), population / population.sum(), base=2) ** 2 for row in counts]
    np.testing.assert_allclose(divergences(counts, population), np.nan_to_num(expected), atol=1e-12)


def test_equal_users_do_not_diverge_and_strangers_do() -> None:
    assert divergences(np.array([[2, 6], [1, 3]])) == pytest.approx([0, 0])
    crowd = np.zeros((1001, 2), np.int64)
    crowd[:-1, 0], crowd[-1, 1] = 1, 1
    assert divergences(crowd)[-1] > 0.98


def label_table(annotations: Annotations) -> np.ndarray:
    user, label, photos = labels_of_users(annotations, annotations.coarse)
    table = np.zeros((annotations.num_users, len(annotations.coarse.names)), np.int64)
    table[user, label] = photos
    return table


def test_counts_per_user_are_those_of_the_records(miniature: Path) -> None:
    records = load_records(miniature)
    annotations = encode(records)
    counts = label_table(annotations)
    user, label = 3, 1
    own = [record for record in records if record.user_id == annotations.user_ids[user]]
    assert counts[user, label] == sum(annotations.coarse.names[label] in record.labels for record in own)
    assert counts.sum() == sum(len(record.labels) for record in records)


def test_shuffling_keeps_sizes_and_labels_and_follows_from_the_seed(miniature: Path) -> None:
    annotations = encode(load_records(miniature))
    shuffled = shuffle_photos(annotations, seed=4)
    assert (shuffled.owner != annotations.owner).any()
    np.testing.assert_array_equal(shuffled.photos_per_user(), annotations.photos_per_user())
    np.testing.assert_array_equal(label_table(shuffled).sum(axis=0), label_table(annotations).sum(axis=0))
    np.testing.assert_array_equal(shuffled.owner, shuffle_photos(annotations, seed=4).owner)
    assert (shuffled.owner != shuffle_photos(annotations, seed=5).owner).any()


def test_only_users_with_tastes_differ_from_the_control(tmp_path: Path) -> None:
    excess = {}
    for taste, concentration in (("own", 3.0), ("common", 1e6)):
        make_dataset(
            tmp_path / taste, num_users=300, num_images=6000, taste_concentration=concentration, metadata_only=True
        )
        measured = measure(encode(load_records(tmp_path / taste)))
        several = measured.photos >= 8
        excess[taste] = float((measured.users - measured.shuffled)[several].mean())
    assert excess["own"] > 0.03
    assert abs(excess["common"]) < 0.005


def test_groups_hold_every_user_once(miniature: Path) -> None:
    measured = measure(encode(load_records(miniature)))
    groups = by_size(measured)
    assert sum(group.num_users for group in groups) == len(measured.photos)
    for group in groups:
        inside = (measured.photos >= group.least) & (measured.photos <= group.most)
        assert group.num_users == inside.sum() > 0
        assert group.users == pytest.approx(measured.users[inside].mean())
        assert group.shuffled == pytest.approx(measured.shuffled[inside].mean())


def test_the_population_is_all_users_together() -> None:
    """So that the mean of the users, weighted by their labels, has no divergence left to explain."""
    counts = np.array([[3, 1, 0], [0, 2, 5]])
    together = divergence.divergences(np.vstack([counts, counts.sum(axis=0)]))
    assert together[-1] == pytest.approx(0)
