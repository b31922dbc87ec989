"""Features of photos in a .npy file, with a .json file beside it that says whose they are and of which model."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from flair.errors import FlairError
from flair.files import atomic, checked_json, npy_file, regular_file
from flair.files.json_text import BadJson

_CHECKSUM = "values_crc32c"
_FLOATS = tuple(np.dtype(name) for name in ("<f4", "<f2", "<f8"))
_HOW = "python -m benchmark.features_main --model=MODEL.h5 --dataset_dir=DIR --output=features.npy makes it"


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


def ids_path(path: str | Path) -> Path:
    """The file beside `path` that names its photos.

    >>> ids_path("work/features.npy").as_posix()
    'work/features.json'
    """
    return Path(path).with_suffix(".json")


def write_features(
    path: str | Path, values: NDArray[np.float32], image_ids: Sequence[str], about: dict[str, Any]
) -> None:
    """Writes features float32 [m, d] of the photos `image_ids`, and `about`: what they are."""
    values = np.ascontiguousarray(values)
    about = {**about, _CHECKSUM: npy_file.crc32c(values), "image_ids": list(image_ids)}
    # Features last: whoever finds them finds their ids.
    checked_json.write(ids_path(path), about)
    with atomic.replacing(path) as temporary, open(temporary, "wb") as file:
        np.save(file, values)


def read_features(path: str | Path, image_ids: Sequence[str]) -> FeatureTable:
    """The features of the photos `image_ids`.

    Raises:
      FlairError: a file is missing or damaged, or lacks a photo.
    """
    if not os.path.lexists(path):
        raise FlairError(f"--features={path}: no such file; {_HOW}")
    try:
        values = npy_file.map_array(Path(path), _FLOATS, 2)
        row_of = _rows_of(checked_json.parse(regular_file.read_bytes(ids_path(path))), values)
    except FileNotFoundError:
        raise FlairError(f"--features={path}: has no {ids_path(path).name} beside it; {_HOW}") from None
    except (npy_file.BadNpy, BadJson) as error:
        raise FlairError(
            f"--features={path}: is no file of features, or does not fit its ids ({error}); {_HOW}"
        ) from None
    missing = [image_id for image_id in image_ids if image_id not in row_of]
    if missing:
        raise FlairError(
            f"--features={path}: lacks {len(missing):,} of {len(image_ids):,} photos, such as {missing[0]}; {_HOW}"
        )
    return FeatureTable(values, np.array([row_of[image_id] for image_id in image_ids], np.int64))


def _rows_of(about: Any, values: NDArray[Any]) -> dict[str, int]:
    names = about.get("image_ids") if isinstance(about, dict) else None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise BadJson("it lists no image_ids")
    if len(names) != len(values) or len(set(names)) != len(names):
        raise BadJson(f"{len(set(names)):,} photos have {len(values):,} rows")
    if _CHECKSUM in about and about[_CHECKSUM] != npy_file.crc32c(values):
        raise npy_file.BadNpy("its numbers were changed")
    return {name: row for row, name in enumerate(names)}
