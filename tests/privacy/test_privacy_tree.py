"""The sensitivity of tree aggregation against every pattern of participation and against tensorflow_privacy."""

import itertools
import math

import pytest

from benchmark.privacy import tree as privacy_tree
from benchmark.privacy.tree import Restarts


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
    bound = privacy_tree.tree_squared_sensitivity(rounds, separation)
    assert worst <= bound <= 1.5 * worst
    if separation >= rounds or separation == 1:
        assert bound == worst


@pytest.mark.parametrize(("rounds", "trees"), [(3, [3]), (4, [4]), (5, [4, 1]), (12, [4, 8]), (23, [4, 8, 8, 3])])
def test_restarted_trees_add_up(rounds, trees):
    found = privacy_tree.tree_squared_sensitivity(rounds, 3, Restarts(first=4, every=8))
    assert found == sum(privacy_tree.tree_squared_sensitivity(tree, 3) for tree in trees)


@pytest.mark.parametrize("accountant", ["pld", "rdp"])
def test_noise_for_epsilon_and_back(accountant):
    noise = privacy_tree.tree_noise_multiplier(2.0, 500, 100, 1e-5, accountant=accountant)
    assert privacy_tree.tree_epsilon(noise, 500, 100, 1e-5, accountant=accountant) == pytest.approx(2.0, rel=1e-3)


def test_one_participation_is_the_gaussian_mechanism_on_one_node_a_level():
    # 1000 rounds have nodes of 1, 2, 4 ... 512: ten on the way of one participation.
    found = privacy_tree.tree_epsilon(7.0, 1000, 1000, 1e-5, accountant="rdp")
    orders = [1 + x / 10 for x in range(1, 1000)]
    by_hand = min(
        order * 10 / (2 * 7.0**2) + math.log1p(-1 / order) - math.log(1e-5 * order) / (order - 1) for order in orders
    )
    assert found == pytest.approx(by_hand, rel=1e-3)


def test_no_rounds_cost_nothing():
    assert privacy_tree.tree_epsilon(1.0, 0, 10, 1e-5) == 0.0


@pytest.mark.slow
@pytest.mark.parametrize(("rounds", "separation"), [(16, 16), (64, 13), (100, 20), (37, 9)])
def test_never_below_tensorflow_privacys_exact_count(rounds, separation):
    accountant = pytest.importorskip("tensorflow_privacy.privacy.analysis.tree_aggregation_accountant")
    exact = 2 * accountant.compute_zcdp_single_tree(1.0, rounds, math.ceil(rounds / separation), separation - 1)
    assert exact <= privacy_tree.tree_squared_sensitivity(rounds, separation) <= 1.5 * exact
