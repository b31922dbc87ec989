"""Epsilon from noise, noise from epsilon, and rounds from both: the arithmetic of differential privacy.

One round of training is one release: every user takes part with probability q (Poisson sampling), each contribution is
clipped to norm C, and Gaussian noise of standard deviation sigma * C is added to the sum. Two accountants bound what
the rounds cost together: Renyi DP (RDP: Mironov et al., https://arxiv.org/abs/1908.10530) and the discretised privacy
loss distribution (PLD: Doroshenko et al., https://arxiv.org/abs/2207.04380), which is nearly always the tighter one.
The arithmetic is dp_accounting's, imported at the first call because that takes a second.

Guarantee: every epsilon is an upper bound for adding or removing one user (`replace_one_epsilon`: for replacing one),
and the noise of `noise_multiplier_for` costs at most its target by the accountant named.
Edge cases: no rounds cost 0. q = 1 is the plain Gaussian mechanism. With a noise multiplier below 0.005 PLD's numbers
overflow, and RDP's epsilon is returned. Where delta is too small for PLD to resolve, its epsilon is infinite.
"""

from __future__ import annotations

import functools
import importlib.metadata
import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from benchmark.privacy import renyi
from benchmark.privacy.rounding import finite
from flair.errors import FlairError

if TYPE_CHECKING:
    from dp_accounting.pld.privacy_loss_distribution import PrivacyLossDistribution

ACCOUNTANTS = ("pld", "rdp")
MIN_NOISE_MULTIPLIER, MAX_NOISE_MULTIPLIER = 0.05, 1e4  # of the search for noise
MIN_PLD_NOISE_MULTIPLIER = 5e-3
FINEST_INTERVAL, COARSEST_INTERVAL = 1e-9, 1e-3  # widths of a bucket of privacy loss
MAX_LOSS_BUCKETS = 200_000
MAX_ROUNDS = 10**9
MAX_ROUNDS_OF_A_STAGE = 10**6
RELATIVE_TOLERANCE = 1e-4
PUBLISHED_TOLERANCE = 1e-7
PUBLISHED_ORDERS = (1.25, 1.5, 1.75, 2.0, 2.25, 2.5, 3.0, 3.5, 4.0, 4.5, *map(float, range(5, 64)), 128.0, 256.0, 512.0)


def rdp_epsilon(noise_multiplier: float, sampling_probability: float, rounds: int, delta: float) -> float:
    """Epsilon after `rounds` rounds by Renyi DP; milliseconds once sigma is known.

    >>> round(rdp_epsilon(1.025, 200 / 41131, 5000, 8.40e-6), 2)
    2.0
    """
    if rounds == 0:
        return 0.0
    return renyi.epsilon_of_releases([(noise_multiplier, sampling_probability, rounds)], delta)


@functools.lru_cache(maxsize=4096)
def pld_epsilon(noise_multiplier: float, sampling_probability: float, rounds: int, delta: float) -> float:
    """Epsilon after `rounds` rounds by the privacy loss distribution; about 50 ms.

    >>> round(pld_epsilon(0.975, 200 / 41131, 5000, 8.40e-6), 2)
    1.99
    """
    if rounds == 0:
        return 0.0
    if sampling_probability == 1.0:
        noise_multiplier, rounds = noise_multiplier / math.sqrt(rounds), 1
    release = noise_multiplier, sampling_probability, rounds
    if noise_multiplier < MIN_PLD_NOISE_MULTIPLIER:
        # The losses overflow. RDP bounds the same epsilon, which is too large to mean anything either way.
        return rdp_epsilon(*release, delta)
    # Losses are rounded up, so that every width gives a valid bound: a wide one wastes epsilon, a narrow one memory,
    # which is bounded where epsilon is huge.
    fine = _fine_interval(noise_multiplier, sampling_probability)
    interval = max(fine, rdp_epsilon(*release, delta) / MAX_LOSS_BUCKETS)
    try:
        one_round = _one_round_pld(noise_multiplier, sampling_probability, interval)
    except OverflowError:  # as above, with many rounds
        return rdp_epsilon(*release, delta)
    return float(_composed(one_round, rounds).get_epsilon_for_delta(delta))


