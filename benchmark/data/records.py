"""Opening prepared FLAIR records without TensorFlow: which users there are, and where each photo lies.

Two layouts of TFRecord files are read (docs/formats.md): one file per user, `<partition>/<user_id>.tfrecords`, and
shards of many users with a `<partition>/user_index.json`. The folder of the validation partition may be called `dev`
or `val`, the label file `label_index.json` or `label_to_index.json`. HDF5 files are read by `hdf5`.
"""

from __future__ import annotations

import abc
import concurrent.futures
import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from flair.dataset.catalog import PARTITIONS
from flair.errors import FlairError
from flair.records.tfrecord import reader
from flair.records.tfrecord.frames import DamagedRecord, read_payloads, record_places
from flair.records.tfrecord.layout import LABEL_INDEX_FILE


class UserSpan(NamedTuple):
    """Where one user's records lie: `length` bytes from `offset` of `path` (None: to its end).

    `skip` is the number of records before them in the file and `count` their own (None: not indexed).
    """

    path: Path
    offset: int
    length: int | None
    skip: int
    count: int | None  # type: ignore[assignment]  # shadows tuple.count, which nobody asks a span for


class PhotoIndex(NamedTuple):
    """One row per photo, users in sorted order, photos of a user in file order."""

    users: list[str]
    paths: list[Path]
    user: np.ndarray  # int32 [n], row of `users`
    path: np.ndarray  # int32 [n], row of `paths`
    offset: np.ndarray  # int64 [n], of the framed record in its file; in HDF5, the photo's row of its user
    length: np.ndarray  # int64 [n], bytes of the framed record; in HDF5, 1


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


class Records(abc.ABC):
    """Prepared records of one place.

    Attributes:
      root: the folder or file.
      labels, fine_grained_labels: label name -> column.
      image_format: `jpeg`, or `raw` where the serialized examples hold uint8 [256, 256, 3] pixels.
      exclude_digest: `flair.curation.exclusion.Exclusion.digest` of what --exclude left out of them, None: nothing.
    """

    root: Path
    labels: dict[str, int]
    fine_grained_labels: dict[str, int]
    image_format: str = "jpeg"
    exclude_digest: str | None = None

    @abc.abstractmethod
    def users(self, partition: str) -> list[str]:
        """Ids of the partition's users, sorted."""

    @abc.abstractmethod
    def read_user(self, partition: str, user_id: str) -> list[bytes]:
        """Serialized examples of one user, in file order, each checked against its CRC-32C where there is one."""

    @abc.abstractmethod
    def photo_index(self, partition: str) -> PhotoIndex:
        """Where every photo of the partition lies; found once."""

    @abc.abstractmethod
    def read_photos(self, partition: str, rows: Iterable[int]) -> list[bytes]:
        """Serialized examples of these rows of `photo_index(partition)`, checked as by `read_user`."""

    @abc.abstractmethod
    def digest(self) -> str:
        """SHA-256 that names the data: over the label columns and the names and sizes of the files, not their bytes."""

    def num_photos(self, partition: str) -> int:
        """Number of photos of the partition."""
        return len(self.photo_index(partition).offset)

    @abc.abstractmethod
    def num_photos_of(self, partition: str, user_id: str) -> int:
        """Number of photos of one user, found without reading them."""


