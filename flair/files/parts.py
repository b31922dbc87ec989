"""Saves the results of many tasks every few seconds, so that a killed run continues."""

from __future__ import annotations

import re
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flair.files.atomic import remove_leftovers
from flair.files.npy_file import map_rows, read_rows, write_rows

SAVE_INTERVAL_SECONDS = 5.0
_PART = re.compile(r"part-([0-9]{9})-([0-9]{9})\.npy")


class PartStore:
    """Rows of the first `done` tasks, in the tasks' order, in files `part-<first task>-<last task + 1>.npy`.

    The tasks must be the same in every run: name the folder after everything that decides them.

    Raises:
      FlairError: a part is damaged.
    """

    def __init__(self, folder: Path, dtype: np.dtype[Any]) -> None:
        self._folder, self._dtype = folder, dtype
        folder.mkdir(parents=True, exist_ok=True)
        remove_leftovers(folder)
        self._parts: list[Path] = []
        self.done = self.num_rows = 0
        found = ((path, _PART.fullmatch(path.name)) for path in folder.iterdir())
        for start, stop, path in sorted((int(match[1]), int(match[2]), path) for path, match in found if match):
            if start == self.done:
                self._parts.append(path)
                self.done = stop
                self.num_rows += len(map_rows(path, dtype))
        self._waiting: list[NDArray[Any]] = []
        self._first = self.done
        self._last_save = time.monotonic()

    def add(self, rows: NDArray[Any]) -> None:
        """Appends the rows of the next task."""
        self._waiting.append(rows)
        self.done += 1
        self.num_rows += len(rows)
        if time.monotonic() - self._last_save > SAVE_INTERVAL_SECONDS:
            self.save()

    def save(self) -> None:
        """Puts on disk what is only in memory."""
        if self.done > self._first:
            path = self._folder / f"part-{self._first:09d}-{self.done:09d}.npy"
            write_rows(path, np.concatenate(self._waiting).astype(self._dtype, copy=False))
            self._parts.append(path)
            self._waiting, self._first = [], self.done
        self._last_save = time.monotonic()

    def parts(self) -> list[NDArray[Any]]:
        """The rows, in the order of the tasks, as some arrays that are checked and stay on disk."""
        self.save()
        return [read_rows(path, self._dtype, mmap_mode="r") for path in self._parts]

    def rows(self) -> NDArray[Any]:
        """All rows, in the order of the tasks."""
        return np.concatenate([np.empty(0, self._dtype), *self.parts()])

    def discard(self) -> None:
        """Removes the folder."""
        shutil.rmtree(self._folder)
