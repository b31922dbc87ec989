"""The privacy of one training run: how much noise, and the epsilon that it costs after each round.

`make_plan` answers a `PrivacyRequest`, refusing what cannot be meant before anything heavy is imported. It imports no
TensorFlow.
"""

from __future__ import annotations

import dataclasses
import functools

from benchmark.privacy import accounting
from benchmark.privacy.accounting import published_noise_multiplier
from benchmark.privacy.request import Mechanism, PrivacyRequest, Sampling


def default_delta(num_users: int) -> float:
    """The published choice, n^-1.1.

    >>> f"{default_delta(41131):.2e}"
    '8.40e-06'
    """
    return num_users**-1.1


@dataclasses.dataclass(frozen=True)
class PrivacyPlan:
    """The differential privacy of a run; made by `make_plan`.

    Guarantee: the models that `rounds` rounds release are (`epsilon_at(rounds)`, `delta`)-differentially private for
    adding or removing one user, if the aggregator clips every update to the clip norm, adds noise of
    `run_noise_multiplier` clip norms to their sum, and cohorts are drawn as `request.sampling` says.
    Edge cases: with `request.simulated_cohort` these epsilons are those of the simulated cohort, and the run itself has
    `own_epsilon_at`. Cohorts of a fixed size (`Sampling.UNIFORM`) are accounted as Poisson's, as published;
    `replace_one_epsilon_at` is what is proved for them. Tree aggregation is private for "zero out", not "remove".
    """

    request: PrivacyRequest
    num_users: int
    delta: float
    noise_multiplier: float
    """Standard deviation of the noise on the sum over the accounted cohort, in clip norms; total over all queries."""

    @property
    def cohort(self) -> int:
        """Clients per round that the run trains: expected (Poisson) or exact."""
        return self.request.cohort

    @property
    def simulated_cohort(self) -> int | None:
        """The larger cohort whose noise is simulated."""
        return self.request.simulated_cohort

    @property
    def total_rounds(self) -> int:
        """Rounds of training."""
        return self.request.total_rounds

    @property
    def sampling(self) -> Sampling:
        """How cohorts are drawn."""
        return self.request.sampling

    @property
    def mechanism(self) -> Mechanism:
        """Where the noise goes."""
        return self.request.mechanism

    @property
    def accounted_cohort(self) -> int:
        """The cohort that the accounting is about: the simulated one where there is one."""
        return self.request.accounted_cohort

    @property
    def separation(self) -> int | None:
        """Rounds from one participation of a user to the next, at least; None where cohorts are drawn at random."""
        return self.request.separation(self.num_users)

    @property
    def sampling_probability(self) -> float:
        """q: a user's probability of being in a round's accounted cohort; 1.0 where no amplification is claimed."""
        return 1.0 if self.separation else self.accounted_cohort / self.num_users

    @property
    def run_noise_multiplier(self) -> float:
        """What the aggregator is given: `noise_multiplier` scaled so that the mean has the accounted cohort's noise."""
        return self.noise_multiplier * self.cohort / self.accounted_cohort

    @functools.cached_property
    def epsilon_rdp(self) -> float:
        """Epsilon of all rounds by RDP."""
        return self.epsilon_at(self.total_rounds, "rdp")

    @functools.cached_property
    def epsilon_pld(self) -> float:
        """Epsilon of all rounds by PLD."""
        return self.epsilon_at(self.total_rounds, "pld")

    @property
    def epsilon(self) -> float:
        """Epsilon of all rounds by the accountant that was asked for."""
        return self.epsilon_pld if self.request.accountant == "pld" else self.epsilon_rdp

    def epsilon_at(self, rounds: int, accountant: str | None = None) -> float:
        """Epsilon spent after `rounds` rounds: about a millisecond by RDP, some 50 ms by PLD."""
        released = self.request.released(self.noise_multiplier, self.num_users, rounds)
        return accounting.epsilon(accountant or self.request.accountant, *released, self.delta)

    def own_epsilon_at(self, rounds: int, accountant: str | None = None) -> float:
        """Epsilon of what the run itself did: its own cohort and noise, whatever cohort it simulates."""
        if self.simulated_cohort is None:
            return self.epsilon_at(rounds, accountant)
        own = self.run_noise_multiplier, self.cohort / self.num_users, rounds
        return accounting.epsilon(accountant or self.request.accountant, *own, self.delta)

    def replace_one_epsilon_at(self, rounds: int) -> float | None:
        """Fixed-size cohorts only: the epsilon proved for what the run itself did, adjacency "replace one", by RDP."""
        if self.sampling is not Sampling.UNIFORM:
            return None
        return accounting.replace_one_epsilon(
            self.run_noise_multiplier, self.num_users, self.cohort, rounds, self.delta
        )


def make_plan(num_users: int, request: PrivacyRequest) -> PrivacyPlan:
    """The plan that a request asks for.

    Raises:
      FlairError: one line naming the flag, on what `PrivacyRequest.check` refuses and on an epsilon that no noise
        reaches.

    >>> plan = make_plan(41131, PrivacyRequest(cohort=200, total_rounds=5000, epsilon=2.0))
    >>> round(plan.noise_multiplier, 3)
    0.974
    """
    request.check(num_users)
    delta = default_delta(num_users) if request.delta is None else request.delta
    if request.noise_multiplier is not None:
        return PrivacyPlan(request, num_users, delta, request.noise_multiplier)
    assert request.epsilon is not None
    if request.published_noise:
        cohort, rounds = request.accounted_cohort, request.total_rounds
        noise = published_noise_multiplier(request.epsilon, num_users, cohort, rounds, delta)
    else:
        unit, q, compositions = request.released(1.0, num_users, request.total_rounds)
        noise = accounting.noise_multiplier_for(request.accountant, request.epsilon, q, compositions, delta) / unit
    return PrivacyPlan(request, num_users, delta, noise)
