"""The result of evaluating models on sets of photos, as plain JSON values; docs/evaluation.md describes them."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmark.data.records import Task
from benchmark.evaluation import resampled, thresholds
from benchmark.evaluation.bootstrap import LEVEL, METHOD, UserBootstrap, clopper_pearson, interval
from benchmark.evaluation.predictions import Predictions
from benchmark.evaluation.resampled import Replicates, ScoredPhotos
from benchmark.evaluation.sets import EvaluationSet
from benchmark.evaluation.thresholds import HALF, LEAST_USERS, Thresholds
from benchmark.metrics import histogram
from benchmark.metrics.spread import distribution
from flair.files import atomic, checked_json
from flair.terminal.progress import Progress

FORMAT_VERSION = 1
PER_LABEL_FILE, PER_USER_FILE = "per_label.csv", "per_user.csv"
Estimate = dict[str, float | None]
_SHARE = (0.0, 1.0)


class Scored:
    """One model's predictions on one set, with the metrics of every resample of the set's users.

    Args:
      num_resamples, seed: of the bootstrap; sets of equally many users share resamples, whatever the model.
    """

    def __init__(
        self, photos: EvaluationSet, predictions: Predictions, task: Task, num_resamples: int, seed: int
    ) -> None:
        self.set, self.task, self._predictions = photos, task, predictions
        self._bootstrap = functools.partial(_shared_bootstrap, num_resamples=num_resamples, seed=seed)
        self.photos = self._number_users(photos.users)
        self.metrics = resampled.metrics(self.photos, task.is_binary)

    @functools.cached_property
    def replicates(self) -> Replicates:
        """The metrics of every resample."""
        return self._replicate(self.photos)

    def replicates_among(self, users: Sequence[str]) -> Replicates:
        """The same with users redrawn from more than the set's own, to pair it with another set."""
        return self._replicate(self._number_users(users))

    def spread(self, name: str, values: Sequence[float]) -> dict[str, Any]:
        """How a metric of single users is distributed over them, and the interval of its mean."""
        found = distribution(values)
        worst, best = ("highest", "lowest") if name == "loss" else ("lowest", "highest")
        each = np.asarray(values, np.float64)
        means = self._bootstrap(len(each)).mean(each, np.arange(len(each)))
        return {
            **{key: found[key] for key in ("mean", "p10", "p50", "p90")},
            "worst_decile": found[f"{worst}_decile"],
            "best_decile": found[f"{best}_decile"],
            "mean_interval": _estimate(found["mean"], means, len(each)),
            # For drawing: the curve of all users, whatever their number.
            "percentiles": np.percentile(each, np.arange(101)).tolist(),
        }

    def decisions(self, by_threshold: np.ndarray) -> tuple[dict[str, float], dict[str, np.ndarray]]:
        """Precision, recall and F1 by a threshold of each label, and the same of every resample."""
        bootstrap = self._bootstrap(self.photos.num_users)
        return thresholds.decisions(self.photos, by_threshold, bootstrap, self.task.is_binary)

    def _replicate(self, photos: ScoredPhotos) -> Replicates:
        with Progress(photos.scores.shape[1], f"resampling the users of {self.set.name}", "label") as progress:
            bootstrap = self._bootstrap(photos.num_users)
            return resampled.replicate(photos, bootstrap, self.task.is_binary, progress)

    def _number_users(self, users: Sequence[str]) -> ScoredPhotos:
        numbers = self.set.user_numbers(users)
        return ScoredPhotos(self._predictions.scores, self.set.labels, self._predictions.losses, numbers, len(users))


_shared_bootstrap = functools.lru_cache(maxsize=2)(UserBootstrap)


def result_of(scored: Scored, folder: Path, chosen: Thresholds | None = None) -> dict[str, Any]:
    """Metrics, labels and users of one model on one set; the tables are written to `folder`, too.

    `chosen` are thresholds of the same model that were chosen on other photos.
    """
    per_label, per_user = label_table(scored, chosen), user_table(scored)
    _write_table(folder / PER_LABEL_FILE, per_label)
    _write_table(folder / PER_USER_FILE, per_user)
    replicates = scored.replicates.metrics
    estimates = _estimates(scored.metrics, replicates, scored.photos.num_users)
    by_label, count = scored.set.labels.sum(axis=0, dtype=np.int64), len(scored.set.rows)
    result = {
        "partition": scored.set.name,
        "photos": count,
        "users": scored.photos.num_users,
        "metrics": estimates,
        "know_nothing": histogram.know_nothing_macro_precision(by_label, count),
        "per_label": per_label,
        "per_user": {name: scored.spread(name, [row[name] for row in per_user]) for name in user_metrics(scored.task)},
    }
    if chosen is not None:
        result["thresholds"] = decision_facts(scored, chosen)
    if scored.task.is_binary:
        right = round(scored.metrics["accuracy"] * count)
        low, high = clopper_pearson(right, count)
        result["clopper_pearson"] = {"right": right, "photos": count, "low": low, "high": high}
    return result


def decision_facts(scored: Scored, chosen: Thresholds) -> dict[str, Any]:
    """Precision, recall and F1 at 0.5, at the global threshold and at those of the labels, and what these gain."""
    size, num_users = len(chosen.of_label), scored.photos.num_users
    half, together, own = (
        scored.decisions(each) for each in (np.full(size, HALF), np.full(size, chosen.together), chosen.of_label)
    )
    gain = {
        name: _estimate(value - half[0][name], own[1][name] - half[1][name], num_users)
        for name, value in own[0].items()
    }
    return {
        "chosen_on": "val",
        "least_users": LEAST_USERS,
        "own": int(chosen.is_own.sum()),
        "global": chosen.together,
        "at_half": _estimates(*half, num_users),
        "at_global": _estimates(*together, num_users),
        "at_chosen": _estimates(*own, num_users),
        "gain": gain,
    }


