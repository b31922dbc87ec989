"""Draws the figures of a personalization run, as PNG files with their captions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmark.personalization.log import LabelResult
from benchmark.personalization.summary import UserScore, by_divergence, by_size, interval
from flair.files import atomic
from flair.statistics.figures import BLUE, GREEN, ORANGE, new_figure, save
from flair.terminal.counted import counted

CAPTIONS_FILE = "captions.json"
_GREY = "#777777"
# Field of UserScore, axis label, what a difference above 0 means.
_METRICS = (
    ("loss", "cross-entropy (nats a label)", "baseline − adapted loss (nats a label)"),
    ("micro_ap", "micro average precision (0 to 1)", "adapted − baseline micro AP"),
)


def draw_users(folder: Path, scores: Sequence[UserScore]) -> None:
    """Draws the figures of user episodes."""
    captions = {
        "personalization_users.png": (
            f"Each of {len(scores):,} users on the same query photos: the global model (across) and the adapted one "
            "(up). Adaptation helps below the diagonal of the loss and above that of the average precision."
        ),
        "personalization_differences.png": (
            "Share of users whose difference is at most this large. Above 0, adaptation helps; the band is the mean "
            "and its 95% interval over users."
        ),
        "personalization_by_user.png": (
            "Mean difference in loss with its 95% interval, by a user's photos and by how far a user's labels are "
            "from everybody's (Jensen-Shannon divergence, quarters of the users). Above 0, adaptation helps."
        ),
    }
    _write(folder, [_draw_pairs(scores), _draw_differences(scores), _draw_groups(scores)], captions)


def draw_labels(folder: Path, results: Sequence[LabelResult]) -> None:
    """Draws the figure of label episodes."""
    captions = {
        "few_shot_accuracy.png": (
            f"Query accuracy of {len(results):,} episodes over fine-grained labels by their number of classes, one "
            "point an episode: nearest centroid, fine-tuned linear head and, if trained, prototypical networks, on the "
            "same pooled features. The line is chance."
        )
    }
    figure, (axes,) = new_figure("Label episodes")
    ways = np.array([result.ways for result in results])
    for field, colour, marker, name, shift in (
        ("nearest_centroid_accuracy", BLUE, "o", "nearest centroid", -0.15),
        ("fine_tuning_accuracy", ORANGE, "^", "fine-tuned head", 0.15),
        ("prototypical_networks_accuracy", GREEN, "s", "prototypical networks", 0.0),
    ):
        accuracy = [getattr(result, field) for result in results]
        if np.isnan(accuracy).any():
            continue
        axes.scatter(ways + shift, accuracy, s=12, alpha=0.6, color=colour, marker=marker, label=name, linewidths=0)
    line = np.arange(max(2, ways.min()), ways.max() + 1)
    axes.plot(line, 1 / line, color=_GREY, linestyle="--", label="chance")
    axes.set(xlabel="classes of the episode (ways)", ylabel="query accuracy (0 to 1)", ylim=(-0.02, 1.02))
    axes.legend(frameon=False)
    _write(folder, [figure], captions)


def _draw_pairs(scores: Sequence[UserScore]) -> Figure:
    figure, axes = new_figure("Global and adapted model, user by user", height=4.2, columns=2)
    for each, (metric, label, _) in zip(axes, _METRICS, strict=True):
        baseline, adapted = (
            np.array([getattr(s, f"{kind}_{metric}") for s in scores]) for kind in ("baseline", "adapted")
        )
        finite = np.isfinite(baseline) & np.isfinite(adapted)
        each.scatter(baseline[finite], adapted[finite], s=14, alpha=0.6, color=BLUE, linewidths=0)
        middle = float(np.mean(baseline[finite])) if finite.any() else 0.0
        each.axline((middle, middle), slope=1, color=_GREY, linestyle="--", linewidth=1)
        each.set_aspect("equal", adjustable="datalim")
        each.set(xlabel=f"global model: {label}", ylabel=f"adapted model: {label}")
    return figure


def _draw_differences(scores: Sequence[UserScore]) -> Figure:
    figure, axes = new_figure("Who gains how much", height=4.0, columns=2)
    for each, (metric, _, label) in zip(axes, _METRICS, strict=True):
        values = np.sort([getattr(s, f"{metric}_difference") for s in scores])
        values = values[np.isfinite(values)]
        if len(values):
            each.step(values, np.arange(1, len(values) + 1) / len(values), where="post", color=BLUE)
        found = interval(values.tolist())
        if found["mean"] is not None:
            each.axvline(found["mean"], color=ORANGE, label=f"mean {found['mean']:+.4f}")
        if found["low"] is not None:
            each.axvspan(found["low"], found["high"], color=ORANGE, alpha=0.2, label="its 95% interval")
        each.axvline(0, color=_GREY, linestyle="--", linewidth=1)
        each.set(xlabel=label, ylabel="share of users", ylim=(0, 1.02))
        each.legend(frameon=False, fontsize=8, loc="lower right")
    return figure


def _draw_groups(scores: Sequence[UserScore]) -> Figure:
    figure, axes = new_figure("For whom adaptation helps", height=4.2, columns=2)
    sizes, divergences = by_size(scores), by_divergence(scores)
    _draw_intervals(axes[0], [group["photos"] for group in sizes], sizes, GREEN)
    names = [f"{group['least']:.2f} to {group['most']:.2f}" for group in divergences]
    _draw_intervals(axes[1], names, divergences, BLUE)
    axes[0].set(xlabel="photos of the user")
    axes[1].set(xlabel="divergence of the user's labels (bits)")
    return figure


def _draw_intervals(axes: Axes, names: Sequence[str], groups: Sequence[dict[str, Any]], colour: str) -> None:
    for place, group in enumerate(groups):
        found = group["loss_difference"]
        axes.plot(place, found["mean"], "o", color=colour)
        if found["low"] is not None:
            axes.plot([place, place], [found["low"], found["high"]], color=colour, linewidth=2)
    axes.axhline(0, color=_GREY, linestyle="--", linewidth=1)
    labels = [f"{name}\n{counted(group['users'], 'user')}" for name, group in zip(names, groups, strict=True)]
    axes.set_xticks(range(len(groups)), labels, fontsize=7)
    axes.set_xlim(-0.5, len(groups) - 0.5)
    axes.set(ylabel=_METRICS[0][2])


def _write(folder: Path, figures: Sequence[Figure], captions: dict[str, str]) -> None:
    """Writes the figures under the names that `captions` has, in its order."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, figure in zip(captions, figures, strict=True):
        save(figure, folder / name)
    atomic.write_json(folder / CAPTIONS_FILE, captions)
