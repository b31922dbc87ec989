"""A miniature FLAIR of any size from a seed: `python -m flair.synthetic --dataset_dir=… --num_users=…`."""

from __future__ import annotations

import argparse
import contextlib
import errno
import itertools
import json
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from flair import atomic, command
from flair.catalog import ATTRIBUTION_FILE, METADATA_FILE, SMALL_IMAGES_DIR, TAXONOMY_FILE
from flair.errors import FlairError
from flair.metadata import Record, User, photo_path
from flair.progress import Progress, duration, size

RECIPE_FILE = "synthetic.json"
_RECIPE_VERSION = 1  # raised whenever the same settings would give other photos or records
_PHOTOS_PER_TASK = 64
_ATTRIBUTION = (
    "The photos, users and labels of this folder are synthetic: drawn by `python -m flair.synthetic`, taken by nobody.\n"
    "They stand in for FLAIR (Song, Granqvist, Talwar, 2022, https://arxiv.org/abs/2207.08869) in trials and tests;\n"
    "they may be used for any purpose, and no result on them says anything about FLAIR itself.\n"
)


class Made(NamedTuple):
    """What `make_dataset` found or made: sizes, and whether anything was left to do."""

    dataset_dir: Path
    num_users: int
    num_images: int
    seconds: float
    was_there: bool


def make_dataset(
    dataset_dir: str | Path,
    *,
    num_users: int | None = None,
    num_images: int | None = None,
    seed: int = 0,
    num_fine_labels: int | None = None,
    metadata_only: bool = False,
    distinct_photos: int | None = None,
    num_workers: int | None = None,
) -> Made:
    """Writes a synthetic dataset in FLAIR's layout: metadata, taxonomy, photos, attribution and `synthetic.json`.

    Args:
      dataset_dir: a new or empty folder. An unfinished one of the same settings is continued, a finished one is left.
      num_users: users; `num_images`: photos. One follows from the other by FLAIR's distribution of user sizes.
      seed: not negative. Same settings, same files, whatever the number of workers and, with the same versions of
        NumPy, Pillow and libjpeg, whatever the machine.
      num_fine_labels: at least 17; the default is 335.
      metadata_only: draw no photos.
      distinct_photos: draw this many photos only and hard-link all others to them, in turn. Their content then belongs
        to other labels: for measuring speed at full scale, not for training.
      num_workers: processes that draw; by default one a core, and none beside this one for fewer than 500 photos.

    Raises:
      FlairError: a number out of range, or a folder that holds anything else.
    """
    from flair.synthetic_population import make_users, user_sizes
    from flair.synthetic_taxonomy import DEFAULT_NUM_FINE_LABELS, make_taxonomy, relationship_text

    start = time.monotonic()
    if seed < 0:
        raise FlairError(f"--seed={seed}: expected a number from 0")
    if num_workers is not None and num_workers < 1:
        raise FlairError(f"--num_workers={num_workers}: expected at least 1")
    if distinct_photos is not None and distinct_photos < 1:
        raise FlairError(f"--distinct_photos={distinct_photos}: expected at least 1")
    sizes = user_sizes(num_users, num_images)
    taxonomy = make_taxonomy(DEFAULT_NUM_FINE_LABELS if num_fine_labels is None else num_fine_labels)
    recipe = {
        "version": _RECIPE_VERSION,
        "seed": seed,
        "num_users": len(sizes),
        "num_images": int(sizes.sum()),
        "num_fine_labels": len(taxonomy),
        "metadata_only": metadata_only,
        "distinct_photos": distinct_photos,
    }
    folder = Path(dataset_dir)
    was_there = _claim(folder, recipe)
    if not was_there:
        users = make_users(sizes, taxonomy, seed)
        atomic.write_text(folder / TAXONOMY_FILE, relationship_text(taxonomy))
        atomic.write_text(folder / ATTRIBUTION_FILE, _ATTRIBUTION)
        if not metadata_only:
            _write_photos(folder, users, len(taxonomy), seed, distinct_photos, num_workers)
        with atomic.replacing(folder / METADATA_FILE) as temporary:
            write_metadata(temporary, itertools.chain.from_iterable(user.records for user in users))
    return Made(folder, len(sizes), int(sizes.sum()), time.monotonic() - start, was_there)


