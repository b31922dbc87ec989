"""FLAIR as TFDS stores it, as records: the users, photos and bytes of prepare_tfrecords.py, for training without it."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from benchmark.data.records import PhotoIndex, Records, UserSpan, scan_span
from benchmark.data.slices import LABEL_FEATURES, Shard, slices_of
from flair.dataset.catalog import PARTITIONS
from flair.dataset.metadata import check_id
from flair.errors import FlairError
from flair.records.tfrecord import example
from flair.records.tfrecord.frames import read_payloads

if TYPE_CHECKING:
    from benchmark.data.tfds_builder import FlairBuilder

DATASET_FOLDER = "flair"  # the name of the data set, a folder of TFDS's data_dir
_DESCRIPTION_FILE = "dataset_info.json"


def is_tfds_data_dir(folder: str | os.PathLike[str]) -> bool:
    """Whether FLAIR is built there by TFDS."""
    return any((Path(folder) / DATASET_FOLDER).glob(f"*/{_DESCRIPTION_FILE}"))


def require_tfds(flag: str) -> None:
    """Says in one line how to install TFDS, where it is missing."""
    if importlib.util.find_spec("tensorflow_datasets") is None:
        raise FlairError(
            f"{flag}: the package tensorflow-datasets is not installed; add it with `make environment EXTRAS=tfds`"
        )


class TFDSRecords(Records):
    """The photos of a data set that `benchmark.data.tfds_builder` built.

    Serialized examples have the features of prepare_tfrecords.py: equal photos give equal bytes.

    Attributes:
      builder: the TFDS builder of the data set.

    Raises:
      FlairError: TFDS is not installed, FLAIR is not built there, or its description is damaged.
    """

    builder: FlairBuilder

    def __init__(self, tfds_data_dir: str | os.PathLike[str]) -> None:
        self.root = Path(tfds_data_dir)
        where = f"--tfds_data_dir={tfds_data_dir}"
        if not self.root.is_dir():
            raise FlairError(f"{where}: no such folder; build FLAIR there with python -m benchmark.tfds_main")
        require_tfds(where)
        self.builder = _open_builder(self.root)
        columns = (self.builder.info.features[name].feature.names for name in LABEL_FEATURES)
        self.labels, self.fine_grained_labels = ({name: row for row, name in enumerate(names)} for names in columns)
        self._slices: dict[str, dict[str, tuple[int, int]]] = {}
        self._shards: dict[str, list[Shard]] = {}
        self._frames: dict[Path, np.ndarray] = {}
        self._indexes: dict[str, PhotoIndex] = {}

    def users(self, partition: str) -> list[str]:
        """Ids of the partition's users, sorted."""
        return list(self._open(partition))

    def read_user(self, partition: str, user_id: str) -> list[bytes]:
        """Serialized examples of one user, in order, each checked against its CRC-32C."""
        found: list[bytes] = []
        for part in slices_of(self.shards(partition), *self.user_slice(partition, user_id)):
            frames = self._frames_of(part.path)[part.skip : part.skip + part.take]
            found += read_payloads(part.path, int(frames[0, 0]), int(frames[:, 1].sum()))
        return [self._serialize(payload, user_id) for payload in found]

    def photo_index(self, partition: str) -> PhotoIndex:
        """Where every photo of the partition lies; found by reading the headers of all records once."""
        if partition not in self._indexes:
            users, shards = self.users(partition), self.shards(partition)
            frames = np.concatenate([self._frames_of(shard.path) for shard in shards])
            counts = [self.num_photos_of(partition, user) for user in users]
            self._indexes[partition] = PhotoIndex(
                users=users,
                paths=[shard.path for shard in shards],
                user=np.repeat(np.arange(len(users), dtype=np.int32), counts),
                path=np.repeat(np.arange(len(shards), dtype=np.int32), [shard.num_records for shard in shards]),
                offset=frames[:, 0],
                length=frames[:, 1],
            )
        return self._indexes[partition]

    def read_photos(self, partition: str, rows: Iterable[int]) -> list[bytes]:
        """Serialized examples of these rows of `photo_index(partition)`, each checked against its CRC-32C."""
        index = self.photo_index(partition)
        found = []
        for row in rows:
            path = index.paths[index.path[row]]
            (payload,) = read_payloads(path, int(index.offset[row]), int(index.length[row]))
            found.append(self._serialize(payload, index.users[index.user[row]]))
        return found

    def digest(self) -> str:
        """SHA-256 over the label columns, the users, and the files' names, sizes and SHA-256 as they were built."""
        facts: list[object] = [self.labels, self.fine_grained_labels, self.builder.info.metadata.get("shard_sha256")]
        for partition in PARTITIONS:
            facts.append(list(self._open(partition).items()))
            facts += [(shard.path.name, _size(shard.path)) for shard in self.shards(partition)]
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()

    def num_photos(self, partition: str) -> int:
        """Number of photos of the partition."""
        return sum(shard.num_records for shard in self.shards(partition))

    def num_photos_of(self, partition: str, user_id: str) -> int:
        """Number of photos of one user, as the description of the data set has it."""
        start, stop = self.user_slice(partition, user_id)
        return stop - start

    def user_slice(self, partition: str, user_id: str) -> tuple[int, int]:
        """One user's slice [start, stop) of the partition's photos."""
        try:
            return self._open(partition)[user_id]
        except KeyError:
            raise FlairError(f"{self.root}: partition {partition!r} has no user {user_id!r}") from None

    def shards(self, partition: str) -> list[Shard]:
        """The partition's files and how many photos each has."""
        self._open(partition)
        return self._shards[partition]

    def _open(self, partition: str) -> dict[str, tuple[int, int]]:
        if partition not in self._slices:
            with _naming_damage(self.root):
                shards = self.builder.shards(partition)
                slices = {user: (start, stop) for user, (start, stop) in self.builder.users(partition).items()}
                _check(slices, sum(shard.num_records for shard in shards))
            self._slices[partition], self._shards[partition] = slices, shards
        return self._slices[partition]

    def _frames_of(self, path: Path) -> np.ndarray:
        """Offset and length of every framed record of a file, int64 [records, 2]."""
        if path not in self._frames:
            frames = np.array(scan_span(UserSpan(path, 0, None, 0, None)), np.int64).reshape(-1, 2)
            expected = {shard.path: shard.num_records for shards in self._shards.values() for shard in shards}[path]
            if len(frames) != expected:
                raise FlairError(f"{path}: has {len(frames):,} photos, expected {expected:,}; build it again")
            self._frames[path] = frames
        return self._frames[path]

    def _serialize(self, payload: bytes, user_id: str) -> bytes:
        photo = example.decode(payload)
        if photo.user_id != user_id:
            raise FlairError(
                f"{self.root}: image {photo.image_id} of user {photo.user_id} lies where metadata.json says that "
                f"user {user_id} is; build it again"
            )
        return example.encode(photo)


