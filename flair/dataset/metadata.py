"""`labels_and_metadata.json` and `label_relationship.txt`, read with every field checked."""

from __future__ import annotations

import contextlib
import gc
import io
import os
import re
import stat
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from flair.dataset.catalog import METADATA_FILE, PARTITIONS, SMALL_IMAGES_DIR, TAXONOMY_FILE
from flair.errors import FlairError
from flair.files import text_file
from flair.files.json_text import JsonList, NotJsonList, shown

LABEL_SEPARATOR = "|"  # of the HDF5 label strings, so no label may contain it
MAX_LABEL_LENGTH = 256  # characters; FLAIR's have 26 at most
MAX_TAXONOMY_BYTES = 1 << 24  # FLAIR's has 60 kB
MAX_LABELS = 1000  # of one photo and kind; FLAIR's photos have 36 at most
_NO_LABEL = re.compile(r"[|\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")  # the separator, and what breaks a line
_LABEL_RULE = f"of 1 to {MAX_LABEL_LENGTH} characters without {LABEL_SEPARATOR!r} and control characters"
_FIELDS = ("user_id", "image_id", "labels", "fine_grained_labels", "partition")
# Wider than Flickr's own forms, but never a path: no slash, no dot, no leading hyphen.
_SAFE_ID = re.compile(r"[A-Za-z0-9_@][A-Za-z0-9_@-]{0,127}")


class Record(NamedTuple):
    """One photo: its owner, its id, its labels (in file order) and its partition."""

    user_id: str
    image_id: str
    labels: tuple[str, ...]
    fine_grained_labels: tuple[str, ...]
    partition: str


class User(NamedTuple):
    """One user with all of their photos, in file order; a user has exactly one partition."""

    user_id: str
    partition: str
    records: tuple[Record, ...]


def metadata_path(dataset_dir: str | Path) -> Path:
    """Where `dataset_dir` keeps its metadata; a one-line error when it is not a dataset directory."""
    folder = Path(dataset_dir)
    path = folder / METADATA_FILE
    with _naming_unreadable(folder):
        if not folder.is_dir():
            raise FlairError(f"--dataset_dir={folder}: no such directory; make it with download_dataset.py")
        if not os.path.lexists(path):
            raise FlairError(
                f"--dataset_dir={folder}: has no {METADATA_FILE}, so it is not a FLAIR dataset directory; "
                "expected the folder that download_dataset.py wrote"
            )
    _require_file(path)
    return path


def photo_path(dataset_dir: str | Path, image_id: str) -> Path:
    """Where `dataset_dir` keeps the small photo of `image_id`."""
    return Path(dataset_dir) / SMALL_IMAGES_DIR / f"{image_id}.jpg"


def load_records(dataset_dir: str | Path) -> list[Record]:
    """Reads and checks every record of `dataset_dir/labels_and_metadata.json`, in file order.

    Raises:
      FlairError: the folder or file is missing, the file is not a JSON list, a record lacks a field or has one of the
        wrong type or form, an image id occurs twice, or a user occurs in two partitions.
    """
    return read_records(metadata_path(dataset_dir))


def read_records(path: Path) -> list[Record]:
    """As `load_records`, of a metadata file anywhere."""
    # Millions of small objects that all stay: looking for cycles among them doubles the time and finds none.
    collects = gc.isenabled()
    gc.disable()
    try:
        records = [parse_record(item, index, path) for index, item in enumerate(read_items(path))]
        if not records:
            raise FlairError(f"{path}: the list of records is empty; expected one record a photo")
        _check_consistency(records, path)
    finally:
        if collects:
            gc.enable()
    return records


def load_users(dataset_dir: str | Path) -> list[User]:
    """As `group_by_user` of `load_records`; FlairError also where a partition has no photo."""
    users = group_by_user(load_records(dataset_dir))
    present = {user.partition for user in users}
    for partition in PARTITIONS:
        if partition not in present:
            raise FlairError(
                f"{metadata_path(dataset_dir)}: partition {partition!r} is empty; "
                f"expected photos in each of {', '.join(PARTITIONS)}"
            )
    return users


def group_by_user(records: Iterable[Record]) -> list[User]:
    """Groups records by user: users in order of first appearance, records in their order."""
    grouped: dict[str, list[Record]] = {}
    for record in records:
        grouped.setdefault(record.user_id, []).append(record)
    return [User(user_id, rows[0].partition, tuple(rows)) for user_id, rows in grouped.items()]


