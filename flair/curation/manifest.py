"""Manifests of re-sampled test sets: `testsets/flair-b-0.json` names every photo, and why others were refused.

A manifest is written once and never overwritten; the next revision is another file. It is plain JSON, so that one made
by hand is read too: `name`, `partition` and `image_ids` suffice.
"""

from __future__ import annotations

import datetime
import errno
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flair.dataset.catalog import HELDOUT, PARTITIONS
from flair.dataset.metadata import check_id
from flair.errors import FlairError
from flair.files import atomic, checked_json, regular_file

FORMAT = "flair-testset"
FORMAT_VERSION = 1
DEFAULT_FOLDER = "testsets"
TESTSET_PARTITIONS = (*PARTITIONS, HELDOUT)
MAX_MANIFEST_BYTES = 1 << 28
_MAX_REVISION = 999_999_999
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,99}")
_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)


@dataclass(frozen=True)
class Testset:
    """A test set: photos of one partition, and how they were chosen.

    Attributes:
      name: set and revision, as `flair-b-0`; also the name of its file, and of the partition in evaluations.
      partition: the prepared partition that holds all of its photos (`test`, `val`, `train` or `heldout`).
      image_ids: the photos, sorted.
      is_valid: False where the rule could not be fulfilled; `problem` says why.
      rule, parameters, seed, time: what was asked, when (ISO 8601, UTC).
      revision: 0, 1, ...; `starting_from` is the name of the set whose photos were kept first, or None.
      refusals: photo -> the reason it was not eligible.
      histogram: for rules that match one, class -> candidates, reference, wanted and chosen photos in five bins.
      metadata_sha256: of the labels_and_metadata.json that was read, or None.
    """

    __test__ = False  # pytest takes classes called Test... for tests

    name: str
    partition: str
    image_ids: tuple[str, ...]
    is_valid: bool = True
    rule: str = "list"
    parameters: Mapping[str, Any] = field(default_factory=dict)
    seed: int | None = None
    time: str | None = None
    revision: int = 0
    starting_from: str | None = None
    refusals: Mapping[str, str] = field(default_factory=dict)
    problem: str | None = None
    histogram: Mapping[str, Any] = field(default_factory=dict)
    metadata_sha256: str | None = None


def check_set_name(name: str) -> str:
    """Returns `name` if it can name a file and a partition, else raises a FlairError."""
    if not _NAME.fullmatch(name) or name in (*TESTSET_PARTITIONS, "dev"):
        raise FlairError(
            f"test set name {name!r}: expected letters, digits, '_' and '-', at most 100, and no partition's name "
            f"({', '.join(TESTSET_PARTITIONS)})"
        )
    return name


def manifest_path(name_or_path: str | Path, folder: str | Path = DEFAULT_FOLDER) -> Path:
    """The file of a set that is given by its path (it ends in `.json`) or by its name.

    >>> str(manifest_path("flair-b-0")), str(manifest_path("sets/mine-0.json"))
    ('testsets/flair-b-0.json', 'sets/mine-0.json')
    """
    if str(name_or_path).endswith(".json"):
        return Path(name_or_path)
    return Path(folder) / f"{check_set_name(str(name_or_path))}.json"


def read_testset(path: str | Path) -> Testset:
    """Reads a manifest and checks every field that has a meaning for readers.

    An invalid set (`is_valid` false) is returned as such: code that uses its photos has to ask.

    Raises:
      FlairError: the file is missing, is not a manifest, has a later format, or holds something other than image ids.
    """
    path = Path(path)
    try:
        content = checked_json.parse(_read_bytes(path))
        if not isinstance(content, dict):
            raise FlairError(f"{path}: is not a test set: expected a JSON object, found {type(content).__name__}")
        if content.get("format", FORMAT) != FORMAT:
            raise ValueError(f"its format is {content['format']!r:.60}, expected {FORMAT!r}")
        version = content.get("format_version", FORMAT_VERSION)
        if version != FORMAT_VERSION:
            raise ValueError(f"its format_version is {version!r:.20}, this version reads {FORMAT_VERSION}")
        return _parse(content, path)
    except ValueError as error:
        raise FlairError(
            f"{path}: is not a test set: {error}; expected a file that flair.sample_testset wrote"
        ) from None


def read_valid_testset(path: str | Path) -> Testset:
    """As `read_testset`; a FlairError, too, where the set is invalid."""
    testset = read_testset(path)
    if not testset.is_valid:
        reason = testset.problem or "its rule could not be fulfilled"
        raise FlairError(f"{path}: the test set is marked as not valid ({reason}); make its next revision")
    return testset


def write_testset(testset: Testset, folder: str | Path = DEFAULT_FOLDER) -> Path:
    """Writes `<folder>/<name>.json`, whole or not at all, and never over an existing file; returns its path.

    Raises:
      FlairError: the file exists.
    """
    path = manifest_path(check_set_name(testset.name), folder)
    path.parent.mkdir(parents=True, exist_ok=True)
    _create(path, checked_json.encode(to_json(testset)))
    return path


