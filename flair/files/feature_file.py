"""Features of photos: rows of a .npy file, with a .json file beside it that says whose they are and how they were made.

Where this toolkit made them, the .json has the CRC-32C of the rows.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flair.errors import FlairError
from flair.files import checked_json, npy_file, regular_file
from flair.files.growing import GrowingArrays
from flair.files.json_text import BadJson

_CHECKSUM = "values_crc32c"
_FLOATS = tuple(np.dtype(name) for name in ("<f4", "<f2", "<f8"))


class DamagedFeatures(FlairError):
    """The two files are not what was written, or do not belong together."""


def ids_path(path: str | Path) -> Path:
    """The file beside `path` that names its photos.

    >>> ids_path("work/features.npy").as_posix()
    'work/features.json'
    """
    return Path(f"{os.fspath(path).removesuffix('.npy')}.json")


def growing(path: Path, shape: tuple[int, int], dtype: np.dtype[Any], facts: dict[str, Any]) -> GrowingArrays:
    """Features [photos, d] in the making, which `finish` puts in their place; `facts` say how they are made."""
    return GrowingArrays(path.with_name(f".{path.name}.unfinished"), {"features.npy": (dtype, shape)}, facts)


def finish(features: GrowingArrays, path: Path, image_ids: Sequence[str], about: dict[str, Any]) -> None:
    """Gives complete features their name; `about` says what they are."""
    (made,) = features.finish()
    # Features last: whoever finds them finds their ids.
    checked_json.write(ids_path(path), {**about, _CHECKSUM: features.checksums[0], "image_ids": list(image_ids)})
    os.replace(made, path)
    features.taken()


def read(path: Path) -> tuple[NDArray[Any], dict[str, Any]]:
    """Features [photos, d] on disk, and what is said of them, with `image_ids` among it.

    Raises:
      DamagedFeatures: a file is damaged, or they do not belong together.
      FileNotFoundError: one of them is missing.
    """
    try:
        values = npy_file.map_array(path, _FLOATS, 2)
        about = checked_json.parse(regular_file.read_bytes(ids_path(path)))
        names = about.get("image_ids") if isinstance(about, dict) else None
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise BadJson("it lists no image_ids")
        if len(names) != len(values) or len(set(names)) != len(names):
            raise BadJson(f"{len(set(names)):,} photos have {len(values):,} rows")
        if _CHECKSUM in about and about[_CHECKSUM] != npy_file.crc32c(values):
            raise npy_file.BadNpy("its numbers were changed")
    except (npy_file.BadNpy, BadJson) as error:
        raise DamagedFeatures(f"{path}: is no file of features, or does not fit its ids ({error})") from None
    return values, about
