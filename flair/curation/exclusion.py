"""Photos that leave a partition: a list of ids, or the near duplicates that `python -m flair.near_duplicates` found."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from flair.dataset.catalog import PARTITIONS
from flair.dataset.metadata import User, check_id
from flair.errors import FlairError
from flair.files import json_text, regular_file

TRAINING_PARTITION = "train"
# What `python -m flair.near_duplicates` writes: who is a near duplicate of whom, and the distances of pairs.
NEAR_DUPLICATES_FILE = "near_duplicates.json"
NEIGHBORS_FILE = "neighbors.json"


class Exclusion:
    """Which photos leave; made by `read_exclusion`.

    Attributes:
      listed: ids that leave whatever their partition.
      components: groups of near duplicates, of two or more ids each, disjoint, in order of their first id.
    """

    def __init__(self, listed: Iterable[str] = (), components: Iterable[Collection[str]] = ()) -> None:
        self.listed = frozenset(listed)
        groups = (frozenset(component) for component in components)
        self.components = tuple(sorted((group for group in groups if len(group) > 1), key=min))

    def leaving(self, ids: Collection[str], partition: str) -> frozenset[str]:
        """Those of `ids`, all photos of `partition`, that leave it.

        Listed ids leave. Of a component wholly inside the partition all leave but the first in sorted order. A
        component that has a photo elsewhere leaves val and test altogether; train keeps its photos.

        >>> twins = Exclusion(components=[{"1", "2"}, {"3", "4", "5"}])
        >>> sorted(twins.leaving({"1", "2", "3", "9"}, "test"))
        ['2', '3']
        >>> sorted(twins.leaving({"1", "2", "3", "9"}, "train"))
        ['2']

        Raises:
          ValueError: there is no such partition.
        """
        if partition not in PARTITIONS:
            raise ValueError(f"partition {partition!r}: expected one of {', '.join(PARTITIONS)}")
        inside = ids if isinstance(ids, (set, frozenset, dict)) else frozenset(ids)
        leaving = {image_id for image_id in self.listed if image_id in inside}
        for component in self.components:
            members = sorted(image_id for image_id in component if image_id in inside)
            if len(members) == len(component):
                leaving.update(members[1:])
            elif partition != TRAINING_PARTITION:
                leaving.update(members)
        return frozenset(leaving)

    def component_of(self, image_id: str) -> frozenset[str]:
        """The near duplicates of `image_id` and itself; itself alone where it has none."""
        return self._component_of.get(image_id, frozenset([image_id]))

    @property
    def ids(self) -> frozenset[str]:
        """Every id named."""
        return self.listed.union(*self.components)

    @property
    def digest(self) -> str:
        """SHA-256, in hexadecimal, of what is excluded; the order and spacing of the file do not matter."""
        content = [sorted(self.listed), [sorted(component) for component in self.components]]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    @cached_property
    def _component_of(self) -> dict[str, frozenset[str]]:
        return {image_id: component for component in self.components for image_id in component}


def connected_components(edges: Iterable[tuple[str, str]]) -> list[frozenset[str]]:
    """Groups of ids connected by `edges`, in order of their first id; an edge from an id to itself names it only.

    >>> [sorted(component) for component in connected_components([("b", "c"), ("d", "a"), ("c", "e")])]
    [['a', 'd'], ['b', 'c', 'e']]
    """
    parent: dict[str, str] = {}

    def root(image_id: str) -> str:
        parent.setdefault(image_id, image_id)
        while parent[image_id] != image_id:
            parent[image_id] = parent[parent[image_id]]
            image_id = parent[image_id]
        return image_id

    for one, other in edges:
        first, second = sorted((root(one), root(other)))
        parent[second] = first
    members: dict[str, set[str]] = {}
    for image_id in list(parent):
        members.setdefault(root(image_id), set()).add(image_id)
    return sorted((frozenset(component) for component in members.values()), key=min)


def remaining_users(users: Iterable[User], exclusion: Exclusion) -> list[User]:
    """The users without the photos that leave their partitions; a user with none left is left out.

    Args:
      users: all users of the dataset, so that it is known where the photos of a component are.
      exclusion: which photos leave.

    Raises:
      FlairError: ids are named, and none of them is in the dataset; or a partition has no photo left.
    """
    users = list(users)
    ids: dict[str, set[str]] = {user.partition: set() for user in users}
    for user in users:
        ids[user.partition].update(record.image_id for record in user.records)
    if exclusion.ids and exclusion.ids.isdisjoint(set().union(*ids.values())):
        raise FlairError(
            f"--exclude: none of its {len(exclusion.ids):,} images is in the dataset; expected a file made for it"
        )
    leaving = {partition: exclusion.leaving(inside, partition) for partition, inside in ids.items()}
    for partition, inside in ids.items():
        if len(leaving[partition]) == len(inside):
            raise FlairError(
                f"--exclude: all {len(inside):,} photos of {partition} leave; expected one to stay at least"
            )
    remaining = []
    for user in users:
        records = tuple(record for record in user.records if record.image_id not in leaving[user.partition])
        if records:
            remaining.append(user._replace(records=records))
    return remaining


def read_exclusion(path: str | Path) -> Exclusion:
    """Reads a JSON list of image ids, or `near_duplicates.json`: {image_id: [ids it is a near duplicate of]}.

    Near duplicates are joined into connected components: it is enough that one of two names the other.

    Raises:
      FlairError: the file is missing, is neither of the two, or holds something that is not an id; one line naming it.
    """
    if Path(path).is_dir():
        raise FlairError(f"{path}: is a directory; expected a file, such as {Path(path) / NEAR_DUPLICATES_FILE}")
    try:
        content = json_text.parse(regular_file.read_bytes(path))
    except FileNotFoundError:
        raise FlairError(
            f"{path}: no such file; expected a JSON list of image ids, or the near_duplicates.json that "
            "python -m flair.near_duplicates writes"
        ) from None
    except json_text.BadJson as error:
        raise FlairError(f"{path}: cannot be read: {error}; mend it or make it again") from None
    if isinstance(content, dict):
        return Exclusion(components=connected_components(_edges(content, path)))
    if isinstance(content, list):
        return Exclusion(listed=[_id(item, f"{path}, item {index}") for index, item in enumerate(content)])
    raise FlairError(
        f"{path}: expected a list of image ids, or an object {{image_id: [other ids]}}, found {_kind(content)}"
    )


def _edges(content: Mapping[str, Any], path: str | Path) -> list[tuple[str, str]]:
    edges = []
    for key, others in content.items():
        image_id = _id(key, str(path))
        if not isinstance(others, list):
            raise FlairError(f"{path}, image {image_id}: expected a list of its near duplicates, found {_kind(others)}")
        edges += [(image_id, _id(other, f"{path}, image {image_id}")) for other in others]
    return edges


def _id(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise FlairError(f"{where}: expected an image id in quotes, found {_kind(value)}")
    return check_id(value, "image id", where)


def _kind(value: Any) -> str:
    kinds = {dict: "an object", list: "a list", str: f"the text {value!r:.60}", type(None): "null"}
    return kinds.get(type(value), f"{value!r:.60}")
