"""Figures that show photos: sheets of them with their labels, and what a user's photos look like on average."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from flair.dataset.images import PIXELS_SHAPE, PhotoError, read_pixels
from flair.dataset.metadata import Record, User
from flair.statistics.figures import DOTS_PER_INCH, plain

COLUMNS = 5
_TILE = 2.2  # inches


def draw_photos(dataset_dir: str | Path, records: Sequence[Record], title: str, columns: int = COLUMNS) -> Figure:
    """Photos in rows of `columns`, with image ids and labels; where one cannot be read, why. ValueError without any."""
    figure, tiles = _tiles(len(records), title, columns, text_lines=5)
    for axes, record in zip(tiles, records, strict=True):
        try:
            axes.imshow(read_pixels(dataset_dir, record).data)
        except PhotoError as error:
            _say(axes, error)
        axes.set_title(f"{record.image_id}  ({record.partition})", fontsize=7)
        axes.set_xlabel(_label_text(record), fontsize=6.5)
    return figure


def mean_photo(dataset_dir: str | Path, user: User, limit: int = 500) -> npt.NDArray[np.uint8]:
    """The mean of a user's first `limit` photos, uint8 [256, 256, 3]; PhotoError where one is missing or broken."""
    chosen = user.records[:limit]
    total = sum((read_pixels(dataset_dir, record).data for record in chosen), np.zeros(PIXELS_SHAPE))
    return np.round(total / len(chosen)).astype(np.uint8)


def draw_mean_photos(dataset_dir: str | Path, users: Sequence[User]) -> Figure:
    """The mean photo of each user; of one whose photos cannot all be read, why."""
    figure, tiles = _tiles(len(users), "The mean photo of a user", COLUMNS, text_lines=1)
    for axes, user in zip(tiles, users, strict=True):
        try:
            axes.imshow(mean_photo(dataset_dir, user))
        except PhotoError as error:
            _say(axes, error)
        axes.set_title(user.user_id, fontsize=7)
        axes.set_xlabel(f"photos: {len(user.records):,}", fontsize=6.5)
    return figure


def _tiles(count: int, title: str, columns: int, text_lines: int) -> tuple[Figure, list[Axes]]:
    if count < 1:
        raise ValueError("expected at least one photo to show")
    columns = min(columns, count)
    rows = -(-count // columns)
    size = (_TILE * columns, (_TILE + 0.3 + 0.11 * text_lines) * rows + 0.4)
    figure = Figure(figsize=size, dpi=DOTS_PER_INCH, layout="constrained")
    figure.suptitle(title, fontsize=10)
    grid = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes in grid:
        axes.set(xticks=[], yticks=[])
    for axes in grid[count:]:
        axes.remove()
    return figure, grid[:count]


def _say(axes: Axes, error: PhotoError) -> None:
    text = textwrap.fill(plain(str(error), 1000), 28)
    axes.text(0.5, 0.5, text, ha="center", va="center", fontsize=6, transform=axes.transAxes)


def _label_text(record: Record) -> str:
    coarse = textwrap.wrap(", ".join(record.labels), 34, max_lines=2, placeholder=" …")
    fine = textwrap.wrap(f"({', '.join(record.fine_grained_labels)})", 34, max_lines=3, placeholder=" …)")
    return "\n".join(map(plain, [*coarse, *fine]))
