"""Reading FLAIR's HDF5 files: ours in every format, ml-flair's and pfl-research's; photos as arrays in each case.

The layout is described in docs/formats.md.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import google_crc32c
import h5py
import numpy as np
from numpy.typing import NDArray

from flair import json_text
from flair.catalog import PARTITIONS
from flair.errors import FlairError
from flair.global_heap import check_first_collections
from flair.images import PIXELS_SHAPE, decode
from flair.metadata import LABEL_SEPARATOR, Record

PARAMETERS_ATTRIBUTE = "flair_parameters"  # of the group /metadata
CHECKSUM_DTYPE = np.dtype("<u4")
IMAGE_FORMATS = ("raw", "jpeg")
LABEL_FORMATS = ("names", "indices")
# What h5py raises for damaged files, depending on where the damage is.
_LIBRARY_ERRORS = (
    AttributeError,
    IndexError,
    KeyError,
    MemoryError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)


class DamagedFile(FlairError):
    """An HDF5 file does not hold what was written to it, or was not written by any of the known commands."""


class Photo(NamedTuple):
    """A photo as stored: `image` is uint8 [256, 256, 3] in raw files, JPEG bytes as uint8 [n] in jpeg files."""

    record: Record
    image: NDArray[np.uint8]
    checksum: int | None  # None in files of other writers

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


class HDF5File:
    """An open file of photos.

    Attributes:
      parameters: how `prepare_dataset.py` made the file; empty for files of other writers.
      by_user: whether photos are grouped by user.

    Raises (all methods):
      FlairError: the file is missing, is no HDF5 file, lacks what the layout promises, or fails a checksum.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise FlairError(f"{path}: no such file; make it with prepare_dataset.py")
        check_first_collections(self.path)
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
            if self.parameters and partition not in self._file:
                raise ValueError("is not there, though prepare_dataset.py writes every partition")
            return list(self._file[partition]) if partition in self._file else []

    def photos(self, partition: str, group: str) -> Iterator[Photo]:
        """Yields the photos of one group, each checked against its checksum where there is one."""
        with self._guarded(f"{partition}/{group}"):
            entry = self._file[f"{partition}/{group}"]
            image_ids, user_ids, labels, fine = self._ids_and_labels(entry, group)
            images, checksums = _images_and_checksums(entry, self.by_user)
            if not len(images) == len(image_ids) == len(labels) == len(fine):
                raise ValueError("its arrays have different lengths")
            for row, image_id in enumerate(image_ids):
                record = Record(user_ids[row], image_id, labels[row], fine[row], partition)
                image = np.asarray(images[row], np.uint8)
                checksum = None if checksums is None else int(checksums[row])
                if checksum is not None and checksum != record_checksum(record, image.tobytes()):
                    raise ValueError(f"the checksum of image {image_id} is wrong")
                yield Photo(record, image, checksum)

    def images(self, partition: str, group: str) -> NDArray[np.uint8]:
        """The photos of one group as uint8 [n, 256, 256, 3], whatever the image format."""
        return np.stack([photo.pixels for photo in self.photos(partition, group)])

    def text(self, name: str) -> str | None:
        """A string of the group /metadata, such as the JSON of `label_counter`; None when it is not there."""
        with self._guarded(f"metadata/{name}"):
            value = self._file["metadata"].get(name)
            return None if value is None else str(value.asstr()[()])

    def __enter__(self) -> HDF5File:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @contextlib.contextmanager
    def _guarded(self, where: str) -> Iterator[None]:
        try:
            yield
        except _LIBRARY_ERRORS as error:
            reason = " ".join(str(error).split())
            # A damaged name may hold a line break or a control character of a terminal.
            place = where.encode("unicode_escape").decode()
            raise DamagedFile(f"{self.path}: damaged or of an unknown layout at /{place}: {reason}") from None

    def _read_parameters(self) -> dict[str, Any]:
        with self._guarded("metadata"):
            return dict(json_text.parse(self._file["metadata"].attrs.get(PARAMETERS_ATTRIBUTE, "{}")))

    def _read_names(self, key: str) -> list[str]:
        text = self.text(key)
        if text is None:
            return []
        with self._guarded(f"metadata/{key}"):
            mapping = json_text.parse(text)
            return sorted(mapping, key=mapping.__getitem__)

    def _check_number_of_users(self) -> None:
        expected = self.parameters.get("num_users") if self.by_user else None
        with self._guarded(""):
            found = sum(len(self._file[partition]) for partition in PARTITIONS if partition in self._file)
        if expected not in (None, found):
            raise DamagedFile(f"{self.path}: holds {found:,} users, but was made with {expected:,}; prepare it again")

    def _is_by_user(self) -> bool:
        if "by_user" in self.parameters:
            return bool(self.parameters["by_user"])
        for partition in PARTITIONS:
            for group in self.groups(partition)[:1]:
                with self._guarded(f"{partition}/{group}"):
                    return "images" in self._file[f"{partition}/{group}"]
        return True

    def _ids_and_labels(
        self, entry: h5py.Group, group: str
    ) -> tuple[list[str], list[str], list[tuple[str, ...]], list[tuple[str, ...]]]:
        if not self.by_user:
            user_id, labels, fine = (entry[key].asstr()[()] for key in ("user_id", "labels", "fine_grained_labels"))
            return [group], [user_id], [_split(labels)], [_split(fine)]
        image_ids = [value.decode() for value in entry["image_ids"][()]]
        both = [self._labels_of(entry, key, len(image_ids)) for key in ("labels", "fine_grained_labels")]
        return image_ids, [group] * len(image_ids), both[0], both[1]

    def _labels_of(self, entry: h5py.Group, key: str, num_images: int) -> list[tuple[str, ...]]:
        if key in entry:
            return [_split(value.decode()) for value in entry[key][()]]
        names: list[list[str]] = [[] for _ in range(num_images)]
        for row, column in zip(entry[f"{key}_row"][()], entry[f"{key}_col"][()], strict=True):
            names[row].append(self._names[key][column])
        return [tuple(row) for row in names]


def _images_and_checksums(entry: h5py.Group, by_user: bool) -> tuple[Any, NDArray[np.uint32] | None]:
    dataset = entry["images" if by_user else "image"]
    is_jpeg = h5py.check_vlen_dtype(dataset.dtype) is not None
    expected = () if is_jpeg else PIXELS_SHAPE
    if dataset.shape[1 if by_user else 0 :] != expected:
        raise ValueError(f"its photos have the shape {dataset.shape}")
    checksums = entry.get("checksums" if by_user else "checksum")
    if by_user:
        return dataset, None if checksums is None else checksums[()]
    return [dataset[()]], None if checksums is None else np.array([checksums[()]])


def _split(names: str) -> tuple[str, ...]:
    return tuple(names.split(LABEL_SEPARATOR))
