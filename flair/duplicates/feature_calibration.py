"""Measures which planted copies features find, beyond those that pixels do."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from flair.dataset.images import decode
from flair.dataset.metadata import METADATA_FILE, Record, photo_path, record_to_json
from flair.duplicates.alignment import align, detail_of
from flair.duplicates.features import FeatureTable, read_features
from flair.duplicates.planted import KINDS
from flair.duplicates.rule import Thresholds
from flair.duplicates.scope import Scope
from flair.files import atomic
from flair.terminal.table import Columns


class Planted:
    """Photos of a dataset as JPEG, and copies of each by kind."""

    def __init__(self, files: dict[Record, bytes]) -> None:
        self.files = files
        self.copies: dict[str, list[bytes]] = {}

    def pixels(self) -> list[NDArray[np.uint8]]:
        """The photos, decoded."""
        return [decode(data, record.image_id).data for record, data in self.files.items()]

    def image_ids(self) -> list[str]:
        """Of the photos, then of their copies, kind after kind."""
        photos = [record.image_id for record in self.files]
        return [*photos, *(f"{name}-{number}" for number in range(1, len(KINDS) + 1) for name in photos)]

    def write(self, folder: Path) -> None:
        """Writes all as a dataset directory, copies under the user and with the labels of their photo."""
        names = iter(self.image_ids())
        written = []
        for group in (self.files.values(), *self.copies.values()):
            for record, data in zip(self.files, group, strict=True):
                own = record._replace(image_id=next(names))
                path = photo_path(folder, own.image_id)
                path.parent.mkdir(parents=True, exist_ok=True)
                atomic.write_bytes(path, data)
                written.append(record_to_json(own))
        atomic.write_json(folder / METADATA_FILE, written)


class ByFeatures(NamedTuple):
    """Copies are also looked for among the `neighbors` nearest of each photo, by the features in a file."""

    path: Path
    neighbors: int

    def open(self, planted: Planted) -> OpenFeatures:
        """Reads the features of all photos and their copies; a FlairError where some are missing."""
        return OpenFeatures(read_features(self.path, planted.image_ids()), self.neighbors)


class OpenFeatures(NamedTuple):
    """The features of photos, then of their copies, kind after kind."""

    table: FeatureTable
    neighbors: int

    def measure(self, planted: Planted, thresholds: Thresholds, reviewed: dict[str, float]) -> dict[str, Any]:
        """Shares of the copies of each kind, and what is found of pairs of different photos.

        A copy is found if it and its photo are among each other's nearest, where all photos have one copy, of this
        kind; and if their detail agrees. `reviewed` is the share that pixels find.
        """
        details = [detail_of(photo) for photo in planted.pixels()]
        count = len(details)
        recall = {}
        for number, (kind, copies) in enumerate(planted.copies.items(), start=1):
            pairs = zip(details, (detail_of(decode(data, kind).data) for data in copies), strict=True)
            aligned = np.array([align(one, other) for one, other in pairs]) >= thresholds.review_alignment
            near = self._are_near(number, count)
            shares = {"nearest": near, "aligned": aligned, "both": near & aligned}
            recall[kind] = {"by pixels": reviewed[kind], **{name: float(one.mean()) for name, one in shares.items()}}
        nearest = self._nearest(np.arange(count)).tolist()
        strangers = {(min(one, other), max(one, other)) for one in range(count) for other in nearest[one]}
        strangers = {pair for pair in strangers if pair[0] >= 0}
        correlations = np.array([align(details[one], details[other]) for one, other in sorted(strangers)])
        return {
            "neighbors": self.neighbors,
            "recall": recall,
            "pairs of different photos": len(strangers),
            "of these aligned": int((correlations >= thresholds.review_alignment).sum()),
        }

    def _are_near(self, kind: int, count: int) -> NDArray[np.bool_]:
        rows = np.arange(count)
        near = self._nearest(np.concatenate([rows, kind * count + rows]))
        of_photo, of_copy = near[:count] == rows[:, None] + count, near[count:] == rows[:, None]
        return np.asarray((of_photo | of_copy).any(axis=1))

    def _nearest(self, rows: NDArray[np.int64]) -> NDArray[np.int32]:
        some = self.table._replace(rows=self.table.rows[rows])
        codes = np.zeros(len(rows), np.int32)
        return some.nearest(Scope("all", (), codes, codes), range(len(rows)), self.neighbors)


def feature_lines(found: dict[str, Any]) -> list[str]:
    """The measurements as text, in percent of the copies."""
    names = ("by pixels", "nearest", "aligned", "both")
    columns = Columns("<36", *[">14"] * len(names))
    lines = [columns.line("found for review, %", names[0], f"{found['neighbors']} nearest", *names[2:])]
    for kind, shares in found["recall"].items():
        lines.append(columns.line(kind, *(f"{100 * shares[name]:.1f}" for name in names)))
    strangers, aligned = found["pairs of different photos"], found["of these aligned"]
    return [
        *lines,
        "",
        f"Of {strangers:,} pairs of different photos that are nearest by features, {aligned:,} are aligned.",
    ]
