"""The sensitivity of tree aggregation against every pattern of participation and against tensorflow_privacy."""

import itertools
import math

import numpy as np
import pytest

from benchmark.privacy.noise import FreshNoise, TreeNoise
from benchmark.privacy.noise_key import NoiseKey
from benchmark.privacy.plan import rms_noise
from benchmark.privacy.request import Mechanism, PrivacyRequest, Sampling, squared_sensitivity
from tests.support.privacy import plan_of


def _patterns(rounds, separation):
    for pattern in itertools.product((0, 1), repeat=rounds):
        positions = [position for position, takes_part in enumerate(pattern) if takes_part]
        if all(later - earlier >= separation for earlier, later in itertools.pairwise(positions)):
            yield positions


def _worst_by_enumeration(rounds, separation):
    nodes = [range(start, start + width) for width in (1, 2, 4, 8, 16) for start in range(0, rounds - width + 1, width)]
    return max(
        sum(sum(position in node for position in positions) ** 2 for node in nodes)
        for positions in _patterns(rounds, separation)
    )


@pytest.mark.parametrize("rounds", range(1, 12))
@pytest.mark.parametrize("separation", [1, 2, 3, 4, 5, 11])
def test_squared_sensitivity_covers_every_pattern_of_participation(rounds, separation):
    worst = _worst_by_enumeration(rounds, separation)
    bound = squared_sensitivity(rounds, separation)
    assert worst <= bound <= 1.5 * worst
    if separation >= rounds or separation == 1:
        assert bound == worst


def _plan(separation, **request):
    tree = {"sampling": Sampling.CYCLIC, "mechanism": Mechanism.TREE, "delta": 1e-5}
    return plan_of(num_users=separation, cohort=1, **tree, **request)


@pytest.mark.parametrize("accountant", ["pld", "rdp"])
def test_noise_for_epsilon_and_back(accountant):
    noise = _plan(100, total_rounds=500, epsilon=2.0, accountant=accountant).noise_multiplier
    given = _plan(100, total_rounds=500, noise_multiplier=noise, accountant=accountant)
    assert given.epsilon == pytest.approx(2.0, rel=1e-3)


def test_one_participation_is_the_gaussian_mechanism_on_one_node_a_level():
    # 1000 rounds have nodes of 1, 2, 4 ... 512: ten on the way of one participation.
    found = _plan(1000, total_rounds=1000, noise_multiplier=7.0, accountant="rdp").epsilon
    orders = [1 + x / 10 for x in range(1, 1000)]
    by_hand = min(
        order * 10 / (2 * 7.0**2) + math.log1p(-1 / order) - math.log(1e-5 * order) / (order - 1) for order in orders
    )
    assert found == pytest.approx(by_hand, rel=1e-3)


def test_no_rounds_cost_nothing():
    assert _plan(10, total_rounds=1, noise_multiplier=1.0).epsilon_at(0) == 0.0
    assert squared_sensitivity(0, 10) == 0


@pytest.mark.slow
@pytest.mark.parametrize(("rounds", "separation"), [(16, 16), (64, 13), (100, 20), (37, 9)])
def test_never_below_tensorflow_privacys_exact_count(rounds, separation):
    accountant = pytest.importorskip("tensorflow_privacy.privacy.analysis.tree_aggregation_accountant")
    exact = 2 * accountant.compute_zcdp_single_tree(1.0, rounds, math.ceil(rounds / separation), separation - 1)
    assert exact <= squared_sensitivity(rounds, separation) <= 1.5 * exact


@pytest.mark.parametrize(
    ("epsilon", "fresh", "tree"), [(2.0, 48.7, 118.3), pytest.param(8.0, 29.6, 35.5, marks=pytest.mark.slow)]
)
def test_the_noise_on_the_running_sum_at_flairs_size(epsilon, fresh, tree):
    flair = {"num_users": 41_131, "cohort": 200, "total_rounds": 5000, "epsilon": epsilon}
    plan = plan_of(**flair, mechanism=Mechanism.TREE, sampling=Sampling.CYCLIC)
    assert 200 * plan_of(**flair).noise_on_running_sum == pytest.approx(fresh, rel=0.01)
    assert 200 * plan.noise_on_running_sum == pytest.approx(tree, rel=0.01)


@pytest.mark.parametrize("rounds", [1, 2, 3, 6, 21])
def test_the_noise_on_the_running_sum_is_that_of_the_noise_drawn(rounds):
    key = NoiseKey(bytes(32))
    for mechanism, noise in ((Mechanism.GAUSSIAN, FreshNoise(key)), (Mechanism.TREE, TreeNoise(key))):
        drawn = np.stack([noise.normals(number, 40_000) for number in range(rounds)]).astype(np.float64)
        found = np.sqrt((np.cumsum(drawn, axis=0) ** 2).mean())
        request = PrivacyRequest(cohort=1, total_rounds=rounds, mechanism=mechanism)
        assert rms_noise(request, 1.0, 1) == pytest.approx(found, rel=0.02)
