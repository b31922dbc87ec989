"""Predictions on disk: written as they are made, continued after an interruption, compared with the ones before.

A folder holds, for one model on one set of photos:
predictions.npy  float32 [photos, outputs], the scores from 0 to 1
losses.npy       float32 [photos], the binary cross-entropy of each photo
made_from.json   digests of the model, the records and the photos
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from flair import atomic
from flair.errors import FlairError

SCORES_FILE, LOSSES_FILE, FACTS_FILE = "predictions.npy", "losses.npy", "made_from.json"
_UNFINISHED, _DONE_FILE = "unfinished", "done.json"
_SECONDS_PER_SAVE = 5.0
_ROWS_AT_ONCE = 4096


class Predictions:
    """Finished predictions, memory-mapped: `scores` float32 [photos, outputs], `losses` float32 [photos]."""

    def __init__(self, folder: Path) -> None:
        self.facts: dict[str, Any] = json.loads((folder / FACTS_FILE).read_text(encoding="utf-8"))
        self.scores = np.load(folder / SCORES_FILE, mmap_mode="r", allow_pickle=False)
        self.losses = np.load(folder / LOSSES_FILE, mmap_mode="r", allow_pickle=False)


def open_predictions(folder: Path) -> Predictions | None:
    """What a finished evaluation left in `folder`; None where there is nothing, or nothing whole.

    Raises:
      FlairError: the files are damaged.
    """
    if not (folder / FACTS_FILE).is_file():
        return None
    try:
        found = Predictions(folder)
        if found.scores.ndim != 2 or found.losses.shape != found.scores.shape[:1]:
            raise ValueError("scores and losses are not of the same photos")
        return found
    except (OSError, ValueError, EOFError) as error:
        raise FlairError(f"{folder}: its predictions are damaged ({error}); delete the folder") from None


class PredictionWriter:
    """Predictions in the making.

    Args:
      folder: where they will be.
      shape: (photos, outputs).
      facts: what they are made from; with the same facts an interrupted process is continued.

    Attributes:
      num_done: photos that are written; start there.
    """

    def __init__(self, folder: Path, shape: tuple[int, int], facts: Mapping[str, Any]) -> None:
        self._folder, self._facts = folder, dict(facts)
        self._unfinished = folder / _UNFINISHED
        self.num_done = self._resume()
        if self.num_done == 0:
            shutil.rmtree(self._unfinished, ignore_errors=True)
            self._unfinished.mkdir(parents=True)
        self._scores = self._map(SCORES_FILE, shape)
        self._losses = self._map(LOSSES_FILE, shape[:1])
        self._saved = time.monotonic()

    def add(self, scores: np.ndarray, losses: np.ndarray) -> None:
        """Writes the next photos."""
        end = self.num_done + len(scores)
        self._scores[self.num_done : end], self._losses[self.num_done : end] = scores, losses
        self.num_done = end
        if time.monotonic() - self._saved >= _SECONDS_PER_SAVE:
            self.save()

    def save(self) -> None:
        """Makes what is written so far outlive this process."""
        self._scores.flush()
        self._losses.flush()
        atomic.write_json(self._unfinished / _DONE_FILE, {"facts": self._facts, "photos": self.num_done})
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
        atomic.write_json(self._folder / FACTS_FILE, self._facts)
        shutil.rmtree(self._unfinished)
        return Predictions(self._folder)

    def _resume(self) -> int:
        try:
            state = json.loads((self._unfinished / _DONE_FILE).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return 0
        whole = all((self._unfinished / name).is_file() for name in (SCORES_FILE, LOSSES_FILE))
        return int(state["photos"]) if whole and state["facts"] == self._facts else 0

    def _map(self, name: str, shape: tuple[int, ...]) -> Any:
        mode = "r+" if self.num_done else "w+"
        return np.lib.format.open_memmap(self._unfinished / name, mode, np.float32, shape)


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
