"""The histograms of a test set's manifest as the review page draws them: four a label, five bins each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from flair.curation.manifest import Testset

SERIES = ("candidates", "reference", "wanted", "chosen")
_NUM_BINS = 5
_MOST = 1 << 40


class Bars(NamedTuple):
    """Photos of one label in five bins, and each as a height from 0 to 100, 100 being all of them."""

    counts: list[int]
    heights: list[float]


def histograms(testset: Testset | None) -> list[tuple[str, dict[str, Bars]]]:
    """Label and bars by series, in the order of the manifest; what is no histogram in it is left out.

    >>> testset = Testset("b-0", "test", (), histogram={"cat": {"wanted": [0, 1, 0, 0, 3]}})
    >>> histograms(testset)[0][1]["wanted"].heights
    [0.0, 25.0, 0.0, 0.0, 75.0]
    """
    found = []
    for label, series in ({} if testset is None else testset.histogram).items():
        bars = {name: _bars(series[name]) for name in SERIES if name in series} if isinstance(series, Mapping) else {}
        known = {name: one for name, one in bars.items() if one is not None}
        if known:
            found.append((label, known))
    return found


def _bars(counts: Any) -> Bars | None:
    if not isinstance(counts, Sequence) or len(counts) != _NUM_BINS:
        return None
    if not all(type(count) is int and 0 <= count < _MOST for count in counts):
        return None
    total = max(sum(counts), 1)
    return Bars(list(counts), [round(100 * count / total, 1) for count in counts])
