"""Reading FLAIR's HDF5 files: ours in every format, ml-flair's and pfl-research's; photos as arrays in each case.

The layout is described in docs/formats.md.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import google_crc32c
import h5py
import numpy as np
from numpy.typing import NDArray

from flair.dataset.catalog import PARTITIONS
from flair.dataset.images import PIXELS_SHAPE, decode
from flair.dataset.metadata import LABEL_SEPARATOR, Record, label_index
from flair.errors import FlairError
from flair.files import json_text
from flair.records.hdf5 import global_heap, objects
from flair.records.hdf5.objects import BadObject

PARAMETERS_ATTRIBUTE = "flair_parameters"  # of the group /metadata
CHECKSUM_DTYPE = np.dtype("<u4")
_MOST_BYTES = 1 << 26  # of an array that is read whole: ids, labels and checksums of one user, a list of labels
_NUMBER_PARAMETERS = ("num_users", "limit_users")
_Labels = list[tuple[str, ...]]  # of each photo


class DamagedFile(FlairError):
    """An HDF5 file does not hold what was written to it, or was not written by any of the known commands."""


class Photo(NamedTuple):
    """A photo as stored: `image` is uint8 [256, 256, 3] in raw files, JPEG bytes as uint8 [n] in jpeg files."""

    record: Record
    image: NDArray[np.uint8]

    @property
    def pixels(self) -> NDArray[np.uint8]:
        """The photo as uint8 [256, 256, 3]."""
        if self.image.shape == PIXELS_SHAPE:
            return self.image
        return decode(self.image.tobytes(), f"image {self.record.image_id} of user {self.record.user_id}").data


def record_checksum(record: Record, image: bytes) -> int:
    """CRC-32C of a stored photo's bytes followed by its image id, user id, labels and fine-grained labels."""
    crc: int = google_crc32c.value(image)
    labels = (LABEL_SEPARATOR.join(names) for names in (record.labels, record.fine_grained_labels))
    return int(google_crc32c.extend(crc, "\0".join((record.image_id, record.user_id, *labels)).encode()))


