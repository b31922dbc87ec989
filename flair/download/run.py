"""The whole download: what is missing is fetched in parallel, unpacked as it arrives, and summed up."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from flair.dataset import catalog
from flair.download import huggingface, transfer
from flair.download.client import Client
from flair.download.labels import Labels
from flair.download.plan import DownloadConfig, Plan, make_plan, require_disk
from flair.download.source import Archive, Source
from flair.download.staging import MAX_PHOTO_BYTES, Unpacked, UnpackError
from flair.download.state import DownloadState, Entry, exclusive
from flair.download.transfer import Fetched, WrongContent
from flair.download.unpacking import Job, Unpackers
from flair.errors import FlairError
from flair.files import atomic
from flair.parallel import threads
from flair.terminal.paths import command_line
from flair.terminal.progress import Progress, duration
from flair.terminal.progress import size as say_size


class Outcome(NamedTuple):
    """What a download did: a line for every file that failed, archives here of all there are, photos by folder."""

    failed: list[str]
    notes: list[str]
    archives: int
    all_archives: int
    fetched_archives: int
    photos: dict[str, tuple[int, int]]  # folder -> number, bytes
    fetched_bytes: int
    retries: int
    seconds: float


def download(source: Source, config: DownloadConfig) -> Outcome:
    """Brings the dataset from `source` into `config.dataset_dir`, continuing what an earlier run left.

    Raises:
      FlairError: nothing can be done: no metadata, too little disk, another download in the same folder.
      OSError: the dataset folder cannot be written.
      KeyboardInterrupt: what has arrived stays, and the same call continues there.
    """
    with exclusive(config.dataset_dir, _log) as lock:
        return _download(source, config, lock)


def _download(source: Source, config: DownloadConfig, lock: int) -> Outcome:
    """All of it, in order: plan, labels, photos, check."""
    start = time.monotonic()
    state, client = DownloadState(config.dataset_dir), Client(config.patience, log=_log)
    labels = Labels(config, state, client)
    _remove_leftovers(source, config, state)
    plan = make_plan(source, config, state, client)
    for archive in plan.finished:  # their parts are left where a kill came right after they were recorded
        _finish(archive, config, state)
    require_disk(plan, config, state)
    with (
        contextlib.closing(_ByteProgress(plan, state)) as progress,
        contextlib.closing(Unpackers(lock, client.stop)) as unpackers,
    ):
        archives = _Archives(config, state, client, progress, unpackers)

        def work(archive: Archive | None) -> None:
            if archive is None:
                labels.check()  # beside the transfers, as it takes seconds of its own
            else:
                archives.bring(archive)

        labels.bring(plan.labels, progress.counter)
        broken = threads.run(work, [None, *plan.pending], config.num_workers, client.stop)
    failures = {}
    for item, error in broken:
        if item is None:
            raise error
        failures[item.name] = f"{item.name}: {error}"
    failed = list(failures.values())
    if not failed and not config.only_metadata and config.limit_archives is None:
        for part in state.folder.glob("*.part"):  # worth nothing now, not even one of another source
            transfer.discard(part)
        failed = _missing_photos(labels.image_ids, config)
    every = (*plan.finished, *plan.pending)
    for name in archives.disputed & {archive.name for archive in every}:
        state.forget(name)  # either may be the wrong one, so the next run brings both anew
    here = [archive for archive in every if archive.name not in archives.disputed | failures.keys()]
    return Outcome(
        failed,
        [*labels.notes, *archives.notes],
        archives=len(here),
        all_archives=plan.all_archives,
        fetched_archives=len(plan.pending) - len(failures),
        photos=_count_photos(here, state),
        fetched_bytes=progress.fetched,
        retries=client.retried,
        seconds=time.monotonic() - start,
    )


@dataclass
class _Archives:
    """Fetches and unpacks archives, each in the thread that asks.

    Attributes:
      notes: lines for the user, on members that were left out.
      disputed: archives whose photos another one brings with other bytes.
    """

    config: DownloadConfig
    state: DownloadState
    client: Client
    progress: _ByteProgress
    unpackers: Unpackers
    notes: list[str] = field(default_factory=list)
    disputed: set[str] = field(default_factory=set)

    def bring(self, archive: Archive) -> None:
        """Fetches, unpacks and records one archive; a damaged one is fetched a second time."""
        part = self.state.part(archive.name)
        count = self.progress.counter(part)
        for last_try in (False, True):
            try:
                fetched = self._kept(archive) or transfer.fetch(
                    self.client, archive.url, part,
                    expect=archive.kind, size=archive.size, sha256=archive.sha256, on_bytes=count,
                )  # fmt: skip
                unpacked = self._unpack(archive, fetched)
                break
            except (WrongContent, UnpackError) as error:
                if part.exists():  # its bytes are counted once more as they come again
                    count(-part.stat().st_size)
                transfer.discard(part)
                if isinstance(error, UnpackError) and not error.corrupt:
                    self.disputed.add(error.rival)  # "" where there is none
                    raise
                if last_try:
                    raise FlairError(f"{error}; fetched twice, wrong both times, so the server's copy is bad") from None
                _log(f"{archive.name}: {error}; fetching it once more")
        self.state.record(
            archive.name, Entry(archive.url, fetched.sha256, fetched.size, unpacked.photos, unpacked.photo_bytes)
        )
        if fetched.path == part:
            _finish(archive, self.config, self.state)

    def _unpack(self, archive: Archive, fetched: Fetched) -> Unpacked:
        photos_dir, listing = self.config.dataset_dir / archive.folder, self.state.listing(archive.name)
        most = MAX_PHOTO_BYTES[archive.folder]
        job = Job(archive.kind, fetched.path, archive.name, photos_dir, listing, most, archive.photos)
        unpacked = self.unpackers.unpack(job)
        if unpacked.ignored:
            self.notes.append(
                f"{archive.name}: left out {unpacked.ignored:,} members that are no photos, such as "
                f"{unpacked.first_ignored!r}"
            )
        return unpacked

    def _kept(self, archive: Archive) -> Fetched | None:
        """The archive as an earlier run kept it, if it is still the right one."""
        entry = self.state.get(archive.name)
        if entry is None or not self.state.is_kept(archive.name, archive.url, archive.sha256):
            return None
        return Fetched(self.config.dataset_dir / archive.name, entry.size, entry.sha256)


def _finish(archive: Archive, config: DownloadConfig, state: DownloadState) -> None:
    """Removes the part of an archive that is unpacked and recorded, or keeps it under the archive's name."""
    part = state.part(archive.name)
    if config.keep_archives and transfer.is_whole(part):
        transfer.take(part, config.dataset_dir / archive.name)
    else:
        transfer.discard(part)


