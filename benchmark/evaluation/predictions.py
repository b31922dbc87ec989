"""Files of predictions: written while they are made, continued, and compared.

A folder holds, for one model on one set of photos:
predictions.npy  float32 [photos, outputs], the scores from 0 to 1
losses.npy       float32 [photos], the binary cross-entropy of each photo
made_from.json   digests of the model, the records and the photos, and the CRC-32C of the two files above
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmark.run.shapes import misfit
from flair.errors import FlairError
from flair.files import checked_json, npy_file, regular_file
from flair.files.json_text import BadJson

SCORES_FILE, LOSSES_FILE, FACTS_FILE = "predictions.npy", "losses.npy", "made_from.json"
_UNFINISHED, _DONE_FILE = "unfinished", "done.json"
_CHECKSUMS = "crc32c_of_files"
_OLDER_FACTS = {"model": str, "records": str, "photos": str}
_FLOAT32 = np.dtype("<f4")
_SECONDS_PER_SAVE = 5.0
_ROWS_AT_ONCE = 4096


class Predictions:
    """Finished predictions, memory-mapped: `scores` float32 [photos, outputs], `losses` float32 [photos].

    Raises:
      BadNpy, BadJson: a file is damaged, or the files do not belong together.
      FlairError: there is something else than a file.
      FileNotFoundError: there are no predictions.
    """

    def __init__(self, folder: Path) -> None:
        data = regular_file.read_bytes(folder / FACTS_FILE)
        facts = checked_json.parse(data)
        reason = misfit(facts, {} if checked_json.is_checked(data) else _OLDER_FACTS)
        if reason is not None:
            raise BadJson(f"{FACTS_FILE}: {reason}")
        checksums = facts.pop(_CHECKSUMS, None)  # None: of an older version
        self.facts: dict[str, Any] = facts
        self.scores, self.losses = _map_arrays(folder)
        if len(self.losses) != len(self.scores):
            raise npy_file.BadNpy("scores and losses are not of the same photos")
        if checksums not in (None, [npy_file.crc32c(self.scores), npy_file.crc32c(self.losses)]):
            raise npy_file.BadNpy("their checksums differ")


def open_predictions(folder: Path) -> Predictions | None:
    """What a finished evaluation left in `folder`; None where there is nothing, or nothing whole.

    Raises:
      FlairError: the files are damaged.
    """
    if not os.path.lexists(folder / FACTS_FILE):
        return None
    try:
        return Predictions(folder)
    except (BadJson, npy_file.BadNpy, FlairError, FileNotFoundError) as error:
        raise FlairError(f"{folder}: its predictions are damaged ({error}); delete the folder") from None


class PredictionWriter:
    """Predictions in the making.

    Args:
      folder: where they will be.
      shape: (photos, outputs).
      facts: what they are made from; with the same facts an interrupted process is continued, unless a byte of what it
        left has changed: then one line says so, and all is made anew.

    Attributes:
      num_done: photos that are written; start there.
    """

    def __init__(self, folder: Path, shape: tuple[int, int], facts: Mapping[str, Any]) -> None:
        self._folder, self._facts, self._shape = folder, dict(facts), shape
        self._unfinished = folder / _UNFINISHED
        self.num_done, self._checksums = 0, [0, 0]  # of the rows that are done, of scores and losses
        try:
            self._resume()
        except (BadJson, npy_file.BadNpy, FlairError) as error:
            print(f"{self._unfinished}: is damaged ({error}); its predictions are made anew", file=sys.stderr)
        if self.num_done == 0:
            _remove(self._unfinished)
            self._unfinished.mkdir(parents=True)
        mode = "r+" if self.num_done else "w+"
        self._scores, self._losses = (
            np.lib.format.open_memmap(self._unfinished / name, mode, np.float32, of)
            for name, of in ((SCORES_FILE, shape), (LOSSES_FILE, shape[:1]))
        )
        self._saved = time.monotonic()

    def add(self, scores: np.ndarray, losses: np.ndarray) -> None:
        """Writes the next photos."""
        end = self.num_done + len(scores)
        self._scores[self.num_done : end], self._losses[self.num_done : end] = scores, losses
        new = (self._scores[self.num_done : end], self._losses[self.num_done : end])
        self._checksums = [npy_file.crc32c(*one) for one in zip(new, self._checksums, strict=True)]
        self.num_done = end
        if time.monotonic() - self._saved >= _SECONDS_PER_SAVE:
            self.save()

    def save(self) -> None:
        """Makes what is written so far outlive this process."""
        self._scores.flush()
        self._losses.flush()
        done = {"facts": self._facts, "photos": self.num_done, _CHECKSUMS: self._checksums}
        checked_json.write(self._unfinished / _DONE_FILE, done)
        self._saved = time.monotonic()

    def finish(self) -> Predictions:
        """Puts the predictions in the place of the old ones."""
        if self.num_done != len(self._scores):
            raise ValueError(f"{self.num_done} of {len(self._scores)} photos have predictions")
        self.save()
        del self._scores, self._losses
        (self._folder / FACTS_FILE).unlink(missing_ok=True)  # from here until the end, the folder holds nothing whole
        for name in (SCORES_FILE, LOSSES_FILE):
            os.replace(self._unfinished / name, self._folder / name)
        checked_json.write(self._folder / FACTS_FILE, {**self._facts, _CHECKSUMS: self._checksums})
        shutil.rmtree(self._unfinished)
        return Predictions(self._folder)

    def _resume(self) -> None:
        """Finds how many photos are done, and that what is there of them is what was written."""
        try:
            state = checked_json.parse(regular_file.read_bytes(self._unfinished / _DONE_FILE))
            reason = misfit(state, {"facts": dict, "photos": int, _CHECKSUMS: [int]})
            if reason is not None:
                raise BadJson(reason)
            if state["facts"] != self._facts:
                return
            count, arrays = state["photos"], _map_arrays(self._unfinished)
        except (FileNotFoundError, NotADirectoryError):
            return
        if (arrays[0].shape, arrays[1].shape) != (self._shape, self._shape[:1]) or not 0 <= count <= self._shape[0]:
            raise npy_file.BadNpy(f"its arrays have the shapes {arrays[0].shape} and {arrays[1].shape}")
        if state[_CHECKSUMS] != [npy_file.crc32c(array[:count]) for array in arrays]:
            raise npy_file.BadNpy("its checksums differ")
        self.num_done, self._checksums = count, state[_CHECKSUMS]


def _map_arrays(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """The scores and the losses of a folder, memory-mapped."""
    scores = npy_file.map_array(folder / SCORES_FILE, [_FLOAT32], 2)
    return scores, npy_file.map_array(folder / LOSSES_FILE, [_FLOAT32], 1)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def compare(old: Predictions, new: Predictions) -> str:
    """One line: whether the predictions are equal, and if not, how they differ."""
    if old.facts.get("photos") != new.facts.get("photos"):
        return f"old predictions are of other photos ({len(old.scores):,} then, {len(new.scores):,} now): not compared"
    if old.scores.shape != new.scores.shape:
        return f"old predictions are of {old.scores.shape[1]:,} labels, new ones of {new.scores.shape[1]:,}"
    different, largest = 0, 0.0
    for start in range(0, len(new.scores), _ROWS_AT_ONCE):
        rows = slice(start, start + _ROWS_AT_ONCE)
        before, now = np.asarray(old.scores[rows]), np.asarray(new.scores[rows])
        unequal = (before != now) & ~(np.isnan(before) & np.isnan(now))
        different += int(unequal.any(axis=1).sum())
        largest = max(largest, float(np.max(np.abs(before - now)[unequal], initial=0.0)))
    if not different:
        return "old predictions == new predictions"
    causes = {"model": "the model file", "records": "the records"}
    changed = [text for key, text in causes.items() if old.facts.get(key) != new.facts.get(key)]
    reason = f"; {' and '.join(changed)} changed since" if changed else ""
    return (
        f"old predictions != new predictions: {different:,} of {len(new.scores):,} photos differ, by at most "
        f"{largest:.3g}{reason}"
    )