class TFRecordRecords(Records):
    """TFRecord files in a folder, one per user or shards of many users."""

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = Path(root)
        self._folder = reader.TFRecords(self.root)
        if self._folder.columns is None:
            raise FlairError(
                f"--tfrecords_dir={root}: has no {LABEL_INDEX_FILE}; expected a folder of prepare_tfrecords.py"
            )
        self.labels, self.fine_grained_labels = self._folder.columns
        self.exclude_digest = self._folder.parameters.get("exclude_sha256")
        self._spans: dict[str, dict[str, UserSpan]] = {}
        self._indexes: dict[str, PhotoIndex] = {}

    def users(self, partition: str) -> list[str]:
        """Ids of the partition's users, sorted."""
        return list(self._partition(partition))

    def span(self, partition: str, user_id: str) -> UserSpan:
        """Where the records of one user lie."""
        try:
            return self._partition(partition)[user_id]
        except KeyError:
            raise FlairError(f"{self.root}: partition {partition!r} has no user {user_id!r}") from None

    def read_user(self, partition: str, user_id: str) -> list[bytes]:
        """Serialized examples of one user, in file order, each checked against its CRC-32C."""
        span = self.span(partition, user_id)
        payloads = list(read_payloads(span.path, span.offset, span.length))
        if not payloads or span.count not in (None, len(payloads)):
            expected = "one or more" if span.count is None else span.count
            raise DamagedRecord(
                f"{span.path}: {len(payloads)} photos of {user_id}, expected {expected}; prepare it again"
            )
        return payloads

    def photo_index(self, partition: str) -> PhotoIndex:
        """Where every photo of the partition lies; found by reading the headers of all records once."""
        if partition not in self._indexes:
            self._indexes[partition] = _scan(self._partition(partition))
        return self._indexes[partition]

    def num_photos(self, partition: str) -> int:
        """Number of photos of the partition."""
        counts = [span.count for span in self._partition(partition).values()]
        known = [count for count in counts if count is not None]
        return sum(known) if len(known) == len(counts) else super().num_photos(partition)

    def num_photos_of(self, partition: str, user_id: str) -> int:
        """Number of photos of one user: indexed, or found by reading the headers of the user's records."""
        span = self.span(partition, user_id)
        return len(scan_span(span)) if span.count is None else span.count

    def read_photos(self, partition: str, rows: Iterable[int]) -> list[bytes]:
        """Serialized examples of these rows of `photo_index(partition)`, each checked against its CRC-32C."""
        index = self.photo_index(partition)
        places = ((index.paths[index.path[row]], int(index.offset[row]), int(index.length[row])) for row in rows)
        return [payload for place in places for payload in read_payloads(*place)]

    def digest(self) -> str:
        """SHA-256 over the label columns and, per file, its partition, name and size: names the data, not its bytes."""
        sha = hashlib.sha256(json.dumps([self.labels, self.fine_grained_labels], sort_keys=True).encode())
        for partition in PARTITIONS:
            if self._folder.has_partition(partition):
                for path in sorted({span.path for span in self._partition(partition).values()}):
                    sha.update(f"{partition}/{path.name}:{path.stat().st_size}\n".encode())
        return sha.hexdigest()

    def _partition(self, partition: str) -> dict[str, UserSpan]:
        if partition not in self._spans:
            self._spans[partition] = self._open_partition(partition)
        return self._spans[partition]

    def _open_partition(self, partition: str) -> dict[str, UserSpan]:
        spans = _spans(self._folder.users(partition))
        if not spans:
            raise FlairError(f"{self.root}: partition {partition!r} is empty; prepare it again")
        return dict(sorted(spans.items()))


def _spans(users: Mapping[str, reader.Span]) -> dict[str, UserSpan]:
    spans: dict[str, UserSpan] = {}
    skipped: dict[Path, int] = {}
    for user, (path, location) in sorted(users.items(), key=lambda item: (item[1].path, item[1].location or ())):
        if location is None:
            spans[user] = UserSpan(path, 0, None, 0, None)
        else:
            spans[user] = UserSpan(path, location.offset, location.num_bytes, skipped.get(path, 0), location.num_images)
            skipped[path] = skipped.get(path, 0) + location.num_images
    return spans


def _scan(spans: dict[str, UserSpan]) -> PhotoIndex:
    paths = sorted({span.path for span in spans.values()})
    path_row = {path: row for row, path in enumerate(paths)}
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        found = list(pool.map(scan_span, spans.values(), chunksize=64))
    counts = [len(frames) for frames in found]
    frames = np.array([frame for frames in found for frame in frames], np.int64).reshape(-1, 2)
    return PhotoIndex(
        users=list(spans),
        paths=paths,
        user=np.repeat(np.arange(len(counts), dtype=np.int32), counts),
        path=np.repeat(np.array([path_row[span.path] for span in spans.values()], np.int32), counts),
        offset=frames[:, 0],
        length=frames[:, 1],
    )


def scan_span(span: UserSpan) -> list[tuple[int, int]]:
    """Offset and length in bytes of every framed record of a span, from their headers alone."""
    places = record_places(span.path, span.offset, span.length)
    if not places:
        raise DamagedRecord(f"{span.path}: holds no photo of a user; prepare it again")
    return places
