"""The style of all figures: size, grid and a palette that the colour-blind can tell apart; no display is needed."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from flair.files import atomic
from flair.statistics.labels import LONGEST_NAME, short

# Okabe and Ito, https://jfly.uni-koeln.de/color/
BLUE, ORANGE, GREEN = "#0072B2", "#D55E00", "#009E73"
MAP = "cividis"  # even in lightness, and the same to the colour-blind
DOTS_PER_INCH = 120


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
