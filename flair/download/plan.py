"""What a download still has to fetch, how large that is, and whether the disk has room for it."""

from __future__ import annotations

import itertools
import os
import shutil
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

from flair.dataset import catalog
from flair.download import transfer
from flair.download.client import Client, Patience, Remote
from flair.download.source import Archive, LabelFile, Source
from flair.download.state import DownloadState, scan_photos
from flair.errors import FlairError
from flair.parallel import threads
from flair.terminal.progress import size as say_size

# Photos on a disk against their archive: the last block of every file is half empty.
_ON_DISK = 1.2


class DownloadConfig(NamedTuple):
    """What to download, and how; `limit_archives` of each kind, None for all."""

    dataset_dir: Path
    num_workers: int = 4
    only_metadata: bool = False
    limit_archives: int | None = None
    raw: bool = False
    keep_archives: bool = False
    patience: Patience = Patience()


class Plan(NamedTuple):
    """The files to fetch; `finished` archives need nothing, `sizes` are bytes by name as far as anybody says."""

    labels: list[LabelFile]
    pending: list[Archive]
    finished: list[Archive]
    all_archives: int
    sizes: dict[str, int]


def make_plan(source: Source, config: DownloadConfig, state: DownloadState, client: Client) -> Plan:
    """Compares what the source has with what is here, photo by photo; asks the server for the sizes of the rest."""
    found = source.archives(client, state.folder, config.raw)
    wanted = [] if config.only_metadata else _limited(found, config.limit_archives)
    labels = [file for file in source.label_files() if not state.is_kept(file.name, file.url)]
    gone = _gone(wanted, config.dataset_dir, state, client)
    open_archives = [
        archive
        for archive in wanted
        if archive.name in gone or not state.is_finished(archive.name, archive.url, archive.sha256)
    ]
    unsized = [file.url for file in labels if file.make is None]
    unsized += [archive.url for archive in open_archives if archive.size is None]
    answers = _ask(unsized, client, config.num_workers)
    pending = []
    # The labels are small beside the photos: where nobody tells their size they count as nothing.
    sizes = {file.name: answers[file.url].size or 0 if file.make is None else 0 for file in labels}
    for archive in open_archives:
        answer = answers.get(archive.url, Remote(None, None, archive.url))
        if answer.sha256 is not None:  # of the hub, so it is as good as published
            archive = archive._replace(size=answer.size, sha256=answer.sha256)
        entry = state.get(archive.name)
        size = archive.size or answer.size
        if archive.name not in gone and archive.sha256 is None and entry is not None and entry.size == size:
            continue  # the same file on another server
        pending.append(archive)
        if size is not None:
            sizes[archive.name] = size
    names = {archive.name for archive in pending}
    return Plan(labels, pending, [archive for archive in wanted if archive.name not in names], len(found), sizes)


def require_disk(plan: Plan, config: DownloadConfig, state: DownloadState) -> None:
    """Raises a FlairError unless the photos to come, and the archives they come in, fit on the disk."""
    sizes = {archive.name: plan.sizes.get(archive.name) or _usual_size(archive) for archive in plan.pending}
    needs: list[tuple[Path, float]] = [
        (config.dataset_dir / archive.folder, _ON_DISK * sizes[archive.name]) for archive in plan.pending
    ]
    largest = sorted(sizes.values(), reverse=True)
    at_once = largest if config.keep_archives else largest[: config.num_workers]
    here = sum(transfer.arrived_bytes(state.part(name)) for name in sizes)
    needs.append((state.folder, max(0, sum(at_once) - here)))
    needs += [(config.dataset_dir, plan.sizes.get(file.name, 0)) for file in plan.labels]
    needed: dict[int, float] = defaultdict(float)  # by disk, as folders may lie on several
    place: dict[int, Path] = {}
    for folder, num_bytes in needs:
        existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
        device = os.stat(existing).st_dev
        needed[device] += num_bytes
        place.setdefault(device, existing)
    for device, num_bytes in needed.items():
        free = shutil.disk_usage(place[device]).free
        if free < num_bytes:
            raise FlairError(
                f"--dataset_dir: the disk of {place[device]} has {say_size(free)} free, but about "
                f"{say_size(num_bytes)} are needed; free some space, or choose another disk"
            )


def _limited(archives: list[Archive], limit: int | None) -> list[Archive]:
    """The first `limit` archives of each folder."""
    by_folder = itertools.groupby(archives, lambda archive: archive.folder)
    return [archive for _, of_folder in by_folder for archive in itertools.islice(of_folder, limit)]


def _gone(archives: list[Archive], dataset_dir: Path, state: DownloadState, client: Client) -> set[str]:
    """Finished archives whose photos are not all here as they were unpacked."""
    finished = [archive for archive in archives if state.get(archive.name) is not None]
    present = {folder: scan_photos(dataset_dir / folder) for folder in {archive.folder for archive in finished}}
    gone = set()
    for archive in finished:
        if count := state.gone(archive.name, present[archive.folder]):
            client.log(f"{archive.name}: {count:,} of its photos are gone or changed since; unpacking it again")
            gone.add(archive.name)
    return gone


def _ask(urls: list[str], client: Client, num_workers: int) -> dict[str, Remote]:
    answers: dict[str, Remote] = {}

    def ask(url: str) -> None:
        answers[url] = client.ask(url)

    for _, error in threads.run(ask, urls, num_workers, client.stop):
        raise error
    return answers


def _usual_size(archive: Archive) -> float:
    if archive.kind == "parquet":
        return catalog.HUGGINGFACE_BYTES / sum(catalog.HUGGINGFACE_SHARDS.values())
    small = archive.folder == catalog.SMALL_IMAGES_DIR
    return (catalog.SMALL_ARCHIVES_BYTES if small else catalog.RAW_IMAGES_BYTES) / catalog.NUM_ARCHIVES
