"""How fast the data path is on this machine, beside what plain Python needs to copy the same bytes.

Every step is a command in a process of its own: its time includes starting Python and reading the metadata, its memory
counts all its processes together. A synthetic dataset of the asked size is made once and kept. Within a repetition
the copying and the steps take turns, so that a busy machine slows them alike; medians are over repetitions. The
download has curl and tar beside it (`benchmark.speed.download`).
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmark.speed import download
from benchmark.speed.harness import ROOT, Measured, Step, ratio, run
from flair.dataset.catalog import IMAGE_SIZE, METADATA_FILE, NUM_ARCHIVES, SMALL_IMAGES_DIR
from flair.download.archive import unpack
from flair.errors import FlairError
from flair.files import atomic
from flair.miniature.archives import pack
from flair.miniature.dataset import make_dataset
from flair.parallel.processes import map_in_order
from flair.terminal.table import Columns

PIXELS_BYTES = IMAGE_SIZE * IMAGE_SIZE * 3
EXTRACT, SHARDED, HDF5_JPEG = "extract the archives", "TFRecords sharded", "HDF5 jpeg"
_COPY_FILES = """
import os, sys
source, target = sys.argv[1:]
os.makedirs(target)
for entry in os.scandir(source):
    with open(entry.path, "rb") as photo, open(os.path.join(target, entry.name), "wb") as copy:
        copy.write(photo.read())
"""
_WRITE_PIXELS = """
import os, sys
count, pixels = int(sys.argv[1]), os.urandom(int(sys.argv[2]))
with open(sys.argv[3], "wb") as file:
    for _ in range(count):
        file.write(pixels)
    file.flush()
    os.fsync(file.fileno())
