"""Mechanisms side by side: the noise that each has on the running sum of mean updates, at the same epsilon."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from benchmark.privacy.banded import MAX_ROUNDS, rms_on_running_sum, square_root_coefficients
from benchmark.privacy.plan import HARDLY_LESS, PrivacyPlan, make_plan
from benchmark.privacy.request import Mechanism, PrivacyRequest, Sampling
from benchmark.privacy.rounding import as_text
from flair.errors import FlairError
from flair.terminal.counted import counted
from flair.terminal.table import fitted

EPSILONS = (1.0, 2.0, 4.0, 8.0)
FRESH, BANDED, CYCLIC, TREE = "fresh, poisson", "banded, poisson", "banded, cyclic", "tree, cyclic"
_MOST_SHOWN = 64
_TICKS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)


class Entry(NamedTuple):
    """The noise of one mechanism.

    Attributes:
      is_chosen: whether the bands are those that `make_plan` chooses.
      noise: on the running sum of mean updates, in clip norms, root mean square over the rounds; with a number of
        weights the norm over all of them.
      published: the same with the published column of banded noise; None for other mechanisms and chosen bands.
    """

    mechanism: str
    cohort: int
    epsilon: float
    bands: int | None
    is_chosen: bool
    noise: float
    published: float | None


def cohorts_from(first: int, num_users: int) -> list[int]:
    """Cohorts of a comparison: from `first` on to 25 times as many, where there are so many users.

    >>> cohorts_from(200, 41131)
    [200, 500, 1000, 2500, 5000]
    """
    return [cohort for cohort in (first * times // 2 for times in (2, 5, 10, 25, 50)) if cohort <= num_users]


def side_by_side(
    num_users: int, request: PrivacyRequest, cohorts: Sequence[int], epsilons: Sequence[float], weights: int | None
) -> Iterator[Entry]:
    """All mechanisms for every cohort and epsilon, by the PLD accountant; some seconds for each pair.

    Args:
      request: its rounds and delta count; mechanism and sampling vary.
      weights: how many numbers the noise is on; None: one.

    What no noise gives the epsilon is left out.
    """
    for cohort in cohorts:
        for epsilon in epsilons:
            asked = dataclasses.replace(request, cohort=cohort, epsilon=epsilon, noise_multiplier=None)
            for name, one in _mechanisms(num_users, asked):
                with contextlib.suppress(FlairError):
                    yield _entry(name, one, make_plan(num_users, one), weights or 1)


def comparison_text(num_users: int, request: PrivacyRequest, entries: Sequence[Entry], weights: int | None) -> str:
    """A table for each cohort, with what banded noise is worth there."""
    on = f"its norm over {weights:,} weights" if weights else "on each weight"
    lines = [
        f"{counted(num_users, 'user')}, {counted(request.total_rounds, 'round')}:",
        f"noise on the running sum of mean updates, {on}, in clip norms,",
        "root mean square over the rounds, at the same epsilon (PLD)",
    ]
    for cohort in sorted({entry.cohort for entry in entries}):
        here = [entry for entry in entries if entry.cohort == cohort]
        lines += ["", f"{counted(cohort, 'client')} a round", _table(here), *_remarks(here)]
    if request.total_rounds > MAX_ROUNDS:
        lines.append(f"banded noise is left out: it is shaped for at most {MAX_ROUNDS:,} rounds")
    return "\n".join(lines)


def draw(entries: Sequence[Entry], path: Path) -> Path:
    """Noise by cohort, a panel for each epsilon; banded noise has the bands with the least of it."""
    from flair.statistics.figures import BLUE, GREEN, ORANGE, new_figure, save

    epsilons, cohorts = sorted({entry.epsilon for entry in entries}), sorted({entry.cohort for entry in entries})
    title, noises = "Noise on the running sum of mean updates", [entry.noise for entry in entries]
    figure, panels = new_figure(title, width=3.2 * len(epsilons), height=3.6, columns=len(epsilons))
    styles = {
        FRESH: (BLUE, "-", "fresh noise"),
        BANDED: (GREEN, "-", "banded noise"),
        CYCLIC: (GREEN, "--", "banded noise, cohorts not secret"),
        TREE: (ORANGE, "--", "tree aggregation, cohorts not secret"),
    }
    for panel, epsilon in zip(panels, epsilons, strict=True):
        for name, (colour, line, label) in styles.items():
            here = [_least(entries, name, epsilon, cohort) for cohort in cohorts]
            panel.plot(cohorts, here, line, color=colour, marker="o", markersize=3, label=label)
        panel.set(title=f"epsilon {epsilon:g}", xlabel="clients a round", xscale="log", yscale="log")
        panel.set_xticks(cohorts, [f"{cohort:,}" for cohort in cohorts], rotation=45)
        panel.set_yticks(_TICKS, [f"{tick:g}" for tick in _TICKS])
        panel.minorticks_off()
        panel.set_ylim(0.9 * min(noises), 1.1 * max(noises))
    panels[0].set_ylabel("clip norms (root mean square)")
    panels[-1].legend(fontsize=7, handlelength=3.5)
    return save(figure, path)


def _mechanisms(num_users: int, asked: PrivacyRequest) -> Iterator[tuple[str, PrivacyRequest]]:
    yield FRESH, dataclasses.replace(asked, mechanism=Mechanism.GAUSSIAN, sampling=Sampling.POISSON)
    banded = dataclasses.replace(asked, mechanism=Mechanism.BANDED, sampling=Sampling.POISSON)
    bands = 2
    while bands <= min(_MOST_SHOWN, banded.most_bands(num_users)):
        yield BANDED, dataclasses.replace(banded, bands=bands)
        bands *= 2
    yield BANDED, banded
    cyclic = dataclasses.replace(banded, sampling=Sampling.CYCLIC)
    yield CYCLIC, dataclasses.replace(cyclic, bands=cyclic.most_bands(num_users))
    yield TREE, dataclasses.replace(asked, mechanism=Mechanism.TREE, sampling=Sampling.CYCLIC)


def _entry(name: str, asked: PrivacyRequest, plan: PrivacyPlan, weights: int) -> Entry:
    request, published = plan.request, None
    assert request.epsilon is not None
    is_chosen = request.bands != asked.bands
    if request.bands is not None and not is_chosen:
        column = square_root_coefficients(request.bands)
        published = plan.noise_multiplier * rms_on_running_sum(column, request.total_rounds) / request.cohort
        published *= math.sqrt(weights)
    noise = plan.noise_on_running_sum * math.sqrt(weights)
    return Entry(name, request.cohort, request.epsilon, request.bands, is_chosen, noise, published)


def _table(entries: Sequence[Entry]) -> str:
    epsilons = sorted({entry.epsilon for entry in entries})
    rows: dict[tuple[str, str, str], dict[float, float | None]] = {}
    for entry in entries:
        bands = "auto" if entry.is_chosen else str(entry.bands or "")
        rows.setdefault((entry.mechanism, entry.mechanism, bands), {})[entry.epsilon] = entry.noise
        if entry.published is not None:
            published = entry.mechanism, "  with the published column", bands
            rows.setdefault(published, {})[entry.epsilon] = entry.published
    header = ["mechanism", "bands", *(f"epsilon {epsilon:g}" for epsilon in epsilons)]
    numbers = ([*key[1:], *(as_text(found.get(one)) for one in epsilons)] for key, found in rows.items())
    return fitted([header, *numbers])


def _remarks(entries: Sequence[Entry]) -> Iterator[str]:
    cohort = entries[0].cohort
    for epsilon in sorted({entry.epsilon for entry in entries}):
        fresh, banded, cyclic = (_least(entries, name, epsilon, cohort) for name in (FRESH, BANDED, CYCLIC))
        if math.isnan(fresh + banded + cyclic):
            yield f"epsilon {epsilon:g}: not every mechanism can be had with these rounds, cohorts and users"
            continue
        pays = "pays" if banded < HARDLY_LESS * fresh else "does not pay"
        chosen = next(one.bands or 1 for one in entries if one.is_chosen and one.epsilon == epsilon)
        yield (
            f"epsilon {epsilon:g}: banded noise {pays}, {banded / fresh:.2f} times fresh noise (auto: "
            f"{counted(chosen, 'band')}); with cyclic cohorts, which need not be secret, {cyclic / fresh:.2f} times"
        )


def _least(entries: Sequence[Entry], mechanism: str, epsilon: float, cohort: int) -> float:
    wanted = mechanism, epsilon, cohort
    here = [entry.noise for entry in entries if (entry.mechanism, entry.epsilon, entry.cohort) == wanted]
    return min(here, default=math.nan)
