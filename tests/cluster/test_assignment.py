"""Sharing a cohort out among workers: whole, balanced, repeatable."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmark.cluster.assignment import CLIENT_OVERHEAD, assign, client_cost
from benchmark.run.seeds import derive_generator
from flair.miniature.population import user_sizes

COSTS = st.lists(st.floats(0, 1e4), max_size=60)


@given(costs=COSTS, num_workers=st.integers(1, 12))
def test_every_client_has_one_worker_and_loads_add_up(costs, num_workers):
    found = assign(costs, num_workers)
    assert len(found.shards) == len(found.loads) == num_workers
    assert sorted(itertools.chain(*found.shards)) == list(range(len(costs)))
    for shard, load in zip(found.shards, found.loads, strict=True):
        assert list(shard) == sorted(shard)
        assert load == pytest.approx(sum(costs[position] for position in shard))


@given(costs=st.lists(st.integers(1, 50), min_size=1, max_size=8), num_workers=st.integers(1, 3))
def test_no_assignment_is_better_by_more_than_a_third(costs, num_workers):
    """Graham's bound, against the best of all assignments."""
    best = min(
        max(sum(c for c, w in zip(costs, chosen, strict=True) if w == worker) for worker in range(num_workers))
        for chosen in itertools.product(range(num_workers), repeat=len(costs))
    )
    assert max(assign(costs, num_workers).loads) <= (4 / 3 - 1 / (3 * num_workers)) * best + 1e-9


@given(costs=COSTS, num_workers=st.integers(1, 12))
def test_no_worker_exceeds_the_mean_by_more_than_the_largest_client(costs, num_workers):
    found = assign(costs, num_workers)
    assert max(found.loads) <= sum(costs) / num_workers + max(costs, default=0) + 1e-6


@pytest.mark.parametrize(
    ("cohort", "max_elements", "workers"), [(50, 512, 2), (200, 512, 2), (200, 64, 16), (5000, 512, 64)]
)
def test_cohorts_of_flairs_sizes_are_balanced_within_15_percent(cohort, max_elements, workers):
    sizes = user_sizes(41131, None)
    for round_number in range(20):
        drawn = derive_generator(3, round_number).choice(sizes, cohort, replace=False)
        costs = [client_cost(int(photos), 2, max_elements) for photos in drawn]
        assert assign(costs, workers).imbalance < 0.15


def test_a_client_costs_something_beyond_its_photos():
    """Two hundred users of one photo are more work than one user of two hundred."""
    assert client_cost(1, 2, 512) == 2 + CLIENT_OVERHEAD
    assert client_cost(600, 2, 512) == 1024 + CLIENT_OVERHEAD
    shards = assign([client_cost(n, 1, 512) for n in (30, *[1] * 30)], 2).shards
    assert len(shards[0]) > 1, "the worker with the large client also takes some of the small ones"


def test_without_clients_there_is_no_imbalance():
    assert assign([], 3) == (((), (), ()), (0, 0, 0))
    assert assign([], 3).imbalance == 0
    with pytest.raises(ValueError, match="num_workers"):
        assign([1.0], 0)
