"""Measures which planted copies an audit finds, and which pairs of different photos it calls duplicates."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flair.dataset.catalog import METADATA_FILE
from flair.dataset.images import decode, read_jpeg
from flair.dataset.metadata import load_records
from flair.duplicates.blocks import block_sums
from flair.duplicates.compare import least_distance
from flair.duplicates.distance import detail_correlation, energy, mirror
from flair.duplicates.dssim import dssim
from flair.duplicates.feature_calibration import ByFeatures, Planted, feature_lines
from flair.duplicates.planted import KINDS, even_sky, jpeg, night
from flair.duplicates.rule import Thresholds, is_near_duplicate, may_be_duplicate
from flair.duplicates.search import NEAR_PAIR
from flair.errors import FlairError
from flair.terminal.progress import Progress
from flair.terminal.table import Columns


def calibrate(
    dataset_dir: Path,
    num_photos: int,
    seed: int,
    thresholds: Thresholds,
    output_dir: Path | None = None,
    by_features: ByFeatures | None = None,
) -> dict[str, Any]:
    """Measures with `num_photos` photos of each of three sets; returns thresholds, recall and false pairs by set.

    Args:
      output_dir: folder for the dataset's photos and their copies, as a dataset directory of its own.
      by_features: features of what an earlier call wrote to `output_dir`; the copies are the same.

    Raises:
      FlairError: a photo cannot be read, features of a photo are missing, or `output_dir` is a dataset already.
    """
    if output_dir is not None and os.path.lexists(output_dir / METADATA_FILE):
        raise FlairError(f"--output_dir={output_dir}: holds a dataset already; choose a new or empty folder")
    rng = np.random.default_rng(seed)
    records = load_records(dataset_dir)
    indices = rng.choice(len(records), min(num_photos, len(records)), replace=False)
    chosen = Planted(
        {records[index]: read_jpeg(dataset_dir, records[index]).data for index in sorted(indices.tolist())}
    )
    of_features = None if by_features is None else by_features.open(chosen)
    photos = {
        "photos": chosen.pixels(),
        "even skies": [decode(jpeg(even_sky(rng)), "sky").data for _ in range(num_photos)],
        "nights": [decode(jpeg(night(rng)), "night").data for _ in range(num_photos)],
    }
    recall: dict[str, dict[str, Any]] = {kind: {} for kind in KINDS}
    false_pairs: dict[str, Any] = {}
    total = sum(len(some) * len(KINDS) + len(some) * (len(some) - 1) // 2 for some in photos.values())
    with Progress(total, "calibration", "pair") as progress:
        for name, some in photos.items():
            for kind, copy in KINDS.items():
                encoded = [copy(photo, rng) for photo in some]
                copies = [decode(data, kind).data for data in encoded]
                measured = measure(list(zip(some, copies, strict=True)), thresholds, all_dssim=True)
                recall[kind][name] = _shares(measured, thresholds)
                if name == "photos":
                    chosen.copies[kind] = encoded
                progress.add(len(some))
            strangers = [(one, other) for row, one in enumerate(some) for other in some[:row]]
            measured = measure(strangers, thresholds, all_dssim=False)
            false_pairs[name] = {"pairs": len(strangers), **_counts(measured, thresholds)}
            progress.add(len(strangers))
    if output_dir is not None:
        chosen.write(output_dir)
    reviewed = {kind: by_set["photos"]["reviewed"] for kind, by_set in recall.items()}
    return {
        "num_photos": {name: len(some) for name, some in photos.items()},
        "seed": seed,
        "thresholds": thresholds._asdict(),
        "recall": recall,
        "false_pairs": false_pairs,
        **({} if of_features is None else {"by_features": of_features.measure(chosen, thresholds, reviewed)}),
    }


def measure(
    pairs: Sequence[tuple[NDArray[np.uint8], NDArray[np.uint8]]], thresholds: Thresholds, all_dssim: bool
) -> NDArray[Any]:
    """The distances of pairs of photos, NEAR_PAIR [k]; dssim of all, or only where it can decide."""
    found = np.zeros(len(pairs), NEAR_PAIR)
    found["dssim"] = np.nan
    for row, (one, other) in enumerate(pairs):
        found["l2"][row], found["mirrored"][row] = least_distance(one, other, True)
        if found["l2"][row] > thresholds.review_l2 and not all_dssim:
            continue
        turned = mirror(other) if found["mirrored"][row] else other
        energies = np.array([[energy(one)], [energy(other)]])
        sums, others = block_sums(one)[None], block_sums(turned)[None]
        found["correlation"][row] = detail_correlation(found["l2"][row : row + 1], energies, sums, others)[0]
        if all_dssim or may_be_duplicate(found[row : row + 1], thresholds)[0]:
            found["dssim"][row] = dssim(one, turned)
    return found


def table(found: dict[str, Any]) -> str:
    """The measurements as text, in percent of the planted copies and in numbers of false pairs."""
    sets = list(found["num_photos"])
    numbers = ", ".join(f"{count:,} {name}" for name, count in found["num_photos"].items())
    thresholds = ", ".join(f"{name} {value:,}" for name, value in found["thresholds"].items() if value is not None)
    columns = Columns("<36", *[">18,"] * len(sets))
    lines = [f"Copies planted in {numbers}. {thresholds}.", ""]
    lines.append(columns.line("called a duplicate (reviewed), %", *sets))
    for kind, shares in found["recall"].items():
        cells = (f"{100 * shares[name]['duplicates']:.1f} ({100 * shares[name]['reviewed']:.1f})" for name in sets)
        lines.append(columns.line(kind, *cells))
    lines += ["", columns.line("pairs of different photos", *sets)]
    for what in ("pairs", "reviewed", "duplicates"):
        lines.append(columns.line(what, *(found["false_pairs"][name][what] for name in sets)))
    if "by_features" in found:
        lines += ["", *feature_lines(found["by_features"])]
    return "\n".join(lines)


def _counts(measured: NDArray[Any], thresholds: Thresholds) -> dict[str, int]:
    called = is_near_duplicate(measured, np.full(len(measured), np.nan), thresholds, ("l2", "dssim"))
    return {"reviewed": int((measured["l2"] <= thresholds.review_l2).sum()), "duplicates": int(called.sum())}


def _shares(measured: NDArray[Any], thresholds: Thresholds) -> dict[str, Any]:
    counts = _counts(measured, thresholds)
    shares: dict[str, Any] = {name: round(count / len(measured), 4) for name, count in counts.items()}
    for name in ("l2", "correlation", "dssim"):
        low, middle, high = np.quantile(measured[name], [0.05, 0.5, 0.95])
        shares[name] = {"5%": float(low), "50%": float(middle), "95%": float(high)}
    return shares
