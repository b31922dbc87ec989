"""How a folder of TFRecords is laid out: its names, which users go to which file, its indexes (docs/formats.md)."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from flair.dataset.catalog import HELDOUT
from flair.dataset.metadata import Record, User
from flair.files import json_text
from flair.parallel.processes import batches

DEFAULT_IMAGES_PER_SHARD = 2000  # 28 MB; some 210 files for the full dataset
LABEL_INDEX_FILE = "label_index.json"
USER_INDEX_FILE = "user_index.json"
PARTITION_FOLDERS = {"train": "train", "val": "dev", "test": "test"}
ALL_FOLDERS = {**PARTITION_FOLDERS, HELDOUT: HELDOUT}  # the last one is there with --heldout_fraction only
LINKS = {"label_to_index.json": LABEL_INDEX_FILE, "val": "dev"}  # the names that ml-flair's own code reads
SUFFIX = ".tfrecords"


class RecordFile(NamedTuple):
    """A file of records: its name below the folder, as `train/9@N00.tfrecords`, and the users in it, in order."""

    name: str
    users: tuple[User, ...]

    @property
    def num_images(self) -> int:
        """Photos of all its users."""
        return sum(len(user.records) for user in self.users)


class LabelColumns(NamedTuple):
    """Label name -> column, of the coarse and of the fine-grained labels."""

    labels: dict[str, int]
    fine_grained_labels: dict[str, int]

    def of(self, record: Record) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The columns of a record's labels, coarse and fine, in the record's order."""
        return (
            tuple(self.labels[name] for name in record.labels),
            tuple(self.fine_grained_labels[name] for name in record.fine_grained_labels),
        )


class Location(NamedTuple):
    """Where a user's records lie: bytes from `offset` of a file, and how many photos they are."""

    offset: int
    num_bytes: int
    num_images: int


def plan_files(users: Sequence[User], layout: str, images_per_shard: int) -> list[RecordFile]:
    """The files to write, users in order; a shard is closed when it has `images_per_shard` photos or more."""
    files: list[RecordFile] = []
    for partition, folder in ALL_FOLDERS.items():
        members = [user for user in users if user.partition == partition]
        if layout == "per_user":
            files += [RecordFile(f"{folder}/{user.user_id}{SUFFIX}", (user,)) for user in members]
        else:
            shards = list(batches(members, images_per_shard, lambda user: len(user.records)))
            files += [
                RecordFile(f"{folder}/shard-{number:05d}-of-{len(shards):05d}{SUFFIX}", tuple(shard))
                for number, shard in enumerate(shards)
            ]
    return files


def label_index_text(columns: LabelColumns) -> str:
    """The content of label_index.json, in ml-flair's form."""
    return json.dumps(columns._asdict(), indent=4) + "\n"


def user_index_text(files: Iterable[RecordFile], sizes: Iterable[Sequence[int]]) -> str:
    """The content of user_index.json for a partition's shards, given the bytes of each record in each of them.

    User -> [file, offset, bytes, photos], one line per user.
    """
    lines = []
    for file, of_file in zip(files, sizes, strict=True):
        offset, left = 0, iter(of_file)
        for user in file.users:
            location = Location(offset, sum(itertools.islice(left, len(user.records))), len(user.records))
            lines.append(f"{json.dumps(user.user_id)}: {json.dumps([file.name.rpartition('/')[2], *location])}")
            offset += location.num_bytes
    return "{\n" + ",\n".join(lines) + "\n}\n"


def parse_user_index(text: str) -> Mapping[str, tuple[str, Location]]:
    """User -> file name and location, from the content of user_index.json; ValueError where it is something else."""
    index: dict[str, tuple[str, Location]] = {}
    content = json_text.parse(text)
    if not isinstance(content, dict):
        raise ValueError("expected an object")
    for user_id, entry in content.items():
        if not _is_entry(entry):
            raise ValueError(f"the entry of {user_id!r} is not [file, offset, bytes, photos]")
        name, *location = entry
        index[user_id] = (name, Location(*location))
    return index


def _is_entry(entry: object) -> bool:
    return (
        isinstance(entry, list)
        and [type(item) for item in entry] == [str, int, int, int]
        and "/" not in entry[0]
        and min(entry[1:]) >= 0
    )