@functools.lru_cache(maxsize=64)
def composed_epsilon(accountant: str, releases: tuple[tuple[float, float, int], ...], delta: float) -> float:
    """Epsilon of different mechanisms on the same users together, by the named accountant.

    Args:
      releases: of each, noise multiplier, sampling probability and how often it happens. It is a Gaussian mechanism on
        a Poisson sample of the users; one may be chosen by the results of those before.
      delta: of all together.

    Guarantee: PLD convolves the distributions of all mechanisms, at one width of a bucket; RDP adds up at every order.
    Edge cases: one mechanism alone costs what `epsilon` says; none cost 0.

    >>> training, analytics = (0.975, 200 / 41131, 5000), (4.0, 1.0, 1)
    >>> round(composed_epsilon("pld", (training, analytics), 8.40e-6), 2)
    2.25
    >>> round(composed_epsilon("rdp", (training, analytics), 8.40e-6), 2)
    2.47
    """
    releases = tuple(one for one in releases if one[2] > 0)
    if len(releases) < 2:
        return sum(epsilon(accountant, *one, delta) for one in releases)
    by_rdp = renyi.epsilon_of_releases(releases, delta)
    if accountant != "pld":
        return by_rdp
    single = [(noise / math.sqrt(rounds), q, 1) if q == 1.0 else (noise, q, rounds) for noise, q, rounds in releases]
    if min(noise for noise, _, _ in single) < MIN_PLD_NOISE_MULTIPLIER:
        return by_rdp
    # Distributions are added up bucket by bucket, so that all have the width that the finest of them needs.
    interval = max(min(_fine_interval(noise, q) for noise, q, _ in single), by_rdp / MAX_LOSS_BUCKETS)
    try:
        losses = [_composed(_one_round_pld(noise, q, interval), rounds) for noise, q, rounds in single]
    except OverflowError:  # as in `pld_epsilon`
        return by_rdp
    together = functools.reduce(lambda one, other: one.compose(other), losses)
    return min(float(together.get_epsilon_for_delta(delta)), by_rdp)


def epsilon(accountant: str, noise_multiplier: float, sampling_probability: float, rounds: int, delta: float) -> float:
    """Epsilon after `rounds` rounds by the named accountant ("pld" or "rdp")."""
    if accountant == "pld":
        return pld_epsilon(noise_multiplier, sampling_probability, rounds, delta)
    return rdp_epsilon(noise_multiplier, sampling_probability, rounds, delta)


@functools.lru_cache(maxsize=64)
def noise_multiplier_for(
    accountant: str, target: float, sampling_probability: float, rounds: int, delta: float
) -> float:
    """The least noise multiplier (to 1e-4 of itself, never below it) with which `rounds` rounds cost at most `target`.

    It is sought from about 0.05 to 10,000.

    Raises:
      FlairError: none of these reaches the target.

    >>> round(noise_multiplier_for("rdp", 2.0, 200 / 41131, 5000, 8.40e-6), 3)
    1.024
    """

    def cost(noise_multiplier: float) -> float:
        return epsilon(accountant, noise_multiplier, sampling_probability, rounds, delta)

    start, step = 1.0, 2.0
    if accountant == "pld":
        # PLD with too little noise needs tens of gigabytes, so the search starts at RDP's answer, nearly always larger.
        step = 1.25
        try:
            start = noise_multiplier_for("rdp", target, sampling_probability, rounds, delta)
        except FlairError:
            start = MAX_NOISE_MULTIPLIER
    found = _least_noise(cost, target, start, step)
    if found is None:
        if accountant == "pld" and start < MAX_NOISE_MULTIPLIER:
            raise FlairError(
                f"--delta={delta:g}: is too small for the pld accountant, whose numbers do not resolve it; give a "
                "larger one, or --accountant=rdp"
            )
        other = " or --accountant=pld" if accountant == "rdp" else " or a larger --delta"
        raise FlairError(
            f"--epsilon={target:g} cannot be reached: even with a noise multiplier of {MAX_NOISE_MULTIPLIER:,.0f} "
            f"{rounds:,} rounds cost epsilon {cost(MAX_NOISE_MULTIPLIER):.3g} by the {accountant} accountant; "
            f"ask for more, or use a smaller --clients_per_round or --total_rounds{other}"
        )
    return found


def rounds_affordable(cost: Callable[[int], float], target: float, guess: int = 1) -> int:
    """The most rounds whose `cost` is at most `target`: 0 to a billion.

    Args:
      cost: epsilon of so many rounds; more rounds never cost less.
      guess: a number of rounds, at least 1; one near the answer saves evaluations.

    >>> rounds_affordable(lambda rounds: rdp_epsilon(1.025, 200 / 41131, rounds, 8.40e-6), target=2.0)
    5024
    """
    low, high = 0, guess
    while high <= MAX_ROUNDS and cost(high) <= target:
        low, high = high, 2 * high
    high = min(high, MAX_ROUNDS + 1)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if cost(middle) <= target else (low, middle)
    return low


def by_accountant(at: Callable[[int, str], float], rounds: dict[str, int]) -> dict[str, dict[str, float | None]]:
    """What `at` says of each number of rounds by both accountants; None where it is not finite."""
    return {part: {name: finite(at(count, name)) for name in ACCOUNTANTS} for part, count in rounds.items()}


def described(accountant: str) -> dict[str, str]:
    """The accountant of a statement: its name and the library that it is from."""
    return {"name": accountant, "library": f"dp-accounting {importlib.metadata.version('dp-accounting')}"}