def _open_builder(root: Path) -> FlairBuilder:
    from benchmark.data.tfds_builder import FlairBuilder

    with _naming_damage(root):
        if not (root / DATASET_FOLDER / str(FlairBuilder.VERSION) / _DESCRIPTION_FILE).is_file():
            raise FlairError(
                f"--tfds_data_dir={root}: has no {DATASET_FOLDER}/{FlairBuilder.VERSION}; build FLAIR there with "
                "python -m benchmark.tfds_main"
            )
        builder = FlairBuilder(data_dir=str(root), version=str(FlairBuilder.VERSION))
        for name in LABEL_FEATURES:
            if builder.info.features[name].feature.names != builder.info.metadata["label_names"][name]:
                raise ValueError(f"{name}.labels.txt has other labels than metadata.json")
        return builder


def _check(slices: dict[str, tuple[int, int]], num_photos: int) -> None:
    end = 0
    for user_id, (start, stop) in slices.items():
        check_id(user_id, "user_id", "metadata.json")
        if type(start) is not int or type(stop) is not int or start != end or stop <= start:
            raise ValueError(f"the slice of user {user_id} does not begin where that of the user before ends")
        end = stop
    if end != num_photos or list(slices) != sorted(slices):
        raise ValueError(f"metadata.json has users with {end:,} photos, the files have {num_photos:,}")


@contextlib.contextmanager
def _naming_damage(root: Path) -> Iterator[None]:
    """Turns what TFDS and we raise about a damaged description into one line."""
    try:
        yield
    except FlairError:
        raise
    except Exception as error:  # noqa: BLE001  TFDS's own errors have no common class
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise FlairError(
            f"{root}: the description of its FLAIR data set is damaged ({reason}); build it again with "
            "python -m benchmark.tfds_main --overwrite"
        ) from None


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        raise FlairError(f"{path}: is missing; build it again with python -m benchmark.tfds_main --overwrite") from None
