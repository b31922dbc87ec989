"""An HDF5 file of photos as records: the same users, photos and labels as in TFRecords, for training without them."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from benchmark.data.records import PhotoIndex, Records
from flair.dataset.catalog import PARTITIONS
from flair.dataset.images import PIXELS_SHAPE
from flair.dataset.metadata import Record
from flair.errors import FlairError
from flair.records.hdf5.reader import HDF5File, record_checksum
from flair.records.tfrecord import example
from flair.records.tfrecord.layout import LabelColumns
from flair.terminal.progress import Progress


class _StoredPhoto(NamedTuple):
    """A photo of the file without its image, which is in this row of a group."""

    record: Record
    group: str
    row: int
    checksum: int | None


class HDF5Records(Records[None]):
    """The photos of one HDF5 file, grouped by user or not, as pixels or as JPEG bytes, ours or of other writers.

    Serialized examples are made when read; in a file of pixels they hold these instead of a JPEG. Users have no place
    but their id.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        super().__init__(path)
        self._file = HDF5File(self.root)
        self.labels, self.fine_grained_labels = (self._columns(name) for name in ("label", "fine_grained_label"))
        self.image_format = self._find_image_format()
        self.exclude_digest = self._file.parameters.get("exclude_sha256")
        self._by_user: dict[str, dict[str, list[_StoredPhoto]]] = {}

    def num_photos_of(self, partition: str, user_id: str) -> int:
        return len(self._photos_of(partition, user_id))

    def read_user(self, partition: str, user_id: str) -> list[bytes]:
        if not self._file.by_user:
            return [self._read(photo) for photo in self._photos_of(partition, user_id)]
        self.place(partition, user_id)
        return [self._serialize(photo.record, photo.image) for photo in self._file.photos(partition, user_id)]

    def read_photos(self, partition: str, rows: Iterable[int]) -> list[bytes]:
        index = self.photo_index(partition)
        places = ((index.users[index.user[row]], index.offset[row]) for row in rows)
        return [self._read(self._photos_of(partition, user_id)[position]) for user_id, position in places]

    def digest(self) -> str:
        facts = [self.labels, self.fine_grained_labels, self._file.parameters, self.root.stat().st_size]
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()

    def _find_users(self, partition: str) -> dict[str, None]:
        users = self._file.groups(partition) if self._file.by_user else self._photos(partition)
        if not users:
            raise FlairError(f"{self.root}: partition {partition!r} is empty; expected one group a user or a photo")
        return dict.fromkeys(users)

    def _find_photos(self, partition: str) -> PhotoIndex:
        counts = [self.num_photos_of(partition, user_id) for user_id in self.users(partition)]
        return PhotoIndex(
            users=self.users(partition),
            paths=[self.root],
            user=np.repeat(np.arange(len(counts), dtype=np.int32), counts),
            path=np.zeros(sum(counts), np.int32),
            offset=np.concatenate([np.arange(count) for count in counts]),
            length=np.ones(sum(counts), np.int64),
        )

    def _photos_of(self, partition: str, user_id: str) -> list[_StoredPhoto]:
        self.place(partition, user_id)
        return self._photos(partition).get(user_id, [])

    def _photos(self, partition: str) -> dict[str, list[_StoredPhoto]]:
        """Each user's photos, whose ids and labels are read once and kept."""
        if partition not in self._by_user:
            groups = self._file.groups(partition)
            by_user: dict[str, list[_StoredPhoto]] = {}
            with Progress(len(groups), f"reading the labels of {partition}", "group") as progress:
                for group in groups:
                    for row, (record, checksum) in enumerate(self._file.records(partition, group)):
                        by_user.setdefault(record.user_id, []).append(_StoredPhoto(record, group, row, checksum))
                    progress.add()
            self._by_user[partition] = by_user
        return self._by_user[partition]

    def _find_image_format(self) -> str:
        """`raw` or `jpeg`, as the first photo is stored."""
        for partition in PARTITIONS:
            for group in self._file.groups(partition)[:1]:
                return "raw" if self._file.image(partition, group, 0).shape == PIXELS_SHAPE else "jpeg"
        raise FlairError(f"{self.root}: holds no photo; prepare it again with prepare_dataset.py")

    def _columns(self, kind: str) -> dict[str, int]:
        columns = self._file.columns(kind)
        if columns is None:
            raise FlairError(f"{self.root}: has no /metadata/{kind}_counter; prepare it again with prepare_dataset.py")
        return columns

    def _read(self, photo: _StoredPhoto) -> bytes:
        record = photo.record
        image = self._file.image(record.partition, photo.group, photo.row)
        if photo.checksum is not None and photo.checksum != record_checksum(record, image.tobytes()):
            raise FlairError(f"{self.root}: the checksum of image {record.image_id} is wrong; prepare it again")
        return self._serialize(record, image)

    def _serialize(self, record: Record, image: np.ndarray) -> bytes:
        try:
            coarse, fine = LabelColumns(self.labels, self.fine_grained_labels).of(record)
        except KeyError as error:
            raise FlairError(
                f"{self.root}: image {record.image_id} has the label {error}, which /metadata does not count"
            ) from None
        return example.encode(example.Example(image.tobytes(), coarse, fine, record.image_id, record.user_id))
