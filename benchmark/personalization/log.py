"""The log of finished episodes, a CSV file from which a killed run continues."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import NamedTuple, get_type_hints

import google_crc32c

from flair.errors import FlairError
from flair.files import atomic, regular_file


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
    """One episode of labels: its composition, and the accuracy of each learner on the query photos.

    `prototypical_networks_accuracy` is NaN where none were trained.
    """

    episode: int
    alphabet: str
    ways: int
    support: int
    query: int
    nearest_centroid_accuracy: float
    fine_tuning_accuracy: float
    prototypical_networks_accuracy: float = math.nan


EpisodeResult = UserResult | LabelResult


class EpisodeLog:
    """A CSV file of results in the order of their episodes, 0, 1, 2, ...

    Args:
      path: continued where it is there; a line that a killed process left half written is dropped. Each line ends with
        its CRC-32C, so that no changed byte is taken for a result; lines of older versions do not.
      kind: `UserResult` or `LabelResult`.

    Attributes:
      results: those in the file.

    Raises:
      FlairError: another line of the file is damaged, or there is no ordinary file of that name; one line naming it.
    """

    def __init__(self, path: Path, kind: type[EpisodeResult]) -> None:
        self._path, self._kind = path, kind
        self.results = _read(path, kind)
        atomic.write_text(path, _header(kind) + "".join(map(_line, self.results)))

    def add(self, result: EpisodeResult) -> None:
        """Appends the result of the next episode."""
        if result.episode != len(self.results):
            raise ValueError(f"episode {result.episode} came where {len(self.results)} was due")
        self.results.append(result)
        with open(self._path, "a", encoding="utf-8", newline="") as file:
            file.write(_line(result))


def _header(kind: type[EpisodeResult]) -> str:
    return atomic.csv_text([[*kind._fields, "crc32c"]])


def _line(result: EpisodeResult) -> str:
    line = atomic.csv_text([result])[:-1]
    return f"{line},{google_crc32c.value(line.encode()):08x}\n"


def _read(path: Path, kind: type[EpisodeResult]) -> list[EpisodeResult]:
    try:
        # What follows the last newline is half a line.
        lines = regular_file.read_bytes(path).decode("utf-8").split("\n")[:-1]
    except FileNotFoundError:
        return []
    except UnicodeDecodeError as error:
        raise FlairError(f"{path}: is damaged at byte {error.start}; start over with --overwrite") from None
    if not lines:
        return []
    is_checked = f"{lines[0]}\n" == _header(kind)
    if not is_checked and lines[0].split(",") != list(kind._fields):
        raise FlairError(f"{path}: does not begin as a log of such episodes; start over with --overwrite")
    types = list(get_type_hints(kind).values())
    results: list[EpisodeResult] = []
    for number, line in enumerate(lines[1:], 2):
        result = _parse(line, kind, types, is_checked)
        if result is None:
            raise FlairError(f"{path}: line {number} is damaged; start over with --overwrite")
        results.append(result)
    if [result.episode for result in results] != list(range(len(results))):
        raise FlairError(f"{path}: its episodes are not 0, 1, 2, ...; start over with --overwrite")
    return results


def _parse(line: str, kind: type[EpisodeResult], types: list[type], is_checked: bool) -> EpisodeResult | None:
    """The result of a line, None where nothing of ours wrote it so."""
    try:
        (cells,) = csv.reader([line], strict=True)
        of_result = cells[: len(types)]
        result = kind(*(of(cell) for of, cell in zip(types, of_result, strict=True)))
    except (ValueError, csv.Error):
        return None
    written = _line(result) if is_checked else atomic.csv_text([result])
    return result if written == f"{line}\n" else None
