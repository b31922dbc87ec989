"""What is audited, when a pair is looked at, and when it is called a duplicate: settings, thresholds and the rule.

Imports nothing heavy, so that --help is quick.
"""

from __future__ import annotations

import argparse
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from flair.terminal.flags import Number, Whole, finite_number, positive_int

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

correlation = Number(least=-1, most=1)
num_neighbors = Whole(least=1, most=1000)  # of each of some thousand photos at once, in memory
METRICS = ("sha256", "l2", "dssim", "features")
SCOPES = ("all", "cross_partition", "cross_user", "within_user")


class Thresholds(NamedTuple):
    """Distances up to which a pair is reviewed or called a duplicate, and the least correlation of its detail.

    Review thresholds are those of ImageNetV2 (Recht et al., 2019, https://arxiv.org/abs/1902.10811): a pair within them
    is worth a look, no more; even skies and photos of the night are within them by the dozen. A pair within all the
    others is called a duplicate; docs/audit.md says how they were calibrated. Features have no threshold unless one is
    given, because their scale is the model's.
    """

    review_l2: int = 120_000_000
    review_dssim: float = 0.2205
    duplicate_l2: int = 100_000_000
    duplicate_dssim: float = 0.15
    duplicate_correlation: float = 0.6
    duplicate_features: float | None = None
    review_alignment: float = 0.5


class Settings(NamedTuple):
    """What is audited and how; the flags of the command by their names."""

    dataset_dir: Path
    output_dir: Path
    cache_dir: Path
    pairs: str
    partitions: tuple[str, ...]
    metrics: tuple[str, ...]
    top_k: int
    thresholds: Thresholds
    features: Path | None
    feature_neighbors: int
    mirrored: bool
    brute_force: bool
    chunk_size: int
    num_workers: int


def add_threshold_flags(parser: argparse.ArgumentParser) -> None:
    """Adds --review_l2, --duplicate_l2, --duplicate_dssim and --duplicate_correlation."""
    add, usual = parser.add_argument, Thresholds()
    add("--review_l2", type=positive_int, metavar="N", help=f"review pairs up to this l2 (default: {usual.review_l2})")
    add(
        "--duplicate_l2",
        type=positive_int,
        metavar="N",
        help=f"a duplicate's greatest l2 (default: {usual.duplicate_l2})",
    )
    add(
        "--duplicate_dssim",
        type=finite_number,
        metavar="X",
        help=f"a duplicate's greatest dssim (default: {usual.duplicate_dssim})",
    )
    add(
        "--duplicate_correlation",
        type=correlation,
        metavar="X",
        help="a near duplicate's least correlation of detail finer than 16 pixels (default: "
        f"{usual.duplicate_correlation})",
    )


def thresholds_of(flags: argparse.Namespace) -> Thresholds:
    """The thresholds that the flags give, the defaults for the others."""
    given = {name: getattr(flags, name, None) for name in Thresholds._fields}
    return Thresholds(**{name: value for name, value in given.items() if value is not None})


def may_be_duplicate(pairs: NDArray[Any], thresholds: Thresholds) -> NDArray[np.bool_]:
    """Whether pairs, NEAR_PAIR [k], are within the thresholds that need no look at structure or features."""
    near = pairs["l2"] <= thresholds.duplicate_l2
    within: NDArray[np.bool_] = near & (pairs["correlation"] >= thresholds.duplicate_correlation)
    return within


def is_near_duplicate(
    pairs: NDArray[Any], features: NDArray[np.float64], thresholds: Thresholds, metrics: Collection[str]
) -> NDArray[np.bool_]:
    """Whether pairs, NEAR_PAIR [k], with these distances of `features` float64 [k], are within all thresholds.

    A metric that is not among `metrics` is not asked; without l2 and dssim no pair is a near duplicate.
    """
    near = may_be_duplicate(pairs, thresholds)
    if "dssim" in metrics:
        near &= pairs["dssim"] <= thresholds.duplicate_dssim
    if "features" in metrics and thresholds.duplicate_features is not None:
        near &= features <= thresholds.duplicate_features
    return near & bool({"l2", "dssim", "features"} & set(metrics))
