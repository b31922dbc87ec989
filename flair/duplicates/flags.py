"""The thresholds of a duplicate as flags; imports nothing heavy, so that --help is quick."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from flair.terminal.flags import finite_number, positive_int

if TYPE_CHECKING:
    from flair.duplicates.rule import Thresholds

REVIEW_L2, DUPLICATE_L2 = 120_000_000, 100_000_000  # as in flair.duplicates.rule, which needs NumPy


def add_threshold_flags(parser: argparse.ArgumentParser) -> None:
    """Adds --review_l2, --duplicate_l2, --duplicate_dssim and --duplicate_correlation."""
    add = parser.add_argument
    add("--review_l2", type=positive_int, metavar="N", help=f"review pairs up to this l2 (default: {REVIEW_L2})")
    add("--duplicate_l2", type=positive_int, metavar="N", help=f"a duplicate's greatest l2 (default: {DUPLICATE_L2})")
    add("--duplicate_dssim", type=finite_number, metavar="X", help="a duplicate's greatest dssim (default: 0.15)")
    add(
        "--duplicate_correlation",
        type=finite_number,
        metavar="X",
        help="a near duplicate's least correlation of detail finer than 16 pixels, from -1 to 1 (default: 0.6)",
    )


def thresholds_of(flags: argparse.Namespace) -> Thresholds:
    """The thresholds that the flags give, the defaults for the others."""
    from flair.duplicates.rule import Thresholds

    given = {name: getattr(flags, name, None) for name in Thresholds._fields}
    return Thresholds(**{name: value for name, value in given.items() if value is not None})
