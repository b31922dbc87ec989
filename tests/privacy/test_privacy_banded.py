"""Banded noise: sensitivity by enumeration, covariance by drawing, epsilon by hand, and fresh noise as one band."""

import itertools
import math

import dp_accounting
import numpy as np
import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmark.federated.cohort import sample_cohort
from benchmark.federated.statements import check_noise_memory
from benchmark.privacy import banded
from benchmark.privacy.noise import BandedNoise, FreshNoise
from benchmark.privacy.noise_key import NoiseKey
from benchmark.privacy.request import Mechanism, Sampling
from flair.errors import FlairError
from tests.support.privacy import plan_of

KEY = NoiseKey(bytes(32))
FLAIR = {"num_users": 41_131, "total_rounds": 5000}
SMALL = {"num_users": 500, "cohort": 20, "total_rounds": 40, "mechanism": Mechanism.BANDED}


def _matrix(column, rounds):
    return sum(np.diag(np.full(rounds - lag, number), -lag) for lag, number in enumerate(column) if lag < rounds)


def _patterns(rounds, separation):
    """Every set of rounds in which a user may take part."""
    for pattern in itertools.product((0, 1), repeat=rounds):
        positions = [position for position, takes_part in enumerate(pattern) if takes_part]
        if all(later - earlier >= separation for earlier, later in itertools.pairwise(positions)):
            yield positions


@pytest.mark.parametrize(("rounds", "bands"), [(1, 1), (6, 1), (7, 2), (9, 3), (10, 4), (11, 5), (8, 8)])
def test_sensitivity_covers_every_pattern_and_every_direction(rounds, bands):
    """Updates of norm 1 in any direction at rounds at least `bands` apart: the sum of squares is at most their number.

    Rows do not overlap, so that directions do not matter; that is tried with the worst ones, too: all the same.
    """
    matrix = _matrix(banded.coefficients(bands, rounds), rounds)
    generator = np.random.default_rng(0)
    worst = 0.0
    for positions in _patterns(rounds, bands):
        random = generator.normal(size=(len(positions), 3))
        for updates in (np.ones((len(positions), 1)), random / np.linalg.norm(random, axis=1, keepdims=True)):
            worst = max(worst, np.linalg.norm(matrix[:, positions] @ updates) ** 2)
    assert worst <= math.ceil(rounds / bands) * (1 + 1e-12)
    # Without the separation it would not hold, if there is more than one band.
    together = np.linalg.norm(matrix.sum(axis=1)) ** 2
    assert bands == 1 or together > rounds / bands * (1 + 1e-3)


@pytest.mark.parametrize("bands", [1, 2, 4, 7])
def test_noise_has_the_covariance_of_the_inverse_matrix(bands):
    rounds, count = 9, 200_000
    column = banded.coefficients(bands, rounds)
    noise = BandedNoise(KEY, column)
    drawn = np.stack([noise.normals(number, count) for number in range(rounds)]).astype(np.float64)
    inverse = np.linalg.inv(_matrix(column, rounds))
    expected = inverse @ inverse.T
    spread = np.sqrt((np.outer(np.diag(expected), np.diag(expected)) + expected**2) / count)
    assert (np.abs(drawn @ drawn.T / count - expected) < 5 * spread).all()
    sums = np.cumsum(drawn, axis=0)
    assert banded.rms_on_running_sum(column, rounds) == pytest.approx(math.sqrt((sums**2).mean()), rel=0.01)
    # Taken together as the mechanism releases them, rounds have independent noise of deviation 1.
    fresh = np.stack([FreshNoise(KEY).normals(number, count) for number in range(rounds)])
    np.testing.assert_allclose(_matrix(column, rounds) @ drawn, fresh, atol=2e-5)


@given(st.lists(st.integers(0, 12), min_size=1, max_size=6), st.sampled_from([1, 2, 5]))
@settings(max_examples=20, deadline=None)
def test_noise_is_a_function_of_the_round_whatever_was_drawn_before(rounds, bands):
    column = banded.coefficients(bands, 13)
    noise, straight = BandedNoise(KEY, column), BandedNoise(KEY, column)
    expected = [straight.normals(number, 70_000) for number in range(13)]
    for number in rounds:
        np.testing.assert_array_equal(noise.normals(number, 70_000), expected[number])


