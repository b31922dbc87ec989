"""Arrays on disk in the making, which a later process continues where a killed one stopped."""

from __future__ import annotations

import math
import os
import re
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flair.errors import FlairError
from flair.files import atomic, checked_json, npy_file, regular_file
from flair.files.json_text import BadJson

SAVE_INTERVAL_SECONDS = 5.0
_DONE_FILE = "done.json"
_PART = re.compile(r"part-([0-9]{9})-([0-9]{9})\.npy")


class GrowingArrays:
    """.npy files of equally many rows in a folder of their own, in the making.

    Args:
      folder: for the files; it goes when the work is `taken`.
      arrays: file name -> dtype and shape; the first number of all shapes is the same.
      facts: what the rows are made from, as JSON. With the same facts the rows of an earlier process are kept, unless a
        byte of them has changed: then one line says so, and all are made anew.

    Attributes:
      num_done: rows that are written; start there.
      checksums: CRC-32C of the rows of each file, in the order of `arrays`.
    """

    def __init__(
        self, folder: Path, arrays: Mapping[str, tuple[np.dtype[Any], tuple[int, ...]]], facts: Mapping[str, Any]
    ) -> None:
        self._folder, self._kinds, self._facts = folder, dict(arrays), dict(facts)
        self.num_done, self.checksums = 0, [0] * len(arrays)
        try:
            self._resume()
        except (BadJson, npy_file.BadNpy, FlairError) as error:
            print(f"{folder}: is damaged ({error}); what it holds is made anew", file=sys.stderr)
        if self.num_done == 0:
            atomic.remove(folder)
            folder.mkdir(parents=True)
        self._arrays = [self._map(folder / name, dtype, shape) for name, (dtype, shape) in arrays.items()]
        self._saved = time.monotonic()

    @property
    def num_rows(self) -> int:
        """Rows that there will be."""
        return len(self._arrays[0])

    def add(self, *rows: NDArray[Any]) -> None:
        """Writes the next rows of every array."""
        part = slice(self.num_done, self.num_done + len(rows[0]))
        for array, new in zip(self._arrays, rows, strict=True):
            array[part] = new
        written = zip(self._arrays, self.checksums, strict=True)
        self.checksums = [npy_file.crc32c(array[part], before) for array, before in written]
        self.num_done = part.stop
        if time.monotonic() - self._saved >= SAVE_INTERVAL_SECONDS:
            self.save()

    def save(self) -> None:
        """Makes what is written so far outlive this process."""
        for array in self._arrays:
            array.flush()
        done = {"facts": self._facts, "rows": self.num_done, "crc32c_of_files": self.checksums}
        checked_json.write(self._folder / _DONE_FILE, done)
        self._saved = time.monotonic()

    def finish(self) -> Sequence[Path]:
        """The files, complete and on disk, to be moved to where they belong; then call `taken`."""
        if self.num_done != self.num_rows:
            raise ValueError(f"{self.num_done} of {self.num_rows} rows are made")
        self.save()
        self._arrays.clear()
        return [self._folder / name for name in self._kinds]

    def taken(self) -> None:
        """Removes the folder."""
        shutil.rmtree(self._folder)

    def _map(self, path: Path, dtype: np.dtype[Any], shape: tuple[int, ...]) -> np.memmap[Any, Any]:
        if not self.num_done:
            size = math.prod(shape) * dtype.itemsize
            header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
            with open(path, "wb") as file:
                np.lib.format.write_array_header_1_0(file, header)
                file.flush()
                # A page that a full disk has no room for would end the process by a signal when it is written to.
                if size:
                    os.posix_fallocate(file.fileno(), file.tell(), size)
        return np.lib.format.open_memmap(path, "r+")

    def _resume(self) -> None:
        """Finds how many rows are done, and that what is there of them is what was written."""
        try:
            state = checked_json.parse(regular_file.read_bytes(self._folder / _DONE_FILE))
            if not isinstance(state, dict) or type(state.get("rows")) is not int:
                raise BadJson(f"{_DONE_FILE} does not say how many rows are done")
            if state.get("facts") != self._facts:
                return
            arrays = [
                npy_file.map_array(self._folder / name, [dtype], len(shape))
                for name, (dtype, shape) in self._kinds.items()
            ]
        except (FileNotFoundError, NotADirectoryError):
            return
        count = state["rows"]
        shapes = [array.shape for array in arrays]
        if shapes != [shape for _, shape in self._kinds.values()] or not 0 <= count <= shapes[0][0]:
            raise npy_file.BadNpy(f"its arrays have the shapes {', '.join(map(str, shapes))}")
        checksums = [npy_file.crc32c(array[:count]) for array in arrays]
        if state.get("crc32c_of_files") != checksums:
            raise npy_file.BadNpy("its checksums differ")
        self.num_done, self.checksums = count, checksums


class PartStore:
    """Rows of the first `done` tasks, in the tasks' order, in files `part-<first task>-<last task + 1>.npy`.

    The tasks must be the same in every run: name the folder after everything that decides them. A damaged part is a
    FlairError.
    """

    def __init__(self, folder: Path, dtype: np.dtype[Any]) -> None:
        self._folder, self._dtype = folder, dtype
        folder.mkdir(parents=True, exist_ok=True)
        atomic.remove_leftovers(folder)
        self._parts: list[Path] = []
        self.done = self.num_rows = 0
        found = ((path, _PART.fullmatch(path.name)) for path in folder.iterdir())
        for start, stop, path in sorted((int(match[1]), int(match[2]), path) for path, match in found if match):
            if start == self.done:
                self._parts.append(path)
                self.done = stop
                self.num_rows += len(npy_file.map_rows(path, dtype))
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
            npy_file.write_rows(path, np.concatenate(self._waiting).astype(self._dtype, copy=False))
            self._parts.append(path)
            self._waiting, self._first = [], self.done
        self._last_save = time.monotonic()

    def parts(self) -> list[NDArray[Any]]:
        """The rows, in the order of the tasks, as some arrays that are checked and stay on disk."""
        self.save()
        return [npy_file.read_rows(path, self._dtype, mmap_mode="r") for path in self._parts]

    def rows(self) -> NDArray[Any]:
        """All rows, in the order of the tasks."""
        return np.concatenate([np.empty(0, self._dtype), *self.parts()])

    def discard(self) -> None:
        """Removes the folder."""
        shutil.rmtree(self._folder)