def _missing_photos(image_ids: Sequence[str], config: DownloadConfig) -> list[str]:
    """A line for each folder that lacks photos of the metadata."""
    failed = []
    for folder in [catalog.SMALL_IMAGES_DIR] + [catalog.RAW_IMAGES_DIR] * config.raw:
        photos_dir = config.dataset_dir / folder
        present = set(os.listdir(photos_dir)) if photos_dir.is_dir() else set()
        missing = [image_id for image_id in image_ids if f"{image_id}.jpg" not in present]
        if missing:
            failed.append(
                f"{folder}: {len(missing):,} of {len(image_ids):,} photos of the metadata are in no archive, "
                f"for example {', '.join(missing[:3])}"
            )
    return failed


def _count_photos(archives: list[Archive], state: DownloadState) -> dict[str, tuple[int, int]]:
    counts: dict[str, tuple[int, int]] = {}
    for archive in archives:
        entry = state.get(archive.name)
        if entry is not None:
            photos, photo_bytes = counts.get(archive.folder, (0, 0))
            counts[archive.folder] = (photos + (entry.photos or 0), photo_bytes + (entry.photo_bytes or 0))
    return counts


def _remove_leftovers(source: Source, config: DownloadConfig, state: DownloadState) -> None:
    """Removes what a killed run left half done; its parts stay, and what it has read of this source's labels."""
    atomic.remove_leftovers(state.folder)
    if huggingface.remove_other_records(state.folder, source.place):
        _log("labels that an unfinished run read from another source, endpoint or revision are dropped")
    for folder in (catalog.SMALL_IMAGES_DIR, catalog.RAW_IMAGES_DIR):
        for leftover in (config.dataset_dir / folder).glob(".*.tmp"):
            if leftover.is_dir():
                shutil.rmtree(leftover)


class _ByteProgress(Progress):
    """One progress line, in bytes, of all files; its counters are for a thread each."""

    def __init__(self, plan: Plan, state: DownloadState) -> None:
        self.fetched = 0
        self._lock = threading.Lock()
        names = [file.name for file in plan.labels] + [archive.name for archive in plan.pending]
        parts = [state.part(name) for name in names]
        self._here = {part: transfer.arrived_bytes(part) for part in parts}
        total = sum(plan.sizes.values()) if len(plan.sizes) == len(parts) else None
        super().__init__(total, "downloading", "B", scale=True, done=sum(self._here.values()))

    def counter(self, part: Path) -> Callable[[int], None]:
        """What counts the bytes of one file; those of an earlier run, counted at the start, are not counted again."""
        here = self._here.get(part, 0)

        def count(new: int) -> None:
            nonlocal here
            known = max(0, min(here, new))
            here -= known
            with self._lock:
                self.fetched += max(0, new - known)
                self.add(new - known)

        return count


def _log(message: str) -> None:
    tqdm.write(message, file=sys.stderr)


def print_summary(outcome: Outcome, source: Source, config: DownloadConfig) -> None:
    """Says what is where, what it took, what failed and what to type next."""
    folder = config.dataset_dir
    for name, (photos, photo_bytes) in outcome.photos.items():
        print(f"{folder / name}: {photos:,} photos, {say_size(photo_bytes)}")
    print(f"{folder / catalog.METADATA_FILE}, {catalog.TAXONOMY_FILE}: from {source.place}")
    for note in outcome.notes:
        print(f"Note: {note}")
    if not config.only_metadata:
        print(
            f"{outcome.archives} of {outcome.all_archives} archives are here, {outcome.fetched_archives} new; "
            f"{say_size(outcome.fetched_bytes)} fetched in {duration(outcome.seconds)} with {outcome.retries} retries"
        )
    for line in outcome.failed:
        print(f"FAILED {line}", file=sys.stderr)
    if outcome.failed:
        print(f"{len(outcome.failed)} failed; the same command tries them again", file=sys.stderr)
    elif outcome.archives < outcome.all_archives:
        without = "--only" if config.only_metadata else "--limit_archives"
        print(f"Next: the same command without {without} for all photos")
    else:
        print("Next:", command_line("python3 -m flair.verify", dataset_dir=folder))
