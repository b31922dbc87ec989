"""The privacy of one training run: how much noise it needs, and what epsilon it costs after each round.

It imports no TensorFlow, and nothing heavy before a request has passed its checks.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Iterable

from benchmark.privacy import accounting, banded
from benchmark.privacy.request import Mechanism, PrivacyRequest, Sampling
from flair.errors import FlairError

HARDLY_LESS = 0.98  # times the noise of fresh noise, with which banded noise does not pay
_AS_GOOD = 1.01  # times the least noise, for which more bands are not worth their memory


@dataclasses.dataclass(frozen=True)
class PrivacyPlan:
    """The differential privacy of a run; made by `make_plan`.

    Guarantee: the models that `rounds` rounds release are together (`epsilon_at(rounds)`, `delta`)-differentially
    private for adding or removing one user, if the aggregator clips every update to the clip norm and adds noise of
    `run_noise_multiplier` clip norms to their sum, and if cohorts are drawn as `request.sampling` says.
    Edge cases: where cohorts are not drawn at random (`Sampling.CYCLIC`, `Sampling.FIXED`; tree aggregation needs such
    ones) or users are dealt into groups (banded noise), it holds for replacing one user's contributions by zeros
    instead (`is_zero_out`). Cohorts of a fixed size (`Sampling.UNIFORM`) are accounted for as if they were Poisson
    samples, as published; `replace_one_epsilon_at` is what is proved for them. With a simulated cohort these epsilons
    are those of a run with that cohort; the run itself has `own_epsilon_at`. Without noise every epsilon is infinite.
    """

    request: PrivacyRequest
    num_users: int
    delta: float
    noise_multiplier: float
    """Standard deviation of the noise on the sum over the accounted cohort, in clip norms; total over all queries."""

    @property
    def separation(self) -> int | None:
        """Rounds from one participation of a user to the next, at least; None where cohorts are drawn at random."""
        return self.request.separation(self.num_users)

    @property
    def is_zero_out(self) -> bool:
        """Whether neighbours differ by zeros in place of one user's contributions, not by one user more."""
        return self.separation is not None or self.request.groups > 1

    @property
    def sampling_probability(self) -> float:
        """q: probability that a round takes a user of those it chooses from; 1.0 where no amplification is claimed."""
        return self.request.released(1.0, self.num_users, 1)[1]

    @property
    def run_noise_multiplier(self) -> float:
        """What the aggregator is given: `noise_multiplier` scaled so that the mean has the accounted cohort's noise."""
        return self.noise_multiplier * self.request.cohort / self.request.accounted_cohort

    @property
    def epsilon(self) -> float:
        """Epsilon of all rounds by the accountant that was asked for."""
        return self.epsilon_at(self.request.total_rounds)

    @property
    def column(self) -> tuple[float, ...]:
        """The column of the matrix of banded noise; without banded noise none."""
        return _column(self.request) if self.request.mechanism is Mechanism.BANDED else ()

    @property
    def noise_on_running_sum(self) -> float:
        """Noise on the sum of the accounted cohorts' mean updates so far, in clip norms; RMS over all rounds."""
        return rms_noise(self.request, self.noise_multiplier, self.request.accounted_cohort)

    def epsilon_at(self, rounds: int, accountant: str | None = None) -> float:
        """Epsilon spent after `rounds` rounds: about a millisecond by RDP, some 50 ms by PLD."""
        if self.noise_multiplier == 0:
            return math.inf if rounds else 0.0
        released = self.request.released(self.noise_multiplier, self.num_users, rounds)
        return accounting.epsilon(accountant or self.request.accountant, *released, self.delta)

    def own_epsilon_at(self, rounds: int, accountant: str | None = None) -> float:
        """Epsilon of what the run itself did: its own cohort and noise, whatever cohort it simulates."""
        return accounting.epsilon(accountant or self.request.accountant, *self.own_release(rounds), self.delta)

    def own_release(self, rounds: int) -> tuple[float, float, int]:
        """`PrivacyRequest.released` of what the run itself did, whatever cohort it simulates."""
        if self.request.simulated_cohort is None:
            return self.request.released(self.noise_multiplier, self.num_users, rounds)
        own = dataclasses.replace(self.request, simulated_cohort=None)
        return own.released(self.run_noise_multiplier, self.num_users, rounds)

    def replace_one_epsilon_at(self, rounds: int) -> float | None:
        """Fixed-size cohorts only: the epsilon proved for what the run itself did, replacing one user, by RDP."""
        if self.request.sampling is not Sampling.UNIFORM:
            return None
        if self.noise_multiplier == 0:
            return self.epsilon_at(rounds)
        own = self.run_noise_multiplier, self.num_users, self.request.cohort
        return accounting.replace_one_epsilon(*own, rounds, self.delta)


