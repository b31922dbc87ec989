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

from benchmark.data.records import PhotoIndex, Records, photo_places
from benchmark.data.slices import LABEL_FEATURES, Shard
from flair.dataset.catalog import PARTITIONS
from flair.dataset.metadata import check_id
from flair.errors import FlairError
from flair.records.tfrecord import example
from flair.records.tfrecord.reader import Span

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


class TFDSRecords(Records[tuple[int, int]]):
    """The photos of a data set that `benchmark.data.tfds_builder` built.

    Serialized examples have the features of prepare_tfrecords.py: equal photos give equal bytes.

    Attributes:
      builder: the TFDS builder of the data set.

    Raises:
      FlairError: TFDS is not installed, FLAIR is not built there, or its description is damaged.
    """

    builder: FlairBuilder

    def __init__(self, tfds_data_dir: str | os.PathLike[str]) -> None:
        super().__init__(tfds_data_dir)
        where = f"--tfds_data_dir={tfds_data_dir}"
        if not self.root.is_dir():
            raise FlairError(f"{where}: no such folder; build FLAIR there with python -m benchmark.tfds_main")
        require_tfds(where)
        self.builder = _open_builder(self.root)
        columns = (self.builder.info.features[name].feature.names for name in LABEL_FEATURES)
        self.labels, self.fine_grained_labels = ({name: row for row, name in enumerate(names)} for names in columns)

    def shards(self, partition: str) -> list[Shard]:
        """The partition's files and how many photos each has."""
        with _naming_damage(self.root):
            return self.builder.shards(partition)

    def num_photos_of(self, partition: str, user_id: str) -> int:
        start, stop = self.place(partition, user_id)
        return stop - start

    def read_user(self, partition: str, user_id: str) -> list[bytes]:
        return self.read_photos(partition, range(*self.place(partition, user_id)))

    def read_photos(self, partition: str, rows: Iterable[int]) -> list[bytes]:
        index = self.photo_index(partition)
        return [self._serialize(index.read_record(row), index.users[index.user[row]]) for row in rows]

    def digest(self) -> str:
        facts: list[object] = [self.labels, self.fine_grained_labels, self.builder.info.metadata.get("shard_sha256")]
        for partition in PARTITIONS:
            facts.append(list(self.places(partition).items()))
            facts += [(shard.path.name, _size(shard.path)) for shard in self.shards(partition)]
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()

    def _find_users(self, partition: str) -> dict[str, tuple[int, int]]:
        with _naming_damage(self.root):
            slices = {user: (start, stop) for user, (start, stop) in self.builder.users(partition).items()}
            _check(slices, sum(shard.num_records for shard in self.builder.shards(partition)))
        return slices

    def _find_photos(self, partition: str) -> PhotoIndex:
        counts = [stop - start for start, stop in self.places(partition).values()]
        shards = self.shards(partition)
        frames = np.concatenate([_frames(shard) for shard in shards])
        return PhotoIndex(
            users=self.users(partition),
            paths=[shard.path for shard in shards],
            user=np.repeat(np.arange(len(counts), dtype=np.int32), counts),
            path=np.repeat(np.arange(len(shards), dtype=np.int32), [shard.num_records for shard in shards]),
            offset=frames[:, 0],
            length=frames[:, 1],
        )

    def _serialize(self, payload: bytes, user_id: str) -> bytes:
        photo = example.decode(payload)
        if photo.user_id != user_id:
            raise FlairError(
                f"{self.root}: image {photo.image_id} of user {photo.user_id} lies where metadata.json says that "
                f"user {user_id} is; build it again"
            )
        return example.encode(photo)


def _frames(shard: Shard) -> np.ndarray:
    """Offset and length of every framed record of a file, int64 [records, 2]."""
    frames = np.array(photo_places(Span(shard.path, None)), np.int64)
    if len(frames) != shard.num_records:
        raise FlairError(f"{shard.path}: has {len(frames):,} photos, expected {shard.num_records:,}; build it again")
    return frames


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
