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
from flair.duplicates.alignment import align, detail_of
from flair.duplicates.blocks import block_sums
from flair.duplicates.compare import least_distance
from flair.duplicates.distance import detail_correlation, dssim, energy, mirror
from flair.duplicates.features import FeatureTable, read_features
from flair.duplicates.planted import KINDS, Planted, even_sky, jpeg, night
from flair.duplicates.rule import Thresholds, is_near_duplicate, may_be_duplicate
from flair.duplicates.scope import Scope
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
    features: Path | None = None,
    neighbors: int = 3,
) -> dict[str, Any]:
    """Measures with `num_photos` photos of each of three sets; returns thresholds, recall and false pairs by set.

    Args:
      output_dir: folder for the dataset's photos and their copies, as a dataset directory of its own.
      features: of what an earlier call wrote to `output_dir`, where the copies are the same; None: do not use any.
      neighbors: photos nearest by `features` among which each copy is looked for.

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
    table_of_features = None if features is None else read_features(features, chosen.image_ids())
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
    found = {
        "num_photos": {name: len(some) for name, some in photos.items()},
        "seed": seed,
        "thresholds": thresholds._asdict(),
        "recall": recall,
        "false_pairs": false_pairs,
    }
    if table_of_features is not None:
        reviewed = {kind: by_set["photos"]["reviewed"] for kind, by_set in recall.items()}
        found["by_features"] = _by_features(chosen, table_of_features, neighbors, thresholds.review_alignment, reviewed)
    return found


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
        lines += ["", *_feature_lines(found["by_features"])]
    return "\n".join(lines)


def _by_features(
    planted: Planted, table: FeatureTable, neighbors: int, least: float, reviewed: dict[str, float]
) -> dict[str, Any]:
    """Shares of the copies of each kind, and what is found of pairs of different photos.

    A copy is found if it and its photo are among each other's nearest, where all photos have one copy, of this kind;
    and if the correlation of their detail is `least` or more. `reviewed` is the share that pixels find.
    """
    details = [detail_of(photo) for photo in planted.pixels()]
    count = len(details)
    recall = {}
    for number, (kind, copies) in enumerate(planted.copies.items(), start=1):
        pairs = zip(details, (detail_of(decode(data, kind).data) for data in copies), strict=True)
        aligned = np.array([align(one, other) for one, other in pairs]) >= least
        near = _are_near(table, neighbors, number, count)
        shares = {"nearest": near, "aligned": aligned, "both": near & aligned}
        recall[kind] = {"by pixels": reviewed[kind], **{name: float(one.mean()) for name, one in shares.items()}}
    nearest = _nearest(table, neighbors, np.arange(count)).tolist()
    strangers = {(min(one, other), max(one, other)) for one in range(count) for other in nearest[one]}
    strangers = {pair for pair in strangers if pair[0] >= 0}
    correlations = np.array([align(details[one], details[other]) for one, other in sorted(strangers)])
    return {
        "neighbors": neighbors,
        "recall": recall,
        "pairs of different photos": len(strangers),
        "of these aligned": int((correlations >= least).sum()),
    }


def _are_near(table: FeatureTable, neighbors: int, kind: int, count: int) -> NDArray[np.bool_]:
    rows = np.arange(count)
    near = _nearest(table, neighbors, np.concatenate([rows, kind * count + rows]))
    of_photo, of_copy = near[:count] == rows[:, None] + count, near[count:] == rows[:, None]
    return np.asarray((of_photo | of_copy).any(axis=1))


def _nearest(table: FeatureTable, neighbors: int, rows: NDArray[np.int64]) -> NDArray[np.int32]:
    codes = np.zeros(len(rows), np.int32)
    some = table._replace(rows=table.rows[rows])
    return some.nearest(Scope("all", (), codes, codes), range(len(rows)), neighbors)


def _feature_lines(found: dict[str, Any]) -> list[str]:
    """The measurements as text, in percent of the copies."""
    names = ("by pixels", "nearest", "aligned", "both")
    columns = Columns("<36", *[">14"] * len(names))
    lines = [columns.line("found for review, %", names[0], f"{found['neighbors']} nearest", *names[2:])]
    for kind, shares in found["recall"].items():
        lines.append(columns.line(kind, *(f"{100 * shares[name]:.1f}" for name in names)))
    strangers, aligned = found["pairs of different photos"], found["of these aligned"]
    return [
        *lines,
        "",
        f"Of {strangers:,} pairs of different photos that are nearest by features, {aligned:,} are aligned.",
    ]


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
