"""Figures of labels: how frequent, how many per photo, which come together, and the fine ones of each coarse one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from flair.dataset import catalog
from flair.statistics.figures import BLUE, ORANGE, draw_table, new_figure, plain, whole_bins
from flair.statistics.labels import (
    COARSE_HEAD,
    FINE_HEAD,
    Annotations,
    LabelCount,
    children,
    co_occurrence,
    count_labels,
    labels_per_photo,
)

_HIERARCHY_ROWS, _HIERARCHY_EXAMPLES = 17, 6  # coarse labels, and fine-grained ones beside each of them


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
