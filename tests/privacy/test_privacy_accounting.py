"""The accounting against dp_accounting composed by hand, closed forms, and the numbers of the published benchmark."""

import math

import dp_accounting
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import optimize, stats

from benchmark.privacy import accounting, renyi
from flair.errors import FlairError

USERS = 41_131
DELTA = USERS**-1.1


def _event(noise_multiplier, q, rounds):
    round_event = dp_accounting.PoissonSampledDpEvent(q, dp_accounting.GaussianDpEvent(noise_multiplier))
    return dp_accounting.SelfComposedDpEvent(round_event, rounds)


def _gaussian_epsilon(noise_multiplier, delta):
    """Epsilon of one Gaussian mechanism, exactly (Balle and Wang 2018, theorem 8)."""

    def excess(epsilon):
        upper = stats.norm.cdf(0.5 / noise_multiplier - epsilon * noise_multiplier)
        lower = math.exp(epsilon) * stats.norm.cdf(-0.5 / noise_multiplier - epsilon * noise_multiplier)
        return upper - lower - delta

    return optimize.brentq(excess, 0, 300) if excess(0) > 0 else 0.0


def _one_round_epsilon(noise_multiplier, q, delta):
    """Epsilon of one Poisson-sampled round, exactly: the larger of removing and adding the user."""

    def tail(x, mean):
        return stats.norm.sf(x, mean, noise_multiplier)

    def remove(epsilon):
        x = noise_multiplier**2 * math.log((math.exp(epsilon) - (1 - q)) / q) + 0.5
        return (1 - q) * tail(x, 0) + q * tail(x, 1) - math.exp(epsilon) * tail(x, 0) - delta

    def add(epsilon):
        ratio = (math.exp(-epsilon) - (1 - q)) / q
        if ratio <= 0:
            return -delta
        x = noise_multiplier**2 * math.log(ratio) + 0.5
        below_with_user = (1 - q) * (1 - tail(x, 0)) + q * (1 - tail(x, 1))
        return (1 - tail(x, 0)) - math.exp(epsilon) * below_with_user - delta

    return max(optimize.brentq(f, 1e-12, 300) if f(1e-12) > 0 else 0.0 for f in (remove, add))


@pytest.mark.parametrize(
    ("accountant", "cohort", "expected"),
    [("rdp", 200, 1.025), ("pld", 200, 0.975), ("rdp", 5000, 18.68), ("pld", 5000, 17.36)],
)
def test_noise_for_epsilon_2_in_5000_rounds(accountant, cohort, expected):
    found = accounting.noise_multiplier_for(accountant, 2.0, cohort / USERS, 5000, DELTA)
    assert found == pytest.approx(expected, rel=2e-3)


@pytest.mark.parametrize(("cohort", "expected"), [(200, 10.72), (5000, 53.49)])
def test_published_noise_is_reproduced(cohort, expected):
    found = accounting.published_noise_multiplier(2.0, USERS, cohort, 5000, DELTA)
    assert round(found, 2) == expected


@settings(max_examples=25, deadline=None)
@given(
    noise_multiplier=st.floats(0.4, 50),
    q=st.floats(1e-4, 1.0),
    rounds=st.integers(1, 3000),
    delta=st.floats(1e-9, 1e-3),
)
def test_rdp_epsilon_is_what_dp_accounting_composes(noise_multiplier, q, rounds, delta):
    accountant = dp_accounting.rdp.RdpAccountant().compose(_event(noise_multiplier, q, rounds))
    ours = accounting.rdp_epsilon(noise_multiplier, q, rounds, delta)
    assert ours == pytest.approx(accountant.get_epsilon(delta), rel=1e-6)


def _logarithmic(least, most):
    return st.floats(math.log(least), math.log(most)).map(math.exp)


@settings(max_examples=12, deadline=None)
@given(
    noises=st.lists(st.tuples(_logarithmic(0.03, 1e3), _logarithmic(1e-8, 1.0)), min_size=1, max_size=2),
    asked=st.lists(st.tuples(_logarithmic(1, 1e9), _logarithmic(1e-300, 0.5)), min_size=60, max_size=60),
)
def test_the_orders_that_rdp_does_not_ask_have_no_smaller_epsilon(noises, asked):
    orders = dp_accounting.rdp.RdpAccountant().orders
    assert set(renyi._FIRST_ORDERS) <= set(orders)
    rounds = [renyi.of_a_round(*one, tuple(orders)) + renyi._UNRESOLVED / (orders - 1) for one in noises]
    for count, delta in asked:
        releases = [(*one, int(count)) for one in noises]
        of_all = renyi.epsilon_of(orders, sum(int(count) * one for one in rounds), delta)
        assert renyi.epsilon_of_releases(releases, delta) == of_all


