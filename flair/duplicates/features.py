"""Features of the photos that are compared, from a file of features."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from flair.errors import FlairError
from flair.files import feature_file

_HOW = "python -m benchmark.features_main --model=MODEL.h5 --dataset_dir=DIR --output_file=features.npy makes it"


class FeatureTable(NamedTuple):
    """Features of photos: `values` float32 [m, d] on disk, of which row `rows[k]` is that of photo k."""

    values: NDArray[np.float32]
    rows: NDArray[np.int64]

    def squared_distances(self, first: NDArray[Any], second: NDArray[Any]) -> NDArray[np.float64]:
        """Squared Euclidean distances float64 [k] of pairs of photos; a FlairError where features are not finite."""
        found = np.empty(len(first))
        for start in range(0, len(first), 4096):
            part = slice(start, start + 4096)
            one, other = (self.values[self.rows[photos[part]]].astype(np.float64) for photos in (first, second))
            if not (np.isfinite(one).all() and np.isfinite(other).all()):
                raise FlairError(
                    "--features: holds values that are no finite numbers; make it of a model that converged"
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
