"""The whole download: what is missing, archives in parallel, unpacked as they land, and what came of it."""

from __future__ import annotations

import os
import shutil
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from flair.dataset import catalog
from flair.dataset.metadata import load_records, load_taxonomy
from flair.download import huggingface, transfer
from flair.download.client import Client, NotThere
from flair.download.plan import Options, Plan, make_plan, require_disk
from flair.download.source import MAX_PHOTO_BYTES, Archive, LabelFile, Source
from flair.download.staging import Unpacked, UnpackError
from flair.download.state import DownloadState, Entry, exclusive
from flair.download.transfer import Fetched, WrongContent
from flair.download.unpacking import Job, Unpackers
from flair.errors import FlairError
from flair.files import atomic
from flair.files.regular_file import file_sha256
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


def download(source: Source, options: Options) -> Outcome:
    """Brings the dataset from `source` into `options.dataset_dir`, continuing what an earlier run left.

    Raises:
      FlairError: nothing can be done: no metadata, too little disk, another download in the same folder.
      OSError: the dataset folder cannot be written.
      KeyboardInterrupt: what has arrived stays, and the same call continues there.
    """
    with exclusive(options.dataset_dir, _log) as lock:
        return _Download(source, options, lock).run()


class _Download:
    def __init__(self, source: Source, options: Options, lock: int) -> None:
        self.source, self.options, self.folder = source, options, options.dataset_dir
        self.state = DownloadState(self.folder)
        self.labels_work = self.state.folder / "labels"
        self.stop = threading.Event()
        self.unpackers = Unpackers(lock, self.stop)
        self.client = Client(options.patience, stop=self.stop, log=_log)
        self.notes: list[str] = []
        self.label_urls: dict[str, str] = {}  # of the files that are new
        self.label_error: FlairError | None = None
        self.image_ids: list[str] = []
        self.disputed: set[str] = set()  # archives whose photos another one brings with other bytes

    def run(self) -> Outcome:
        """All of it, in order: plan, labels, photos, check."""
        start = time.monotonic()
        self._remove_leftovers()
        plan = make_plan(self.source, self.options, self.state, self.client, self.stop)
        self._finish_finished(plan)
        require_disk(plan, self.options, self.state)
        self.bytes = _ByteProgress(plan, self.state)
        try:
            self._bring_labels(plan)
            broken = threads.run(self._work, [None, *plan.pending], self.options.num_workers, self.stop)
        finally:
            self.unpackers.close()
            self.bytes.close()
        if self.label_error is not None:
            raise self.label_error
        failed = [f"{archive.name}: {error}" for archive, error in broken if archive is not None]
        if not failed and not self.options.only_metadata and self.options.limit_archives is None:
            self._remove_parts()
            failed = self._missing_photos()
        broken_names = {archive.name for archive, _ in broken if archive is not None}
        for archive in (*plan.finished, *plan.pending):
            if archive.name in self.disputed:  # either may be the wrong one, so the next run brings both anew
                self.state.forget(archive.name)
        missing = broken_names | self.disputed
        here = [archive for archive in (*plan.finished, *plan.pending) if archive.name not in missing]
        return Outcome(
            failed,
            self.notes,
            archives=len(here),
            all_archives=plan.all_archives,
            fetched_archives=len(plan.pending) - len(broken),
            photos=self._count_photos(here),
            fetched_bytes=self.bytes.fetched,
            retries=self.client.retried,
            seconds=time.monotonic() - start,
        )

    def _bring_labels(self, plan: Plan) -> None:
        self.labels_work.mkdir(exist_ok=True)
        for file in plan.labels:
            if self._bring_label_file(file):
                self.label_urls[file.name] = file.url

    def _check_labels(self) -> None:
        """Checks the files beside the photos, puts them in place, and notes all image ids of the metadata."""
        self.image_ids = [record.image_id for record in load_records(self._newest(catalog.METADATA_FILE))]
        load_taxonomy(self._newest(catalog.TAXONOMY_FILE))
        for name, url in self.label_urls.items():
            new = self.labels_work / name
            entry = Entry(url, file_sha256(new), new.stat().st_size)
            os.replace(new, self.folder / name)
            self.state.record(name, entry)
        shutil.rmtree(self.labels_work)

    def _bring_label_file(self, file: LabelFile) -> bool:
        part, target = self.state.part(file.name), self.labels_work / file.name
        if file.make is not None:
            file.make(self.client, self.state.folder, target, self.options.num_workers, self.stop)
            return True
        try:
            most = file.most or transfer.MOST_BYTES["text"]
            transfer.fetch(self.client, file.url, part, most=most, on_bytes=self.bytes.counter(part))
            transfer.take(part, target, most)
        except NotThere as error:
            if not file.optional:
                raise FlairError(f"{file.name}: {error}; check the address") from None
            self.notes.append(
                f"{file.name} (the licences of the photos) is not on this server; Hugging Face has it: "
                f"{huggingface.HuggingFaceSource().place}/{file.name}"
            )
            return False
        except FlairError as error:
            raise FlairError(f"{file.name}: {error}") from None
        return True

    def _newest(self, name: str) -> Path:
        return self.labels_work if (self.labels_work / name).exists() else self.folder

    def _work(self, archive: Archive | None) -> None:
        """One of the threads' items: an archive, or (None) the check of the labels, which takes seconds of its own."""
        if archive is not None:
            self._bring_archive(archive)
            return
        try:
            self._check_labels()
        except FlairError as error:
            self.label_error = error  # without labels the photos are worth nothing
            self.stop.set()

    def _bring_archive(self, archive: Archive) -> None:
        """Fetches, unpacks and records one archive; a damaged one is fetched a second time."""
        part = self.state.part(archive.name)
        count = self.bytes.counter(part)
        for last_try in (False, True):
            try:
                fetched = self._kept(archive) or transfer.fetch(
                    self.client, archive.url, part,
                    expect=archive.kind, size=archive.size, sha256=archive.sha256, on_bytes=count,
                )  # fmt: skip
                unpacked = self._unpack(archive, fetched)
                break
            except (WrongContent, UnpackError) as error:
                if part.exists():
                    count(-part.stat().st_size)
                transfer.discard(part)
                if isinstance(error, UnpackError) and not error.corrupt:
                    self.disputed.update([error.rival] * bool(error.rival))
                    raise
                if last_try:
                    raise FlairError(f"{error}; fetched twice, wrong both times, so the server's copy is bad") from None
                _log(f"{archive.name}: {error}; fetching it once more")
        self.state.record(
            archive.name, Entry(archive.url, fetched.sha256, fetched.size, unpacked.photos, unpacked.photo_bytes)
        )
        if fetched.path == part:
            self._finish(archive)

    def _unpack(self, archive: Archive, fetched: Fetched) -> Unpacked:
        photos_dir = self.folder / archive.folder
        listing = self.state.listing(archive.name)
        job = Job(
            archive.kind, str(fetched.path), archive.name, str(photos_dir), str(listing),
            MAX_PHOTO_BYTES[archive.folder], archive.photos,
        )  # fmt: skip
        unpacked = self.unpackers.unpack(job)
        if unpacked.ignored:
            self.notes.append(
                f"{archive.name}: left out {unpacked.ignored:,} members that are no photos, such as "
                f"{unpacked.first_ignored!r}"
            )
        return unpacked

    def _kept(self, archive: Archive) -> Fetched | None:
        """The archive as an earlier run kept it, if it is still the right one."""
        path, entry = self.folder / archive.name, self.state.get(archive.name)
        if entry is None or not path.is_file() or path.stat().st_size != entry.size:
            return None
        trusted = archive.sha256 or (entry.sha256 if entry.url == archive.url else None)
        return Fetched(path, entry.size, entry.sha256, entry.size) if file_sha256(path) == trusted else None

    def _finish(self, archive: Archive) -> None:
        part = self.state.part(archive.name)
        if self.options.keep_archives and transfer.is_whole(part):
            transfer.take(part, self.folder / archive.name)
        else:
            transfer.discard(part)

    def _finish_finished(self, plan: Plan) -> None:
        """Ends the parts of archives that were recorded right before the kill."""
        for archive in plan.finished:
            self._finish(archive)

    def _missing_photos(self) -> list[str]:
        """A line for each folder that lacks photos of the metadata."""
        failed = []
        for folder in [catalog.SMALL_IMAGES_DIR] + [catalog.RAW_IMAGES_DIR] * self.options.raw:
            photos_dir = self.folder / folder
            present = set(os.listdir(photos_dir)) if photos_dir.is_dir() else set()
            missing = [image_id for image_id in self.image_ids if f"{image_id}.jpg" not in present]
            if missing:
                failed.append(
                    f"{folder}: {len(missing):,} of {len(self.image_ids):,} photos of the metadata are in no archive, "
                    f"for example {', '.join(missing[:3])}"
                )
        return failed

    def _count_photos(self, archives: list[Archive]) -> dict[str, tuple[int, int]]:
        counts: dict[str, tuple[int, int]] = {}
        for archive in archives:
            entry = self.state.get(archive.name)
            if entry is not None:
                photos, photo_bytes = counts.get(archive.folder, (0, 0))
                counts[archive.folder] = (photos + (entry.photos or 0), photo_bytes + (entry.photo_bytes or 0))
        return counts

    def _remove_leftovers(self) -> None:
        """What a killed run left half done; its parts stay, and what it has read of this source's labels."""
        atomic.remove_leftovers(self.state.folder)
        if huggingface.remove_other_records(self.state.folder, self.source.place):
            _log("labels that an unfinished run read from another source, endpoint or revision are dropped")
        shutil.rmtree(self.labels_work, ignore_errors=True)
        for folder in (catalog.SMALL_IMAGES_DIR, catalog.RAW_IMAGES_DIR):
            for leftover in (self.folder / folder).glob(".*.tmp"):
                if leftover.is_dir():
                    shutil.rmtree(leftover)

    def _remove_parts(self) -> None:
        """With every archive in place no part is worth anything: not one of another source either."""
        for part in self.state.folder.glob("*.part"):
            transfer.discard(part)


