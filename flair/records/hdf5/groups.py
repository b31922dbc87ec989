"""The groups of an HDF5 file: one per user, or one per photo, and a group of label counts or label columns.

Written with h5py's low-level calls: its high-level ones take minutes for the 1.7 million datasets of all of FLAIR.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import h5py
import numpy as np
from h5py import h5d, h5g, h5p, h5s, h5t
from numpy.typing import NDArray

from flair.dataset.images import PIXELS_BYTES, PIXELS_SHAPE
from flair.dataset.metadata import LABEL_SEPARATOR, Record, User, count_labels, label_index, records_of
from flair.errors import FlairError
from flair.records.hdf5.reader import CHECKSUM_DTYPE, PARAMETERS_ATTRIBUTE
from flair.records.preparation import Selection

_TEXT = h5py.string_dtype()
_JPEG = h5py.vlen_dtype(np.uint8)


class Format(NamedTuple):
    """How a file is laid out: `raw` or `jpeg` photos, `names` or `indices` as labels, grouped by user or not."""

    image_format: str
    label_format: str
    by_user: bool


class StoredJpeg(NamedTuple):
    """A photo as a JPEG, and the checksum of `record_checksum`."""

    image: bytes
    checksum: int


class Place(NamedTuple):
    """Where the pixels of a photo and its checksum go, in bytes from the start of the file."""

    pixels: int
    checksum: int


def groups_of(users: Sequence[User], layout: Format) -> list[tuple[Record, ...]]:
    """The records of each HDF5 group: those of a user, or one."""
    if layout.by_user:
        return [user.records for user in users]
    return [(record,) for record in records_of(users)]


class GroupWriter:
    """Writes groups to an open, empty file.

    Raises:
      FlairError: the labels or photos are too many for the types of `--label_format=indices`.
    """

    def __init__(self, file: h5py.File, selection: Selection, layout: Format) -> None:
        self._file, self._selection, self._layout = file, selection, layout
        self._totals = count_labels(records_of(selection.all_users))
        self._labels, self._fine = map(label_index, self._totals)
        if layout.label_format == "indices":
            _check_indices_fit(selection.users, self._labels, self._fine)
        self._partitions: dict[str, h5g.GroupID] = {}
        self._plain = h5p.create(h5p.DATASET_CREATE)
        self._plain.set_obj_track_times(False)
        self._scalar = h5s.create(h5s.SCALAR)
        # Of the types of every photo: making one takes as long as writing a dataset.
        self._text, self._jpeg = h5t.py_create(_TEXT, logical=True), h5t.py_create(_JPEG, logical=True)
        self._checksum = h5t.py_create(CHECKSUM_DTYPE)
        # Room is made at once and in one piece, and the library never writes there: other processes do.
        self._unfilled = self._plain.copy()
        self._unfilled.set_layout(h5d.CONTIGUOUS)
        self._unfilled.set_fill_time(h5d.FILL_TIME_NEVER)
        self._unfilled.set_alloc_time(h5d.ALLOC_TIME_EARLY)

    def reserve(self, records: Sequence[Record]) -> list[Place]:
        """Writes the group of `records` save for decoded photos and checksums, for which room is made."""
        group, images, checksums, shape = self._begin(records)
        first = self._make_room(group, images, shape + PIXELS_SHAPE, h5t.STD_U8LE)
        first_checksum = self._make_room(group, checksums, shape, self._checksum)
        step = CHECKSUM_DTYPE.itemsize
        return [Place(first + row * PIXELS_BYTES, first_checksum + row * step) for row in range(len(records))]

    def write(self, records: Sequence[Record], photos: Iterator[StoredJpeg]) -> None:
        """Writes the group of `records`, with as many JPEGs of `photos`."""
        group, images, checksums, shape = self._begin(records)
        jpegs, found = np.empty(len(records), _JPEG), np.empty(len(records), CHECKSUM_DTYPE)
        for row in range(len(records)):
            image, found[row] = next(photos)
            jpegs[row] = np.frombuffer(image, np.uint8)
        self._put(group, images, jpegs.reshape(shape), self._jpeg)
        self._put(group, checksums, found.reshape(shape), self._checksum)

    def write_metadata(self, parameters: Mapping[str, Any]) -> None:
        """Writes the group of what is true of the whole file, to be called last."""
        metadata = self._file.create_group("metadata")
        for name, value in self._counts_or_columns().items():
            self._put_text(metadata.id, name, json.dumps(value))
        metadata.attrs[PARAMETERS_ATTRIBUTE] = json.dumps(parameters)

    def _write_labels(self, group: h5g.GroupID, records: Sequence[Record]) -> None:
        labels = [record.labels for record in records]
        fine = [record.fine_grained_labels for record in records]
        if self._layout.label_format == "names":
            self._put(group, "labels", _strings(map(LABEL_SEPARATOR.join, labels)))
            self._put(group, "fine_grained_labels", _strings(map(LABEL_SEPARATOR.join, fine)))
            return
        self._put(group, "labels_row", _rows(labels))
        self._put(group, "labels_col", _columns(labels, self._labels, np.uint8))
        self._put(group, "fine_grained_labels_row", _rows(fine))
        self._put(group, "fine_grained_labels_col", _columns(fine, self._fine, np.uint16))

    def _begin(self, records: Sequence[Record]) -> tuple[h5g.GroupID, str, str, tuple[int, ...]]:
        """Makes the group of `records`; returns it, the names of its images and checksums, and the shape of both."""
        layout, partition = self._layout, records[0].partition
        if partition not in self._partitions:
            self._partitions[partition] = h5g.create(self._file.id, partition.encode())
        name = records[0].user_id if layout.by_user else records[0].image_id
        group = h5g.create(self._partitions[partition], name.encode())
        if layout.by_user:
            self._write_labels(group, records)
            self._put(group, "image_ids", _strings(record.image_id for record in records))
            return group, "images", "checksums", (len(records),)
        (record,) = records
        self._put_text(group, "labels", LABEL_SEPARATOR.join(record.labels))
        self._put_text(group, "fine_grained_labels", LABEL_SEPARATOR.join(record.fine_grained_labels))
        self._put_text(group, "user_id", record.user_id)
        return group, "image", "checksum", ()

    def _make_room(self, group: h5g.GroupID, name: str, shape: tuple[int, ...], kind: h5t.TypeID) -> int:
        space = h5s.create_simple(shape) if shape else self._scalar
        offset: int = h5d.create(group, name.encode(), kind, space, self._unfilled).get_offset()
        return offset

    def _put(self, group: h5g.GroupID, name: str, array: NDArray[Any], kind: h5t.TypeID | None = None) -> None:
        kind = h5t.py_create(array.dtype, logical=True) if kind is None else kind
        space = h5s.create_simple(array.shape) if array.shape else self._scalar
        h5d.create(group, name.encode(), kind, space, self._plain).write(h5s.ALL, h5s.ALL, array)

    def _put_text(self, group: h5g.GroupID, name: str, text: str) -> None:
        self._put(group, name, np.array(text, _TEXT), self._text)

    def _counts_or_columns(self) -> dict[str, dict[str, int]]:
        if self._layout.label_format == "indices":
            return {"label_mapping": self._labels, "fine_grained_label_mapping": self._fine}
        # Labels that no photo of a subset carries are listed with 0: the list of labels is that of the whole dataset.
        counts = count_labels(records_of(self._selection.users))
        coarse, fine = (
            {name: found[name] for name in total} for total, found in zip(self._totals, counts, strict=True)
        )
        return {"label_counter": coarse, "fine_grained_label_counter": fine}


def _check_indices_fit(users: Sequence[User], labels: Mapping[str, int], fine: Mapping[str, int]) -> None:
    largest = max(users, key=lambda user: len(user.records))
    for what, count, limit in (
        ("coarse labels", len(labels), 1 << 8),
        ("fine-grained labels", len(fine), 1 << 16),
        (f"photos of user {largest.user_id}", len(largest.records), 1 << 16),
    ):
        if count > limit:
            raise FlairError(
                f"--label_format=indices: {count:,} {what} do not fit in its types, at most {limit:,} do; use names"
            )


def _strings(values: Iterable[str]) -> NDArray[np.bytes_]:
    return np.array([value.encode() for value in values], np.bytes_)


def _rows(labels: Iterable[Sequence[str]]) -> NDArray[np.uint16]:
    return np.array([row for row, names in enumerate(labels) for _ in names], np.uint16)


def _columns(labels: Iterable[Sequence[str]], index: Mapping[str, int], dtype: type) -> NDArray[Any]:
    return np.array([index[name] for names in labels for name in names], dtype)
