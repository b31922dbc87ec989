"""Opening prepared FLAIR records without TensorFlow: which users there are, and where each photo lies.

Two layouts of TFRecord files are read (docs/formats.md): one file per user, `<partition>/<user_id>.tfrecords`, and
shards of many users with a `<partition>/user_index.json`. The folder of the validation partition may be called `dev`
or `val`, the label file `label_index.json` or `label_to_index.json`. `hdf5` and `tfds` read the other formats.
"""

from __future__ import annotations

import abc
import concurrent.futures
import hashlib
import itertools
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar

import numpy as np

from flair.dataset.catalog import PARTITIONS
from flair.errors import FlairError
from flair.records.tfrecord.frames import DamagedRecord, read_payloads, record_places
from flair.records.tfrecord.layout import LABEL_INDEX_FILE
from flair.records.tfrecord.reader import Span, TFRecords

_Place = TypeVar("_Place")


class PhotoIndex(NamedTuple):
    """One row per photo, users in sorted order, photos of a user in file order."""

    users: list[str]
    paths: list[Path]
    user: np.ndarray  # int32 [n], row of `users`
    path: np.ndarray  # int32 [n], row of `paths`
    offset: np.ndarray  # int64 [n], of the framed record in its file; in HDF5, the photo's row of its user
    length: np.ndarray  # int64 [n], bytes of the framed record; in HDF5, 1

    def read_record(self, row: int) -> bytes:
        """The payload of a photo's record in a TFRecord file, checked against its CRC-32C."""
        (payload,) = read_payloads(self.paths[self.path[row]], int(self.offset[row]), int(self.length[row]))
        return payload


@dataclass(frozen=True)
class Task:
    """What a model predicts: the columns of its output.

    `feature` is the kind of labels in the records, `num_columns` how many of that kind exist, and `binary_index`
    the one column that is predicted alone (None: all are). `image_format` of the records is `jpeg` or `raw`.
    """

    feature: str
    label_names: tuple[str, ...]
    num_columns: int
    binary_index: int | None = None
    image_format: str = "jpeg"

    @property
    def num_outputs(self) -> int:
        """Number of the model's outputs: 1 for a binary label."""
        return len(self.label_names)

    @property
    def is_binary(self) -> bool:
        """Whether metrics carry their bare names (`loss`, `precision`, ...)."""
        return self.binary_index is not None


class Records(abc.ABC, Generic[_Place]):
    """Prepared records of one folder or file; each format has its own kind of `_Place` of a user's photos.

    Attributes:
      root: the folder or file.
      labels, fine_grained_labels: label name -> column.
      image_format: `jpeg`, or `raw` where the serialized examples hold uint8 [256, 256, 3] pixels.
      exclude_digest: `flair.curation.exclusion.Exclusion.digest` of what --exclude left out of them, None: nothing.
    """

    labels: dict[str, int]
    fine_grained_labels: dict[str, int]
    image_format: str = "jpeg"
    exclude_digest: str | None = None

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = Path(root)
        self._places: dict[str, dict[str, _Place]] = {}
        self._indexes: dict[str, PhotoIndex] = {}
        self._rows: dict[str, dict[str, tuple[int, int]]] = {}

    def users(self, partition: str) -> list[str]:
        """Ids of the partition's users, sorted."""
        return list(self.places(partition))

    def places(self, partition: str) -> dict[str, _Place]:
        """User id, in sorted order, -> where the user's photos are; found once."""
        if partition not in self._places:
            self._places[partition] = dict(sorted(self._find_users(partition).items()))
        return self._places[partition]

    def place(self, partition: str, user_id: str) -> _Place:
        """Where one user's photos are."""
        try:
            return self.places(partition)[user_id]
        except KeyError:
            raise FlairError(f"{self.root}: partition {partition!r} has no user {user_id!r}") from None

    def photo_index(self, partition: str) -> PhotoIndex:
        """Where every photo of the partition lies; found once."""
        if partition not in self._indexes:
            self._indexes[partition] = self._find_photos(partition)
        return self._indexes[partition]

    def rows_of(self, partition: str, user_id: str) -> np.ndarray:
        """The user's rows of `photo_index(partition)`, int64, which follow each other."""
        index = self.photo_index(partition)
        if partition not in self._rows:
            borders = np.searchsorted(index.user, np.arange(len(index.users) + 1))
            self._rows[partition] = dict(zip(index.users, itertools.pairwise(borders.tolist()), strict=True))
        self.place(partition, user_id)  # refuses an unknown one
        return np.arange(*self._rows[partition][user_id])

    def num_photos(self, partition: str) -> int:
        """Number of photos of the partition."""
        return sum(self.num_photos_of(partition, user_id) for user_id in self.users(partition))

    @abc.abstractmethod
    def num_photos_of(self, partition: str, user_id: str) -> int:
        """Number of photos of one user, found without reading them."""

    @abc.abstractmethod
    def read_user(self, partition: str, user_id: str) -> list[bytes]:
        """Serialized examples of one user, in file order, each checked against its CRC-32C where there is one."""

    @abc.abstractmethod
    def read_photos(self, partition: str, rows: Iterable[int]) -> list[bytes]:
        """Serialized examples of these rows of `photo_index(partition)`, checked as by `read_user`."""

    @abc.abstractmethod
    def digest(self) -> str:
        """SHA-256 that names the data: over the label columns and the names and sizes of the files, not their bytes."""

    @abc.abstractmethod
    def _find_users(self, partition: str) -> dict[str, _Place]: ...

    @abc.abstractmethod
    def _find_photos(self, partition: str) -> PhotoIndex: ...


