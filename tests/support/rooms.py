"""Reads the rooms of the packages, and the arrows between them, from the imports of their files."""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

PACKAGES = ("flair", "benchmark")
DOORS = "doors"


class Arrow(NamedTuple):
    """One import of one module by another; it counts wherever it stands, in a function or for types only."""

    importer: str
    imported: str


class File(NamedTuple):
    """What the text of a file says: the names in its `__all__`, and its imports."""

    front: list[str]
    imports: list[ast.Import | ast.ImportFrom]


class House:
    """The modules below a root folder.

    Attributes:
      modules: dotted names; a package goes by its own name.
      rooms: packages below the top ones; `flair.records.tfrecord` lies in `flair.records` and is a room of its own.
      arrows: every import of one module by another.
      fronts: room -> names of the modules, or of what its `__init__` has, that other rooms may import.
    """

    def __init__(self, root: Path) -> None:
        found = [path for package in PACKAGES for path in sorted(root.glob(f"{package}/**/*.py"))]
        paths = {_name(path.relative_to(root)): path for path in (*found, *sorted(root.glob("*.py")))}
        files = {name: _read(path.read_text(encoding="utf-8")) for name, path in paths.items()}
        self.modules = set(files)
        self.rooms = {name for name, path in paths.items() if path.name == "__init__.py" and name not in PACKAGES}
        self.fronts = {room: set(files[room].front) for room in self.rooms}
        self.arrows = {
            Arrow(name, imported)
            for name, file in files.items()
            for imported in _imports(file.imports, self.modules)
            if imported != name
        }

    def room(self, module: str) -> str:
        """The room of a module, or `flair.doors` and `benchmark.doors`; what every file needs is in `flair` itself."""
        if module in self.rooms:
            return module
        if module in (*PACKAGES, "flair.errors"):
            return module.partition(".")[0]
        parent = module.rpartition(".")[0]
        if not parent:  # a script of the repository's root
            return DOORS
        return parent if parent in self.rooms else f"{parent}.{DOORS}"

    def arrows_between_rooms(self) -> dict[str, set[str]]:
        """Room -> rooms that it imports."""
        found: dict[str, set[str]] = {}
        for importer, imported in self.arrows:
            pair = self.room(importer), self.room(imported)
            if pair[0] != pair[1] and pair[1] != "flair":
                found.setdefault(pair[0], set()).add(pair[1])
        return found

    def bypasses(self) -> set[Arrow]:
        """Imports of what a room does not name in its `__all__`, from outside of the room."""
        return {
            arrow
            for arrow in self.arrows
            if (room := self.room(arrow.imported)) in self.rooms
            and arrow.imported not in self.rooms
            and self.room(arrow.importer) != room
            and arrow.imported.rpartition(".")[2] not in self.fronts[room]
        }

    def unused_fronts(self) -> set[str]:
        """Names in a room's `__all__` that nobody outside of the room imports."""
        wanted = {arrow.imported for arrow in self.arrows if self.room(arrow.importer) != self.room(arrow.imported)}
        return {f"{room}.{name}" for room, names in self.fronts.items() for name in names} - wanted

    def circles(self) -> list[list[str]]:
        """Groups of files, or of rooms, in which each leads back to itself; both go by their names."""
        of_files = _circles({name: {a.imported for a in self.arrows if a.importer == name} for name in self.modules})
        return of_files + _circles(self.arrows_between_rooms())


def _name(path: Path) -> str:
    parts = path.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@functools.cache  # houses with a planted fault differ in a file or two
def _read(text: str) -> File:
    tree = ast.parse(text)
    return File(_all(tree), [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)])


def _all(tree: ast.Module) -> list[str]:
    for node in tree.body:
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == "__all__" for t in node.targets):
            return [str(name) for name in ast.literal_eval(node.value)]
    return []


def _imports(nodes: Iterable[ast.Import | ast.ImportFrom], modules: set[str]) -> Iterator[str]:
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (name for alias in node.names if (name := alias.name) in modules)
        elif node.level > 0:
            raise ValueError("a relative import, which this reader of arrows does not follow; write the whole name")
        elif node.module in modules:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in modules else str(node.module)


def _circles(graph: Mapping[str, Iterable[str]]) -> list[list[str]]:
    """Strongly connected parts of more than one node (Tarjan 1972)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for other in graph.get(node, ()):
            if other not in index:
                visit(other)
                low[node] = min(low[node], low[other])
            elif other in stack:
                low[node] = min(low[node], index[other])
        if low[node] == index[node]:
            part = stack[stack.index(node) :]
            del stack[stack.index(node) :]
            if len(part) > 1:
                found.append(sorted(part))

    for node in graph:
        if node not in index:
            visit(node)
    return found
