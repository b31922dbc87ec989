"""Figures of labels and of users, and their style, which those of other rooms share.

All have the same grid and a palette that the colour-blind can tell apart; no display is needed.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from flair.dataset import catalog
from flair.files import atomic
from flair.statistics.divergence import Divergence, by_size
from flair.statistics.labels import (
    COARSE_HEAD,
    FINE_HEAD,
    LONGEST_NAME,
    Annotations,
    LabelCount,
    children,
    co_occurrence,
    count_labels,
    labels_of_users,
    labels_per_photo,
    labels_per_user,
    short,
)

# Okabe and Ito, https://jfly.uni-koeln.de/color/
BLUE, ORANGE, GREEN = "#0072B2", "#D55E00", "#009E73"
MAP = "cividis"  # even in lightness, and the same to the colour-blind
DOTS_PER_INCH = 120
_HIERARCHY_ROWS, _HIERARCHY_EXAMPLES = 17, 6  # coarse labels, and fine-grained ones beside each of them
# Of histograms of users; the axis begins below one, so that a bar of one user is seen.
_LOG_AXES: dict[str, Any] = {"xscale": "log", "yscale": "log", "ylim": (0.7, None)}


def new_figure(title: str, width: float = 8.0, height: float = 4.5, columns: int = 1) -> tuple[Figure, list[Axes]]:
    """A figure of `width` x `height` inches with its axes side by side, and a title over all."""
    figure = Figure(figsize=(width, height), dpi=DOTS_PER_INCH, layout="constrained")
    figure.suptitle(title)
    axes = list(np.atleast_1d(figure.subplots(1, columns)))
    for each in axes:
        each.spines[["top", "right"]].set_visible(False)
        each.grid(True, color="#e4e4e4", linewidth=0.6)
        each.set_axisbelow(True)
    return figure, axes


def plain(text: str, most: int = LONGEST_NAME) -> str:
    """The text as a figure shows it: cut where it is long, and no formula between dollar signs.

    >>> plain("a $20 note")
    'a \\\\$20 note'
    """
    return short(text, most).replace("$", r"\$")


def whole_bins(most: int) -> list[float]:
    """Edges of the bins of whole numbers from 1 to `most`: a bin per number, but 60 edges at most.

    >>> whole_bins(3)
    [0.5, 1.5, 2.5, 3.5]
    """
    return list(np.unique(np.round(np.linspace(1, most + 1, min(most + 1, 60)))) - 0.5)


def log_bins(most: int) -> list[float]:
    """As `whole_bins`, wider and wider; narrow ones would be empty among 1, 2, 3, for lack of numbers between."""
    return list(np.unique(np.round(np.geomspace(1, most + 1, 40))) - 0.5)


def draw_table(
    axes: Axes,
    values: npt.NDArray[np.float64],
    rows: list[str],
    columns: list[str],
    texts: npt.NDArray[np.str_],
    scale: str,
) -> None:
    """A heat map [rows, columns] with a text in every cell and a scale called `scale`."""
    axes.grid(False)
    image = axes.imshow(values, cmap=MAP, aspect="auto")
    axes.set_xticks(range(len(columns)), columns, rotation=60, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(rows)), rows)
    middle = (image.norm.vmin or 0.0) + ((image.norm.vmax or 1.0) - (image.norm.vmin or 0.0)) / 2
    for (row, column), value in np.ndenumerate(values):
        colour = "white" if value < middle else "black"
        axes.text(column, row, texts[row, column], ha="center", va="center", color=colour, fontsize=7)
    assert axes.figure is not None
    axes.figure.colorbar(image, ax=axes, label=scale)


def save(figure: Figure, path: str | os.PathLike[str]) -> Path:
    """Writes the figure as PNG, whole or not at all."""
    with atomic.replacing(path) as temporary, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of characters that no font has, or labels that leave no room
        figure.savefig(temporary, format="png", dpi=DOTS_PER_INCH)
    return Path(path)


def draw_coarse_labels(annotations: Annotations) -> Figure:
    """Share of the photos with each coarse label, beside the published share where it is one of FLAIR's 17."""
    found = count_labels(annotations, annotations.coarse)
    counted = found[:COARSE_HEAD][::-1]
    figure, (axes,) = new_figure(_headline("Coarse labels", found), height=0.28 * len(counted) + 1.4)
    shares = [100 * label.photos / annotations.num_photos for label in counted]
    _draw_shares(axes, counted, shares, color=BLUE, label="this data")
    published = {row: label.name for row, label in enumerate(counted) if label.name in catalog.COARSE_LABEL_COUNTS}
    total = sum(catalog.NUM_IMAGES.values())
    shares = [100 * catalog.COARSE_LABEL_COUNTS[name] / total for name in published.values()]
    axes.plot(shares, list(published), "D", color=ORANGE, markersize=5, label="FLAIR, published")
    axes.set(xlabel="photos with the label (%)", ylabel="coarse label")
    axes.legend(loc="lower right")
    return figure


def draw_labels_per_photo(annotations: Annotations) -> Figure:
    """Histograms of the number of coarse and of fine-grained labels a photo has."""
    figure, axes = new_figure("Labels of a photo", columns=2)
    kinds = ("coarse", annotations.coarse), ("fine-grained", annotations.fine)
    for each, (kind, pairs) in zip(axes, kinds, strict=True):
        counts = labels_per_photo(pairs, annotations.num_photos)
        each.hist(counts, bins=whole_bins(int(counts.max())), color=BLUE, rwidth=0.9)
        each.set(xlabel=f"{kind} labels of a photo", ylabel="photos")
    return figure


