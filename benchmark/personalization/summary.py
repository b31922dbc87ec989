"""Summarizes the results of all episodes: means, differences, and for whom adaptation helps.

The unit is the user: episodes of one user are averaged first, because they share photos. A difference is oriented so
that above 0 is better: baseline minus adapted loss, adapted minus baseline average precision. Intervals are
mean +- 1.96 sd / sqrt(users), as in Meta-Dataset. Pure NumPy.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from benchmark.personalization.log import LabelResult, UserResult

SIZE_EDGES = (4, 8, 16, 32, 64)  # photos of a user; the last group is open
DIVERGENCE_GROUPS = 4
LEARNERS = ("nearest_centroid", "fine_tuning", "prototypical_networks")  # of label episodes
WAYS_EDGES = (2, 5, 10, 20, 35)  # classes of an episode; the last group is open
_PERCENTILES = (10, 50, 90)
_NORMAL_QUANTILE = 1.96


class UserScore(NamedTuple):
    """One user: means over their episodes; micro AP is NaN where it never existed."""

    user_id: str
    photos: int
    episodes: int
    mean_support: float
    mean_query: float
    divergence: float
    baseline_loss: float
    adapted_loss: float
    loss_difference: float
    baseline_micro_ap: float
    adapted_micro_ap: float
    micro_ap_difference: float


def score_users(results: Sequence[UserResult]) -> list[UserScore]:
    """Averages the episodes of each user; users sorted by id."""
    by_user: dict[str, list[UserResult]] = {}
    for result in results:
        by_user.setdefault(result.user_id, []).append(result)
    return [_score_user(episodes) for _, episodes in sorted(by_user.items())]


def summarize_users(scores: Sequence[UserScore]) -> dict[str, Any]:
    """Both metrics over all users, by size and by divergence."""
    return {
        **{metric: _summarize_metric(metric, scores) for metric in ("loss", "micro_ap")},
        "by_user_size": by_size(scores),
        "by_user_divergence": by_divergence(scores),
    }


def by_size(scores: Sequence[UserScore]) -> list[dict[str, Any]]:
    """Differences of users with 4 to 7, 8 to 15, ... photos; groups without a user are left out."""
    groups = _grouped([score.photos for score in scores], SIZE_EDGES)
    return [{"photos": name, **_group([scores[i] for i in chosen])} for name, chosen in groups]


def by_divergence(scores: Sequence[UserScore]) -> list[dict[str, Any]]:
    """Differences of quarters of the users, from those who photograph what all do to those who differ most."""
    known = (score for score in scores if not np.isnan(score.divergence))
    ordered = sorted(known, key=lambda score: score.divergence)
    parts = np.array_split(np.arange(len(ordered)), min(DIVERGENCE_GROUPS, len(ordered)) or 1)
    groups = [[ordered[index] for index in part] for part in parts if len(part)]
    return [{"least": one[0].divergence, "most": one[-1].divergence, **_group(one)} for one in groups]


def summarize_labels(results: Sequence[LabelResult]) -> dict[str, Any]:
    """Accuracy of each learner over episodes, paired differences, and by ways.

    `difference` is that of fine tuning over the nearest centroid; the others, of prototypical networks over both, are
    there if some were trained.
    """
    groups = _grouped([result.ways for result in results], WAYS_EDGES)
    of = {name: np.array([getattr(one, f"{name}_accuracy") for one in results]) for name in LEARNERS}
    centroid, tuning, networks = of.values()
    difference = tuning - centroid
    others = {"networks_centroid_difference": networks - centroid, "networks_tuning_difference": networks - tuning}
    return {
        **_accuracies(results),
        "difference": interval(difference.tolist()),
        **{name: interval(found.tolist()) for name, found in others.items() if not np.isnan(found).any()},
        "share_improved": float(np.mean(difference > 0)),
        "mean_ways": float(np.mean([result.ways for result in results])),
        "mean_support": float(np.mean([result.support for result in results])),
        "mean_query": float(np.mean([result.query for result in results])),
        "by_ways": [
            {"ways": name, "episodes": len(chosen), **_accuracies([results[i] for i in chosen])}
            for name, chosen in groups
        ],
    }


def interval(values: Sequence[float]) -> dict[str, Any]:
    """Mean and 95% interval, both ends None for fewer than two values.

    >>> {name: round(value, 3) for name, value in interval([1.0, 2.0, 3.0]).items()}
    {'mean': 2.0, 'low': 0.868, 'high': 3.132}
    """
    array = np.asarray(values, np.float64)
    mean = float(array.mean()) if len(array) else None
    if mean is None or len(array) < 2:
        return {"mean": mean, "low": None, "high": None}
    half = _NORMAL_QUANTILE * float(array.std(ddof=1)) / np.sqrt(len(array))
    return {"mean": mean, "low": float(mean - half), "high": float(mean + half)}


def _grouped(values: Sequence[int], edges: Sequence[int]) -> list[tuple[str, list[int]]]:
    """Each group between two edges, the last one open, that is not empty: its name, and the places of its values."""
    groups = []
    for least, after in zip(edges, (*edges[1:], None), strict=True):
        chosen = [place for place, value in enumerate(values) if least <= value and (after is None or value < after)]
        if chosen:
            groups.append((f"{least} or more" if after is None else f"{least} to {after - 1}", chosen))
    return groups


def _accuracies(results: Sequence[LabelResult]) -> dict[str, Any]:
    of = {name: [float(getattr(one, f"{name}_accuracy")) for one in results] for name in LEARNERS}
    return {
        "chance": float(np.mean([1 / result.ways for result in results])),
        **{name: interval(found) for name, found in of.items() if not np.isnan(found).any()},
    }


def _score_user(episodes: Sequence[UserResult]) -> UserScore:
    first = episodes[0]
    labelled = [one for one in episodes if not np.isnan(one.baseline_micro_ap)]
    return UserScore(
        user_id=first.user_id,
        photos=first.photos,
        episodes=len(episodes),
        mean_support=_mean([one.support for one in episodes]),
        mean_query=_mean([one.query for one in episodes]),
        divergence=first.divergence,
        baseline_loss=_mean([one.baseline_loss for one in episodes]),
        adapted_loss=_mean([one.adapted_loss for one in episodes]),
        loss_difference=_mean([one.baseline_loss - one.adapted_loss for one in episodes]),
        baseline_micro_ap=_mean([one.baseline_micro_ap for one in labelled]),
        adapted_micro_ap=_mean([one.adapted_micro_ap for one in labelled]),
        micro_ap_difference=_mean([one.adapted_micro_ap - one.baseline_micro_ap for one in labelled]),
    )


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else float("nan")


def _summarize_metric(metric: str, scores: Sequence[UserScore]) -> dict[str, Any]:
    kinds = {"baseline": f"baseline_{metric}", "adapted": f"adapted_{metric}", "difference": f"{metric}_difference"}
    defined = [score for score in scores if not np.isnan(getattr(score, kinds["baseline"]))]
    found: dict[str, Any] = {"users": len(defined)}
    for kind, field in kinds.items():
        values = [float(getattr(score, field)) for score in defined]
        found[kind] = interval(values)
        if values:
            found[kind].update({f"p{p}": float(np.percentile(values, p)) for p in _PERCENTILES})
    improved = [getattr(score, kinds["difference"]) > 0 for score in defined]
    found["share_improved"] = float(np.mean(improved)) if improved else None
    return found


def _group(members: Sequence[UserScore]) -> dict[str, Any]:
    defined = [score.micro_ap_difference for score in members if not np.isnan(score.micro_ap_difference)]
    return {
        "users": len(members),
        "baseline_loss": interval([score.baseline_loss for score in members])["mean"],
        "adapted_loss": interval([score.adapted_loss for score in members])["mean"],
        "loss_difference": interval([score.loss_difference for score in members]),
        "micro_ap_difference": interval(defined),
    }