def write_metadata(path: Path, records: Iterator[Record]) -> None:
    """Writes `records` in the official schema, key order and indentation, as `json.dump(..., indent=4)` would, but fast."""
    quoted = _Quoted()
    with open(path, "w", encoding="utf-8") as file:
        separator = "["
        for record in records:
            labels, fine = (
                ",\n            ".join([quoted[label] for label in labels])
                for labels in (record.labels, record.fine_grained_labels)
            )
            file.write(
                f'{separator}\n    {{\n        "user_id": {quoted[record.user_id]},\n'
                f'        "image_id": {json.dumps(record.image_id)},\n'
                f'        "labels": [\n            {labels}\n        ],\n'
                f'        "partition": {quoted[record.partition]},\n'
                f'        "fine_grained_labels": [\n            {fine}\n        ]\n    }}'
            )
            separator = ","
        file.write("\n]")


class _Quoted(dict[str, str]):
    """Strings as JSON, each quoted once."""

    def __missing__(self, text: str) -> str:
        self[text] = json.dumps(text)
        return self[text]


def _claim(folder: Path, recipe: dict[str, Any]) -> bool:
    """Makes `folder` ours for `recipe`, or raises; True when the dataset is there already."""
    recipe_path = folder / RECIPE_FILE
    if folder.exists() and not folder.is_dir():
        raise FlairError(f"--dataset_dir={folder}: is a file; expected a new or empty folder")
    try:
        found = json.loads(recipe_path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        found = None
    except ValueError:
        raise FlairError(f"{recipe_path}: is damaged; delete {folder} and run the same command again") from None
    if found is None:
        if folder.is_dir() and any(folder.iterdir()):
            raise FlairError(
                f"--dataset_dir={folder}: holds files that this command did not make; choose a new or empty folder"
            )
        atomic.write_json(recipe_path, recipe)
        return False
    if found != recipe:
        different = [f"{key} {found.get(key) if isinstance(found, dict) else found}" for key in recipe
                     if not isinstance(found, dict) or found.get(key) != recipe[key]]  # fmt: skip
        raise FlairError(
            f"--dataset_dir={folder}: holds a synthetic dataset of other settings ({', '.join(different)}); "
            "choose a new folder or delete this one"
        )
    return (folder / METADATA_FILE).exists()


def _write_photos(
    folder: Path, users: list[User], num_fine_labels: int, seed: int, distinct: int | None, num_workers: int | None
) -> None:
    photos = folder / SMALL_IMAGES_DIR
    photos.mkdir(exist_ok=True)
    atomic.remove_leftovers(photos)
    with os.scandir(photos) as entries:
        done = {entry.name for entry in entries}
    records = [record for user in users for record in user.records]
    drawn = records if distinct is None else records[:: max(1, len(records) // distinct)][:distinct]
    todo = [record for record in drawn if f"{record.image_id}.jpg" not in done]
    with Progress(len(records), "drawing", "photo", done=len(done)) as progress:
        _draw_all(folder, todo, num_fine_labels, seed, num_workers, progress)
        if distinct is not None:
            done.update(f"{record.image_id}.jpg" for record in drawn)
            originals = itertools.cycle(photo_path(folder, record.image_id) for record in drawn)
            for record, original in zip(records, originals):
                if f"{record.image_id}.jpg" not in done:
                    _link(original, photo_path(folder, record.image_id))
                    progress.add()


def _draw_all(
    folder: Path, records: list[Record], num_fine_labels: int, seed: int, num_workers: int | None, progress: Progress
) -> None:
    tasks = [records[i : i + _PHOTOS_PER_TASK] for i in range(0, len(records), _PHOTOS_PER_TASK)]
    if num_workers is None:
        num_workers = len(os.sched_getaffinity(0)) if len(records) >= 500 else 1
    with _mapping(min(num_workers, len(tasks)), (folder, num_fine_labels, seed)) as draw_each:
        for count in draw_each(tasks):
            progress.add(count)


@contextlib.contextmanager
def _mapping(num_workers: int, settings: tuple[Path, int, int]) -> Iterator[Any]:
    """Yields a function that draws an iterable of tasks, here or in worker processes, which end with this one."""
    if num_workers <= 1:
        _start_drawing(*settings)
        yield lambda tasks: map(_draw, tasks)
        return
    import concurrent.futures
    import multiprocessing

    # Spawned, because forking a process that may have threads (TensorFlow's) can hang the child.
    with concurrent.futures.ProcessPoolExecutor(
        num_workers, multiprocessing.get_context("spawn"), _start_worker, settings
    ) as pool:
        try:
            yield lambda tasks: pool.map(_draw, tasks)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _start_worker(*settings: Any) -> None:
    import multiprocessing.connection
    import signal
    import threading

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent ends the workers
    parent = multiprocessing.parent_process()
    assert parent is not None

    def end_with_parent() -> None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()
    _start_drawing(*settings)


_drawing: tuple[Path, Any]


def _start_drawing(folder: Path, num_fine_labels: int, seed: int) -> None:
    from flair.synthetic_photos import Painter
    from flair.synthetic_taxonomy import make_taxonomy

    global _drawing
    _drawing = folder, Painter(make_taxonomy(num_fine_labels), seed)


def _draw(records: list[Record]) -> int:
    folder, painter = _drawing
    for record in records:
        final = photo_path(folder, record.image_id)
        temporary = final.with_name(f".{final.name}.{os.getpid()}.tmp")
        # Not atomic.replacing: its fsync for each of 429,078 files would take longer than the drawing.
        temporary.write_bytes(painter.jpeg(record))
        os.replace(temporary, final)
    return len(records)


def _link(original: Path, path: Path) -> None:
    try:
        os.link(original, path)
    except OSError as error:
        if error.errno not in (errno.EMLINK, errno.EPERM, errno.EOPNOTSUPP):
            raise
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")  # no more links, or a disk without links
        shutil.copyfile(original, temporary)
        os.replace(temporary, path)


def main(argv: Sequence[str]) -> int:
    """The command line of `python -m flair.synthetic`."""
    flags = _parse(argv)
    if (flags.archives_dir is None) != (flags.num_archives is None):
        raise FlairError("--archives_dir and --num_archives belong together; give both or neither")
    if flags.archives_dir is not None and flags.metadata_only:
        raise FlairError("--archives_dir: there is nothing to pack with --metadata_only")
    made = make_dataset(
        flags.dataset_dir,
        num_users=flags.num_users,
        num_images=flags.num_images,
        seed=flags.seed,
        num_fine_labels=flags.num_fine_labels,
        metadata_only=flags.metadata_only,
        distinct_photos=flags.distinct_photos,
        num_workers=flags.num_workers,
    )
    verb = "is there already" if made.was_there else f"made in {duration(made.seconds)}"
    print(f"{made.dataset_dir}: {made.num_images:,} photos of {made.num_users:,} users, seed {flags.seed}, {verb}")
    if flags.archives_dir is not None:
        from flair.synthetic_archives import pack

        packed = pack(flags.dataset_dir, flags.archives_dir, flags.num_archives)
        print(f"{flags.archives_dir}: {flags.num_archives} archives, {size(sum(p.stat().st_size for p in packed))}")
        print(f"next: python -m flair.mirror --folder={flags.archives_dir} --port=8000")
    elif not flags.metadata_only:
        print(f"next: python prepare_dataset.py --dataset_dir={made.dataset_dir} --output_file=flair.hdf5")
        print(f"  or: python prepare_tfrecords.py --dataset_dir={made.dataset_dir} --tfrecords_dir=tfrecords")
    return command.EXIT_OK


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m flair.synthetic",
        description="Makes a miniature FLAIR: the same layout and statistics, photos drawn from a seed.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--dataset_dir", required=True, help="new or empty folder for the dataset")
    add("--num_users", type=int, help="users, at least 3 (FLAIR: 51414); default: as --num_images asks")
    add("--num_images", type=int, help="photos, at least 3 (FLAIR: 429078); default: as --num_users asks")
    add("--seed", type=int, default=0, help="number from 0; the same seed gives the same files (default: 0)")
    add("--num_fine_labels", type=int, help="fine-grained labels, at least 17 (default: 335; FLAIR: 1628)")
    add("--metadata_only", action="store_true", help="draw no photos (default: draw them)")
    add("--distinct_photos", type=int, help="draw only so many photos and hard-link the others (default: draw all)")
    add("--archives_dir", help="also pack the dataset as Apple's server has it, into this folder (default: do not)")
    add("--num_archives", type=int, help="archives to pack, at most one a photo (FLAIR: 43)")
    add("--num_workers", type=int, help="processes that draw (default: one a core)")
    return parser.parse_args(argv)


if __name__ == "__main__":
    command.run(main)
