"""Features of the photos that are compared, from a file of features."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from flair.duplicates.scope import Scope
from flair.errors import FlairError
from flair.files import feature_file, npy_file

_HOW = "python -m benchmark.features_main --model=MODEL.h5 --dataset_dir=DIR --output_file=features.npy makes it"
PHOTOS_AT_ONCE, _COLUMNS_AT_ONCE = 4096, 2048


class FeatureTable(NamedTuple):
    """Features of photos: `values` float32 [m, d] on disk, of which row `rows[k]` is that of photo k."""

    values: NDArray[np.float32]
    rows: NDArray[np.int64]

    @property
    def digest(self) -> str:
        """Of the features and of the photos they are of."""
        return hashlib.sha256(self.rows.tobytes() + npy_file.crc32c(self.values).to_bytes(4, "big")).hexdigest()

    def nearest(self, scope: Scope, photos: range, count: int) -> NDArray[np.int32]:
        """The `count` nearest of some photos, int32 [photos, count] in no order, -1 where there are no more.

        All photos with which a pair counts are looked at, in float32: of two that are equally far but for its rounding
        either may be taken. Memory is that of a block of pairs, some 250 MB, whatever the number of photos.
        """
        own = self.block(photos)
        distances = np.full((len(photos), count), np.inf, np.float32)
        found = np.full((len(photos), count), -1, np.int32)
        here = np.asarray(photos)[:, None]
        for start in range(0, len(self.rows), _COLUMNS_AT_ONCE):
            others = range(start, min(start + _COLUMNS_AT_ONCE, len(self.rows)))
            there = np.asarray(others, np.int32)[None]
            block = self.block(others)
            squared = np.square(block).sum(axis=1) - 2 * (own @ block.T)  # less the own norm, which orders nothing
            squared[~(scope.has(here, there) & (here != there))] = np.inf
            # Soon few photos have a nearer one in a block, and only theirs are sorted.
            rows = np.flatnonzero((squared < distances.max(axis=1, keepdims=True)).any(axis=1))
            both = np.concatenate([distances[rows], squared[rows]], axis=1)
            names = np.concatenate([found[rows], np.broadcast_to(there, (len(rows), len(others)))], axis=1)
            best = np.argpartition(both, count - 1, axis=1)[:, :count]
            distances[rows] = np.take_along_axis(both, best, axis=1)
            found[rows] = np.take_along_axis(names, best, axis=1)
        return np.where(np.isfinite(distances), found, -1).astype(np.int32)

    def block(self, photos: range) -> NDArray[np.float32]:
        """Features float32 [k, d] of some photos, in memory; a FlairError where they are not finite."""
        with np.errstate(over="ignore"):  # what is too large for float32 becomes infinite, which is refused
            return _finite(self.values[self.rows[photos.start : photos.stop]].astype(np.float32))

    def squared_distances(self, first: NDArray[Any], second: NDArray[Any]) -> NDArray[np.float64]:
        """Squared Euclidean distances float64 [k] of pairs of photos; a FlairError where features are not finite."""
        found = np.empty(len(first))
        for start in range(0, len(first), 4096):
            part = slice(start, start + 4096)
            one, other = (
                _finite(self.values[self.rows[photos[part]]]).astype(np.float64) for photos in (first, second)
            )
            found[part] = ((one - other) ** 2).sum(axis=1)
        return found


def read_features(path: str | Path, image_ids: Sequence[str]) -> FeatureTable:
    """The features of the photos `image_ids`.

    Raises:
      FlairError: a file is missing or damaged, or lacks a photo.
    """
    if not os.path.lexists(path):
        raise FlairError(f"--features={path}: no such file; {_HOW}")
    try:
        values, about = feature_file.read(Path(path))
    except FileNotFoundError:
        raise FlairError(f"--features={path}: has no {feature_file.ids_path(path).name} beside it; {_HOW}") from None
    except feature_file.DamagedFeatures as error:
        raise FlairError(f"--features={error}; {_HOW}") from None
    row_of = {name: row for row, name in enumerate(about["image_ids"])}
    missing = [image_id for image_id in image_ids if image_id not in row_of]
    if missing:
        raise FlairError(
            f"--features={path}: lacks {len(missing):,} of {len(image_ids):,} photos, such as {missing[0]}; {_HOW}"
        )
    return FeatureTable(values, np.array([row_of[image_id] for image_id in image_ids], np.int64))


def _finite(values: NDArray[Any]) -> NDArray[Any]:
    if not np.isfinite(values).all():
        raise FlairError("--features: holds values that are no finite numbers; make it of a model that converged")
    return values
