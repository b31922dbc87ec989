"""Local differential privacy: every client adds noise to its own update before it leaves the client.

The server is not trusted: what is hidden from it is what an update says, not that a client took part.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from benchmark.privacy import accounting
from benchmark.privacy.noise import standard_normals
from benchmark.privacy.noise_key import NoiseKey
from benchmark.privacy.request import LEAST_NOISE, MOST_NOISE, PrivacyRequest
from flair.errors import FlairError


@dataclasses.dataclass(frozen=True)
class LocalPlan:
    """The local differential privacy of a run.

    Guarantee: for any two updates that a client might send in a round, what it does send is (`of_round`, `delta`)-
    indistinguishable: both are clipped to norm C, hence at most 2 C apart, and the noise has deviation
    `noise_multiplier` * C, so that this is the Gaussian mechanism of noise multiplier `noise_multiplier` / 2. All that
    a client sends in `rounds` rounds together is (`epsilon_at(rounds)`, `delta`)-indistinguishable: k participations
    are one Gaussian mechanism of sensitivity 2 C sqrt(k). It holds towards the server, and whatever is made of the
    updates afterwards.
    Edge cases: nothing is amplified by sampling, because the server knows who takes part. Random cohorts put no bound
    on how often a client does, and every round is counted. A smaller epsilon of the model, which the noise of all
    clients together might have, is not claimed.

    >>> plan = LocalPlan(41131, 8.4e-6, 20.0, PrivacyRequest(cohort=200, total_rounds=100))
    >>> round(plan.of_round(), 3), round(plan.epsilon_at(100), 2)
    (0.345, 4.42)
    """

    num_users: int
    delta: float
    noise_multiplier: float
    """Standard deviation of a client's noise, in clip norms."""
    request: PrivacyRequest
    """The cohorts and the accountant; it asks for nothing else here."""

    def participations(self, rounds: int) -> int:
        """How often a client takes part in `rounds` rounds, at most."""
        separation = self.request.separation(self.num_users)
        return rounds if separation is None else math.ceil(rounds / separation)

    def of_round(self, accountant: str | None = None) -> float:
        """Epsilon of one participation."""
        return self._epsilon(1, accountant)

    def epsilon_at(self, rounds: int, accountant: str | None = None) -> float:
        """Epsilon of all that a client sends in `rounds` rounds, at most."""
        return self._epsilon(self.participations(rounds), accountant)

    def _epsilon(self, participations: int, accountant: str | None) -> float:
        if participations == 0:
            return 0.0
        noise = self.noise_multiplier / (2 * math.sqrt(participations))
        return accounting.epsilon(accountant or self.request.accountant, noise, 1.0, 1, self.delta)


def make_local_plan(num_users: int, noise_multiplier: float, request: PrivacyRequest) -> LocalPlan:
    """The plan of a run whose clients add noise; delta is `request`'s, or users^-1.1."""
    return LocalPlan(num_users, num_users**-1.1 if request.delta is None else request.delta, noise_multiplier, request)


def check_local(noise_multiplier: float, request: PrivacyRequest) -> None:
    """Raises FlairError, one line naming the flag, on values that mean nothing; instant."""
    if not LEAST_NOISE <= noise_multiplier <= MOST_NOISE:
        raise FlairError(
            f"--local_noise_multiplier={noise_multiplier:g}: expected {LEAST_NOISE:g} to {MOST_NOISE:g}, the deviation "
            "of each client's noise in clip norms (say 2.0); leave it out to train without local privacy"
        )
    dataclasses.replace(request, noise_multiplier=1.0).check()


class LocalNoise:
    """The normal numbers that clients add to their updates.

    Guarantee: those of a round and a client follow from the key and these two alone, so that a continued run, and any
    worker, draws what an unbroken one does.

    Args:
      key: of this purpose alone, `NoiseKey.derive("local noise")`: the run's own key does not follow from it, so that
        workers on other machines may have it.
    """

    def __init__(self, key: NoiseKey) -> None:
        self._key = key

    def normals(self, round_number: int, client_id: str, count: int) -> np.ndarray:
        """float32 [count], independent between rounds and clients; asking again gives the same."""
        return standard_normals(self._key.stream(round_number, client_id), count)
