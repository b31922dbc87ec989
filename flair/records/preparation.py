"""What the commands that prepare records share: which photos, how the result was made, where unfinished work lies.

Work goes on in a hidden folder, `.unfinished`, beside or inside the final place, and only finished work gets its final
name. For TFRecords the folder also holds the parameters of the run, so that the same command continues it and a
different one is told so; an HDF5 file is begun again. The published functions of both scripts of ml-flair share
`user_metadata`, `link_dataset_dir` and `PUBLISHED_NUM_WORKERS`.
"""

from __future__ import annotations

import contextlib
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

from flair.curation.exclusion import Exclusion, read_exclusion, remaining_users
from flair.curation.heldout import HeldOut, hold_out
from flair.dataset import metadata
from flair.dataset.catalog import METADATA_FILE, SMALL_IMAGES_DIR
from flair.dataset.metadata import User, records_of
from flair.errors import FlairError
from flair.files import atomic, checked_json, lock
from flair.files.regular_file import file_sha256
from flair.terminal.progress import duration, size

PARAMETERS_FILE = "prepare_info.json"
# A script that calls a published function at its top level cannot start processes, which would import it.
PUBLISHED_NUM_WORKERS = 1


class Selection(NamedTuple):
    """The users to prepare, of all users of the dataset, and what identifies them."""

    users: list[User]
    all_users: list[User]
    parameters: dict[str, Any]
    exclusion: Exclusion | None
    excluded: Mapping[str, int]  # photos that `exclusion` leaves out of each partition

    @property
    def num_images(self) -> int:
        """Photos of the users to prepare."""
        return sum(len(user.records) for user in self.users)


class Outcome(NamedTuple):
    """What a preparation did with the selected photos; `num_bytes` is what lies there."""

    selection: Selection
    num_bytes: int
    already_complete: bool = False
    skipped_images: int = 0  # finished by an earlier run
    converted: Sequence[str] = ()  # image ids of grayscale photos stored as RGB
    heldout_images: int = 0  # put aside

    def summary(self, place: str, seconds: float) -> list[str]:
        """Lines that tell what was made, where and how fast."""
        num_images, num_users, excluded = self.selection.num_images, len(self.selection.users), self.selection.excluded
        what = f"{num_images:,} photos of {num_users:,} users, {size(self.num_bytes)}"
        lines = []
        if self.selection.exclusion is not None:
            counts = ", ".join(f"{partition} {count:,}" for partition, count in excluded.items())
            lines.append(f"Left out {sum(excluded.values()):,} photos that --exclude names ({counts}).")
        if self.heldout_images:
            lines.append(f"Put {self.heldout_images:,} of the photos of train users aside, in the partition heldout.")
        if self.already_complete:
            return [*lines, f"{place} is complete already: {what}. To make it again, add --overwrite."]
        if self.converted:
            first = ", ".join(self.converted[:5]) + (", ..." if len(self.converted) > 5 else "")
            lines.append(f"Warning: {len(self.converted):,} grayscale photos were stored as RGB: {first}")
        if self.skipped_images:
            lines.append(f"Kept {self.skipped_images:,} photos that an earlier run had finished.")
        rate = (num_images - self.skipped_images) / max(seconds, 1e-9)
        return [*lines, f"Wrote {what} to {place} in {duration(seconds)} ({rate:,.0f} photos/s)."]


def select(dataset_dir: Path, limit: int | None, exclude: str | Path | None) -> Selection:
    """Reads the metadata and takes the users that `subset` leaves; `exclude` is the file of an exclusion."""
    metadata_sha256 = file_sha256(metadata.metadata_path(dataset_dir))
    all_users = metadata.load_users(dataset_dir)
    exclusion = None if exclude is None else read_exclusion(exclude)
    remaining = subset(all_users, None, exclusion)
    users = subset(remaining, limit)
    parameters = {
        "metadata_sha256": metadata_sha256,
        "num_users": len(users),
        "limit_users": None if len(users) == len(remaining) else limit,
    }
    excluded = Counter(record.partition for record in records_of(all_users))
    excluded.subtract(record.partition for record in records_of(remaining))
    if exclusion is not None:  # without it the parameters are those of outputs made before the flag existed
        parameters |= {"exclude_sha256": exclusion.digest, "excluded_images": excluded.total()}
    return Selection(users, all_users, parameters, exclusion, excluded)


def put_aside(selection: Selection, fraction: Fraction, seed: int) -> tuple[HeldOut, dict[str, Any]]:
    """The selected users, photos put aside as `--heldout_fraction` and `--seed` say, and the parameters for that."""
    if not fraction:
        return HeldOut(selection.users, []), {}
    split = hold_out(selection.users, fraction, seed, selection.exclusion)
    if not split.heldout:
        raise FlairError(f"--heldout_fraction={float(fraction):g}: no train user has enough photos for that")
    return split, {"heldout_fraction": f"{float(fraction):.9g}", "heldout_seed": seed}