def test_one_band_is_fresh_noise_bit_for_bit():
    fresh = plan_of(**FLAIR, cohort=200, epsilon=2.0)
    banded_plan = plan_of(**FLAIR, cohort=200, epsilon=2.0, mechanism=Mechanism.BANDED, bands=1)
    for name in ("noise_multiplier", "epsilon", "noise_on_running_sum", "sampling_probability", "is_zero_out"):
        assert getattr(banded_plan, name) == pytest.approx(getattr(fresh, name), rel=1e-12)
    assert banded_plan.noise_multiplier == fresh.noise_multiplier
    assert banded_plan.epsilon == fresh.epsilon
    one = BandedNoise(KEY, banded.coefficients(1, 5000))
    for number in (0, 1, 7):
        np.testing.assert_array_equal(one.normals(number, 100_001), FreshNoise(KEY).normals(number, 100_001))
    users = [str(number) for number in range(500)]
    drawn = {"seed": KEY, "round_number": 3, "clients_per_round": 20, "sampling": Sampling.POISSON}
    assert sample_cohort(users, **drawn, groups=1) == sample_cohort(users, **drawn)


@pytest.mark.parametrize("bands", [2, 3])
def test_epsilon_is_that_of_a_release_every_so_many_rounds_composed_by_hand(bands):
    plan = plan_of(**SMALL, bands=bands, noise_multiplier=1.5)
    releases = math.ceil(40 / bands)
    event = dp_accounting.PoissonSampledDpEvent(bands * 20 / 500, dp_accounting.GaussianDpEvent(1.5))
    for name, accountant in (
        ("rdp", dp_accounting.rdp.RdpAccountant()),
        ("pld", dp_accounting.pld.PLDAccountant(value_discretization_interval=1e-4)),
    ):
        by_hand = accountant.compose(event, releases).get_epsilon(plan.delta)
        assert plan.epsilon_at(40, name) == pytest.approx(by_hand, rel=2e-3)
    assert plan.epsilon_at(1) == plan.epsilon_at(bands) < plan.epsilon_at(bands + 1)
    assert plan.is_zero_out


def test_cyclic_cohorts_count_the_passes_and_nothing_else():
    cyclic = {**SMALL, "sampling": Sampling.CYCLIC, "bands": 25}
    plan = plan_of(**cyclic, noise_multiplier=5.0)
    fresh = plan_of(num_users=500, cohort=20, total_rounds=40, sampling=Sampling.CYCLIC, noise_multiplier=5.0)
    assert plan.epsilon == fresh.epsilon
    assert plan.noise_on_running_sum < 0.5 * fresh.noise_on_running_sum


@pytest.mark.parametrize(
    ("epsilon", "by_bands"),
    [(2.0, {4: 44.4, 16: 46.0, 64: 50.5}), pytest.param(8.0, {4: 21.2, 16: 17.4, 64: 16.5}, marks=pytest.mark.slow)],
)
def test_the_noise_of_the_published_column_at_flairs_size_and_less_of_ours(epsilon, by_bands):
    for bands, expected in by_bands.items():
        plan = plan_of(**FLAIR, cohort=200, epsilon=epsilon, mechanism=Mechanism.BANDED, bands=bands)
        published = banded.rms_on_running_sum(banded.square_root_coefficients(bands), 5000)
        assert plan.noise_multiplier * published == pytest.approx(expected, rel=0.01)
        assert 200 * plan.noise_on_running_sum < 0.91 * expected


@pytest.mark.parametrize(("rounds", "epsilon", "momentum"), [(10, 8.0, 0.0), (10, 3.0, 0.9)])
def test_chosen_bands_have_hardly_more_noise_than_any_other_number(rounds, epsilon, momentum):
    """Of few rounds the most bands may be the best after worse ones: with one release nothing is composed."""
    asked = {"num_users": 2000, "cohort": 20, "total_rounds": rounds, "mechanism": Mechanism.BANDED}
    asked |= {"epsilon": epsilon, "server_momentum": momentum, "accountant": "rdp"}

    def noise(plan):
        return plan.noise_multiplier * banded.rms_on_running_sum(plan.column, rounds, momentum)

    least = min(noise(plan_of(**asked, bands=bands)) for bands in range(1, rounds + 1))
    assert noise(plan_of(**asked)) <= 1.02 * least


