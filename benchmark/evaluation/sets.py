"""The photos to evaluate on: a partition or a test set, without excluded photos."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from benchmark.data.labels import check_columns
from benchmark.data.records import Records, Task
from flair.curation.exclusion import Exclusion
from flair.curation.manifest import Testset, manifest_path, read_valid_testset
from flair.dataset.catalog import HELDOUT, PARTITIONS
from flair.errors import FlairError
from flair.files import atomic
from flair.records.tfrecord import example
from flair.terminal.progress import Progress

_KNOWN = (*PARTITIONS, HELDOUT)
_ALIASES = {"dev": "val"}
_READ_AT_ONCE = 256


@dataclass(frozen=True)
class EvaluationSet:
    """Photos to evaluate on.

    Attributes:
      name: as in `--partitions`, or the name in the manifest.
      rows: of `records.photo_index(partition)`, ascending.
      labels: uint8 [photos, outputs], 0 or 1.
      of_partition: the image ids of the whole partition.
      num_excluded: photos that --exclude took away.
      manifest: the test set's file, None for a whole partition.
    """

    name: str
    partition: str
    rows: np.ndarray
    image_ids: tuple[str, ...]
    user_ids: tuple[str, ...]
    labels: np.ndarray
    of_partition: tuple[str, ...]
    num_excluded: int = 0
    manifest: Path | None = None

    @property
    def users(self) -> list[str]:
        """Users with a photo, sorted."""
        return sorted(set(self.user_ids))

    def user_numbers(self, users: Sequence[str]) -> np.ndarray:
        """Position of each photo's user in `users`: int64 [photos]."""
        position = {user: number for number, user in enumerate(users)}
        return np.array([position[user] for user in self.user_ids], np.int64)

    def ids_text(self) -> str:
        """The id file: `image_id,user_id` of each row of the predictions."""
        return atomic.csv_text([("image_id", "user_id"), *zip(self.image_ids, self.user_ids, strict=True)])

    @property
    def digest(self) -> str:
        """SHA-256 of the id file."""
        return hashlib.sha256(self.ids_text().encode()).hexdigest()


@dataclass(frozen=True)
class ChosenSet:
    """What `--partitions` names, before the records are read."""

    name: str
    partition: str
    testset: Testset | None
    manifest: Path | None


def choose_sets(names: Sequence[str], testsets_dir: str) -> list[ChosenSet]:
    """Reads the manifests among `--partitions`; nothing of the records yet.

    Raises:
      FlairError: there is neither such a partition nor such a test set, the set is invalid, or a name occurs twice.
    """
    chosen = [_choose(_ALIASES.get(name, name), testsets_dir) for name in names]
    if not chosen:
        raise FlairError(f"--partitions: names none; expected some of {', '.join(_KNOWN)}, or test sets")
    for index, one in enumerate(chosen):
        if one.name in [other.name for other in chosen[:index]]:
            raise FlairError(f"--partitions: {one.name} occurs twice")
    return chosen


def load_sets(
    records: Records, task: Task, chosen: Sequence[ChosenSet], exclusion: Exclusion | None
) -> list[EvaluationSet]:
    """Reads ids and labels of every partition that is asked for, and takes the rows of each set.

    Records that were prepared with the same exclusion are left as they are. They still hold one photo of each group of
    near duplicates, and the exclusion, applied again, would take it for a twin of a photo in another partition.

    Raises:
      FlairError: photos of a test set are missing, the records tell no ids where some are needed, or no photo is left.
    """
    whole = {partition: _read(records, partition, task) for partition in dict.fromkeys(one.partition for one in chosen)}
    if prepared_with(records, exclusion):
        exclusion = None
    return [_take(whole[one.partition], one, exclusion, records) for one in chosen]


def prepared_with(records: Records, exclusion: Exclusion | None) -> bool:
    """Whether the records have been prepared with this exclusion."""
    return exclusion is not None and exclusion.digest == records.exclude_digest


def _choose(name: str, testsets_dir: str) -> ChosenSet:
    if name in _KNOWN:
        return ChosenSet(name, name, None, None)
    path = manifest_path(name, testsets_dir)
    if not name.endswith(".json") and not path.is_file():
        raise FlairError(
            f"--partitions={name}: no such partition ({', '.join(_KNOWN)}), and no test set {path}; "
            "--testsets_dir says where test sets are"
        )
    testset = read_valid_testset(path)
    return ChosenSet(testset.name, testset.partition, testset, path)


def _read(records: Records, partition: str, task: Task) -> EvaluationSet:
    index = records.photo_index(partition)
    count = len(index.offset)
    labels = np.zeros((count, task.num_outputs), np.uint8)
    user_ids = tuple(index.users[user] for user in index.user)
    image_ids = []
    with Progress(count, f"reading the labels of {partition}", "photo") as progress:
        for start in range(0, count, _READ_AT_ONCE):
            rows = range(start, min(start + _READ_AT_ONCE, count))
            for row, serialized in zip(rows, records.read_photos(partition, rows), strict=True):
                photo = _decode(serialized, index.paths[index.path[row]])
                columns = getattr(photo, task.feature)
                place = f"{index.paths[index.path[row]]}: a photo of user {user_ids[row]}"
                check_columns(columns, task.num_columns, place)
                if task.binary_index is None:
                    labels[row, list(columns)] = 1
                else:
                    labels[row, 0] = task.binary_index in columns
                image_ids.append(photo.image_id)
            progress.add(len(rows))
    known = all(image_id is not None for image_id in image_ids)
    ids = tuple(map(str, image_ids)) if known else tuple(f"#{row}" for row in range(count))
    return EvaluationSet(partition, partition, np.arange(count), ids, user_ids, labels, ids)


def _decode(serialized: bytes, path: Path) -> example.Example:
    try:
        return example.decode(serialized)
    except FlairError as error:
        raise FlairError(f"{path}: {error}; prepare the records again") from None


def _take(whole: EvaluationSet, chosen: ChosenSet, exclusion: Exclusion | None, records: Records) -> EvaluationSet:
    if (chosen.testset is not None or exclusion is not None) and whole.image_ids[0].startswith("#"):
        raise FlairError(
            f"{records.root}: its photos have no ids, which test sets and --exclude need; prepare it again"
        )
    kept = set(whole.image_ids)
    if chosen.testset is not None:
        missing = [image_id for image_id in chosen.testset.image_ids if image_id not in kept]
        if missing:
            raise FlairError(
                f"{chosen.manifest}: {len(missing):,} of its {len(chosen.testset.image_ids):,} photos, such as "
                f"{missing[0]}, are not in {chosen.partition} of {records.root}"
            )
        kept = set(chosen.testset.image_ids)
    leaving: frozenset[str] = frozenset()
    if exclusion is not None:
        # Photos held out of train are tested on, so near duplicates elsewhere take them away as they do in test.
        judged = "test" if chosen.partition == HELDOUT else chosen.partition
        leaving = exclusion.leaving(frozenset(whole.image_ids), judged) & kept
        kept -= leaving
    rows = np.array([row for row, image_id in enumerate(whole.image_ids) if image_id in kept], np.int64)
    if not len(rows):
        raise FlairError(f"{chosen.name}: no photo is left to evaluate on")
    return replace(
        whole,
        name=chosen.name,
        rows=rows,
        image_ids=tuple(whole.image_ids[row] for row in rows),
        user_ids=tuple(whole.user_ids[row] for row in rows),
        labels=whole.labels if len(rows) == len(whole.rows) else whole.labels[rows],
        num_excluded=len(leaving),
        manifest=chosen.manifest,
    )
