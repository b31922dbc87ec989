"""What was spent on the same users before: read from the files of earlier results, and added to a run's epsilon.

Guarantee: the total is an upper bound for adding or removing one user, for everybody who sees the earlier results and
this run's models, also where the run's settings were chosen by those results.
Edge cases: that the users are the same ones is taken on trust; only their number is compared, because a digest of
their ids would tell who is among them. A file that contains the spending of another counts it again beside that one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmark.privacy import accounting
from benchmark.privacy.plan import PrivacyPlan
from benchmark.privacy.request import Mechanism, PrivacyRequest, Sampling
from benchmark.run.files import read_json
from benchmark.run.shapes import NUMBER, misfit
from flair.errors import FlairError

MOST_MECHANISMS = 50
_LEAST_NOISE, _MOST_NOISE = 1e-6, 1e9
_SHAPE = {
    "users": int,
    "spending": [{"noise_multiplier": NUMBER, "sampling_probability": NUMBER, "compositions": int, "delta": NUMBER}],
}
_EXPECTED = (
    "expected the result of benchmark.analytics_main, or the privacy.json of a complete run with Poisson cohorts of "
    "real users whose noise key is deleted"
)


class Release(NamedTuple):
    """A Gaussian mechanism on a Poisson sample of the users, how often it happened, and the delta of its result."""

    noise_multiplier: float
    sampling_probability: float
    compositions: int
    delta: float


def as_json(releases: Iterable[Release]) -> list[dict[str, Any]]:
    """The `spending` of a result."""
    return [release._asdict() for release in releases]


def read_spending(paths: Sequence[str], num_users: int | None = None) -> tuple[Release, ...]:
    """The mechanisms in the files of --also_spent, equal ones as one that happened more often.

    `num_users`, where it is known, is what each file has to be about.

    Raises:
      FlairError: a file is missing, is something else, or is about another number of users; or there are more than
        `MOST_MECHANISMS`, each of which costs an accountant up to a second.
    """
    times: dict[Release, int] = {}
    for path in paths:
        found = read_json(Path(path), {})
        if found is None:
            raise FlairError(f"--also_spent={path}: no such file; {_EXPECTED}")
        reason = misfit(found, _SHAPE)
        if reason is not None:
            raise FlairError(f"--also_spent={path}: has no spending that could be added ({reason}); {_EXPECTED}")
        if num_users is not None and found["users"] != num_users:
            raise FlairError(
                f"--also_spent={path}: is about {found['users']:,} users, and here are {num_users:,}; epsilons add up "
                "for the same users only"
            )
        if not found["spending"]:
            raise FlairError(f"--also_spent={path}: its spending is empty; {_EXPECTED}")
        for one in found["spending"]:
            release = Release(**{name: one[name] for name in Release._fields})
            if not _is_possible(release):
                raise FlairError(f"--also_spent={path}: {release} cannot have happened; {_EXPECTED}")
            once = release._replace(compositions=1)
            times[once] = times.get(once, 0) + release.compositions
    if len(times) > MOST_MECHANISMS:
        raise FlairError(
            f"--also_spent: {len(times):,} different mechanisms were spent; expected at most {MOST_MECHANISMS}"
        )
    return tuple(one._replace(compositions=count) for one, count in times.items())


def _is_possible(release: Release) -> bool:
    """Also refuses what is not a number, which compares as false."""
    return (
        _LEAST_NOISE <= release.noise_multiplier <= _MOST_NOISE
        and 0 < release.sampling_probability <= 1
        and 1 <= release.compositions <= accounting.MAX_ROUNDS
        and 0 < release.delta < 1
    )


def can_add(request: PrivacyRequest) -> bool:
    """Whether the run's epsilon is one for adding or removing a user, and proved of what the run does."""
    return request.sampling is Sampling.POISSON and request.mechanism is Mechanism.GAUSSIAN


def check_can_add(request: PrivacyRequest) -> None:
    """Refuses to add what was spent before to a run whose epsilon is about something else."""
    if not can_add(request):
        raise FlairError(
            f"--also_spent: epsilons add up for one user added or removed, not for {request.mechanism} noise with "
            f"{request.sampling} cohorts; use fresh noise and --client_sampling=poisson, or leave it out"
        )


def check_same(statement: Path, spent_before: Sequence[Release]) -> None:
    """Refuses to continue a run whose statement added up something else: a file may have been replaced since."""
    before = read_json(statement, {})
    if before is not None and (before.get("spent_before") or []) != as_json(spent_before):
        raise FlairError(
            f"{statement}: the run was begun with other spending than the files of --also_spent say now; put them back "
            "to continue it, or start over: --overwrite"
        )


def release_of(plan: PrivacyPlan, rounds: int) -> Release:
    """What `rounds` rounds of the run itself are, whatever cohort it simulates."""
    return Release(*plan.own_release(rounds), plan.delta)


def total_epsilon(plan: PrivacyPlan, rounds: int, spent: Sequence[Release], accountant: str) -> float:
    """Epsilon of `rounds` rounds together with what was spent before, at the run's delta.

    >>> from benchmark.privacy.plan import make_plan
    >>> plan = make_plan(41131, PrivacyRequest(cohort=200, total_rounds=5000, epsilon=2.0))
    >>> round(total_epsilon(plan, 5000, [Release(4.0, 1.0, 1, 1e-6)], "pld"), 2)
    2.26
    """
    releases = tuple(release[:3] for release in (release_of(plan, rounds), *spent))
    return accounting.composed_epsilon(accountant, releases, plan.delta)
