"""Cohorts: who takes part in a round."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmark.federated.cohort import sample_cohort
from benchmark.privacy.noise_key import NoiseKey
from benchmark.privacy.request import Sampling

USERS = [f"user{number}" for number in range(500)]


def _cohort(round_number, sampling=Sampling.UNIFORM, seed=0, size=20, users=USERS):
    return sample_cohort(users, seed=seed, round_number=round_number, clients_per_round=size, sampling=sampling)


@given(
    num_users=st.integers(1, 60),
    data=st.data(),
    seed=st.integers(0, 2**31) | st.binary(min_size=32, max_size=32).map(NoiseKey),
    round_number=st.integers(0, 10_000),
    sampling=st.sampled_from(Sampling),
)
@settings(max_examples=100, deadline=None)
def test_a_cohort_is_distinct_known_clients_and_a_function_of_seed_and_round(
    num_users, data, seed, round_number, sampling
):
    users = USERS[:num_users]
    size = data.draw(st.integers(1, num_users))
    cohort = _cohort(round_number, sampling, seed, size, users)
    assert len(set(cohort)) == len(cohort)
    assert set(cohort) <= set(users)
    assert cohort == _cohort(round_number, sampling, seed, size, users)


def test_uniform_cohorts_have_their_size_and_change_with_round_and_seed():
    assert len(_cohort(0)) == 20
    assert _cohort(0) != _cohort(1)
    assert _cohort(0) != _cohort(0, seed=1)


@pytest.mark.parametrize("seed", [0, NoiseKey(bytes(32))], ids=["seed", "noise key"])
def test_every_user_joins_a_poisson_cohort_on_its_own_with_the_same_probability(seed):
    rounds, q = 2000, 20 / 500
    counts = dict.fromkeys(USERS, 0)
    sizes = []
    for round_number in range(rounds):
        cohort = _cohort(round_number, Sampling.POISSON, seed)
        sizes.append(len(cohort))
        for user in cohort:
            counts[user] += 1
    # Sizes are binomial(500, q) and counts binomial(2000, q): five standard errors.
    assert sum(sizes) / rounds == pytest.approx(20, abs=5 * math.sqrt(500 * q * (1 - q) / rounds))
    variance = sum((size - 20) ** 2 for size in sizes) / rounds
    assert variance == pytest.approx(500 * q * (1 - q), rel=5 * math.sqrt(2 / rounds))
    assert max(abs(count - rounds * q) for count in counts.values()) < 5 * math.sqrt(rounds * q * (1 - q))


def test_a_poisson_cohort_may_be_empty():
    assert any(not _cohort(round_number, Sampling.POISSON, size=1, users=USERS[:10]) for round_number in range(30))


def test_cyclic_cohorts_visit_every_user_once_a_pass_in_the_same_order():
    a_pass = [_cohort(round_number, Sampling.CYCLIC, size=30) for round_number in range(17)]
    assert sorted(user for cohort in a_pass for user in cohort) == sorted(USERS)
    assert len(a_pass[-1]) == 500 - 16 * 30
    assert a_pass[3] == _cohort(17 + 3, Sampling.CYCLIC, size=30)


def test_a_fixed_cohort_never_changes():
    assert _cohort(0, "fixed") == _cohort(9, "fixed")


@pytest.mark.parametrize("size", [0, 501])
def test_a_cohort_larger_than_the_clients_is_refused(size):
    with pytest.raises(ValueError, match="between 1 and 500"):
        _cohort(0, size=size)
