"""Local differential privacy: every client adds noise to its own update before it leaves the client.

The server is not trusted: what is hidden from it is what an update says, not that a client took part. `statement` puts
the statement into words.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from benchmark.privacy import accounting
from benchmark.privacy.accounting import ACCOUNTANTS
from benchmark.privacy.caveats import (
    CLIENTS_LOOKED_AT,
    FLOATING_POINT,
    WEAK_EPSILON,
    Caveat,
    KeyState,
    gravest_first,
    stopped_early,
)
from benchmark.privacy.request import PrivacyRequest
from benchmark.privacy.rounding import as_text, finite, rounded_up, spent_text

LOCAL = "local"


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


def make_local_statement(
    plan: LocalPlan,
    rounds: int,
    clip_norm: float,
    key: KeyState,
    artificial_users: bool = False,
    clients_looked_at: bool = False,
    may_stop_early: bool = False,
) -> dict[str, Any]:
    """The statement after `rounds` rounds as plain JSON values; its keys are documented in docs/privacy.md.

    `artificial_users`: clients were drawn across the split (--iid), so that a client is not a person's.
    `clients_looked_at`: single clients were looked at (--rounds_per_client_eval).
    `may_stop_early`: a rule that looks at the models decides after which round training ends (--early_stopping).
    """
    request = plan.request
    planned = request.total_rounds
    return {
        "format": 2,
        "trust_model": LOCAL,
        "unit": "what an artificial client sends" if artificial_users else "what a user's client sends",
        "adjacency": "a client's updates replaced by any others, in all rounds in which it takes part",
        "users": plan.num_users,
        "clients_per_round": request.cohort,
        "rounds": {"completed": rounds, "planned": planned},
        "participations": {"completed": plan.participations(rounds), "planned": plan.participations(planned)},
        "noise": {"where": "on every client's update, before it is sent", "noise_multiplier": plan.noise_multiplier},
        "clipping": {"kind": "fixed", "clip_norm": clip_norm},
        "noise_key": key.value,
        "delta": plan.delta,
        "accountant": accounting.described(request.accountant),
        "epsilon": {
            "of_a_round": {name: finite(plan.of_round(name)) for name in ACCOUNTANTS},
            **accounting.by_accountant(plan.epsilon_at, {"completed": rounds, "planned": planned}),
        },
        "caveats": [
            one._asdict() for one in _caveats(plan, rounds, key, artificial_users, clients_looked_at, may_stop_early)
        ],
    }


def local_announcement(plan: LocalPlan) -> str:
    """What a run says about its local privacy before it begins."""
    rounds = plan.request.total_rounds
    return (
        f"local differential privacy: each client's noise is {plan.noise_multiplier:.4g} clip norms; epsilon "
        f"{rounded_up(plan.of_round())} a round and {rounded_up(plan.epsilon_at(rounds))} for a client that takes part "
        f"{plan.participations(rounds):,} times, at delta {rounded_up(plan.delta)} "
        f"({plan.request.accountant.upper()}); no central epsilon is claimed"
    )


def local_headline(statement: dict[str, Any]) -> str:
    """The claim and its conditions."""
    name, rounds = statement["accountant"]["name"], statement["rounds"]
    times, epsilon, delta = statement["participations"]["completed"], statement["epsilon"], statement["delta"]
    secret = ""
    if statement["noise_key"] != KeyState.DELETED.value:
        secret = "WHAT FOLLOWS HOLDS ONLY WHILE THE NOISE KEY IS SECRET: whoever has it can take the noise away. "
    return (
        f"{secret}LOCAL PRIVACY, SIMULATED ON ONE TRUSTED SYSTEM: had every client run on a device of its own, what it "
        f"sends in a round would have ({spent_text(epsilon['of_a_round'][name])}, {rounded_up(delta)})-differential "
        f"privacy towards the server, and after {rounds['completed']:,} of {rounds['planned']:,} rounds, for a client "
        f"that took part up to {times:,} times, ({spent_text(epsilon['completed'][name])}, {rounded_up(delta)}). "
        "Whether a client took part is not hidden, and no central epsilon is claimed."
    )


def local_rows(statement: dict[str, Any]) -> list[tuple[str, str]]:
    """What the numbers are called and what they are, as text."""
    epsilon, names = statement["epsilon"], {"of_a_round": "one round", "completed": "completed", "planned": "planned"}
    return [
        ("trust model", "local: the server is not trusted"),
        ("unit of privacy", statement["unit"]),
        ("adjacency", statement["adjacency"]),
        ("users", as_text(statement["users"])),
        ("clients a round", as_text(statement["clients_per_round"])),
        ("rounds completed", as_text(statement["rounds"]["completed"])),
        ("rounds planned", as_text(statement["rounds"]["planned"])),
        ("participations, at most, completed", as_text(statement["participations"]["completed"])),
        ("participations, at most, planned", as_text(statement["participations"]["planned"])),
        ("noise", statement["noise"]["where"]),
        ("noise multiplier of a client", as_text(statement["noise"]["noise_multiplier"])),
        ("clip norm (fixed)", as_text(statement["clipping"]["clip_norm"])),
        ("noise key", statement["noise_key"]),
        ("delta", rounded_up(statement["delta"])),
        ("accountant", f"{statement['accountant']['name']} ({statement['accountant']['library']})"),
        *(
            (f"epsilon, {label}, {accountant.upper()}", spent_text(epsilon[key][accountant]))
            for key, label in names.items()
            for accountant in ACCOUNTANTS
        ),
    ]


def _caveats(
    plan: LocalPlan,
    rounds: int,
    key: KeyState,
    artificial_users: bool,
    clients_looked_at: bool,
    may_stop_early: bool,
) -> list[Caveat]:
    found = [
        Caveat(
            "critical",
            "simulation",
            "This run computed every update in the clear before it added noise, on machines that one party trusts. It "
            "shows what local privacy costs a model; the guarantee is that of clients on devices of their own.",
        ),
        Caveat(
            "high",
            "un-noised measurements",
            "Covered are updates and what is made of them. Training loss and metrics, numbers of photos, cohorts, and "
            "columns that begin with not_private have no noise: keep them private.",
        ),
        *([CLIENTS_LOOKED_AT] if clients_looked_at else []),
        Caveat(
            "note",
            "central privacy",
            "The noise of all clients adds up in the mean, but no central epsilon follows from it here.",
        ),
        FLOATING_POINT,
    ]
    if key is not KeyState.DELETED:
        text = "Every client's noise follows from a key that still exists: whoever reads it can take the noise away."
        found.append(Caveat("critical", "noise key", text))
    if artificial_users:
        text = "Clients were drawn across the split (--iid): the photos of one person lie in many of them."
        found.append(Caveat("critical", "artificial users", text))
    if plan.epsilon_at(rounds) > WEAK_EPSILON:
        text = (
            f"An epsilon above {WEAK_EPSILON:g} promises little: use more noise, or let clients take part less often."
        )
        found.append(Caveat("high", "weak guarantee", text))
    planned = plan.request.total_rounds
    if may_stop_early and rounds < planned:
        found.append(stopped_early(plan.epsilon_at(planned), of_local=True))
    if plan.request.separation(plan.num_users) is None:
        text = (
            "With random cohorts nothing bounds how often a client takes part, so that every round is counted; most "
            "take part far less often. --client_sampling=cyclic bounds it."
        )
        found.append(Caveat("medium", "participations", text))
    return gravest_first(found)