def records_of(users: Iterable[User]) -> Iterator[Record]:
    """The records of all `users`, in their order."""
    return chain.from_iterable(user.records for user in users)


def limit_users(users: Sequence[User], limit: int) -> list[User]:
    """The first users of each partition, `limit` in all, partitions in their proportions and none of them empty.

    Users keep their order, and a smaller subset is part of a larger one. FlairError where `limit` is too small.
    """
    sizes = Counter(user.partition for user in users)
    if limit < len(sizes):
        raise FlairError(f"--limit_users={limit}: expected at least {len(sizes)}, one user for each partition")
    seen: Counter[str] = Counter()
    ranked: list[tuple[float, int]] = []
    for index, user in enumerate(users):
        position = seen[user.partition]
        seen[user.partition] += 1
        ranked.append(((position + 0.5) / sizes[user.partition] if position else 0.0, index))
    return [users[index] for index in sorted(index for _, index in sorted(ranked)[:limit])]


def count_labels(records: Iterable[Record]) -> tuple[Counter[str], Counter[str]]:
    """How many photos carry each coarse and each fine-grained label."""
    records = list(records)
    coarse = chain.from_iterable(record.labels for record in records)
    fine = chain.from_iterable(record.fine_grained_labels for record in records)
    return Counter(coarse), Counter(fine)


def label_index(labels: Iterable[str]) -> dict[str, int]:
    """Label name -> column, names sorted: the order every record file and model of the toolkit uses.

    >>> label_index(["plant", "art"])
    {'art': 0, 'plant': 1}
    """
    return {name: index for index, name in enumerate(sorted(set(labels)))}


def load_taxonomy(dataset_dir: str | Path) -> dict[str, frozenset[str]]:
    """Reads `label_relationship.txt`: fine-grained label -> its coarse labels (a fine label may have several lines).

    Raises FlairError where the file cannot be read, or a line is not `fine -> coarse`.
    """
    path = Path(dataset_dir) / TAXONOMY_FILE
    _require_file(path)
    try:
        with _naming_unreadable(path):
            text = text_file.read(path, MAX_TAXONOMY_BYTES)
    except text_file.NotText as error:
        raise FlairError(f"{path}: is {error}, or download it again") from None
    taxonomy: dict[str, set[str]] = {}
    for number, line in enumerate(io.StringIO(text, newline=None), start=1):
        if not line.strip():
            continue
        line = line.rstrip("\n")
        fine, arrow, coarse = (part.strip() for part in line.partition("->"))
        if not (fine and arrow and coarse):
            raise FlairError(
                f"{path}, line {number}: expected 'fine -> coarse', found {shown(line)}; download it again"
            )
        try:
            taxonomy.setdefault(_LABEL_NAMES[fine], set()).add(_LABEL_NAMES[coarse])
        except ValueError:
            raise FlairError(f"{path}, line {number}: expected labels {_LABEL_RULE}, found {shown(line)}") from None
    if not taxonomy:
        raise FlairError(f"{path}: is empty; expected lines 'fine -> coarse': download it again")
    return {fine: frozenset(coarse) for fine, coarse in taxonomy.items()}


def record_to_json(record: Record) -> dict[str, Any]:
    """The record in the official schema and key order."""
    return {
        "user_id": record.user_id,
        "image_id": record.image_id,
        "labels": list(record.labels),
        "partition": record.partition,
        "fine_grained_labels": list(record.fine_grained_labels),
    }


def check_id(value: str, what: str, where: str) -> str:
    """Returns `value` if it is a harmless id (never a path), else raises a FlairError naming `what` and `where`."""
    if not _SAFE_ID.fullmatch(value):
        raise FlairError(
            f"{where}: {what} {shown(value)} is not an id (letters, digits, '@', '_' and '-', at most 128); "
            "refused, because ids become file names"
        )
    return value


def read_items(path: Path) -> Iterator[Any]:
    """Yields the items of a metadata file, unchecked, one by one; FlairError where it is not a JSON list."""
    try:
        with _naming_unreadable(path), open(path, encoding=text_file.ENCODING) as file:
            yield from JsonList(file)
    except UnicodeDecodeError as error:
        raise FlairError(f"{path}: is {text_file.explain(error)}, or download it again") from None
    except NotJsonList as error:
        raise FlairError(f"{path}, {error}; mend it, or run download_dataset.py again") from None


