"""Draws one figure of a report as PNG, each run in a style of its own."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from matplotlib.axes import Axes

from benchmark.report.runs import Run
from flair.statistics.figures import new_figure

WIDTH, HEIGHT = 4.2, 3.2  # inches; a phone shows them four inches wide
DOTS_PER_INCH = 200
# Okabe and Ito, https://jfly.uni-koeln.de/color/, without yellow, which is too pale on white.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_MARKERS, _DASHES = "osD^vPX", ("-", "--", ":", "-.")
_LEGEND_CHARACTERS = 30


class Drawn(NamedTuple):
    """A figure as PNG; `section` is where it belongs."""

    section: str
    name: str
    caption: str
    alt: str
    png: bytes


class Left(NamedTuple):
    """Why a figure is left out, in its section."""

    section: str
    reason: str


class Style(NamedTuple):
    """How one run looks in every figure."""

    colour: str
    dash: str
    marker: str


Outcome = Drawn | Left


def styles(count: int) -> list[Style]:
    """Different looks: colour and marker change first, then the dashes."""
    return [
        Style(PALETTE[i % len(PALETTE)], _DASHES[i // len(PALETTE) % len(_DASHES)], _MARKERS[i % len(_MARKERS)])
        for i in range(count)
    ]


class Canvas:
    """Draws runs, each in its own style in every figure."""

    def __init__(self, runs: Sequence[Run]) -> None:
        self.runs = runs
        self.style = {run.name: style for run, style in zip(runs, styles(len(runs)), strict=True)}

    def line(self, axes: Axes, run: Run, x: Any, y: Any, markers: bool = True) -> None:
        """One run's values `y` over `x`."""
        style = self.style[run.name]
        marker = style.marker if markers and len(x) <= 30 else None
        label = legend_name(run.name)
        axes.plot(
            x, y, color=style.colour, linestyle=style.dash, linewidth=1.6, marker=marker, markersize=4, label=label
        )

    def figure(
        self,
        section: str,
        name: str,
        title: str,
        caption: str,
        alt: str,
        draw: Callable[[Axes], None],
        shown: Sequence[Run],
        height: float = HEIGHT,
    ) -> Drawn:
        """A figure with a legend of the runs shown, as PNG; `height` is in inches."""
        longest = max((len(run.name) for run in shown), default=0)
        columns = 3 if longest <= 12 else 2 if longest <= 22 else 1
        rows = -(-len(shown) // columns)
        figure, (axes,) = new_figure(plain(title), WIDTH, height + 0.2 * rows)
        figure.suptitle(plain(title), fontsize=10)
        draw(axes)
        if shown:
            figure.legend(loc="outside lower center", ncols=columns, fontsize=9, frameon=False)
        png = io.BytesIO()
        figure.savefig(png, format="png", dpi=DOTS_PER_INCH)
        return Drawn(section, name, caption, alt, png.getvalue())


def dot(axes: Axes, estimate: dict[str, Any], position: float, style: Style, label: str = "") -> None:
    """A point estimate with its interval, on the line `position`."""
    value, low, high = estimate["value"], estimate["low"], estimate["high"]
    if low is not None and high is not None:
        axes.plot([low, high], [position, position], color=style.colour, linewidth=1.4, linestyle=style.dash)
    marker, name = style.marker, label or "_"
    axes.plot([value], [position], marker, color=style.colour, markersize=4.5, label=name, linestyle="none")


def legend_name(name: str, limit: int = _LEGEND_CHARACTERS) -> str:
    """The run's name, shortened in its middle."""
    # A leading underscore would hide the entry.
    text = name.lstrip("_") or name
    return plain(text if len(text) <= limit else f"{text[: limit // 2 - 1]}…{text[-(limit // 2) :]}")


def plain(text: str) -> str:
    """The text as matplotlib shows it, without reading a formula between dollar signs."""
    return text.replace("$", r"\$")
