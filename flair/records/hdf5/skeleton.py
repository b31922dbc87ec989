"""An HDF5 file that is complete but for its photos: all groups, ids and labels, and reserved places for the rest.

Building it takes little time and one process. The photos and their checksums then go to known places in the file, from
any number of processes and in any order, without the HDF5 library, so that a killed run loses nothing and the bytes
of the result never depend on how it was made.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
from h5py import h5d, h5g, h5p, h5s, h5t
from numpy.typing import NDArray

from flair.dataset.images import PIXELS_SHAPE
from flair.dataset.metadata import LABEL_SEPARATOR, Record, User, count_labels, label_index
from flair.errors import FlairError
from flair.records.hdf5.reader import CHECKSUM_DTYPE, PARAMETERS_ATTRIBUTE
from flair.records.hdf5.soft_file import SoftFile
from flair.records.preparation import Selection
from flair.terminal.progress import Progress


class Format(NamedTuple):
    """How a file is laid out: `raw` or `jpeg` photos, `names` or `indices` as labels, grouped by user or not."""

    image_format: str
    label_format: str
    by_user: bool


def write_skeleton(
    path: Path, selection: Selection, layout: Format, parameters: Mapping[str, Any]
) -> NDArray[np.int64]:
    """Writes the skeleton to `path`; returns int64 [groups, 2]: the byte where photos and checksums of a group begin.

    The groups are those of `groups_of`, in that order.
    """
    labels = label_index(name for user in selection.all_users for record in user.records for name in record.labels)
    fine = label_index(
        name for user in selection.all_users for record in user.records for name in record.fine_grained_labels
    )
    if layout.label_format == "indices":
        _check_indices_fit(selection.users, labels, fine)
    groups = groups_of(selection.users, layout)
    places = np.empty((len(groups), 2), np.int64)
    with Progress(len(groups), "Groups", "group") as progress, SoftFile(path) as output:
        with h5py.File(output, "w", libver=("earliest", "v110")) as file:
            builder = _Builder()
            partitions: dict[str, h5g.GroupID] = {}
            for index, records in enumerate(groups):
                partition = records[0].partition
                if partition not in partitions:
                    partitions[partition] = h5g.create(file.id, partition.encode())
                name = records[0].user_id if layout.by_user else records[0].image_id
                group = h5g.create(partitions[partition], name.encode())
                places[index] = _fill_group(builder, group, records, layout, labels, fine)
                output.check()
                progress.add()
            metadata = file.create_group("metadata")
            for name, text in _metadata(selection, layout, labels, fine).items():
                builder.put_text(metadata.id, name, text)
            metadata.attrs[PARAMETERS_ATTRIBUTE] = json.dumps(parameters)
        output.check()
    return places


def groups_of(users: Sequence[User], layout: Format) -> list[tuple[Record, ...]]:
    """The records of each HDF5 group: those of a user, or one."""
    if layout.by_user:
        return [user.records for user in users]
    return [(record,) for user in users for record in user.records]


def _fill_group(
    builder: _Builder,
    group: h5g.GroupID,
    records: Sequence[Record],
    layout: Format,
    labels: Mapping[str, int],
    fine: Mapping[str, int],
) -> tuple[int, int]:
    if not layout.by_user:
        (record,) = records
        builder.put_text(group, "labels", LABEL_SEPARATOR.join(record.labels))
        builder.put_text(group, "fine_grained_labels", LABEL_SEPARATOR.join(record.fine_grained_labels))
        builder.put_text(group, "user_id", record.user_id)
        return builder.reserve_images(group, "image", (), layout), builder.reserve_checksums(group, "checksum", ())
    if layout.label_format == "indices":
        builder.put(group, "labels_row", _rows(record.labels for record in records))
        builder.put(group, "labels_col", _columns((record.labels for record in records), labels, np.uint8))
        builder.put(group, "fine_grained_labels_row", _rows(record.fine_grained_labels for record in records))
        builder.put(
            group,
            "fine_grained_labels_col",
            _columns((record.fine_grained_labels for record in records), fine, np.uint16),
        )
    else:
        builder.put(group, "labels", _strings(LABEL_SEPARATOR.join(record.labels) for record in records))
        builder.put(
            group,
            "fine_grained_labels",
            _strings(LABEL_SEPARATOR.join(record.fine_grained_labels) for record in records),
        )
    builder.put(group, "image_ids", _strings(record.image_id for record in records))
    shape = (len(records),)
    return builder.reserve_images(group, "images", shape, layout), builder.reserve_checksums(group, "checksums", shape)


class _Builder:
    """h5py's low-level calls: its high-level ones take minutes for 1.7 million datasets."""

    def __init__(self) -> None:
        self._plain = h5p.create(h5p.DATASET_CREATE)
        self._plain.set_obj_track_times(False)
        self._reserved = h5p.create(h5p.DATASET_CREATE)
        self._reserved.set_obj_track_times(False)
        self._reserved.set_layout(h5d.CONTIGUOUS)
        self._reserved.set_alloc_time(h5d.ALLOC_TIME_EARLY)
        self._unfilled = self._reserved.copy()
        self._unfilled.set_fill_time(h5d.FILL_TIME_NEVER)
        self._text = h5t.py_create(h5py.string_dtype(), logical=True)
        self._jpeg = h5t.py_create(h5py.vlen_dtype(np.uint8), logical=True)
        self._scalar = h5s.create(h5s.SCALAR)

    def put(self, group: h5g.GroupID, name: str, array: NDArray[Any]) -> None:
        kind = h5t.py_create(array.dtype, logical=True)
        dataset = h5d.create(group, name.encode(), kind, h5s.create_simple(array.shape), self._plain)
        dataset.write(h5s.ALL, h5s.ALL, array)

    def put_text(self, group: h5g.GroupID, name: str, text: str) -> None:
        dataset = h5d.create(group, name.encode(), self._text, self._scalar, self._plain)
        dataset.write(h5s.ALL, h5s.ALL, np.array(text, object))

    def reserve_images(self, group: h5g.GroupID, name: str, shape: tuple[int, ...], layout: Format) -> int:
        if layout.image_format == "raw":
            space = h5s.create_simple(shape + PIXELS_SHAPE)
            return int(h5d.create(group, name.encode(), h5t.STD_U8LE, space, self._unfilled).get_offset())
        # The library does not leave variable-length data unfilled.
        space = h5s.create_simple(shape) if shape else self._scalar
        return int(h5d.create(group, name.encode(), self._jpeg, space, self._reserved).get_offset())

    def reserve_checksums(self, group: h5g.GroupID, name: str, shape: tuple[int, ...]) -> int:
        space = h5s.create_simple(shape) if shape else self._scalar
        kind = h5t.py_create(CHECKSUM_DTYPE)
        return int(h5d.create(group, name.encode(), kind, space, self._reserved).get_offset())


def _metadata(
    selection: Selection, layout: Format, labels: Mapping[str, int], fine: Mapping[str, int]
) -> dict[str, str]:
    if layout.label_format == "indices":
        return {"label_mapping": json.dumps(labels), "fine_grained_label_mapping": json.dumps(fine)}
    # Labels that no photo of a subset carries are listed with 0: the list of labels is that of the whole dataset.
    totals = count_labels(record for user in selection.all_users for record in user.records)
    counts = count_labels(record for user in selection.users for record in user.records)
    coarse, fine_counts = ({name: found[name] for name in total} for total, found in zip(totals, counts, strict=True))
    return {"label_counter": json.dumps(coarse), "fine_grained_label_counter": json.dumps(fine_counts)}


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
