"""Near duplicates as the review page shows them: groups of photos, their distances, and what was decided."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from flair.curation.exclusion import NEAR_DUPLICATES_FILE, NEIGHBORS_FILE, connected_components, read_exclusion
from flair.curation.reviews import NO_MARK, Pair, PairChange, Reviews, pair
from flair.dataset.metadata import check_id
from flair.errors import FlairError
from flair.files import json_text
from flair.reviewing.index import PhotoIndex

# ImageNetV2's thresholds below which a pair is to be looked at (https://arxiv.org/abs/1902.10811, appendix).
# Of alignment the audit lists only what is to be looked at.
REVIEW_THRESHOLDS = {"l2": 1.2e8, "dssim": 0.2205, "alignment": 2.0}

Distances = Mapping[Pair, Mapping[str, float]]


class Group(NamedTuple):
    """Photos to compare, at least two. `called` tells that they were found to be near duplicates, not only similar."""

    members: tuple[str, ...]
    called: bool


class Groups:
    """All groups, those called near duplicates first, and the distances of pairs by metric."""

    def __init__(self, groups: Iterable[Group] = (), distances: Distances | None = None) -> None:
        self.groups = tuple(groups)
        self.distances: Distances = distances or {}
        self._neighbors: dict[str, list[str]] = {}
        for one, other in self.distances:
            self._neighbors.setdefault(one, []).append(other)
            self._neighbors.setdefault(other, []).append(one)
        self._group_of = {name: group for group in reversed(self.groups) for name in group.members}

    def neighbors(self, image_id: str) -> dict[str, Mapping[str, float]]:
        """The photos that `image_id` was compared with, nearest first, and their distances by metric."""
        found = {other: self.distances[pair(image_id, other)] for other in self._neighbors.get(image_id, ())}
        return dict(sorted(found.items(), key=lambda item: (item[1].get("l2", math.inf), min(item[1].values()))))

    def between(self, one: str, other: str) -> Mapping[str, float]:
        """The distances of two photos by metric; empty where they were not compared."""
        return self.distances.get(pair(one, other), {})

    def group_of(self, image_id: str) -> Group | None:
        """The first group that a photo is in, or None."""
        return self._group_of.get(image_id)

    def near_duplicates(self) -> frozenset[str]:
        """All photos of groups that were called near duplicates."""
        return frozenset(name for group in self.groups if group.called for name in group.members)


NO_GROUPS = Groups()


def read_groups(folder: str | Path, index: PhotoIndex) -> Groups:
    """Reads what `flair.near_duplicates --output_dir` wrote; photos that are not in the dataset are left out.

    Raises:
      FlairError: a file is missing or malformed, or none of its photos is in the dataset.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FlairError(f"--duplicates={folder}: no such directory; make it with python -m flair.near_duplicates")
    exclusion = read_exclusion(folder / NEAR_DUPLICATES_FILE)
    found = read_neighbors(folder / NEIGHBORS_FILE)
    distances = {key: values for key, values in found.items() if key[0] in index and key[1] in index}
    if exclusion.ids and not any(image_id in index for image_id in exclusion.ids):
        raise FlairError(f"--duplicates={folder}: none of its photos is in the dataset; expected those found in it")
    called = [Group(tuple(sorted(name for name in group if name in index)), True) for group in exclusion.components]
    near = (
        (one, other)
        for (one, other), values in distances.items()
        if any(values.get(metric, math.inf) <= threshold for metric, threshold in REVIEW_THRESHOLDS.items())
        and other not in exclusion.component_of(one)
    )
    similar = sorted(near, key=lambda key: (distances[key].get("l2", math.inf), key))
    groups = [group for group in called if len(group.members) > 1] + [Group(key, False) for key in similar]
    return Groups(groups, distances)