def published_noise_multiplier(target: float, num_users: int, cohort: int, total_rounds: int, delta: float) -> float:
    """The noise multiplier of the published ml-flair code, which is far more noise than `target` needs.

    Its federated_main passes `epochs=total_rounds` to tensorflow_privacy's compute_noise, which then accounts for
    ceil(total_rounds * num_users / cohort) compositions where only total_rounds happen; by RDP at orders of its own.
    Kept for comparison with published results only.

    Raises:
      FlairError: no noise multiplier up to 10,000 reaches the target.

    >>> round(published_noise_multiplier(2.0, 41131, 200, 5000, 41131**-1.1), 2)
    10.72
    """
    compositions = math.ceil(total_rounds * num_users / cohort)

    def cost(noise_multiplier: float) -> float:
        rdp = renyi.of_a_round(noise_multiplier, cohort / num_users, PUBLISHED_ORDERS)
        return renyi.epsilon_of(PUBLISHED_ORDERS, compositions * rdp, delta)

    found = _least_noise(cost, target, start=10.0, step=2.0, tolerance=PUBLISHED_TOLERANCE)
    if found is None:
        raise FlairError(
            f"--epsilon={target:g} cannot be reached by the published noise formula, which counts "
            f"{compositions:,} rounds for {total_rounds:,}; leave out --published_noise"
        )
    return found


def replace_one_epsilon(noise_multiplier: float, num_users: int, cohort: int, rounds: int, delta: float) -> float:
    """Epsilon of cohorts of exactly `cohort` users drawn without replacement, by RDP, for replacing one user.

    Guarantee: this is what is proved about cohorts of a fixed size (Wang, Balle and Kasiviswanathan, theorem 27 of
    https://arxiv.org/abs/1808.00087). It is an upper bound, and not a tight one.
    Edge cases: replacing a user moves the clipped sum by up to twice the clip norm; the noise multiplier counts half.

    >>> round(replace_one_epsilon(1.025, 41131, 200, 5000, 8.40e-6), 1)
    20.9
    """
    if rounds == 0:
        return 0.0
    orders, rdp = renyi.of_a_fixed_cohort(noise_multiplier / 2, num_users, cohort)
    return renyi.epsilon_of(orders, rounds * rdp, delta)


def _least_noise(
    cost: Callable[[float], float], target: float, start: float, step: float, tolerance: float = RELATIVE_TOLERANCE
) -> float | None:
    """The least noise multiplier (to `tolerance`, never below) whose `cost` is at most `target`; None: out of range."""
    from scipy import optimize

    def excess(log_noise: float) -> float:
        # Logarithms because epsilon is nearly a power of the noise, which halves the evaluations.
        return math.log(min(max(cost(math.exp(log_noise)), 1e-300), 1e300) / target)

    width, least, most = math.log(step), math.log(MIN_NOISE_MULTIPLIER), math.log(MAX_NOISE_MULTIPLIER)
    low = high = math.log(start)
    while excess(high) > 0:
        if high >= most:
            return None
        low, high, width = high, min(high + width, most), 2 * width
    while excess(low) <= 0:
        if low <= least:
            return math.exp(low)
        low, high, width = low - width, low, 2 * width
    root = float(optimize.brentq(excess, low, high, xtol=tolerance))
    while excess(root) > 0:
        root += tolerance
    return math.exp(root)


@functools.lru_cache(maxsize=8)
def _one_round_pld(noise_multiplier: float, sampling_probability: float, interval: float) -> PrivacyLossDistribution:
    from dp_accounting.pld import privacy_loss_distribution

    try:
        return privacy_loss_distribution.from_gaussian_mechanism(
            noise_multiplier, value_discretization_interval=interval, sampling_prob=sampling_probability
        )
    except ValueError as error:
        # dp_accounting finds its own deltas out of order, where losses are so large that a double rounds them so.
        raise OverflowError(str(error)) from error


def _composed(one_round: PrivacyLossDistribution, rounds: int) -> PrivacyLossDistribution:
    if rounds <= MAX_ROUNDS_OF_A_STAGE:
        return one_round.self_compose(rounds)
    # In two stages, because dp_accounting handles many more rounds than buckets badly: with ten million rounds its
    # distributions are ten times as long as needed, and it raises the number of buckets to the number of rounds, in
    # whole numbers, which takes longer than all the rest. Every stage is an upper bound, and so is their composition.
    stage = math.isqrt(rounds)
    stages, rest = divmod(rounds, stage)
    whole = one_round.self_compose(stage).self_compose(stages)
    return whole.compose(one_round.self_compose(rest)) if rest else whole


def _fine_interval(noise_multiplier: float, sampling_probability: float) -> float:
    """Width of a bucket of privacy loss: 1e-3, finer where one round loses less."""
    spread = sampling_probability * math.sqrt(math.expm1(min(noise_multiplier**-2, 50.0)))
    halvings = min(0, math.floor(math.log2(spread / (5 * COARSEST_INTERVAL))))
    return max(COARSEST_INTERVAL * 2.0**halvings, FINEST_INTERVAL)
