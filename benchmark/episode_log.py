"""The results of episodes as they come, one CSV row each: what a killed run continues from."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from flair import atomic
from flair.errors import FlairError


class UserResult(NamedTuple):
    """One episode of a user: photos, and the scores of the query photos before and after the adaptation.

    `micro_ap` is NaN where no query photo carries a label; `divergence` is in bits.
    """

    episode: int
    user_id: str
    photos: int
    support: int
    query: int
    divergence: float
    baseline_loss: float
    adapted_loss: float
    baseline_micro_ap: float
    adapted_micro_ap: float


class LabelResult(NamedTuple):
    """One episode of labels: its composition, and the accuracy of both baselines on the query photos."""

    episode: int
    alphabet: str
    ways: int
    support: int
    query: int
    nearest_centroid_accuracy: float
    fine_tuning_accuracy: float


class EpisodeLog:
    """A CSV file of results in the order of their episodes, 0, 1, 2, ...

    Args:
      path: continued where it is there; a line that a killed process left half written is dropped.
      kind: `UserResult` or `LabelResult`.

    Attributes:
      results: those in the file.

    Raises:
      FlairError: another line of the file is damaged; one line naming it.
    """

    def __init__(self, path: Path, kind: type[UserResult] | type[LabelResult]) -> None:
        self._path, self._kind = path, kind
        self.results: list[UserResult | LabelResult] = []
        if path.is_file():
            self.results = _read(path, kind)
        atomic.write_text(path, to_csv(kind._fields, self.results))

    def add(self, result: UserResult | LabelResult) -> None:
        """Appends the result of the next episode."""
        if result.episode != len(self.results):
            raise ValueError(f"episode {result.episode} came where {len(self.results)} was due")
        self.results.append(result)
        with open(self._path, "a", encoding="utf-8", newline="") as file:
            file.write(to_csv((), [result]))


def to_csv(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """CSV text; floats keep every digit, so that what is read back is what was written."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    if header:
        writer.writerow(header)
    writer.writerows([[repr(cell) if isinstance(cell, float) else cell for cell in row] for row in rows])
    return text.getvalue()


def _read(path: Path, kind: type[UserResult] | type[LabelResult]) -> list[UserResult | LabelResult]:
    header, *lines = path.read_text(encoding="utf-8").split("\n")
    results: list[UserResult | LabelResult] = []
    if header.split(",") != list(kind._fields):
        return results
    types = [float if "float" in str(annotation) else int if "int" in str(annotation) else str
             for annotation in kind.__annotations__.values()]  # fmt: skip
    try:
        for cells in csv.reader(lines[:-1]):  # what follows the last newline is half a line
            results.append(kind(*(of(cell) for of, cell in zip(types, cells, strict=True))))
    except (ValueError, csv.Error):
        raise FlairError(f"{path}: line {len(results) + 2} is damaged; start over with --overwrite") from None
    if [result.episode for result in results] != list(range(len(results))):
        raise FlairError(f"{path}: its episodes are not 0, 1, 2, ...; start over with --overwrite")
    return results