def check_absent(path: Path) -> None:
    """Raises the FlairError of `write_testset` where the file exists already, before any work is done."""
    if os.path.lexists(path):
        raise _exists(path)


def to_json(testset: Testset) -> dict[str, Any]:
    """The manifest as JSON has it, in the order a person reads it."""
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "name": testset.name,
        "rule": testset.rule,
        "parameters": dict(testset.parameters),
        "seed": testset.seed,
        "time": testset.time,
        "revision": testset.revision,
        "starting_from": testset.starting_from,
        "partition": testset.partition,
        "metadata_sha256": testset.metadata_sha256,
        "is_valid": testset.is_valid,
        "problem": testset.problem,
        "num_images": len(testset.image_ids),
        "image_ids": list(testset.image_ids),
        "histogram": dict(testset.histogram),
        "refusals": dict(sorted(testset.refusals.items())),
    }


def now() -> str:
    """This second in UTC, as manifests and reviews write it."""
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")


def _read_bytes(path: Path) -> bytes:
    try:
        if path.stat().st_size > MAX_MANIFEST_BYTES:
            raise FlairError(f"{path}: has {path.stat().st_size:,} bytes, far more than a test set")
        return regular_file.read_bytes(path)
    except (FileNotFoundError, NotADirectoryError):
        found = path.parent.glob("*.json") if path.parent.is_dir() else ()
        others = sorted(file.stem for file in found if _NAME.fullmatch(file.stem))  # descriptions lie there, too
        known = f"{path.parent} has {', '.join(others[:20])}" if others else "flair.sample_testset makes one"
        raise FlairError(f"{path}: no such test set; {known}") from None


def _parse(content: Mapping[str, Any], path: Path) -> Testset:
    name = _typed(content, "name", str)
    if not _NAME.fullmatch(name) or name in TESTSET_PARTITIONS:
        raise ValueError(f"its name {name!r:.60} is no name of a test set")
    partition = _typed(content, "partition", str)
    if partition not in TESTSET_PARTITIONS:
        raise ValueError(f"its partition is {partition!r:.60}, expected one of {', '.join(TESTSET_PARTITIONS)}")
    image_ids = _typed(content, "image_ids", list)
    for image_id in image_ids:
        if not isinstance(image_id, str):
            raise ValueError(f"image_ids must hold strings, found {image_id!r:.60}")
        check_id(image_id, "image_id", str(path))
    if len(set(image_ids)) != len(image_ids):
        raise ValueError("an image id occurs twice")
    revision = _typed(content, "revision", int, 0)
    if not 0 <= revision <= _MAX_REVISION:
        raise ValueError(f"its revision is {revision!r:.60}, expected 0 to {_MAX_REVISION:,}")
    return Testset(
        name=name,
        partition=partition,
        image_ids=tuple(sorted(image_ids)),
        is_valid=_typed(content, "is_valid", bool, True),
        rule=_typed(content, "rule", str, "list"),
        parameters=_typed(content, "parameters", dict, {}),
        seed=_typed(content, "seed", int, None),
        time=_typed(content, "time", str, None),
        revision=revision,
        starting_from=_typed(content, "starting_from", str, None),
        refusals=_typed(content, "refusals", dict, {}),
        problem=_typed(content, "problem", str, None),
        histogram=_typed(content, "histogram", dict, {}),
        metadata_sha256=_typed(content, "metadata_sha256", str, None),
    )


_REQUIRED = object()


def _typed(content: Mapping[str, Any], key: str, kind: type, default: Any = _REQUIRED) -> Any:
    value = content.get(key, default)
    if value is _REQUIRED:
        raise ValueError(f"field {key!r} is missing")
    if value is default:
        return value
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise ValueError(f"field {key!r} must be of type {kind.__name__}, found {value!r:.60}")
    return value


def _create(path: Path, data: bytes) -> None:
    """Creates `path` with all of `data`; a FlairError where something has that name, however late it got it."""
    temporary = atomic.beside(path, f"{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            atomic.sync(file.fileno())
        try:
            os.link(temporary, path)  # unlike a rename, it fails where the name is taken
        except FileExistsError:
            raise _exists(path) from None
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            _create_without_links(path, temporary)
    finally:
        temporary.unlink(missing_ok=True)


def _create_without_links(path: Path, temporary: Path) -> None:
    # The empty file holds the name; another process that wants it fails there.
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))
    except FileExistsError:
        raise _exists(path) from None
    os.replace(temporary, path)


def _exists(path: Path) -> FlairError:
    return FlairError(
        f"{path}: exists, and a test set is never overwritten; choose another --name, or make its next revision with "
        f"--starting_from={path.stem}"
    )
