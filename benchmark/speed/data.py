"""How fast the data path is on this machine, beside what plain Python needs to copy the same bytes.

Every step is a command in a process of its own: its time includes starting Python and reading the metadata, its memory
is that of all its processes together. A synthetic dataset of the asked size is made once and kept. Within a repetition
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
from benchmark.speed.command import ROOT, Measured, Step, measure, remove
from flair.dataset.catalog import IMAGE_SIZE, METADATA_FILE, NUM_ARCHIVES, SMALL_IMAGES_DIR
from flair.errors import FlairError
from flair.terminal.flags import positive_int
from flair.terminal.paths import path_flag

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


def main(argv: Sequence[str]) -> int:
    """Parses the flags, measures, prints a table (and JSON with --json)."""
    flags = _parse(argv)

    from benchmark.run.machine import machine
    from flair.files import atomic
    from flair.miniature.dataset import make_dataset

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
    if downloads or any(step.name == EXTRACT for step in steps):
        _pack(dataset, archives, min(NUM_ARCHIVES, flags.num_images))
    discarded = work_dir / "discarded"
    remove(discarded)
    with contextlib.ExitStack() as stack:
        stack.callback(remove, discarded)
        if downloads:
            steps = download.at(stack.enter_context(download.serving(archives)), steps)
        runs = _measure_in_turns(steps, flags.repeats, discarded)
    table = summarize(steps, runs, flags.num_images)
    print(format_table(table, flags.num_images, flags.repeats))
    print(f"The dataset stays in {work_dir}; delete it when you are done.")
    if flags.json:
        atomic.write_json(flags.json, {**machine(), "num_images": flags.num_images, "steps": table})
        print(f"JSON: {flags.json}")
    return 0


def _measure_in_turns(steps: Sequence[Step], repeats: int, discarded: Path) -> dict[str, list[Measured]]:
    needed = {name for step in steps for name in step.needs}
    runs: dict[str, list[Measured]] = {step.name: [] for step in steps}
    for repetition in range(repeats):
        for step in steps:
            runs[step.name].append(measure(step))
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
    photos = dataset / SMALL_IMAGES_DIR
    sizes = [entry.stat().st_size for entry in os.scandir(photos)]
    jpeg, raw = sum(sizes), len(sizes) * PIXELS_BYTES
    metadata_bytes = (dataset / METADATA_FILE).stat().st_size
    python = sys.executable
    workers = f"--num_workers={num_workers}"
    names = ("copy", "pixels", "photos", "curl", "download", "per_user", "sharded", "raw.h5", "jpeg.h5")
    out = {name: work_dir / name for name in names}
    source = f"--dataset_dir={dataset}"
    records = [python, str(ROOT / "prepare_tfrecords.py"), source, workers, "--overwrite"]
    hdf5 = [python, str(ROOT / "prepare_dataset.py"), source, workers, "--overwrite"]
    copy, pixels = "copy the photos (plain Python)", "write the pixels (plain Python)"
    return [
        Step(copy, [python, "-c", _COPY_FILES, str(photos), str(out["copy"])], jpeg, out["copy"]),
        Step(
            EXTRACT,
            [python, "-c", _EXTRACT, str(archives), str(out["photos"]), str(num_workers)],
            jpeg,
            out["photos"],
            copy,
        ),
        *download.make_steps(out["curl"], out["download"], jpeg, min(NUM_ARCHIVES, len(sizes))),
        Step("metadata: load and check", [python, "-c", _LOAD, str(dataset)], metadata_bytes, None),
        Step("TFRecords per user", [*records, f"--tfrecords_dir={out['per_user']}"], jpeg, out["per_user"], copy),
        Step(
            SHARDED,
            [*records, "--layout=sharded", f"--tfrecords_dir={out['sharded']}"],
            jpeg,
            out["sharded"],
            copy,
        ),
        Step(
            HDF5_JPEG,
            [*hdf5, "--image_format=jpeg", f"--output_file={out['jpeg.h5']}"],
            jpeg,
            out["jpeg.h5"],
            copy,
        ),
        Step(
            "verify all of it",
            [
                *(python, "-m", "flair.verify", source, workers),
                *(f"--tfrecords_dir={out['sharded']}", f"--hdf5_file={out['jpeg.h5']}"),
            ],
            3 * jpeg,
            None,
            copy,
            (SHARDED, HDF5_JPEG),
        ),
        Step(
            pixels,
            [python, "-c", _WRITE_PIXELS, str(len(sizes)), str(PIXELS_BYTES), str(out["pixels"])],
            raw,
            out["pixels"],
        ),
        Step("HDF5 raw", [*hdf5, f"--output_file={out['raw.h5']}"], raw, out["raw.h5"], pixels),
    ]


def extract(archives: Path, photos: Path, num_workers: int) -> None:
    """Unpacks every archive as download_dataset.py does, from the disk."""
    from flair.parallel.processes import map_in_order

    photos.mkdir(parents=True)
    paths = sorted((archives / "images" / "small").glob("*.tar.gz"))
    list(map_in_order(_extract_one, photos, paths, num_workers))


def summarize(steps: Sequence[Step], runs: dict[str, list[Measured]], num_images: int) -> list[dict[str, Any]]:
    """Medians of each step; `ratio` is the median over repetitions of the step's time by its baseline's."""
    table = []
    for step in steps:
        seconds = statistics.median(run.seconds for run in runs[step.name])
        row: dict[str, Any] = {
            "step": step.name,
            "seconds": seconds,
            "photos_per_second": num_images / seconds,
            "megabytes_per_second": step.num_bytes / seconds / 1e6,
            "peak_memory_bytes": max(run.memory for run in runs[step.name]),
            "baseline": step.baseline,
            "ratio": None,
        }
        if step.baseline in runs:
            pairs = zip(runs[step.name], runs[step.baseline], strict=True)
            row["ratio"] = statistics.median(run.seconds / base.seconds for run, base in pairs)
        table.append(row)
    return table


def format_table(table: Sequence[dict[str, Any]], num_images: int, repeats: int) -> str:
    """The medians as text."""
    lines = [
        f"{num_images:,} photos, {os.cpu_count()} cores, medians of {repeats}",
        f"{'':32} {'seconds':>9} {'photos/s':>10} {'MB/s':>8} {'memory MB':>10} {'ratio':>7}",
    ]
    for row in table:
        ratio = "" if row["ratio"] is None else f"{row['ratio']:.2f}"
        lines.append(
            f"{row['step']:32} {row['seconds']:9.1f} {row['photos_per_second']:10,.0f} "
            f"{row['megabytes_per_second']:8.0f} {row['peak_memory_bytes'] / 1e6:10.0f} {ratio:>7}"
        )
    lines.append("ratio: time by the plain-Python copying or writing of the same bytes above it; 1 is the limit")
    if any(row["step"] == download.OURS for row in table):
        lines.append(f"ratio of the download: time by that of {download.CURL.removeprefix('download: ')}")
    return "\n".join(lines)


def choose(steps: Sequence[Step], words: Sequence[str]) -> list[Step]:
    """The steps whose names contain one of the words, and those that they depend on."""
    names = {step.name for step in steps if any(word.strip().lower() in step.name.lower() for word in words)}
    if not names:
        raise FlairError(f"--steps={','.join(words)}: expected part of {', '.join(step.name for step in steps)}")
    for step in reversed(steps):
        if step.name in names:
            names |= {*step.needs, step.baseline or step.name}
    return [step for step in steps if step.name in names]


def _extract_one(photos: Path, archive: Path) -> None:
    from flair.download.archive import unpack

    # Far above any photo's size, as the download has it.
    unpack(archive, photos, archive.name, photos.parent / f"{archive.name}.list", 4 << 20)
    (photos.parent / f"{archive.name}.list").unlink(missing_ok=True)


def _pack(dataset: Path, archives: Path, num_archives: int) -> None:
    from flair.miniature.archives import pack

    if not (archives / "complete").exists():
        pack(dataset, archives, num_archives)
        (archives / "complete").touch()


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmark.speed_main data",
        description="Measures the data path on a synthetic dataset, beside plain-Python copying of the same bytes.",
    )
    parser.add_argument(
        "--work_dir", type=path_flag, required=True, help="folder for the dataset, which stays, and for output"
    )
    parser.add_argument("--num_images", type=positive_int, default=20_000, help="photos (default: 20000)")
    parser.add_argument(
        "--distinct_photos", type=positive_int, help="draw so many photos, hard-link the others (default: draw all)"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the dataset (default: 0)")
    parser.add_argument("--repeats", type=positive_int, default=3, help="repetitions (default: 3)")
    parser.add_argument(
        "--num_workers", type=positive_int, default=os.cpu_count() or 1, help="processes of a step (default: all cores)"
    )
    parser.add_argument("--steps", help="only steps whose names contain one of these words, comma-separated")
    parser.add_argument("--json", type=path_flag, metavar="FILE", help="also write the table as JSON")
    return parser.parse_args(argv)
