"""Scores of photos, one for each label, read from a file that people or a model made."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from flair.dataset.metadata import check_id
from flair.errors import FlairError
from flair.files import json_text, text_file

_EXPECTED = (
    "expected JSON {image_id: {label: score}}, or CSV with the columns image_id, label, score, "
    "or with image_id and a column for each label"
)


class Scores:
    """Scores by photo and label; what is not there has none."""

    def __init__(self, scores: Mapping[str, Mapping[str, float]]) -> None:
        self._scores = scores

    def get(self, image_id: str, label: str) -> float | None:
        """The score of a photo for a label, or None."""
        return self._scores.get(image_id, {}).get(label)

    def count(self, image_id: str, labels: Iterable[str]) -> int:
        """How many of `labels` the photo has a score for."""
        of_photo = self._scores.get(image_id, {})
        return sum(label in of_photo for label in labels)

    def photos(self) -> frozenset[str]:
        """The photos that have any score."""
        return frozenset(self._scores)

    def range(self) -> tuple[float, float]:
        """The lowest and the highest score."""
        values = [score for of_photo in self._scores.values() for score in of_photo.values()]
        return min(values), max(values)


def read_scores(path: str | Path) -> Scores:
    """Reads JSON or CSV, by the name's ending.

    Raises:
      FlairError: the file is missing, has another form, a photo or label twice, or a score that is not a finite number.
    """
    try:
        text = text_file.read(path)
    except FileNotFoundError:
        raise FlairError(f"--scores={path}: no such file; {_EXPECTED}") from None
    except text_file.NotText as error:
        raise FlairError(f"--scores={path}: is {error}; {_EXPECTED}") from None
    scores: dict[str, dict[str, float]] = {}
    try:
        rows = _from_csv(text) if str(path).endswith(".csv") else _from_json(text)
        for image_id, label, value in rows:
            of_photo = scores.setdefault(check_id(image_id, "image id", str(path)), {})
            if label in of_photo:
                raise ValueError(f"photo {image_id} has two scores for {label!r:.60}")
            of_photo[label] = _number(value, image_id)
    except (ValueError, csv.Error) as error:
        raise FlairError(f"--scores={path}: {error}; {_EXPECTED}") from None
    if not any(scores.values()):
        raise FlairError(f"--scores={path}: has no score; {_EXPECTED}")
    return Scores(scores)


def _from_json(text: str) -> Iterator[tuple[str, str, Any]]:
    content = json_text.parse(text)
    if not isinstance(content, dict):
        raise ValueError(f"is a JSON {type(content).__name__}")
    for image_id, of_photo in content.items():
        if not isinstance(of_photo, dict):
            raise ValueError(f"photo {image_id!r:.60} has {of_photo!r:.60}")
        for label, value in of_photo.items():
            yield image_id, label, value


def _from_csv(text: str) -> Iterator[tuple[str, str, Any]]:
    reader = csv.DictReader(io.StringIO(text), strict=True)
    names = reader.fieldnames or []
    if len(set(names)) < len(names):
        raise ValueError(f"its first line names a column twice: {','.join(names)!r:.80}")
    if "image_id" not in names or len(names) < 2:
        raise ValueError(f"its first line is {','.join(names)!r:.80}")
    is_long = set(names) == {"image_id", "label", "score"}
    for row in reader:
        if None in row or None in row.values():
            raise ValueError(f"line {reader.line_num} has not {len(names)} fields")
        if is_long:
            yield row["image_id"], row["label"], row["score"]
            continue
        for label, value in row.items():
            if label != "image_id" and value.strip():
                yield row["image_id"], label, value


def _number(value: Any, image_id: str) -> float:
    if isinstance(value, (int, float, str)) and not isinstance(value, bool):
        try:
            number = float(value) if str(value).isascii() and "_" not in str(value) else math.nan
        except (ValueError, OverflowError):
            number = math.nan
        if math.isfinite(number):
            return number
    raise ValueError(f"photo {image_id} has the score {value!r:.60}, not a finite number")
