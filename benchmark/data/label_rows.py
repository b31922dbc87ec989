"""The places of each label's photos in a partition that TFDS stores by user: `label_rows-<partition>.npy`.

A photo has several labels, so that a label is no slice of the photos; it is a slice of this file: rows int64 of all
labels one after another, those of a label ascending, then four bytes of CRC-32C, where NumPy does not look.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from benchmark.data.slices import LABEL_FEATURES
from flair.dataset.metadata import Record
from flair.errors import FlairError
from flair.files import npy_file

LabelSlices = dict[str, dict[str, tuple[int, int]]]
_ROW = np.dtype(np.int64)


def path_of(folder: str | os.PathLike[str], partition: str) -> Path:
    """The file of a partition."""
    return Path(folder) / f"label_rows-{partition}.npy"


def write(path: Path, records: Iterable[Record]) -> LabelSlices:
    """Writes the places of each label's photos; returns [start, stop) in the file of each feature's labels."""
    rows: dict[tuple[str, str], list[int]] = {}
    for row, record in enumerate(records):
        for feature in LABEL_FEATURES:
            for name in getattr(record, feature):
                rows.setdefault((feature, name), []).append(row)
    npy_file.write_rows(path, np.array([row for of_label in rows.values() for row in of_label], _ROW))
    slices: LabelSlices = {feature: {} for feature in LABEL_FEATURES}
    borders = itertools.accumulate(map(len, rows.values()), initial=0)
    for (feature, name), slice_ in zip(rows, itertools.pairwise(borders), strict=True):
        slices[feature][name] = slice_
    return slices


def read(path: Path, slice_: Sequence[int], num_photos: int) -> np.ndarray:
    """The rows of a slice, int64; a FlairError that names the file where it is not what was written."""
    start, stop = slice_
    again = "build the data set again with python -m benchmark.tfds_main --overwrite"
    try:
        rows = npy_file.read_rows(path, _ROW)[start:stop]
    except FileNotFoundError:
        raise FlairError(f"{path}: is missing; {again}") from None
    except FlairError:
        raise FlairError(f"{path}: is damaged; {again}") from None
    if not 0 < len(rows) == stop - start or rows.min() < 0 or rows.max() >= num_photos:
        raise FlairError(f"{path}: is not what was built; {again}")
    return rows
