"""Figures of users: how many photos they have, what is on them, and how far they are from the average."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from flair.dataset import catalog
from flair.statistics.divergence import Divergence, by_size
from flair.statistics.figures import BLUE, GREEN, ORANGE, draw_table, log_bins, new_figure, plain, whole_bins
from flair.statistics.labels import COARSE_HEAD, Annotations, count_labels, labels_of_users, labels_per_user

# Of histograms of users; the axis begins below one, so that a bar of one user is seen.
_LOG_AXES: dict[str, Any] = {"xscale": "log", "yscale": "log", "ylim": (0.7, None)}


def draw_photos_per_user(annotations: Annotations) -> Figure:
    """How many users have how many photos, both axes logarithmic."""
    photos = annotations.photos_per_user()
    figure, (axes,) = new_figure("Photos of a user")
    axes.hist(photos, bins=log_bins(int(photos.max())), color=BLUE, edgecolor="white", linewidth=0.5)
    for value, name, colour in ((np.median(photos), "median", GREEN), (photos.mean(), "mean", ORANGE)):
        axes.axvline(float(value), color=colour, linestyle="--" if name == "mean" else "-", label=f"{name} {value:.3g}")
    axes.set(**_LOG_AXES, ylabel="users (log)")
    axes.xaxis.set_major_formatter("{x:,g}")
    axes.yaxis.set_major_formatter("{x:,g}")
    axes.set_xlabel(f"photos of a user (log; published: median 2, mean {catalog.IMAGES_PER_USER.mean:.2f}, most 4,151)")
    axes.legend()
    return figure


def draw_labels_per_user(annotations: Annotations) -> Figure:
    """Histograms of the number of different coarse and fine-grained labels on a user's photos."""
    figure, axes = new_figure("Different labels of a user", columns=2)
    coarse = labels_per_user(annotations, annotations.coarse)
    axes[0].hist(coarse, bins=whole_bins(int(coarse.max())), color=BLUE, rwidth=0.9)
    axes[0].set(xlabel="different coarse labels of a user", ylabel="users")
    fine = labels_per_user(annotations, annotations.fine)
    axes[1].hist(fine, bins=log_bins(int(fine.max())), color=BLUE)
    axes[1].set(**_LOG_AXES, xlabel="different fine-grained labels of a user (log)", ylabel="users (log)")
    return figure


def spread_of_users(annotations: Annotations, count: int = 12) -> list[int]:
    """Rows of `count` users from the most photos to the fewest, evenly spaced on a log scale of their rank."""
    by_photos = np.argsort(-annotations.photos_per_user(), kind="stable")
    ranks = np.unique(np.round(np.geomspace(1, len(by_photos), min(count, len(by_photos)))).astype(int)) - 1
    return [int(row) for row in by_photos[ranks]]


def draw_user_labels(annotations: Annotations, users: Sequence[int]) -> Figure:
    """Labels of some users (rows of `user_ids`): the colour is the share of their photos, the text the number."""
    names = [label.name for label in count_labels(annotations, annotations.coarse)[:COARSE_HEAD]]
    own = labels_of_users(annotations, annotations.coarse)
    counts = np.zeros((len(users), len(annotations.coarse.names)), np.int64)
    for row, user in enumerate(users):
        of_user = slice(*np.searchsorted(own.user, [user, user + 1]))
        counts[row, own.label[of_user]] = own.photos[of_user]
    counts = counts[:, annotations.coarse.rows(names)]
    photos = annotations.photos_per_user()[list(users)]
    rows = [f"{annotations.user_ids[user]} ({count:,})" for user, count in zip(users, photos.tolist(), strict=True)]
    figure, (axes,) = new_figure(
        "Label counts of some users", width=0.5 * len(names) + 4, height=0.32 * len(users) + 2.2
    )
    columns, texts = [plain(name) for name in names], np.vectorize("{:,}".format)(counts)
    draw_table(axes, 100 * counts / photos[:, None], rows, columns, texts, "of the user's photos (%)")
    axes.set(xlabel="coarse label", ylabel="user (photos)")
    return figure


def draw_divergence(divergence: Divergence) -> Figure:
    """Divergence from the population by number of photos, and its distribution, beside the shuffled control."""
    figure, axes = new_figure("How far users' labels are from the population's", width=11, columns=2)
    groups = by_size(divergence)
    sizes = [group.least for group in groups]
    axes[0].plot(sizes, [group.users for group in groups], "o-", color=BLUE, label="users")
    axes[0].plot(sizes, [group.shuffled for group in groups], "s--", color=ORANGE, label="photos shuffled")
    axes[0].set_xscale("log", base=2)
    axes[0].xaxis.set_major_formatter("{x:,.0f}")
    axes[0].set(xlabel="photos of a user, from (log)", ylabel="mean divergence (bits)", ylim=(0, None))
    axes[0].legend()
    bins = list(np.linspace(0, 1, 41))
    several = divergence.photos >= min(8, int(divergence.photos.max()))
    users, shuffled, least = divergence.users[several], divergence.shuffled[several], divergence.photos[several].min()
    axes[1].hist(users, bins=bins, color=BLUE, alpha=0.75, label="users")
    axes[1].hist(shuffled, bins=bins, histtype="step", color=ORANGE, linewidth=2, label="photos shuffled")
    axes[1].set(xlabel=f"divergence (bits), users of {least} photos and more", ylabel="users")
    axes[1].legend()
    return figure
