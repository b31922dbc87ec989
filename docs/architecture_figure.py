"""Draws docs/architecture.png: `python3 docs/architecture_figure.py [--output_file=FILE.png]`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from flair.files import atomic
from flair.statistics.figures import BLUE, GREEN, ORANGE
from flair.terminal import command

ROOMS = {
    "flair/   the dataset, without TensorFlow": (1, 1, 41, 60, "#eef5fa"),
    "benchmark/   the experiments": (44, 1, 99, 60, "#fdf3ec"),
}
# Name: (middle x, middle y, width, height, title, text). Files are white and dashed, what decides about a run is green.
STEPS = {
    "download": (30, 49, 20, 7.4, "1  download_dataset.py", "fetches, resumes, checks,\nunpacks"),
    "prepare": (30, 21.5, 20, 7.4, "3  prepare_tfrecords.py", "checks each photo, writes it\nto its user's file"),
    "records": (53.5, 8, 16, 7.4, "5  records", "finds and reads\na client's photos"),
    "client_data": (53.5, 23, 16, 7.4, "6  client_data", "draws their order, decodes,\ncrops, flips, batches"),
    "local": (53.5, 38, 16, 7.4, "7  local_training", "a few epochs of SGD\non these photos alone"),
    "aggregate": (76.5, 38, 18, 7.4, "8  server: aggregator", "clips each update, sums,\nadds noise, divides (TFF)"),
    "finalize": (76.5, 53, 18, 5.6, "9  server: optimizer", "new global weights (TFF)"),
    "evaluation": (91.5, 23, 13, 7, "evaluation", "on users never\ntrained on"),
    "central": (74, 8, 16, 5.6, "central_training", "all photos together"),
}
FILES = {
    "archives": (9, 49, 13, 9, "archives", "Apple's server,\nHugging Face,\nflair.mirror"),
    "dataset": (30, 35, 20, 7.4, "2  dataset directory", "small_images/<image_id>.jpg\nlabels_and_metadata.json"),
    "tfrecords": (30, 8, 20, 6, "4  TFRecords (or HDF5)", "train/<user_id>.tfrecords"),
    "run": (91.5, 8, 13, 8, "run folder", "metrics, checkpoints,\nbest.h5, privacy.txt"),
}
DECISIONS = {
    "cohort": (68.2, 23, 9.5, 7, "cohort", "who takes\npart"),
    "privacy": (79.2, 23, 9.5, 7, "privacy", "how much\nnoise"),
    "synthetic": (9, 35, 13, 5.6, "synthetic", "a miniature"),
    "look": (9, 21.5, 13, 5.6, "verify, stats", "and notebooks"),
}
# From, to, and how far the arrow bends; the way of a photo is thick.
WAY = [
    ("archives", "download", 0.0),
    ("download", "dataset", 0.0),
    ("dataset", "prepare", 0.0),
    ("prepare", "tfrecords", 0.0),
    ("tfrecords", "records", 0.0),
    ("records", "client_data", 0.0),
    ("client_data", "local", 0.0),
    ("local", "aggregate", 0.0),
    ("aggregate", "finalize", 0.0),
]
OTHERS = [
    ("synthetic", "dataset", 0.0),
    ("dataset", "look", 0.0),
    ("cohort", "client_data", 0.0),
    ("privacy", "aggregate", 0.0),
    ("records", "central", 0.0),
    ("central", "run", 0.0),
    ("evaluation", "run", 0.0),
]


def draw() -> Figure:
    """The picture."""
    figure = Figure(figsize=(14, 8.6), dpi=110)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_xlim(0, 100)
    axes.set_ylim(0, 61.5)
    axes.axis("off")
    for title, (left, bottom, right, top, colour) in ROOMS.items():
        axes.add_patch(_patch(left, bottom, right - left, top - bottom, colour, "#c9c9c9", "-"))
        axes.text(left + 1.2, top - 1.8, title, fontsize=13, fontweight="bold", va="center")
    for boxes, colour, edge, line in (
        (STEPS, "#ffffff", BLUE, "-"),
        (FILES, "#fffdf0", "#666666", "--"),
        (DECISIONS, "#ffffff", GREEN, "-"),
    ):
        for box in boxes.values():
            _draw_box(axes, box, colour, edge, line)
    for start, end, bend in WAY:
        _draw_arrow(axes, start, end, bend, ORANGE, 3.0)
    for start, end, bend in OTHERS:
        _draw_arrow(axes, start, end, bend, "#555555", 1.3)
    axes.add_patch(_arrow((67.3, 53), (53.5, 42), 0.35, BLUE, 1.8))
    axes.text(50.8, 53, "the next round starts\nfrom the new weights", fontsize=9, color=BLUE, ha="center")
    axes.add_patch(_arrow((85.6, 53), (91.5, 26.8), -0.35, "#555555", 1.3))
    axes.text(65, 40.2, "update", fontsize=9, color=ORANGE, ha="center")
    axes.text(42.5, 9.4, "photos\nof a user", fontsize=9, color=ORANGE, ha="center", va="bottom")
    return figure


def _boxes() -> dict[str, tuple[float, float, float, float, str, str]]:
    return {**STEPS, **FILES, **DECISIONS}


def _patch(left: float, bottom: float, width: float, height: float, face: str, edge: str, line: str) -> FancyBboxPatch:
    style = "round,pad=0,rounding_size=0.9"
    return FancyBboxPatch((left, bottom), width, height, style, facecolor=face, edgecolor=edge, linestyle=line, lw=1.6)


def _draw_box(axes: Axes, box: tuple[float, float, float, float, str, str], face: str, edge: str, line: str) -> None:
    x, y, width, height, title, text = box
    axes.add_patch(_patch(x - width / 2, y - height / 2, width, height, face, edge, line))
    axes.text(x, y + height / 2 - 0.9, title, ha="center", va="top", fontsize=10.5, fontweight="bold")
    axes.text(x, y + height / 2 - 3.1, text, ha="center", va="top", fontsize=9, linespacing=1.25)


def _draw_arrow(axes: Axes, start: str, end: str, bend: float, colour: str, width: float) -> None:
    """From the edge of one box to the edge of the other, straight along the axis on which they are apart."""
    ax, ay, awidth, aheight, *_ = _boxes()[start]
    bx, by, bwidth, bheight, *_ = _boxes()[end]
    if abs(bx - ax) > (awidth + bwidth) / 2:
        side = 1 if bx > ax else -1
        place = (ax + side * awidth / 2, ay), (bx - side * bwidth / 2, by)
    else:
        side = 1 if by > ay else -1
        place = (ax, ay + side * aheight / 2), (bx, by - side * bheight / 2)
    axes.add_patch(_arrow(*place, bend, colour, width))


def _arrow(
    start: tuple[float, float], end: tuple[float, float], bend: float, colour: str, width: float
) -> FancyArrowPatch:
    return FancyArrowPatch(
        start, end, connectionstyle=f"arc3,rad={bend}", arrowstyle="-|>", mutation_scale=16, lw=width, color=colour
    )


def main(argv: Sequence[str]) -> None:
    """Draws the picture into a file."""
    parser = argparse.ArgumentParser(prog="docs/architecture_figure.py", description=__doc__, allow_abbrev=False)
    place = Path(__file__).with_name("architecture.png")
    parser.add_argument("--output_file", metavar="FILE.png", type=Path, default=place, help=f"(default: {place.name})")
    output_file = parser.parse_args(argv).output_file
    with atomic.replacing(output_file) as temporary:
        draw().savefig(temporary, format="png", metadata={"Software": None})
    print(f"{output_file}: drawn")


if __name__ == "__main__":
    command.run(main)
