"""Text tables: lines whose cells stand under each other, names to the left and numbers to the right."""

from __future__ import annotations

import re
from collections.abc import Sequence

_WIDTH = re.compile(r"[<>][0-9]+")


class Columns:
    """The columns of a table, each a format of Python's for its numbers: "<20" for names, ">9,.1f" for numbers.

    >>> columns = Columns("<8", ">8,", ">7.1%")
    >>> for cells in (("label", "photos", "share"), ("dog", 14_102, 0.0329), ("yeti", 0, None)):
    ...     print(columns.line(*cells))
    label     photos  share
    dog       14,102   3.3%
    yeti           0      -
    """

    def __init__(self, *formats: str, gap: str = "") -> None:
        self._formats, self._gap = formats, gap

    def line(self, *cells: str | float | None) -> str:
        """One line; a text stands as it is, which is for headers and for cells of a kind of their own, None as "-"."""
        return self._gap.join(_aligned(cell, form) for cell, form in zip(cells, self._formats, strict=True))


def fitted(lines: Sequence[Sequence[str]]) -> str:
    """A table with columns as wide as their longest cells; all but the first one stand to the right.

    >>> print(fitted([["settings", "AP"], ["lr=0.1", "0.5121"]]))
    settings      AP
    lr=0.1    0.5121
    """
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    columns = Columns(*(f"{'>' if number else '<'}{width}" for number, width in enumerate(widths)), gap="  ")
    return "\n".join(columns.line(*line) for line in lines)


def _aligned(cell: str | float | None, form: str) -> str:
    if cell is None or isinstance(cell, str):
        # The rest of the format is for numbers, and an error for a text.
        form = _WIDTH.match(form)[0]  # type: ignore[index]
    return format("-" if cell is None else cell, form)
