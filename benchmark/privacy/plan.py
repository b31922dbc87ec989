"""The privacy of one training run: how much noise it needs, and what epsilon it costs after each round.

It imports no TensorFlow, and nothing heavy before a request has passed its checks.
"""

from __future__ import annotations

import dataclasses

from benchmark.privacy import accounting
from benchmark.privacy.request import Mechanism, PrivacyRequest, Sampling
from benchmark.privacy.running_sum import rms_noise
from flair.errors import FlairError


@dataclasses.dataclass(frozen=True)
class PrivacyPlan:
    """The differential privacy of a run; made by `make_plan`.

    Guarantee: the models that `rounds` rounds release are together (`epsilon_at(rounds)`, `delta`)-differentially
    private for adding or removing one user, if the aggregator clips every update to the clip norm and adds noise of
    `run_noise_multiplier` clip norms to their sum, and if cohorts are drawn as `request.sampling` says.
    Edge cases: where cohorts are not drawn at random (`Sampling.CYCLIC`, `Sampling.FIXED`; tree aggregation needs such
    ones), it holds for replacing one user's contributions by zeros instead. Cohorts of a fixed size
    (`Sampling.UNIFORM`) are accounted for as if they were Poisson samples, as published; `replace_one_epsilon_at` is
    what is proved for them. With a simulated cohort these epsilons are those of a run with that cohort; the run itself
    has `own_epsilon_at`.
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
    def sampling_probability(self) -> float:
        """q: a user's probability of being in a round's accounted cohort; 1.0 where no amplification is claimed."""
        return 1.0 if self.separation else self.request.accounted_cohort / self.num_users

    @property
    def run_noise_multiplier(self) -> float:
        """What the aggregator is given: `noise_multiplier` scaled so that the mean has the accounted cohort's noise."""
        return self.noise_multiplier * self.request.cohort / self.request.accounted_cohort

    @property
    def epsilon(self) -> float:
        """Epsilon of all rounds by the accountant that was asked for."""
        return self.epsilon_at(self.request.total_rounds)

    @property
    def noise_on_running_sum(self) -> float:
        """Noise on the sum of the accounted cohorts' mean updates so far, in clip norms; RMS over all rounds."""
        request = self.request
        return rms_noise(request.mechanism, self.noise_multiplier, request.accounted_cohort, request.total_rounds)

    def epsilon_at(self, rounds: int, accountant: str | None = None) -> float:
        """Epsilon spent after `rounds` rounds: about a millisecond by RDP, some 50 ms by PLD."""
        released = self.request.released(self.noise_multiplier, self.num_users, rounds)
        return accounting.epsilon(accountant or self.request.accountant, *released, self.delta)

    def own_epsilon_at(self, rounds: int, accountant: str | None = None) -> float:
        """Epsilon of what the run itself did: its own cohort and noise, whatever cohort it simulates."""
        if self.request.simulated_cohort is None:
            return self.epsilon_at(rounds, accountant)
        own = self.run_noise_multiplier, self.request.cohort / self.num_users, rounds
        return accounting.epsilon(accountant or self.request.accountant, *own, self.delta)

    def replace_one_epsilon_at(self, rounds: int) -> float | None:
        """Fixed-size cohorts only: the epsilon proved for what the run itself did, replacing one user, by RDP."""
        if self.request.sampling is not Sampling.UNIFORM:
            return None
        own = self.run_noise_multiplier, self.num_users, self.request.cohort
        return accounting.replace_one_epsilon(*own, rounds, self.delta)


def price_of_tree(plan: PrivacyPlan) -> float | None:
    """Noise on the running sum under tree aggregation over that of fresh noise and Poisson cohorts at the same epsilon.

    None under another mechanism, and where fresh noise does not reach the epsilon.
    """
    if plan.request.mechanism is not Mechanism.TREE:
        return None
    request = dataclasses.replace(
        plan.request,
        epsilon=plan.epsilon,
        noise_multiplier=None,
        mechanism=Mechanism.GAUSSIAN,
        sampling=Sampling.POISSON,
    )
    try:
        return plan.noise_on_running_sum / make_plan(plan.num_users, request).noise_on_running_sum
    except FlairError:
        return None


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
    assert request.epsilon is not None
    if request.published_noise:
        published = num_users, request.accounted_cohort, request.total_rounds, delta
        noise = accounting.published_noise_multiplier(request.epsilon, *published)
    else:
        unit, q, compositions = request.released(1.0, num_users, request.total_rounds)
        noise = accounting.noise_multiplier_for(request.accountant, request.epsilon, q, compositions, delta) / unit
    return PrivacyPlan(request, num_users, delta, noise)