def read_neighbors(path: Path) -> dict[Pair, dict[str, float]]:
    """Distances of all pairs of `neighbors.json`, {image_id: {metric: [[other, distance], ...]}}.

    Raises:
      FlairError: the file is missing or malformed.
    """
    expected = "expected the neighbors.json that python -m flair.near_duplicates wrote"
    distances: dict[Pair, dict[str, float]] = {}
    try:
        content = json_text.read(path)
        for image_id, metrics in content.items():
            check_id(image_id, "image id", str(path))
            for metric, found in metrics.items():
                for other, distance in found:
                    key = pair(image_id, check_id(other, "image id", str(path)))
                    distances.setdefault(key, {})[metric] = _finite(distance)
    except FileNotFoundError:
        raise FlairError(f"{path}: no such file; {expected}") from None
    except json_text.BadJson as error:
        raise FlairError(f"{path}: cannot be read: {error}; {expected}") from None
    except (ValueError, TypeError, AttributeError, OverflowError):
        raise FlairError(f"{path}: is no list of neighbors; {expected}") from None
    return distances


def anchor(group: Group, reviews: Reviews) -> str:
    """The photo that the others are compared with: the first about which something is decided, else the first.

    So a photo that joins a reviewed group is one more decision, whatever its id.
    """
    marked = {image_id for key in _marked_pairs(group, reviews) for image_id in key}
    return next((image_id for image_id in group.members if image_id in marked), group.members[0])


def decisions(group: Group, reviews: Reviews) -> dict[str, str]:
    """For each photo except the anchor: `duplicate` of it, `not`, or `none` where nothing is decided.

    A duplicate of a duplicate is a duplicate of both; a photo that is not a duplicate of one is not one of the others.
    """
    first = anchor(group, reviews)
    marked = _marked_pairs(group, reviews)
    edges = [key for key, mark in marked.items() if mark == "duplicate"]
    same = next((found for found in connected_components(edges) if first in found), frozenset([first]))
    apart = {image_id for key, mark in marked.items() if mark == "not" and not same.isdisjoint(key) for image_id in key}
    state = {name: "duplicate" if name in same else "not" if name in apart else NO_MARK for name in group.members}
    del state[first]
    return state


def is_decided(group: Group, reviews: Reviews) -> bool:
    """Whether nothing is left to decide."""
    return NO_MARK not in decisions(group, reviews).values()


def decide(group: Group, image_id: str, mark: str, reviews: Reviews) -> list[PairChange]:
    """What changes when a photo of a group is marked.

    `not`: it is not a duplicate of any other photo. `duplicate`: it is one of the anchor, and so not one of the photos
    that are not duplicates of the anchor. A mark of the anchor itself is for its pairs with all others.
    """
    first = anchor(group, reviews)
    state = decisions(group, reviews)
    others = [name for name in group.members if name != image_id]
    if mark != "duplicate" or image_id == first:
        return [PairChange(pair(image_id, other), mark) for other in others]
    changes = [PairChange(pair(image_id, first), mark)]
    for other in others:
        if other != first:
            wanted = "not" if state[other] == "not" else NO_MARK
            if reviews.pair_mark(image_id, other) not in (wanted, "duplicate"):
                changes.append(PairChange(pair(image_id, other), wanted))
    return changes


def _marked_pairs(group: Group, reviews: Reviews) -> dict[Pair, str]:
    """The pairs of a group that have a mark."""
    num_pairs = len(group.members) * (len(group.members) - 1) // 2
    keys: Iterable[Pair]
    if num_pairs < len(reviews.pairs):
        keys = (pair(*key) for key in itertools.combinations(group.members, 2))
    else:  # of thousands of photos there are millions of pairs
        members = frozenset(group.members)
        keys = (key for key in reviews.pairs if members.issuperset(key))
    return {key: mark for key in keys if (mark := reviews.pair_mark(*key)) != NO_MARK}


def _finite(value: float) -> float:
    if not math.isfinite(value):
        raise ValueError
    return float(value)
