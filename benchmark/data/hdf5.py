"""An HDF5 file of photos as records: the same users, photos and labels as in TFRecords, for training without them."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmark.data.records import PhotoIndex, Records
from flair.dataset.catalog import PARTITIONS
from flair.dataset.images import PIXELS_SHAPE
from flair.dataset.metadata import Record
from flair.errors import FlairError
from flair.records.hdf5 import objects
from flair.records.hdf5.objects import BadObject
from flair.records.hdf5.reader import HDF5File, record_checksum, stored_checksums, stored_images
from flair.records.tfrecord import example
from flair.terminal.progress import Progress


class _Entry(NamedTuple):
    """One group of the file: its photos without their images."""

    records: Sequence[Record]
    checksums: np.ndarray | None


class HDF5Records(Records):
    """The photos of one HDF5 file, grouped by user or not, as pixels or as JPEG bytes, ours or of other writers.

    Serialized examples are made when read; in a file of pixels they hold these instead of a JPEG.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._file = _File(Path(path))
        self.root = self._file.path
        self.labels, self.fine_grained_labels = (self._columns(name) for name in ("label", "fine_grained_label"))
        self.image_format = self._file.image_format()
        self.exclude_digest = self._file.parameters.get("exclude_sha256")
        self._groups: dict[str, dict[str, _Entry]] = {}
        self._by_user: dict[str, dict[str, list[tuple[str, int]]]] = {}
        self._indexes: dict[str, PhotoIndex] = {}

    def users(self, partition: str) -> list[str]:
        """Ids of the partition's users, sorted; in a file that is not grouped by user every photo is looked at."""
        if self._file.by_user:
            users = sorted(self._file.groups(partition))
        else:
            users = sorted(self._photos_by_user(partition))
        if not users:
            raise FlairError(f"{self.root}: partition {partition!r} is empty; expected one group a user or a photo")
        return users

    def read_user(self, partition: str, user_id: str) -> list[bytes]:
        """Serialized examples of one user, in file order."""
        if self._file.by_user:
            if user_id not in self._file.groups(partition):
                raise FlairError(f"{self.root}: partition {partition!r} has no user {user_id!r}")
            return [self._serialize(photo.record, photo.image) for photo in self._file.photos(partition, user_id)]
        places = self._photos_by_user(partition).get(user_id)
        if places is None:
            raise FlairError(f"{self.root}: partition {partition!r} has no user {user_id!r}")
        return [self._read(partition, group, row) for group, row in places]

    def photo_index(self, partition: str) -> PhotoIndex:
        """Where every photo of the partition lies; labels and ids of all photos are read once and kept."""
        if partition not in self._indexes:
            by_user = self._photos_by_user(partition)
            counts = [len(by_user[user]) for user in self.users(partition)]
            total = sum(counts)
            self._indexes[partition] = PhotoIndex(
                users=self.users(partition),
                paths=[self.root],
                user=np.repeat(np.arange(len(counts), dtype=np.int32), counts),
                path=np.zeros(total, np.int32),
                offset=np.concatenate([np.arange(count) for count in counts]).astype(np.int64),
                length=np.ones(total, np.int64),
            )
        return self._indexes[partition]

    def num_photos_of(self, partition: str, user_id: str) -> int:
        """Number of photos of one user; the labels of all photos are read once and kept."""
        return len(self._photos_by_user(partition)[user_id])

    def read_photos(self, partition: str, rows: Iterable[int]) -> list[bytes]:
        """Serialized examples of these rows of `photo_index(partition)`."""
        index, by_user = self.photo_index(partition), self._photos_by_user(partition)
        places = (by_user[index.users[index.user[row]]][index.offset[row]] for row in rows)
        return [self._read(partition, group, position) for group, position in places]

    def digest(self) -> str:
        """SHA-256 over the label columns, the parameters and the size of the file."""
        facts = [self.labels, self.fine_grained_labels, self._file.parameters, self.root.stat().st_size]
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()

    def _columns(self, kind: str) -> dict[str, int]:
        columns = self._file.columns(kind)
        if columns is None:
            raise FlairError(f"{self.root}: has no /metadata/{kind}_counter; prepare it again with prepare_dataset.py")
        if sorted(columns.values()) != list(range(len(columns))):
            raise FlairError(f"{self.root}: /metadata/{kind}_mapping does not number labels from 0; prepare it again")
        return columns

    def _entries(self, partition: str) -> dict[str, _Entry]:
        if partition not in self._groups:
            groups = self._file.groups(partition)
            entries = {}
            with Progress(len(groups), f"reading the labels of {partition}", "group") as progress:
                for group in groups:
                    entries[group] = self._file.entry(partition, group)
                    progress.add()
            self._groups[partition] = entries
        return self._groups[partition]

    def _photos_by_user(self, partition: str) -> dict[str, list[tuple[str, int]]]:
        if partition not in self._by_user:
            by_user: dict[str, list[tuple[str, int]]] = {}
            for group, entry in self._entries(partition).items():
                for row, record in enumerate(entry.records):
                    by_user.setdefault(record.user_id, []).append((group, row))
            self._by_user[partition] = by_user
        return self._by_user[partition]

    def _read(self, partition: str, group: str, row: int) -> bytes:
        entry = self._entries(partition)[group]
        image = self._file.image(partition, group, row)
        record = entry.records[row]
        if entry.checksums is not None and int(entry.checksums[row]) != record_checksum(record, image.tobytes()):
            raise FlairError(f"{self.root}: the checksum of image {record.image_id} is wrong; prepare it again")
        return self._serialize(record, image)

    def _serialize(self, record: Record, image: np.ndarray) -> bytes:
        try:
            coarse = tuple(self.labels[name] for name in record.labels)
            fine = tuple(self.fine_grained_labels[name] for name in record.fine_grained_labels)
            return example.encode(example.Example(image.tobytes(), coarse, fine, record.image_id, record.user_id))
        except KeyError as error:
            raise FlairError(
                f"{self.root}: image {record.image_id} has the label {error}, which /metadata does not count"
            ) from None