def _require_file(path: Path) -> None:
    """Raises a FlairError unless `path` is a regular file: reading a pipe would block."""
    try:
        with _naming_unreadable(path):
            mode = os.stat(path).st_mode
    except FileNotFoundError:
        raise FlairError(f"{path}: missing; download_dataset.py fetches it") from None
    if not stat.S_ISREG(mode):
        what = "a folder" if stat.S_ISDIR(mode) else "no regular file"
        raise FlairError(f"{path}: is {what}; move it away and run download_dataset.py again")


@contextlib.contextmanager
def _naming_unreadable(path: Path) -> Iterator[None]:
    """Turns every OSError except that of a missing file into a FlairError."""
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError as error:
        raise FlairError(f"{path}: cannot be read ({error.strerror}); check its permissions and the disk") from None


def parse_record(item: Any, index: int, path: Path) -> Record:
    """Checks item `index` of the metadata file `path`, and makes it a Record; a FlairError names the bad field."""
    if not isinstance(item, dict):
        raise FlairError(f"{path}, record {index}: expected an object, found {type(item).__name__}")
    try:
        user_id, image_id, _labels, _fine_labels, partition = (item[field] for field in _FIELDS)
    except KeyError as error:
        raise FlairError(f"{_where(item, index, path)}: field {error} is missing") from None
    for field in ("user_id", "image_id", "partition"):
        if not isinstance(item[field], str):
            raise FlairError(
                f"{_where(item, index, path)}: field {field!r} must be a string, "
                f"found {type(item[field]).__name__} {item[field]!r:.60}"
            )
    for field in ("user_id", "image_id"):
        if not _SAFE_ID.fullmatch(item[field]):  # first, to put the place into words only where it is needed
            check_id(item[field], field, f"{path}, record {index}")
    if partition not in PARTITIONS:
        raise FlairError(
            f"{_where(item, index, path)}: field 'partition' must be one of {', '.join(PARTITIONS)}, "
            f"found {shown(partition)}"
        )
    return Record(
        sys.intern(user_id),
        image_id,
        _parse_labels(item, "labels", index, path),
        _parse_labels(item, "fine_grained_labels", index, path),
        sys.intern(partition),
    )


def _parse_labels(item: Mapping[str, Any], field: str, index: int, path: Path) -> tuple[str, ...]:
    labels = item[field]
    if not isinstance(labels, list) or not labels:
        expected = f"must be a non-empty list, found {labels!r:.60}"
    elif len(labels) > MAX_LABELS:
        expected = f"must hold {MAX_LABELS:,} labels at most, found {len(labels):,}"
    else:
        try:
            return tuple(dict.fromkeys([_LABEL_NAMES[label] for label in labels]))
        except (TypeError, ValueError):
            expected = f"must hold label names {_LABEL_RULE}, found {labels!r:.60}"
    raise FlairError(f"{_where(item, index, path)}: field {field!r} {expected}")


class _LabelNames(dict[str, str]):
    """Label name -> the one object for it, checked when it is first seen; ValueError when it is not a label name."""

    def __missing__(self, label: Any) -> str:
        if not isinstance(label, str) or not 0 < len(label) <= MAX_LABEL_LENGTH or _NO_LABEL.search(label):
            raise ValueError
        return self.setdefault(label, sys.intern(label))


_LABEL_NAMES = _LabelNames()


def _where(item: Mapping[str, Any], index: int, path: Path) -> str:
    image_id = item.get("image_id")
    is_id = isinstance(image_id, str) and _SAFE_ID.fullmatch(image_id)
    return f"{path}, record {index}" + (f" (image {image_id})" if is_id else "")


def _check_consistency(records: Sequence[Record], path: Path) -> None:
    first_index: dict[str, int] = {}
    partition_of: dict[str, str] = {}
    for index, record in enumerate(records):
        if first_index.setdefault(record.image_id, index) != index:
            raise FlairError(
                f"{path}, record {index}: image_id {record.image_id!r} was already used by record "
                f"{first_index[record.image_id]}; every photo must occur once"
            )
        if partition_of.setdefault(record.user_id, record.partition) != record.partition:
            raise FlairError(
                f"{path}, record {index} (image {record.image_id}): user {record.user_id!r} is in partition "
                f"{record.partition!r} here and in {partition_of[record.user_id]!r} before; "
                "every user must be in one partition"
            )