def test_bands_are_chosen_where_rdp_states_no_epsilon():
    """One band was taken there, with ten times the noise."""
    asked = {**FLAIR, "cohort": 4000, "epsilon": 0.003, "mechanism": Mechanism.BANDED, "sampling": Sampling.CYCLIC}
    assert plan_of(**asked).request.bands == 11


@pytest.mark.parametrize(("bands", "rounds", "momentum"), [(2, 10, 0.0), (3, 30, 0.0), (4, 50, 0.9)])
def test_no_other_column_has_less_noise(bands, rounds, momentum):
    """Against a search without gradient that may take any column."""
    from scipy import optimize

    sums = np.array(
        [[momentum ** max(row - column, 0) * (row >= column) for column in range(rounds)] for row in range(rounds)]
    )
    sums = np.tril(np.ones((rounds, rounds))) @ sums

    def noise(column):
        return np.linalg.norm(sums @ np.linalg.inv(_matrix(column, rounds))) * np.linalg.norm(column)

    def cost(rest):
        return noise([1.0, *rest])

    best = optimize.minimize(
        cost, np.full(bands - 1, 0.4), method="Nelder-Mead", options={"xatol": 1e-6, "fatol": 1e-9}
    )
    assert noise(banded.coefficients(bands, rounds, momentum)) <= best.fun * (1 + 1e-6)


def test_every_user_joins_in_the_rounds_of_the_own_group_alone():
    users = [str(number) for number in range(103)]
    groups, rounds = 4, 4000
    seen = np.zeros((groups, len(users)))
    for number in range(rounds):
        cohort = sample_cohort(
            users, seed=KEY, round_number=number, clients_per_round=5, sampling=Sampling.POISSON, groups=groups
        )
        seen[number % groups, list(map(int, cohort))] += 1
    assert ((seen > 0).sum(axis=0) == 1).all()
    assert sorted((seen > 0).sum(axis=1)) == [25, 26, 26, 26]
    q, times = groups * 5 / 103, rounds / groups
    np.testing.assert_allclose(seen.sum(axis=0), q * times, atol=5 * math.sqrt(times * q * (1 - q)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bands": 41}, r"--bands=41: expected at most --total_rounds=40"),
        ({"bands": 26}, r"--bands=26: 500 users in so many groups are 19 a group, fewer than the 20 clients"),
        ({"bands": 26, "sampling": Sampling.CYCLIC}, r"--bands=26: with cyclic cohorts .* every 25 rounds"),
        ({"bands": 0}, r"--bands=0: expected 1 to 1,024"),
        ({"bands": 2, "sampling": Sampling.UNIFORM}, r"banded noise with uniform cohorts: .*poisson.*cyclic"),
        ({"bands": 2, "sampling": Sampling.FIXED}, r"banded noise with fixed cohorts"),
        ({"bands": 2, "mechanism": Mechanism.GAUSSIAN}, r"--bands=2 has no effect without banded noise"),
        ({"bands": 2, "simulated_cohort": 300}, r"--bands=2: 500 users .* 250 a group, fewer than the 300"),
        ({"total_rounds": 100_001}, r"--total_rounds=100001: .*at most 100,000"),
        ({"epsilon": None, "noise_multiplier": 1.0}, r"--bands=auto chooses .*--bands=N"),
        ({"bands": 2, "published_noise": True}, r"--published_noise repeats"),
    ],
)
def test_refusals_name_the_flag(change, message):
    with pytest.raises(FlairError, match=message) as refusal:
        plan_of(**{**SMALL, "epsilon": 2.0, **change})
    assert "\n" not in str(refusal.value)


def test_bands_that_do_not_fit_into_memory_are_refused():
    plan = plan_of(**SMALL, bands=20, noise_multiplier=1.0)
    check_noise_memory(plan, 1000)
    with pytest.raises(FlairError, match=r"20 bands: the noise of 19 rounds, .* give at most --bands=2, or") as refusal:
        check_noise_memory(plan, psutil.virtual_memory().total // 12)
    assert "\n" not in str(refusal.value)