def test_rdp_never_rounds_a_round_down_to_nothing():
    # One round's Renyi divergence, 6e-15 at order 1.25, is lost in the rounding of a logarithm near 1.
    noise_multiplier, q, rounds, delta = 1000.0, 1e-4, 50_000_000, 1e-5
    assert dp_accounting.rdp.RdpAccountant().compose(_event(noise_multiplier, q, rounds)).get_epsilon(delta) == 0
    assert accounting.rdp_epsilon(noise_multiplier, q, rounds, delta) > 1e-3


@settings(max_examples=6, deadline=None)
@given(noise_multiplier=st.floats(0.7, 10), q=st.floats(1e-3, 0.5), rounds=st.integers(1, 1000))
def test_pld_epsilon_is_what_dp_accounting_composes(noise_multiplier, q, rounds):
    rdp = accounting.rdp_epsilon(noise_multiplier, q, rounds, 1e-6)
    assume(0.05 < rdp < 20)
    fine = dp_accounting.pld.PLDAccountant(value_discretization_interval=min(1e-4, q / noise_multiplier / 20))
    exact = fine.compose(_event(noise_multiplier, q, rounds)).get_epsilon(1e-6)
    ours = accounting.pld_epsilon(noise_multiplier, q, rounds, 1e-6)
    assert exact * (1 - 1e-3) <= ours <= exact * 1.02
    assert ours <= rdp * 1.01


@settings(max_examples=20, deadline=None)
@given(noise_multiplier=st.floats(0.5, 20), q=st.floats(1e-3, 0.99), delta=st.floats(1e-8, 1e-3))
def test_one_round_by_pld_is_the_closed_form(noise_multiplier, q, delta):
    exact = _one_round_epsilon(noise_multiplier, q, delta)
    ours = accounting.pld_epsilon(noise_multiplier, q, 1, delta)
    assert exact - 1e-9 <= ours <= exact * 1.02 + 1e-4


@settings(max_examples=20, deadline=None)
@given(noise_multiplier=st.floats(1, 100), rounds=st.integers(1, 200), delta=st.floats(1e-8, 1e-3))
def test_full_participation_by_pld_is_the_analytic_gaussian(noise_multiplier, rounds, delta):
    exact = _gaussian_epsilon(noise_multiplier / math.sqrt(rounds), delta)
    ours = accounting.pld_epsilon(noise_multiplier, 1.0, rounds, delta)
    assert exact - 1e-9 <= ours <= exact * 1.02 + 1e-4


@pytest.mark.parametrize("accountant", accounting.ACCOUNTANTS)
@settings(max_examples=3, deadline=None)
@given(target=st.floats(0.05, 4), q=st.floats(1e-3, 1.0), rounds=st.integers(1, 500))
def test_calibrated_noise_is_enough_and_hardly_more(accountant, target, q, rounds):
    found = accounting.noise_multiplier_for(accountant, target, q, rounds, 1e-5)
    assert accounting.epsilon(accountant, found, q, rounds, 1e-5) <= target
    assert accounting.epsilon(accountant, 0.998 * found, q, rounds, 1e-5) > target


def _gdp_epsilon(mu, delta):
    """Epsilon of mu-Gaussian DP: what very many rounds of little sampling come to (Bu et al. 2020, theorem 5)."""
    return _gaussian_epsilon(1 / mu, delta)


@pytest.mark.parametrize(("cohort", "rounds"), [(200, 10**6 + 1), (200, 10**7), (5000, 10**8)])
def test_very_many_rounds_are_answered_soon_and_come_to_the_limit_of_gaussian_dp(cohort, rounds):
    q = cohort / USERS
    noise_multiplier = accounting.noise_multiplier_for("rdp", 2.0, q, rounds, DELTA)
    found = accounting.pld_epsilon(noise_multiplier, q, rounds, DELTA)
    mu = q * math.sqrt(rounds * math.expm1(noise_multiplier**-2))
    assert found == pytest.approx(_gdp_epsilon(mu, DELTA), rel=0.02)
    assert found < accounting.rdp_epsilon(noise_multiplier, q, rounds, DELTA)