def draw_fine_labels(annotations: Annotations) -> Figure:
    """The most frequent fine-grained labels, the rarest ones, and all of them by rank on log axes."""
    counted = count_labels(annotations, annotations.fine)
    figure, axes = new_figure("Fine-grained labels: head, tail and all", width=13, height=5, columns=3)
    _draw_bars(axes[0], counted[:FINE_HEAD], f"the {min(FINE_HEAD, len(counted))} most frequent")
    _draw_bars(axes[1], counted[-FINE_HEAD:], f"the {min(FINE_HEAD, len(counted))} rarest")
    shares = [100 * label.photos / annotations.num_photos for label in counted]
    axes[2].loglog(np.arange(1, len(shares) + 1), shares, color=BLUE, label="this data")
    published = 100 * np.array(list(catalog.HEAD_FINE_LABEL_COUNTS.values())) / sum(catalog.NUM_IMAGES.values())
    axes[2].loglog(np.arange(1, len(published) + 1), published, "D", color=ORANGE, markersize=4, label="FLAIR, head")
    axes[2].set_title(f"all {len(counted):,} labels", fontsize=10)
    axes[2].set(xlabel="rank of the label (log)", ylabel="photos with the label (%, log)")
    axes[2].legend()
    return figure


def draw_co_occurrence(annotations: Annotations) -> Figure:
    """Of the photos with one coarse label, the share that carry another: P(column | row) in percent."""
    found = count_labels(annotations, annotations.coarse)
    counted = [label.name for label in found[:COARSE_HEAD]]
    together = co_occurrence(annotations.coarse, annotations.num_photos, annotations.coarse.rows(counted))
    share = 100 * together / together.diagonal()[:, None]
    size = 0.42 * len(counted) + 2.5
    figure, (axes,) = new_figure(_headline("Coarse labels that occur together", found), width=size + 1.5, height=size)
    names, texts = [plain(name) for name in counted], np.vectorize("{:.0f}".format)(share)
    draw_table(axes, share, names, names, texts, "photos of the row's label that carry the column's (%)")
    axes.set(xlabel="also carries", ylabel="of the photos with")
    return figure


def draw_hierarchy(annotations: Annotations, taxonomy: Mapping[str, frozenset[str]]) -> Figure:
    """Below each coarse label: how many fine-grained ones there are and occur, and the most frequent by name."""
    photos = {label.name: label.photos for label in count_labels(annotations, annotations.fine)}
    below = dict(sorted(children(taxonomy).items(), key=lambda item: len(item[1]))[-_HIERARCHY_ROWS:])
    figure, (axes,) = new_figure(
        "Fine-grained labels below each coarse label", width=11, height=0.36 * len(below) + 1.4
    )
    rows = range(len(below))
    axes.barh(rows, [len(names) for names in below.values()], color="#b9d6e8", label="in the taxonomy")
    axes.barh(rows, [sum(name in photos for name in names) for names in below.values()], color=BLUE, height=0.35)
    axes.set_yticks(rows, [plain(name) for name in below])
    axes.plot([], [], color=BLUE, linewidth=5, label="on a photo of this data")
    for row, (coarse, names) in enumerate(below.items()):
        frequent = sorted((name for name in names if name != coarse), key=lambda name: (-photos.get(name, 0), name))
        examples = ", ".join(map(plain, frequent[:_HIERARCHY_EXAMPLES]))
        axes.text(len(names), row, f"  {examples}", va="center", fontsize=7, color="#333333")
    axes.set_xlim(0, 2.2 * max(map(len, below.values()), default=1))
    axes.set(xlabel="fine-grained labels; beside the bar the most frequent ones", ylabel="coarse label")
    axes.legend(loc="lower right")
    return figure


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


def draw_user_labels(annotations: Annotations, num_users: int = 12) -> Figure:
    """Labels of some users, from the most photos to the fewest: colours are shares of their photos, texts numbers."""
    users = _spread_of_users(annotations, num_users)
    names = [label.name for label in count_labels(annotations, annotations.coarse)[:COARSE_HEAD]]
    own = labels_of_users(annotations, annotations.coarse)
    counts = np.zeros((len(users), len(annotations.coarse.names)), np.int64)
    for row, user in enumerate(users):
        of_user = slice(*np.searchsorted(own.user, [user, user + 1]))
        counts[row, own.label[of_user]] = own.photos[of_user]
    counts = counts[:, annotations.coarse.rows(names)]
    photos = annotations.photos_per_user()[users]
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


def _spread_of_users(annotations: Annotations, count: int) -> list[int]:
    """Rows of `count` users from the most photos to the fewest, evenly spaced on a log scale of their rank."""
    by_photos = np.argsort(-annotations.photos_per_user(), kind="stable")
    ranks = np.unique(np.round(np.geomspace(1, len(by_photos), min(count, len(by_photos)))).astype(int)) - 1
    return [int(row) for row in by_photos[ranks]]


def _headline(title: str, found: Sequence[LabelCount]) -> str:
    return title if len(found) <= COARSE_HEAD else f"{title}: the {COARSE_HEAD} most frequent of {len(found):,}"


def _draw_shares(axes: Axes, counted: Sequence[LabelCount], values: Sequence[float], **options: str) -> None:
    axes.barh(range(len(counted)), values, **options)  # type: ignore[arg-type]
    axes.set_yticks(range(len(counted)), [plain(label.name) for label in counted])


def _draw_bars(axes: Axes, counted: Sequence[LabelCount], title: str) -> None:
    _draw_shares(axes, counted[::-1], [label.photos for label in counted][::-1], color=BLUE)
    axes.tick_params(axis="y", labelsize=7)
    axes.set_title(title, fontsize=10)
    axes.set(xlabel="photos with the label", ylabel="fine-grained label")
    axes.locator_params(axis="x", nbins=5, integer=True)
