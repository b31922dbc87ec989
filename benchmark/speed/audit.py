"""How long the audit for near duplicates takes on this machine, on photos as far apart as real ones.

The photos are those of `flair.synthetic` with 1.6 times their contrast. As it draws them they are paler than real ones,
so that many a pair of strangers lies within the audit's thresholds. With it, half of them have a standard deviation of
58 grey levels or more; of 35 photos of FLAIR and 256 of COCO, half have 62 or more. Copies are planted: a test photo
becomes a re-encoded copy of a train photo. The audit has to find them all.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageEnhance

from benchmark.speed.harness import Step, run
from flair.dataset.metadata import Record, load_records, photo_path
from flair.files import atomic
from flair.miniature.dataset import make_dataset
from flair.miniature.files import write_photos
from flair.miniature.photos import Painter
from flair.miniature.taxonomy import make_taxonomy
from flair.terminal.progress import duration

CONTRAST = 1.6
_PLANTED = 100
_COPY_QUALITY = 60  # of the JPEG; the photos have 75


class ContrastPainter(Painter):
    """Draws the miniature's photos with more contrast."""

    def paint(self, record: Record) -> Image.Image:
        """The photo of `record`: 256x256, RGB."""
        return ImageEnhance.Contrast(super().paint(record)).enhance(CONTRAST)


def measure(flags: argparse.Namespace) -> dict[str, Any]:
    """Makes the photos, audits them and prints the numbers."""
    work_dir = Path(flags.work_dir)
    dataset, output = work_dir / f"photos-{flags.num_images}-{flags.seed}", work_dir / "duplicates"
    make_dataset(dataset, num_images=flags.num_images, seed=flags.seed, metadata_only=True)
    records = load_records(dataset)
    write_photos(dataset, records, ContrastPainter(make_taxonomy(), flags.seed), None, flags.num_workers)
    planted = _plant(dataset, records)
    command = [sys.executable, "-m", "flair.near_duplicates", f"--dataset_dir={dataset}", f"--output_dir={output}"]
    command += ["--pairs=cross_partition", f"--partitions={flags.partitions}", f"--num_workers={flags.num_workers}"]
    print(f"auditing {dataset}, which says nothing until it is done", file=sys.stderr, flush=True)
    audit = run(Step("the audit", command, 0, output))
    found = _found(output, planted)
    print(
        f"{found['photos']:,} photos, {found['pairs']:,} pairs across partitions, {flags.num_workers} processes: "
        f"{duration(audit.seconds)}, {found['pairs'] / audit.seconds:,.0f} pairs/s, "
        f"{audit.memory / 1e9:.1f} GB at most in all processes together\n"
        f"{found['pairs_to_review']:,} pairs to review, {found['duplicate_pairs']:,} called duplicates; "
        f"{found['planted_found']} of {found['planted']} planted copies found\n"
        f"The photos stay in {work_dir}; delete it when you are done."
    )
    return {"seconds": audit.seconds, "peak_memory_bytes": audit.memory, **found}


def _plant(dataset: Path, records: Sequence[Record]) -> dict[str, str]:
    """Makes photos of test copies of photos of train, of which no two are alike; returns copy -> original."""
    train, test = ([r.image_id for r in records if r.partition == name] for name in ("train", "test"))
    count = min(_PLANTED, len(train), len(test))
    pairs = dict(zip(*(ids[:: len(ids) // count][:count] for ids in (test, train)), strict=True))
    for copy, original in pairs.items():
        buffer = io.BytesIO()
        with Image.open(photo_path(dataset, original)) as photo:
            photo.save(buffer, "JPEG", quality=_COPY_QUALITY)
        with atomic.replacing(photo_path(dataset, copy)) as temporary:
            temporary.write_bytes(buffer.getvalue())
    return pairs


def _found(output: Path, planted: dict[str, str]) -> dict[str, Any]:
    summary = json.loads((output / "summary.json").read_text(encoding="utf-8"))
    groups = json.loads((output / "near_duplicates.json").read_text(encoding="utf-8"))
    return {
        "photos": sum(summary["photos"].values()),
        "pairs": summary["pairs_in_scope"],
        "pairs_to_review": summary["pairs_to_review"]["total"],
        "duplicate_pairs": summary["duplicate_pairs"]["total"],
        "planted": len(planted),
        "planted_found": sum(original in groups.get(copy, ()) for copy, original in planted.items()),
    }
