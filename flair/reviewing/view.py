"""What the templates of the review page show of a photo, a group, a list and a histogram."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from flair.curation.manifest import Testset
from flair.curation.reviews import NO_MARK, PHOTO_MARKS, Reviews
from flair.dataset.images import PIXELS_BYTES
from flair.reviewing.groups import Group, Groups, anchor, decisions
from flair.reviewing.index import PhotoIndex

MAX_GROUP_SHOWN = 24  # photos of a component side by side; the rest are a click away
NEIGHBORS_SHOWN = 30
SERIES = ("candidates", "reference", "wanted", "chosen")  # histograms of a label, five bins each
_NUM_BINS = 5
_MOST = 1 << 40  # photos in a bin


class Page(NamedTuple):
    """One page of a list; all numbers count from 1."""

    number: int
    num_pages: int
    first: int
    last: int
    total: int


def page_of(total: int, size: int, number: str) -> Page:
    """The page that an address asks for, or the nearest there is.

    >>> page_of(429_078, 200, "2146")
    Page(number=2146, num_pages=2146, first=429001, last=429078, total=429078)
    """
    num_pages = max(1, -(-total // size))
    wanted = int(number[:9]) if number.isascii() and number.isdecimal() else 1
    wanted = min(max(wanted, 1), num_pages)
    return Page(wanted, num_pages, (wanted - 1) * size + 1, min(wanted * size, total), total)


def card(index: PhotoIndex, groups: Groups, marks: Reviews, row: int) -> dict[str, Any]:
    """A photo in the list."""
    record = index.records[row]
    group = groups.group_of(record.image_id)
    return {
        "record": record,
        "mark": marks.photo_mark(record.image_id),
        "num_twins": 0 if group is None or not group.called else len(group.members) - 1,
    }


def mark_counts(index: PhotoIndex, marks: Reviews, rows: np.ndarray) -> dict[str, int]:
    """How many of the photos `rows` have each mark."""
    shown = np.zeros(len(index.records), bool)
    shown[rows] = True
    counts = {mark: int(shown[index.rows_of(marks.photos_marked(mark))].sum()) for mark in PHOTO_MARKS[:-1]}
    return {**counts, NO_MARK: len(rows) - sum(counts.values())}


def group_view(index: PhotoIndex, groups: Groups, marks: Reviews, group: Group, limit: int | None) -> dict[str, Any]:
    """A group, its photos from the anchor on by distance; `limit` of them."""
    first = anchor(group, marks)
    state = decisions(group, marks)
    others = [name for name in group.members if name != first]
    others.sort(key=lambda name: min(groups.between(first, name).values(), default=float("inf")))
    shown = [first, *others][:limit]
    records = [record for record in map(index.record, group.members) if record is not None]
    return {
        "called": group.called,
        "members": group.members,
        "anchor": first,
        "cards": [
            {
                "record": index.record(name),
                "mark": marks.photo_mark(name),
                "decision": state.get(name),
                "distances": distances(groups.between(first, name)),
            }
            for name in shown
        ],
        "num_hidden": len(group.members) - len(shown),
        "num_open": sum(mark == NO_MARK for mark in state.values()),
        "partitions": dict(Counter(record.partition for record in records)),
        "num_users": len({record.user_id for record in records}),
        "span": span(index, group),
    }


def span(index: PhotoIndex, group: Group) -> str:
    """Whether a group spans `partitions`, `users` of one partition, or is of one `user`."""
    records = [record for record in map(index.record, group.members) if record is not None]
    if len({record.partition for record in records}) > 1:
        return "partitions"
    return "users" if len({record.user_id for record in records}) > 1 else "user"


def distances(values: Mapping[str, float]) -> list[tuple[str, str, str]]:
    """Metric, distance, and what it means, as text.

    >>> distances({"l2": 1.2e8, "dssim": 0.2205})
    [('l2', '1.2e+08', 'RMS 24.7 of 255'), ('dssim', '0.221', 'SSIM 0.559')]
    """
    rows = []
    for metric, value in values.items():
        meaning = ""
        if metric == "l2":
            meaning = f"RMS {(max(value, 0.0) / PIXELS_BYTES) ** 0.5:.1f} of 255"
        elif metric == "dssim":
            meaning = f"SSIM {1 - 2 * value:.3f}"
        elif metric == "alignment":
            meaning = f"as a crop, detail correlates {1 - value:.3f}"
        rows.append((metric, f"{value:.3g}", meaning))
    return rows


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