class _ByteProgress:
    """One progress line, in bytes, of all files; safe to share among threads."""

    def __init__(self, plan: Plan, state: DownloadState) -> None:
        self.fetched = 0
        self._lock = threading.Lock()
        names = [file.name for file in plan.labels] + [archive.name for archive in plan.pending]
        parts = [state.part(name) for name in names]
        self._here = {part: transfer.arrived_bytes(part) for part in parts}
        known = len(plan.sizes) == len(parts)
        self._progress = Progress(
            sum(plan.sizes.values()) if known else None, "downloading", "B", scale=True, done=sum(self._here.values())
        )

    def counter(self, part: Path) -> Callable[[int], None]:
        """Counts the bytes of one file; those of an earlier run were counted at the start."""
        here = self._here.get(part, 0)

        def count(new: int) -> None:
            nonlocal here
            known = max(0, min(here, new))
            here -= known
            with self._lock:
                self.fetched += max(0, new - known)
                self._progress.add(new - known)

        return count

    def close(self) -> None:
        """Takes the line off the screen."""
        self._progress.close()


def _log(message: str) -> None:
    tqdm.write(message, file=sys.stderr)


def print_summary(outcome: Outcome, source: Source, options: Options) -> None:
    """Says what is where, what it took, what failed and what to type next."""
    folder = options.dataset_dir
    for name, (photos, photo_bytes) in outcome.photos.items():
        print(f"{folder / name}: {photos:,} photos, {say_size(photo_bytes)}")
    print(f"{folder / catalog.METADATA_FILE}, {catalog.TAXONOMY_FILE}: from {source.place}")
    for note in outcome.notes:
        print(f"Note: {note}")
    if not options.only_metadata:
        print(
            f"{outcome.archives} of {outcome.all_archives} archives are here, {outcome.fetched_archives} new; "
            f"{say_size(outcome.fetched_bytes)} fetched in {duration(outcome.seconds)} with {outcome.retries} retries"
        )
    for line in outcome.failed:
        print(f"FAILED {line}", file=sys.stderr)
    if outcome.failed:
        print(f"{len(outcome.failed)} failed; the same command tries them again", file=sys.stderr)
    elif outcome.archives < outcome.all_archives:
        without = "--only" if options.only_metadata else "--limit_archives"
        print(f"Next: the same command without {without} for all photos")
    else:
        print("Next:", command_line("python3 -m flair.verify", dataset_dir=folder))