def test_rounds_composed_in_stages_are_those_composed_at_once(monkeypatch):
    setting = (1.0, 200 / USERS, 5003, DELTA)  # a prime number of rounds
    at_once = accounting.pld_epsilon(*setting)
    accounting.pld_epsilon.cache_clear()
    monkeypatch.setattr(accounting, "MAX_ROUNDS_OF_A_STAGE", 100)
    in_stages = accounting.pld_epsilon(*setting)
    accounting.pld_epsilon.cache_clear()
    assert in_stages == pytest.approx(at_once, rel=1e-6) and in_stages != at_once


@pytest.mark.parametrize("accountant", accounting.ACCOUNTANTS)
def test_no_rounds_cost_nothing(accountant):
    assert accounting.epsilon(accountant, 1.0, 0.01, 0, 1e-5) == 0.0


def test_an_epsilon_below_the_reach_of_any_noise_is_refused_with_the_least():
    with pytest.raises(FlairError, match=r"--epsilon=0\.0001 cannot be reached.*epsilon 0\.008\d+ by the rdp"):
        accounting.noise_multiplier_for("rdp", 1e-4, 1.0, 1000, 1e-5)


def test_published_formula_refuses_an_unreachable_epsilon():
    with pytest.raises(FlairError, match="published noise formula, which counts 5,000 rounds for 5,000"):
        accounting.published_noise_multiplier(1e-3, 10_000, 10_000, 5000, 1e-9)


def test_hopeless_noise_is_accounted_for_in_bounded_time_and_memory():
    # dp_accounting's own accountant asks for tens of gigabytes here.
    pld = accounting.pld_epsilon(0.05, 200 / USERS, 5000, DELTA)
    assert 1000 < pld < accounting.rdp_epsilon(0.05, 200 / USERS, 5000, DELTA)


@pytest.mark.parametrize("limit", [0, 1, 2, 3, 4, 7, 8, 9, 1000])
@pytest.mark.parametrize("guess", [1, 5, 8, 1000])
def test_rounds_affordable_finds_the_last_round_from_any_guess(limit, guess):
    assert accounting.rounds_affordable(lambda rounds: rounds, limit, guess) == limit


@pytest.mark.parametrize("limit", [10**9 - 1, 10**9, 10**9 + 1, 2**40])
@pytest.mark.parametrize("guess", [1, 999, 10**9])
def test_rounds_affordable_end_at_a_billion(limit, guess):
    assert accounting.rounds_affordable(lambda rounds: rounds, limit, guess) == min(limit, 10**9)


def test_fixed_size_cohorts_by_the_theorem_for_replacing_one_user():
    noise_multiplier, cohort, rounds = 2.0, 100, 500
    accountant = dp_accounting.rdp.RdpAccountant(
        neighboring_relation=dp_accounting.NeighboringRelation.REPLACE_ONE
    ).compose(
        dp_accounting.SelfComposedDpEvent(
            # Replacing moves the sum by up to two clips.
            dp_accounting.SampledWithoutReplacementDpEvent(
                10_000, cohort, dp_accounting.GaussianDpEvent(noise_multiplier / 2)
            ),
            rounds,
        )
    )
    ours = accounting.replace_one_epsilon(noise_multiplier, 10_000, cohort, rounds, 1e-6)
    assert ours == pytest.approx(accountant.get_epsilon(1e-6), rel=0.03)
    assert ours > 2 * accounting.rdp_epsilon(noise_multiplier, cohort / 10_000, rounds, 1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("cohort", [200, 5000])
def test_published_noise_is_tensorflow_privacys_compute_noise(cohort):
    lib = pytest.importorskip("tensorflow_privacy.privacy.analysis.compute_noise_from_budget_lib")
    theirs = lib.compute_noise(USERS, cohort, 2.0, epochs=5000, delta=DELTA, noise_lbd=1e-5)
    ours = accounting.published_noise_multiplier(2.0, USERS, cohort, 5000, DELTA)
    assert ours == pytest.approx(theirs, rel=1e-6)


def test_where_tiny_noise_puts_the_deltas_of_pld_out_of_order_rdp_answers() -> None:
    tiny = 0.059711164603804094, 0.05, 40, 5.599434155321836e-09
    assert accounting.pld_epsilon(*tiny) == accounting.rdp_epsilon(*tiny) > 1000