def rms_noise(request: PrivacyRequest, noise_multiplier: float, cohort: int) -> float:
    """Deviation of the noise on the sum of the mean updates so far, in clip norms: root mean square over the rounds.

    A server adds up mean updates, so this is the number by which mechanisms compare, and which matrix factorization
    minimizes (Choquette-Choo et al., 2023, https://arxiv.org/abs/2306.08153).

    The sum of t rounds of fresh noise has t times the variance of one. Under tree aggregation it has that of the nodes
    that make up [0, t), and Honaker's estimate of a node of 2^k rounds has 1 / (2 - 2^-k) of the variance of its own
    vector (`noise.TreeNoise`). That of banded noise follows from its matrix (`banded.rms_on_running_sum`).

    Args:
      request: mechanism, bands and rounds.
      noise_multiplier: on the sum over a cohort, on a node of the tree, or on the banded combination of rounds, in clip
        norms.
      cohort: clients a round.

    >>> round(rms_noise(PrivacyRequest(cohort=200, total_rounds=5000), 0.9737, 200), 4)
    0.2434
    >>> round(rms_noise(PrivacyRequest(cohort=1, total_rounds=3, mechanism=Mechanism.TREE), 1.0, 1), 4)
    1.0541
    """
    rounds = request.total_rounds
    if request.mechanism is Mechanism.BANDED:
        return noise_multiplier * banded.rms_on_running_sum(_column(request), rounds) / cohort
    if request.mechanism is Mechanism.GAUSSIAN:
        variance = (rounds + 1) / 2
    else:
        of_levels = ((_rounds_with_bit(level, rounds), 2 - 0.5**level) for level in range(rounds.bit_length()))
        variance = sum(count / weight for count, weight in of_levels) / rounds
    return noise_multiplier * math.sqrt(variance) / cohort


def price(plan: PrivacyPlan) -> dict[str, float]:
    """Noise on the running sum over that of other mechanisms at the same epsilon: what stands in their place costs.

    Of tree aggregation and banded noise `fresh` is against fresh noise with Poisson cohorts, of tree aggregation
    `banded` against banded noise with the same cohorts. What does not reach the epsilon is left out.
    """
    request = dataclasses.replace(plan.request, epsilon=plan.epsilon, noise_multiplier=None)
    others = {}
    if request.mechanism is not Mechanism.GAUSSIAN:
        others["fresh"] = dataclasses.replace(
            request, mechanism=Mechanism.GAUSSIAN, sampling=Sampling.POISSON, bands=None
        )
    if request.mechanism is Mechanism.TREE:
        others["banded"] = dataclasses.replace(request, mechanism=Mechanism.BANDED)
    found = {}
    for name, other in others.items():
        with contextlib.suppress(FlairError):
            found[name] = plan.noise_on_running_sum / make_plan(plan.num_users, other).noise_on_running_sum
    return found


def make_plan(num_users: int, request: PrivacyRequest) -> PrivacyPlan:
    """The plan that a request asks for; without a delta it takes the published n^-1.1.

    Raises:
      FlairError: one line naming the flag, on what `PrivacyRequest.check` refuses and on an epsilon that no noise
        reaches.

    >>> plan = make_plan(41131, PrivacyRequest(cohort=200, total_rounds=5000, epsilon=2.0))
    >>> round(plan.noise_multiplier, 3), f"{plan.delta:.2e}"
    (0.974, '8.40e-06')
    """
    request.check(num_users)
    delta = num_users**-1.1 if request.delta is None else request.delta
    if request.noise_multiplier is not None:
        return PrivacyPlan(request, num_users, delta, request.noise_multiplier)
    if request.mechanism is Mechanism.BANDED and request.bands is None:
        request = dataclasses.replace(request, bands=_fewest_bands(num_users, request))
    assert request.epsilon is not None
    if request.published_noise:
        published = num_users, request.accounted_cohort, request.total_rounds, delta
        noise = accounting.published_noise_multiplier(request.epsilon, *published)
    else:
        unit, q, compositions = request.released(1.0, num_users, request.total_rounds)
        noise = accounting.noise_multiplier_for(request.accountant, request.epsilon, q, compositions, delta) / unit
    return PrivacyPlan(request, num_users, delta, noise)


def _fewest_bands(num_users: int, request: PrivacyRequest, accountant: str = "rdp") -> int:
    """The fewest bands whose noise on the running sum is nearly the least; by RDP, a third of the time of PLD.

    PLD decides where RDP cannot state so low an epsilon. Tried are the fewest for a number of releases: 1, 2, 4 ...,
    then those on both sides of the best.
    """
    rounds, most = request.total_rounds, request.most_bands(num_users)
    noises: dict[int, float] = {}

    def try_bands(candidates: Iterable[int]) -> None:
        for bands in {one for one in candidates if one <= most} - noises.keys():
            with contextlib.suppress(FlairError):  # not even the most noise reaches the epsilon
                plan = make_plan(num_users, dataclasses.replace(request, bands=bands, accountant=accountant))
                on_sums = banded.rms_on_running_sum(plan.column, rounds, request.server_momentum)
                noises[bands] = plan.noise_multiplier * on_sums

    try_bands([most, *(math.ceil(rounds / 2**power) for power in range(rounds.bit_length() + 1))])
    if not noises:
        return 1 if accountant == "pld" else _fewest_bands(num_users, request, "pld")
    best = min(noises, key=noises.__getitem__)
    try_bands(math.ceil(best * times) for times in (2**-0.5, 2**0.5))
    least = min(noises.values())
    return min(bands for bands, noise in noises.items() if noise <= _AS_GOOD * least)


def _column(request: PrivacyRequest) -> tuple[float, ...]:
    """The column of the matrix of banded noise, once its bands are known."""
    assert request.bands is not None
    return banded.coefficients(request.bands, request.total_rounds, request.server_momentum)


def _rounds_with_bit(bit: int, rounds: int) -> int:
    """How many of 1, ..., `rounds` have this bit."""
    width = 1 << bit
    whole, rest = divmod(rounds + 1, 2 * width)
    return whole * width + max(0, rest - width)