class HDF5File(contextlib.AbstractContextManager["HDF5File"]):
    """An open file of photos.

    Attributes:
      parameters: how `prepare_dataset.py` made the file; empty for files of other writers.
      by_user: whether photos are grouped by user.

    Raises (all methods):
      FlairError: the file is missing, is no HDF5 file, lacks what the layout promises, or fails a checksum.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._checked: set[tuple[str, str]] = set()  # groups of which `image` may read any photo
        if not self.path.is_file():
            raise FlairError(f"{path}: no such file; make it with prepare_dataset.py")
        try:
            global_heap.check_collections(self.path, global_heap.BYTES_OF_ATTRIBUTES)
        except global_heap.DamagedHeap as error:
            raise DamagedFile(f"{path}: is damaged ({error}); prepare it again") from None
        try:
            # Without a lock: nothing writes to a file of ours in its place, and some file systems have none.
            self._file = h5py.File(path, "r", locking=False)
        except OSError as error:
            if error.errno:  # the system's, not the library's: the file may be a good one
                raise OSError(error.errno, os.strerror(error.errno), str(path)) from None
            raise DamagedFile(f"{path}: is not an HDF5 file that can be read; prepare it again") from None
        try:
            self.parameters: dict[str, Any] = self._read_parameters()
            self._names = {
                "labels": self._read_names("label_mapping"),
                "fine_grained_labels": self._read_names("fine_grained_label_mapping"),
            }
            self.by_user = self._is_by_user()
            self._check_number_of_users()
        except FlairError:
            self.close()
            raise

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def groups(self, partition: str) -> list[str]:
        """Names of the groups of a partition, sorted: user ids, or image ids where photos are not grouped by user."""
        with self._guarded(partition):
            if objects.has(self._file, partition):
                return list(objects.group(self._file, partition))
            if self.parameters:
                raise BadObject("is not there, though prepare_dataset.py writes every partition")
            return []

    def photos(self, partition: str, group: str) -> Iterator[Photo]:
        """Yields the photos of one group, each checked against its checksum where there is one."""
        records = self.records(partition, group)
        with self._guarded(f"{partition}/{group}"):
            dataset = self._stored_images(objects.group(self._file, f"{partition}/{group}"))
            images = dataset if self.by_user else [dataset[()]]
            if len(images) != len(records):
                raise BadObject("its arrays have different lengths")
            for stored, (record, checksum) in zip(images, records, strict=True):
                image = np.asarray(stored, np.uint8)
                if checksum is not None and checksum != record_checksum(record, image.tobytes()):
                    raise BadObject(f"the checksum of image {record.image_id} is wrong")
                yield Photo(record, image)

    def records(self, partition: str, group: str) -> list[tuple[Record, int | None]]:
        """Ids and labels of a group's photos, and the checksum of each where there is one; reads no photo."""
        with self._guarded(f"{partition}/{group}"):
            entry = objects.group(self._file, f"{partition}/{group}")
            columns = self._ids_and_labels(entry, group)
            name = "checksums" if self.by_user else "checksum"
            has_checksums = objects.has(entry, name)
            checksums = _numbers(entry, name).tolist() if has_checksums else [None] * len(columns[0])
            if len({len(column) for column in (*columns, checksums)}) != 1:
                raise BadObject("its arrays have different lengths")
            return [
                (Record(user_id, image_id, labels, fine, partition), checksum)
                for image_id, user_id, labels, fine, checksum in zip(*columns, checksums, strict=True)
            ]

    def image(self, partition: str, group: str, row: int) -> NDArray[np.uint8]:
        """One photo of a group as stored, not held against its checksum."""
        with self._guarded(f"{partition}/{group}"):
            entry = objects.group(self._file, f"{partition}/{group}")
            if (partition, group) not in self._checked:
                self._stored_images(entry)
                self._checked.add((partition, group))
            stored = entry["images"][row] if self.by_user else entry["image"][()]
            return np.asarray(stored, np.uint8)

    def images(self, partition: str, group: str) -> NDArray[np.uint8]:
        """The photos of one group as uint8 [n, 256, 256, 3], whatever the image format."""
        return np.stack([photo.pixels for photo in self.photos(partition, group)])

    def text(self, name: str) -> str | None:
        """A string of the group /metadata, such as the JSON of `label_counter`; None when it is not there."""
        with self._guarded(f"metadata/{name}"):
            metadata = objects.group(self._file, "metadata")
            return _text(metadata, name) if objects.has(metadata, name) else None

    def columns(self, kind: str) -> dict[str, int] | None:
        """Label -> column of the labels (`label`) or fine-grained labels; None where the file does not list them."""
        mapping, counter = (self._object(f"{kind}_{name}") for name in ("mapping", "counter"))
        with self._guarded(f"metadata/{kind}_mapping"):
            if mapping is not None:
                return _checked_mapping(mapping)
        return None if counter is None else label_index(counter)

    def __exit__(self, *_: object) -> None:
        self.close()

    def _guarded(self, where: str) -> contextlib.AbstractContextManager[None]:
        # A damaged name may hold a line break or a control character of a terminal.
        place = where.encode("unicode_escape").decode()
        damaged = f"{self.path}: damaged or of an unknown layout at /{place}"
        return objects.guarded(lambda reason, _: DamagedFile(f"{damaged}: {reason}"))

    def _read_parameters(self) -> dict[str, Any]:
        with self._guarded("metadata"):
            metadata = objects.group(self._file, "metadata")
            parameters = json_text.parse(objects.text(metadata, PARAMETERS_ATTRIBUTE) or "{}")
            if not isinstance(parameters, dict):
                raise BadObject(f"its attribute {PARAMETERS_ATTRIBUTE} is not a JSON object")
            for name in _NUMBER_PARAMETERS:
                if not isinstance(parameters.get(name), int | None):
                    raise BadObject(f"{name} in its attribute {PARAMETERS_ATTRIBUTE} is not a number")
            return parameters

    def _object(self, name: str) -> dict[str, Any] | None:
        text = self.text(name)
        if text is None:
            return None
        with self._guarded(f"metadata/{name}"):
            value = json_text.parse(text)
            if not isinstance(value, dict):
                raise BadObject("it is not a JSON object")
            return value

    def _read_names(self, key: str) -> list[str]:
        mapping = self._object(key) or {}
        with self._guarded(f"metadata/{key}"):
            return sorted(_checked_mapping(mapping), key=mapping.__getitem__)

    def _check_number_of_users(self) -> None:
        expected = self.parameters.get("num_users") if self.by_user else None
        with self._guarded(""):
            partitions = [partition for partition in PARTITIONS if objects.has(self._file, partition)]
            found = sum(len(objects.group(self._file, partition)) for partition in partitions)
        if expected not in (None, found):
            raise DamagedFile(f"{self.path}: holds {found:,} users, but was made with {expected:,}; prepare it again")

    def _is_by_user(self) -> bool:
        if "by_user" in self.parameters:
            return bool(self.parameters["by_user"])
        for partition in PARTITIONS:
            for group in self.groups(partition)[:1]:
                with self._guarded(f"{partition}/{group}"):
                    return objects.has(objects.group(self._file, f"{partition}/{group}"), "images")
        return True

    def _ids_and_labels(self, entry: h5py.Group, group: str) -> tuple[list[str], list[str], _Labels, _Labels]:
        if not self.by_user:
            user_id, labels, fine = (_text(entry, key) for key in ("user_id", "labels", "fine_grained_labels"))
            return [group], [user_id], [_split(labels)], [_split(fine)]
        image_ids = _texts(entry, "image_ids")
        both = [self._labels_of(entry, key, len(image_ids)) for key in ("labels", "fine_grained_labels")]
        return image_ids, [group] * len(image_ids), both[0], both[1]

    def _labels_of(self, entry: h5py.Group, key: str, num_images: int) -> _Labels:
        if objects.has(entry, key):
            return [_split(text) for text in _texts(entry, key)]
        names: list[list[str]] = [[] for _ in range(num_images)]
        for row, column in zip(_numbers(entry, f"{key}_row"), _numbers(entry, f"{key}_col"), strict=True):
            names[row].append(self._names[key][column])
        return [tuple(row) for row in names]

    def _stored_images(self, entry: h5py.Group) -> h5py.Dataset:
        """The photos of a group: uint8 [n, 256, 256, 3] or n values of uint8 [length]; no n where it is one photo."""
        dataset = objects.stored(entry, "images" if self.by_user else "image")
        item = h5py.check_vlen_dtype(dataset.dtype)
        if (dataset.dtype if item is None else item) != np.uint8:
            raise BadObject(f"its photos have the type {dataset.dtype}, expected uint8")
        if dataset.shape[1 if self.by_user else 0 :] != (PIXELS_SHAPE if item is None else ()):
            raise BadObject(f"its photos have the shape {dataset.shape}")
        return dataset