class TFRecordRecords(Records[Span]):
    """TFRecord files in a folder, one per user or shards of many users."""

    def __init__(self, root: str | os.PathLike[str]) -> None:
        super().__init__(root)
        self._folder = TFRecords(self.root)
        if self._folder.columns is None:
            raise FlairError(
                f"--tfrecords_dir={root}: has no {LABEL_INDEX_FILE}; expected a folder of prepare_tfrecords.py"
            )
        self.labels, self.fine_grained_labels = self._folder.columns
        self.exclude_digest = self._folder.parameters.get("exclude_sha256")

    def num_photos(self, partition: str) -> int:
        # Without an index of users every record's header is read, which the index of photos keeps.
        is_indexed = all(span.location for span in self.places(partition).values())
        return super().num_photos(partition) if is_indexed else len(self.photo_index(partition).offset)

    def num_photos_of(self, partition: str, user_id: str) -> int:
        span = self.place(partition, user_id)
        return span.location.num_images if span.location else len(photo_places(span))

    def read_user(self, partition: str, user_id: str) -> list[bytes]:
        span = self.place(partition, user_id)
        payloads = list(read_payloads(span.path, *_extent(span)))
        if not payloads or (span.location and len(payloads) != span.location.num_images):
            expected = span.location.num_images if span.location else "one or more"
            raise DamagedRecord(
                f"{span.path}: {len(payloads)} photos of {user_id}, expected {expected}; prepare it again"
            )
        return payloads

    def read_photos(self, partition: str, rows: Iterable[int]) -> list[bytes]:
        index = self.photo_index(partition)
        return [index.read_record(row) for row in rows]

    def digest(self) -> str:
        sha = hashlib.sha256(json.dumps([self.labels, self.fine_grained_labels], sort_keys=True).encode())
        for partition in filter(self._folder.has_partition, PARTITIONS):
            for path in sorted({span.path for span in self.places(partition).values()}):
                sha.update(f"{partition}/{path.name}:{path.stat().st_size}\n".encode())
        return sha.hexdigest()

    def _find_users(self, partition: str) -> dict[str, Span]:
        spans = self._folder.users(partition)
        if not spans:
            raise FlairError(f"{self.root}: partition {partition!r} is empty; prepare it again")
        return spans

    def _find_photos(self, partition: str) -> PhotoIndex:
        spans = self.places(partition).values()
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            found = list(pool.map(photo_places, spans))
        paths = sorted({span.path for span in spans})
        row_of = {path: row for row, path in enumerate(paths)}
        counts = [len(places) for places in found]
        frames = np.concatenate(found)
        return PhotoIndex(
            users=self.users(partition),
            paths=paths,
            user=np.repeat(np.arange(len(counts), dtype=np.int32), counts),
            path=np.repeat(np.array([row_of[span.path] for span in spans], np.int32), counts),
            offset=frames[:, 0],
            length=frames[:, 1],
        )


def photo_places(span: Span) -> list[tuple[int, int]]:
    """Offset and length in bytes of each framed record of a span, from their headers alone."""
    places = record_places(span.path, *_extent(span))
    if not places:
        raise DamagedRecord(f"{span.path}: holds no photo of a user; prepare it again")
    return places


def _extent(span: Span) -> tuple[int, int | None]:
    """Offset and length in bytes, None to the end of the file."""
    return (0, None) if span.location is None else span.location[:2]