"""
_LOAD = """
import sys
from flair.dataset.metadata import load_records
load_records(sys.argv[1])
"""
_EXTRACT = """
import sys
from pathlib import Path
from benchmark.speed.data import extract
if __name__ == "__main__":
    extract(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
"""


def measure(flags: argparse.Namespace) -> dict[str, Any]:
    """Prints a table of all steps; returns its rows."""
    work_dir = Path(flags.work_dir)
    name = f"synthetic-{flags.num_images}-{flags.seed}"
    name += f"-{flags.distinct_photos}" if flags.distinct_photos else ""
    dataset, archives = work_dir / name, work_dir / f"{name}-archives"
    make_dataset(dataset, num_images=flags.num_images, seed=flags.seed, distinct_photos=flags.distinct_photos)
    steps = make_steps(work_dir, dataset, archives, flags.num_workers)
    if flags.steps:
        steps = choose(steps, flags.steps.split(","))
    steps = download.without_missing_programs(steps)
    downloads = any(step.name in download.NAMES for step in steps)
    if (downloads or any(step.name == EXTRACT for step in steps)) and not (archives / "complete").exists():
        pack(dataset, archives, min(NUM_ARCHIVES, flags.num_images))
        (archives / "complete").touch()
    discarded = work_dir / "discarded"
    atomic.remove(discarded)
    with contextlib.ExitStack() as stack:
        stack.callback(atomic.remove, discarded)
        if downloads:
            steps = download.at(stack.enter_context(download.serving(archives)), steps)
        runs = _measure_in_turns(steps, flags.repeats, discarded)
    table = summarize(steps, runs, flags.num_images)
    _print(table, flags)
    print(f"The dataset stays in {work_dir}; delete it when you are done.")
    return {"num_images": flags.num_images, "steps": table}


def _measure_in_turns(steps: Sequence[Step], repeats: int, discarded: Path) -> dict[str, list[Measured]]:
    needed = {name for step in steps for name in step.needs}
    runs: dict[str, list[Measured]] = {step.name: [] for step in steps}
    for repetition in range(repeats):
        for step in steps:
            runs[step.name].append(run(step))
            seconds = runs[step.name][-1].seconds
            print(f"{repetition + 1} of {repeats}: {step.name}: {seconds:.1f} s", file=sys.stderr, flush=True)
            if step.leaves and step.name not in needed:
                _discard(step.leaves, discarded)
        for step in steps:
            if step.leaves:
                _discard(step.leaves, discarded)
    return runs


def _discard(path: Path, discarded: Path) -> None:
    # ext4 does not give out an inode again in the minutes after its file was deleted and, to find others, looks at each
    # of them: deleting 100,000 photos makes whatever step comes next take twice to four times its time.
    if path.is_dir():
        discarded.mkdir(exist_ok=True)
        path.rename(discarded / str(len(list(discarded.iterdir()))))
    else:
        path.unlink(missing_ok=True)


def make_steps(work_dir: Path, dataset: Path, archives: Path, num_workers: int) -> list[Step]:
    """The steps in the order in which they are measured."""
    sizes = [entry.stat().st_size for entry in os.scandir(dataset / SMALL_IMAGES_DIR)]
    jpeg, raw = sum(sizes), len(sizes) * PIXELS_BYTES
    copied, written, extracted = work_dir / "copy", work_dir / "pixels", work_dir / "photos"
    per_user, sharded = work_dir / "per_user", work_dir / "sharded"
    raw_file, jpeg_file = work_dir / "raw.h5", work_dir / "jpeg.h5"
    python = [sys.executable, "-c"]
    shared = [f"--dataset_dir={dataset}", f"--num_workers={num_workers}"]
    records = [sys.executable, str(ROOT / "prepare_tfrecords.py"), *shared, "--overwrite"]
    hdf5 = [sys.executable, str(ROOT / "prepare_dataset.py"), *shared, "--overwrite"]
    verify = [sys.executable, "-m", "flair.verify", *shared, f"--tfrecords_dir={sharded}", f"--hdf5_file={jpeg_file}"]
    copy, pixels = "copy the photos (plain Python)", "write the pixels (plain Python)"
    metadata_bytes = (dataset / METADATA_FILE).stat().st_size
    photos = str(dataset / SMALL_IMAGES_DIR)
    return [
        Step(copy, [*python, _COPY_FILES, photos, str(copied)], jpeg, copied),
        Step(EXTRACT, [*python, _EXTRACT, str(archives), str(extracted), str(num_workers)], jpeg, extracted, copy),
        *download.make_steps(work_dir / "curl", work_dir / "download", jpeg, min(NUM_ARCHIVES, len(sizes))),
        Step("metadata: load and check", [*python, _LOAD, str(dataset)], metadata_bytes, None),
        Step("TFRecords per user", [*records, f"--tfrecords_dir={per_user}"], jpeg, per_user, copy),
        Step(SHARDED, [*records, "--layout=sharded", f"--tfrecords_dir={sharded}"], jpeg, sharded, copy),
        Step(HDF5_JPEG, [*hdf5, "--image_format=jpeg", f"--output_file={jpeg_file}"], jpeg, jpeg_file, copy),
        Step("verify all of it", verify, 3 * jpeg, None, copy, (SHARDED, HDF5_JPEG)),
        Step(pixels, [*python, _WRITE_PIXELS, str(len(sizes)), str(PIXELS_BYTES), str(written)], raw, written),
        Step("HDF5 raw", [*hdf5, f"--output_file={raw_file}"], raw, raw_file, pixels),
    ]


def extract(archives: Path, photos: Path, num_workers: int) -> None:
    """Unpacks every archive as download_dataset.py does, from the disk."""
    photos.mkdir(parents=True)
    paths = sorted((archives / "images" / "small").glob("*.tar.gz"))
    list(map_in_order(_extract_one, photos, paths, num_workers))


def _extract_one(photos: Path, archive: Path) -> None:
    listing = photos.parent / f"{archive.name}.list"
    # A limit far above any photo's size, as the download has it.
    unpack(archive, photos, archive.name, listing, 4 << 20)
    listing.unlink(missing_ok=True)


def summarize(steps: Sequence[Step], runs: dict[str, list[Measured]], num_images: int) -> list[dict[str, Any]]:
    """Medians of each step; `ratio` is the median over repetitions of the step's time by its baseline's."""
    seconds = {name: [run.seconds for run in found] for name, found in runs.items()}
    table = []
    for step in steps:
        median = statistics.median(seconds[step.name])
        row: dict[str, Any] = {
            "step": step.name,
            "seconds": median,
            "photos_per_second": num_images / median,
            "megabytes_per_second": step.num_bytes / median / 1e6,
            "peak_memory_bytes": max(run.memory for run in runs[step.name]),
            "baseline": step.baseline,
            "ratio": ratio(seconds[step.baseline], seconds[step.name]) if step.baseline in seconds else None,
        }
        table.append(row)
    return table


def _print(table: Sequence[dict[str, Any]], flags: argparse.Namespace) -> None:
    print(f"{flags.num_images:,} photos, {os.cpu_count()} cores, medians of {flags.repeats}")
    columns = Columns("<32", ">9.1f", ">10,.0f", ">8.0f", ">10.0f", ">7.2f", gap=" ")
    print(columns.line("", "seconds", "photos/s", "MB/s", "memory MB", "ratio"))
    for row in table:
        numbers = (row["seconds"], row["photos_per_second"], row["megabytes_per_second"])
        share = "" if row["ratio"] is None else row["ratio"]
        print(columns.line(row["step"], *numbers, row["peak_memory_bytes"] / 1e6, share))
    print("ratio: time by the plain-Python copying or writing of the same bytes above it; 1 is the limit")
    if any(row["step"] == download.OURS for row in table):
        print(f"ratio of the download: time by that of {download.CURL.removeprefix('download: ')}")


def choose(steps: Sequence[Step], words: Sequence[str]) -> list[Step]:
    """The steps whose names contain one of the words, and those that they depend on."""
    names = {step.name for step in steps if any(word.strip().lower() in step.name.lower() for word in words)}
    if not names:
        raise FlairError(f"--steps={','.join(words)}: expected part of {', '.join(step.name for step in steps)}")
    for step in reversed(steps):
        if step.name in names:
            names |= {*step.needs, step.baseline or step.name}
    return [step for step in steps if step.name in names]