def subset(users: Sequence[User], limit: int | None, exclusion: Exclusion | None = None) -> list[User]:
    """The users that `--exclude` and then `--limit_users` leave (see `metadata.limit_users`)."""
    remaining = list(users) if exclusion is None else remaining_users(users, exclusion)
    return remaining if limit is None else metadata.limit_users(remaining, limit)


def check_exclusion(parameters: Mapping[str, Any], exclusion: Exclusion | None, what: str) -> None:
    """Raises a FlairError when `what`, of these parameters, was not made with this exclusion."""
    made_with = parameters.get("exclude_sha256")
    if made_with == (None if exclusion is None else exclusion.digest):
        return
    if made_with is None:
        raise FlairError(f"{what} was made without --exclude; leave it out here, too")
    raise FlairError(f"{what} was made with --exclude ({_short(made_with)}); add --exclude with the same content here")


def check_same(parameters: Mapping[str, Any], found: Mapping[str, Any], what: str) -> None:
    """Raises a FlairError naming each parameter in which `what`, found on disk, differs from this run's."""
    names = [name for name in {**parameters, **found} if parameters.get(name) != found.get(name)]
    if names:
        differences = ", ".join(
            f"{name}={_short(found.get(name))} there, {_short(parameters.get(name))} now" for name in names
        )
        raise FlairError(
            f"{what} was made from other data or with other flags ({differences}); "
            "repeat those flags, choose another place, or add --overwrite to replace it"
        )


@contextlib.contextmanager
def unfinished_folder(folder: Path, parameters: Mapping[str, Any], overwrite: bool) -> Iterator[bool]:
    """Makes or reopens the folder of unfinished work, locked against a second run; yields whether work is continued."""
    with _locked(folder):
        yield _continues(folder, parameters, overwrite)


@contextlib.contextmanager
def new_folder(folder: Path, output: Path) -> Iterator[None]:
    """As `unfinished_folder` for work that cannot be continued: what an earlier run has left is told and removed."""
    with _locked(folder):
        if any(folder.iterdir()):
            print(f"{output}: an earlier run was stopped; starting over", file=sys.stderr, flush=True)
            _clear(folder)
        try:
            yield
        except BaseException:
            atomic.remove(folder)  # it may be 85 GB, and would not be used
            raise


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Gives an OSError that does not tell its file, as those of writes, the name of `path`."""
    try:
        yield
    except OSError as error:
        if error.filename is not None or error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


def require_free_space(folder: Path, needed: int) -> None:
    """Raises a FlairError when the disk of `folder` has fewer than `needed` bytes free."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise FlairError(
            f"{folder}: {size(needed)} are needed and {size(free)} free; free some space or choose another disk"
        )


def user_metadata(labels_file: str) -> dict[str, list[dict[str, Any]]]:
    """User id -> their checked records as dicts in the published form; FlairError as `metadata.load_records`."""
    users = metadata.group_by_user(metadata.read_records(Path(labels_file)))
    return {user.user_id: [metadata.record_to_json(record) for record in user.records] for user in users}


@contextlib.contextmanager
def link_dataset_dir(image_dir: str, labels_file: str) -> Iterator[Path]:
    """A dataset directory of these photos and this metadata file, wherever they lie."""
    photos, labels = Path(image_dir).resolve(), Path(labels_file).resolve()
    if photos == labels.parent / SMALL_IMAGES_DIR and labels.name == METADATA_FILE:
        yield labels.parent
        return
    with tempfile.TemporaryDirectory(prefix="flair-") as folder:
        (Path(folder) / SMALL_IMAGES_DIR).symlink_to(photos)
        (Path(folder) / METADATA_FILE).symlink_to(labels)
        yield Path(folder)


def _continues(folder: Path, parameters: Mapping[str, Any], overwrite: bool) -> bool:
    path = folder / PARAMETERS_FILE
    try:
        found = checked_json.read(path)
        if found == parameters:
            return True
        if not overwrite:
            check_same(parameters, found, f"{folder}: the unfinished work there")
    except FileNotFoundError:
        pass  # killed before anything was done, or new
    except checked_json.DamagedIndex:
        if not overwrite:
            raise
    _clear(folder)
    checked_json.write(path, parameters)
    return False


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    folder.mkdir(parents=True, exist_ok=True)
    with lock.exclusive(folder, f"{folder}: another process is preparing this output; wait for it or stop it"):
        yield


def _clear(folder: Path) -> None:
    for entry in list(folder.iterdir()):
        atomic.remove(entry)


def _short(value: object) -> str:
    return f"{value[:12]}…" if isinstance(value, str) and len(value) > 20 else str(value)
