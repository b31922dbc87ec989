"""Files of predictions: written while they are made, continued, and compared.

A folder holds, for one model on one set of photos:
predictions.npy  float32 [photos, outputs], the scores from 0 to 1
losses.npy       float32 [photos], the binary cross-entropy of each photo
made_from.json   digests of the model, the records and the photos, and the CRC-32C of the two files above
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmark.run.shapes import misfit
from flair.errors import FlairError
from flair.files import checked_json, npy_file, regular_file
from flair.files.growing import GrowingArrays
from flair.files.json_text import BadJson

SCORES_FILE, LOSSES_FILE, FACTS_FILE = "predictions.npy", "losses.npy", "made_from.json"
_UNFINISHED = "unfinished"
_CHECKSUMS = "crc32c_of_files"
_OLDER_FACTS = {"model": str, "records": str, "photos": str}
_FLOAT32 = np.dtype("<f4")
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
        self.scores = npy_file.map_array(folder / SCORES_FILE, [_FLOAT32], 2)
        self.losses = npy_file.map_array(folder / LOSSES_FILE, [_FLOAT32], 1)
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


class PredictionWriter(GrowingArrays):
    """Predictions for `folder` in the making, of shape (photos, outputs): `add` takes scores and losses."""

    def __init__(self, folder: Path, shape: tuple[int, int], facts: Mapping[str, Any]) -> None:
        self._place = folder
        arrays = {SCORES_FILE: (_FLOAT32, shape), LOSSES_FILE: (_FLOAT32, shape[:1])}
        super().__init__(folder / _UNFINISHED, arrays, facts)

    def publish(self) -> Predictions:
        """Puts the predictions in the place of the old ones."""
        files = self.finish()
        (self._place / FACTS_FILE).unlink(missing_ok=True)  # from here until the end, the folder holds nothing whole
        for file in files:
            os.replace(file, self._place / file.name)
        checked_json.write(self._place / FACTS_FILE, {**self._facts, _CHECKSUMS: self.checksums})
        self.taken()
        return Predictions(self._place)


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
    causes = {"model": "the model file", "records": "the records", "features": "--feature_dir"}
    changed = [text for key, text in causes.items() if old.facts.get(key) != new.facts.get(key)]
    reason = f"; {' and '.join(changed)} changed since" if changed else ""
    return (
        f"old predictions != new predictions: {different:,} of {len(new.scores):,} photos differ, by at most "
        f"{largest:.3g}{reason}"
    )