def difference(a: Scored, b: Scored) -> dict[str, Estimate]:
    """Every metric of model `a` minus the same of model `b` on one set, with the interval of the paired difference."""
    return _difference(a, b, a.replicates, b.replicates, a.photos.num_users)


def drop(base: Scored, other: Scored) -> dict[str, Estimate]:
    """Every metric of a model on `base` minus its value on `other`; users of both sets are redrawn together."""
    users = sorted({*base.set.users, *other.set.users})
    return _difference(base, other, base.replicates_among(users), other.replicates_among(users), len(users))


def label_table(scored: Scored, chosen: Thresholds | None = None) -> list[dict[str, Any]]:
    """One row per label: its photos, its users, its averaged precision with interval, its exact average precision.

    A label with photos of fewer than two users has no interval. With `chosen` thresholds: also F1 at 0.5 and at them.
    """
    counts = resampled.histogram(scored.photos)
    precision = histogram.averaged_precision_by_label(counts)
    rows = []
    for column, (scores, labels) in enumerate(scored.photos.columns()):
        users = len(np.unique(scored.photos.users[labels > 0]))
        samples = scored.replicates.averaged_precision[:, column]
        found = _estimate(float(precision[column]), samples, scored.photos.num_users if users > 1 else 1, _SHARE)
        row = {
            "label": scored.task.label_names[column],
            "photos": int(labels.sum(dtype=np.int64)),
            "users": users,
            "averaged_precision": found["value"],
            "low": found["low"],
            "high": found["high"],
        }
        if scored.photos.is_exact_feasible:
            row["exact_average_precision"] = histogram.pooled_average_precision(scores, labels)
        rows.append(row)
    if chosen is not None:
        at_half, at_chosen = (
            thresholds.label_f1(scored.photos, each) for each in (np.full(len(rows), HALF), chosen.of_label)
        )
        for column, row in enumerate(rows):
            row["threshold"], row["is_own_threshold"] = float(chosen.of_label[column]), bool(chosen.is_own[column])
            row["f1_at_half"], row["f1_at_threshold"] = float(at_half[column]), float(at_chosen[column])
    return rows


def user_metrics(task: Task) -> tuple[str, str]:
    """What is computed for each user by itself."""
    return ("loss", "accuracy") if task.is_binary else ("loss", "micro_averaged_precision")


def user_table(scored: Scored) -> list[dict[str, Any]]:
    """One row per user: photos, mean loss, and accuracy or exact average precision over all of the user's decisions."""
    photos = scored.photos
    order = np.argsort(photos.users, kind="stable")
    counts = np.bincount(photos.users, minlength=photos.num_users)
    rows = []
    name = user_metrics(scored.task)[1]
    for user, own in zip(scored.set.users, np.split(order, np.cumsum(counts)[:-1]), strict=True):
        scores, labels = np.asarray(photos.scores[own]), np.asarray(photos.labels[own])
        if scored.task.is_binary:
            value = float(np.mean((scores > 0.5) == (labels > 0)))
        else:
            value = histogram.pooled_average_precision(scores, labels)
        loss = float(np.mean(photos.losses[own], dtype=np.float64))
        rows.append({"user_id": user, "photos": len(own), "loss": loss, name: value})
    return rows


def set_facts(photos: EvaluationSet) -> dict[str, Any]:
    """The photos that were evaluated on."""
    return {
        "name": photos.name,
        "partition": photos.partition,
        "photos": len(photos.rows),
        "users": len(photos.users),
        "excluded": photos.num_excluded,
        "manifest": None if photos.manifest is None else str(photos.manifest),
        "ids_sha256": photos.digest,
    }


def interval_facts(num_resamples: int, seed: int) -> dict[str, Any]:
    """How intervals were made."""
    return {"level": LEVEL, "method": METHOD, "resamples": num_resamples, "seed": seed}


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Writes a result, with a checksum; numbers that are not finite become null."""
    checked_json.write(path, _finite(value))


def _difference(a: Scored, b: Scored, of_a: Replicates, of_b: Replicates, num_users: int) -> dict[str, Estimate]:
    return {
        name: _estimate(value - b.metrics[name], of_a.metrics[name] - of_b.metrics[name], num_users)
        for name, value in a.metrics.items()
        if name in b.metrics
    }


def _estimates(
    values: Mapping[str, float], replicates: Mapping[str, np.ndarray], num_users: int
) -> dict[str, Estimate]:
    """Of metrics, none of which is above 1 but the loss."""
    limits = {"loss": (0.0, math.inf)}
    return {
        name: _estimate(value, replicates[name], num_users, limits.get(name, _SHARE)) for name, value in values.items()
    }


def _estimate(
    value: float, replicates: np.ndarray, num_users: int, limits: tuple[float, float] = (-math.inf, math.inf)
) -> Estimate:
    low, high = interval(replicates, num_users, value, limits) or (None, None)
    return {"value": float(value), "low": low, "high": high}


def _write_table(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    columns = list(rows[0])
    atomic.write_csv(path, [columns, *([row.get(column) for column in columns] for row in rows)])


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
