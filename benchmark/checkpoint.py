"""Checkpoints of a run: named arrays and a small JSON state in one .npz file, atomic, the last few kept."""

from __future__ import annotations

import json
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from flair import atomic
from flair.errors import FlairError

_STATE = "state.json"
_PATTERN = "checkpoint-*.npz"


class Checkpoint(NamedTuple):
    """What was saved: `arrays` by name and `state`, any JSON value."""

    step: int
    arrays: dict[str, np.ndarray]
    state: Any


class Checkpoints:
    """Checkpoints in one folder, named by their step, the newest `keep` of them kept."""

    def __init__(self, folder: str | Path, keep: int = 2) -> None:
        self.folder, self.keep = Path(folder), keep

    def save(self, step: int, arrays: Mapping[str, np.ndarray], state: Any) -> Path:
        """Writes a checkpoint whole or not at all, then removes those older than the newest `keep`."""
        path = self.folder / f"checkpoint-{step:010d}.npz"
        encoded = np.frombuffer(json.dumps(state).encode(), np.uint8)
        with atomic.replacing(path) as temporary, open(temporary, "wb") as file:
            np.savez(file, **{_STATE: encoded}, **{f"array/{name}": value for name, value in arrays.items()})
        for old in self._paths()[: -self.keep]:
            old.unlink()
        return path

    def latest(self) -> Checkpoint | None:
        """The newest checkpoint that can be read; a damaged one is named on stderr and the one before it is taken.

        Raises:
          FlairError: there are checkpoints, but not one can be read.
        """
        atomic.remove_leftovers(self.folder, ".checkpoint-*.tmp")
        paths = self._paths()
        for path in reversed(paths):
            try:
                return _read(path)
            except (OSError, ValueError, KeyError, zipfile.BadZipFile, EOFError) as error:
                print(f"{path}: damaged ({error}); trying the checkpoint before it", file=sys.stderr)
        if paths:
            raise FlairError(f"{self.folder}: no checkpoint can be read; delete the folder to start over")
        return None

    def _paths(self) -> list[Path]:
        return sorted(self.folder.glob(_PATTERN))


def _read(path: Path) -> Checkpoint:
    with open(path, "rb") as opened, np.load(opened, allow_pickle=False) as file:
        state = json.loads(file[_STATE].tobytes())
        arrays = {name.removeprefix("array/"): file[name] for name in file.files if name != _STATE}
    return Checkpoint(int(path.stem.removeprefix("checkpoint-")), arrays, state)
