"""What a download has finished, in `<dataset_dir>/.download/`, so that the same command continues after any kill.

`state.json` has one entry per finished file; `<archive>.photos` lists the photos of an archive with their sizes, so
that a rerun notices any that have gone since. Unfinished files are the `.part`s beside them.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from flair.download.staging import LISTING_SUFFIX, read_listing
from flair.errors import FlairError
from flair.files import checked_json, lock
from flair.files.regular_file import file_sha256, read_bytes

WORK_DIR = ".download"
_VERSION = 1
_LOCK_SECONDS = 20.0  # a killed run's last process needs a moment to notice


class Entry(NamedTuple):
    """A finished file: sizes in bytes; `photos` and `photo_bytes` for archives."""

    url: str
    sha256: str
    size: int
    photos: int | None = None
    photo_bytes: int | None = None


class DownloadState:
    """The finished files of one dataset folder; safe to share among threads, written at every change."""

    def __init__(self, dataset_dir: Path) -> None:
        self._dataset_dir, self.folder = dataset_dir, dataset_dir / WORK_DIR
        self._path = self.folder / "state.json"
        self._lock = threading.Lock()
        self._entries = self._read()

    def get(self, name: str) -> Entry | None:
        """The entry of a finished file."""
        return self._entries.get(name)

    def is_finished(self, name: str, url: str, sha256: str | None = None) -> bool:
        """Whether `name` is finished: with the published checksum, or where none is published from this address."""
        entry = self.get(name)
        return entry is not None and (entry.sha256 == sha256 if sha256 else entry.url == url)

    def is_kept(self, name: str, url: str, sha256: str | None = None) -> bool:
        """Whether it is finished, and lies in the dataset folder byte for byte as it came."""
        path, entry = self._dataset_dir / name, self.get(name)
        if entry is None or not self.is_finished(name, url, sha256):
            return False
        return path.is_file() and path.stat().st_size == entry.size and file_sha256(path) == entry.sha256

    def record(self, name: str, entry: Entry) -> None:
        """Notes that `name` is finished."""
        with self._lock:
            self._entries[name] = entry
            self._write()

    def forget(self, name: str) -> None:
        """Takes back that `name` is finished."""
        with self._lock:
            if self._entries.pop(name, None) is not None:
                self._write()

    def part(self, name: str) -> Path:
        """Where `name` grows."""
        return self.folder / f"{name}.part"

    def listing(self, name: str) -> Path:
        """Where the photos of the archive `name` are listed."""
        return self.folder / f"{name}{LISTING_SUFFIX}"

    def gone(self, name: str, present: Mapping[str, int]) -> int:
        """How many photos of a finished archive are not in `present` (image id -> bytes) as they were unpacked."""
        number = self._entries[name].photos or 0
        listed = read_listing(self.listing(name))
        if len(listed) != number:
            return number  # it is not known which they were
        return sum(present.get(image_id) != size for image_id, size in listed.items())

    def _read(self) -> dict[str, Entry]:
        try:
            content = checked_json.parse(read_bytes(self._path))
            if content["version"] != _VERSION:
                raise FlairError(
                    f"{self._path}: written by another version of this toolkit (format {content['version']!r}, "
                    f"expected {_VERSION}); delete it to download everything again"
                )
            return {name: Entry(**fields) for name, fields in content["files"].items()}
        except FileNotFoundError:
            return {}
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise FlairError(f"{self._path}: damaged ({error}); delete it to download everything again") from None

    def _write(self) -> None:
        files = {name: entry._asdict() for name, entry in sorted(self._entries.items())}
        checked_json.write(self._path, {"version": _VERSION, "files": files})


def scan_photos(folder: Path) -> dict[str, int]:
    """Image id -> bytes of every photo in `folder`."""
    try:
        with os.scandir(folder) as entries:
            return {entry.name[:-4]: entry.stat().st_size for entry in entries if entry.name.endswith(".jpg")}
    except FileNotFoundError:
        return {}


def exclusive(dataset_dir: Path, log: Callable[[str], None]) -> contextlib.AbstractContextManager[int]:
    """Makes `dataset_dir` and its work folder; yields an open file that locks them, FlairError where another does."""
    folder = dataset_dir / WORK_DIR
    folder.mkdir(parents=True, exist_ok=True)
    busy = f"--dataset_dir={dataset_dir}: another download is at work there; wait for it, or stop it"
    waiting = f"waiting for another download into {dataset_dir} to end"
    return lock.exclusive(folder, busy, patience=_LOCK_SECONDS, on_wait=lambda: log(waiting))