class _File(HDF5File):
    """Random access to single photos."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._checked: set[tuple[str, str]] = set()  # groups whose photos can be read without harm

    def image_format(self) -> str:
        """`raw` or `jpeg`, as the first photo is stored."""
        for partition in PARTITIONS:
            for group in self.groups(partition)[:1]:
                return "raw" if self.image(partition, group, 0).shape == PIXELS_SHAPE else "jpeg"
        raise FlairError(f"{self.path}: holds no photo; prepare it again with prepare_dataset.py")

    def entry(self, partition: str, group: str) -> _Entry:
        """Ids, labels and checksums of a group's photos."""
        with self._guarded(f"{partition}/{group}"):
            entry = objects.group(self._file, f"{partition}/{group}")
            image_ids, user_ids, labels, fine = self._ids_and_labels(entry, group)
            checksums = stored_checksums(entry, self.by_user)
            lengths = [len(image_ids), len(user_ids), len(labels), len(fine)]
            if len({*lengths, *(() if checksums is None else (len(checksums),))}) != 1:
                raise BadObject("its arrays have different lengths")
            records = [
                Record(user_ids[row], image_ids[row], labels[row], fine[row], partition)
                for row in range(len(image_ids))
            ]
            return _Entry(records, checksums)

    def image(self, partition: str, group: str, row: int) -> np.ndarray:
        """One photo as stored: uint8 [256, 256, 3], or the bytes of a JPEG as uint8 [n]."""
        with self._guarded(f"{partition}/{group}"):
            entry = objects.group(self._file, f"{partition}/{group}")
            if (partition, group) not in self._checked:
                stored_images(entry, self.by_user)
                self._checked.add((partition, group))
            stored = entry["images"][row] if self.by_user else entry["image"][()]
            return np.asarray(stored, np.uint8)
