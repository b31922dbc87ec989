"""Renyi DP: what a round costs at each order, and the epsilon of all rounds.

Renyi divergences of rounds add up at every order, and each order gives a bound of epsilon, of which the least counts
(Mironov et al., https://arxiv.org/abs/1908.10530). dp_accounting knows 156 orders, most of them fractions that take
milliseconds each. Few need to be asked: (order - 1) times the divergence is convex in the order, so that what is known
at some orders bounds it from below at the others, and those that cannot have the least epsilon are left out.

Guarantee: the epsilon is that of one of dp_accounting's orders, so it is an upper bound whichever are asked. It is the
least of all of them as far as what dp_accounting computes is convex, too: between random orders it fell short of that
by 2e-13 a round at most, and `_CONVEX` allows fifty times as much.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

_FIRST_ORDERS = (2.0, 4.0, 8.0, 16.0, 32.0, 63.0)  # whole numbers, which take a hundredth of the time of fractions
_UNRESOLVED = 3e-14  # added to the log moment of every round: what a double does not tell from nothing
_CONVEX = 1e-11  # how far the log moment of a round, as it is computed, may lie below a convex function
_RELATIVE_ROUNDING = 1e-9  # of log moments and epsilons of all rounds


def epsilon_of(orders: Sequence[float] | np.ndarray, rdp: np.ndarray, delta: float) -> float:
    """The least epsilon of `orders` at which the divergence of all rounds is `rdp`, both [orders]."""
    import dp_accounting

    return float(dp_accounting.rdp.compute_epsilon(orders, rdp, delta)[0])


def epsilon_of_releases(releases: Sequence[tuple[float, float, int]], delta: float) -> float:
    """The epsilon of all of `releases` together: noise multiplier, sampling probability and how often, of each."""
    import numpy as np

    orders, rounds = _orders(), sum(one[2] for one in releases)
    log_moments, least = {1.0: 0.0}, math.inf
    asked: tuple[float, ...] = _FIRST_ORDERS
    while True:  # until no order can have less than the least found; every turn asks another one
        # Where a round costs less than double precision resolves, dp_accounting says 0, which is true of no noise.
        unresolved = _UNRESOLVED / (np.array(asked) - 1)
        rdp = sum(count * (of_a_round(noise, q, asked) + unresolved) for noise, q, count in releases)
        least = min(least, epsilon_of(asked, rdp, delta))
        if least == 0 or math.isinf(least):
            return least
        log_moments |= {order: (order - 1) * divergence for order, divergence in zip(asked, rdp, strict=True)}
        at_least = _least_log_moments(orders, log_moments) * (1 - _RELATIVE_ROUNDING) - rounds * _CONVEX
        at_least = at_least.clip(min=0) / (orders - 1)
        # As `compute_epsilon` of dp_accounting.
        epsilons = at_least + np.log1p(-1 / orders) - np.log(delta * orders) / (orders - 1)
        epsilons[delta**2 + np.expm1(-at_least) > 0] = 0
        epsilons[np.isin(orders, list(log_moments))] = math.inf
        if epsilons.min() * (1 - _RELATIVE_ROUNDING) >= least:
            return least
        asked = (float(orders[epsilons.argmin()]),)


def _least_log_moments(orders: np.ndarray, known: dict[float, float]) -> np.ndarray:
    """The least that (order - 1) * rdp can be at `orders`, from what it is at some: it is convex, and 0 at order 1.

    It lies above the line through the two known orders below and above that through the two above, where there are two;
    between order 1 and the next, 0 is what is known from below.
    """
    import numpy as np

    at = np.array(sorted(known))
    value = np.array([known[order] for order in at])
    slope = np.diff(value) / np.diff(at)
    place = np.searchsorted(at, orders)  # of the first known order that is not smaller
    before = value[place - 1] + np.r_[0.0, slope][place - 1] * (orders - at[place - 1])
    first = np.minimum(place, len(at) - 2)
    after = value[first] - slope[first] * (at[first] - orders)
    return np.where(place < len(at) - 1, np.maximum(before, after), before)


@functools.cache
def _orders() -> np.ndarray:
    import dp_accounting

    return dp_accounting.rdp.RdpAccountant().orders


@functools.lru_cache(maxsize=1024)
def of_a_round(noise_multiplier: float, sampling_probability: float, orders: tuple[float, ...]) -> np.ndarray:
    """The divergence [orders] of a round of Poisson sampling, for adding or removing a user."""
    import dp_accounting

    accountant = dp_accounting.rdp.RdpAccountant(orders)
    gaussian = dp_accounting.GaussianDpEvent(noise_multiplier)
    accountant.compose(dp_accounting.PoissonSampledDpEvent(sampling_probability, gaussian))
    return accountant.rdp.clip(min=0)


@functools.lru_cache(maxsize=64)
def of_a_fixed_cohort(noise_multiplier: float, num_users: int, cohort: int) -> tuple[np.ndarray, np.ndarray]:
    """Orders, and the divergence of a round at each where exactly `cohort` users take part, for replacing one."""
    import dp_accounting

    replace_one = dp_accounting.NeighboringRelation.REPLACE_ONE
    # Order 1.5 is interpolated. Orders beyond 64 take seconds by theorem 27, and never give the least epsilon.
    accountant = dp_accounting.rdp.RdpAccountant([1.25, 1.5, *range(2, 33), 48, 64], replace_one)
    gaussian = dp_accounting.GaussianDpEvent(noise_multiplier)
    accountant.compose(dp_accounting.SampledWithoutReplacementDpEvent(num_users, cohort, gaussian))
    return accountant.orders, accountant.rdp