def _numbers(entry: h5py.Group, name: str) -> NDArray[np.int64]:
    """Whole numbers from 0 on: one of them as an array of one."""
    dataset = objects.stored(entry, name, _MOST_BYTES)
    if dataset.dtype.kind not in "iu" or dataset.ndim > 1:
        raise BadObject(f"{name} is {dataset.dtype} {dataset.shape}, expected a list of whole numbers")
    numbers = np.atleast_1d(dataset[()]).astype(np.int64)
    if numbers.min(initial=0) < 0:
        raise BadObject(f"{name} has a number below 0")
    return numbers


def _texts(entry: h5py.Group, name: str) -> list[str]:
    dataset = _stored_text(entry, name, 1)
    if dataset.dtype.kind == "S":
        return [value.decode() for value in dataset[()]]
    found, size = [], 0
    for row in range(len(dataset)):  # values of any length, of which several may lie in one place of the file
        found.append(dataset[row].decode())
        size += len(found[-1])
        if size > _MOST_BYTES:
            raise BadObject(f"{name} holds more than {_MOST_BYTES:,} characters")
    return found


def _text(entry: h5py.Group, name: str) -> str:
    return str(_stored_text(entry, name, 0).asstr()[()])


def _stored_text(entry: h5py.Group, name: str, ndim: int) -> h5py.Dataset:
    dataset = objects.stored(entry, name, _MOST_BYTES)
    if h5py.check_string_dtype(dataset.dtype) is None or dataset.ndim != ndim:
        raise BadObject(
            f"{name} is {dataset.dtype} {dataset.shape}, expected {'a list of texts' if ndim else 'a text'}"
        )
    return dataset


def _checked_mapping(mapping: dict[str, Any]) -> dict[str, int]:
    if sorted(map(repr, mapping.values())) != sorted(map(repr, range(len(mapping)))):
        raise BadObject("its columns are not the numbers from 0 on, each once")
    return mapping


def _split(names: str) -> tuple[str, ...]:
    return tuple(names.split(LABEL_SEPARATOR))
