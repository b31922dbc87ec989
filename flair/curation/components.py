"""Connected components of a graph of photos."""

from __future__ import annotations

from collections.abc import Iterable


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
