"""Flags that prepare_dataset and prepare_tfrecords share; imports nothing heavy, so that --help is quick."""

from __future__ import annotations

import argparse
import math
import re
from fractions import Fraction

from flair.terminal.paths import path_flag


def make_parser(prog: str, description: str) -> argparse.ArgumentParser:
    """A parser that keeps the line breaks of `description`, with the flag for the source."""
    parser = argparse.ArgumentParser(
        prog=prog, description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--dataset_dir", type=path_flag, required=True, help="folder with labels_and_metadata.json and small_images"
    )
    return parser


def add_shared_flags(parser: argparse.ArgumentParser) -> None:
    """Adds --exclude, --limit_users, --num_workers and --overwrite."""
    add_exclude_flag(parser, "leave out")
    parser.add_argument(
        "--limit_users",
        type=positive_int,
        metavar="N",
        help="write N users only, whole, from all partitions in their proportions, at least 3 (default: all users)",
    )
    parser.add_argument(
        "--num_workers",
        type=positive_int,
        metavar="N",
        help="work with N processes; the result does not depend on it (default: the processor cores, at most 16)",
    )
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="replace what is there, once the new output is complete (default: refuse to)",
    )


def add_heldout_flags(parser: argparse.ArgumentParser) -> None:
    """Adds --heldout_fraction and --seed."""
    parser.add_argument(
        "--heldout_fraction",
        type=fraction,
        default="0",
        metavar="F",
        help="put this fraction of each train user's photos aside, in the partition heldout that training does not "
        "read: photos of seen users (default: 0, none; of users with fewer than 1/F photos none)",
    )
    parser.add_argument("--seed", type=int, default=0, help="of which photos --heldout_fraction takes (default: 0)")


def add_exclude_flag(parser: argparse.ArgumentParser, what: str) -> None:
    """Adds --exclude; `what` is done with the photos."""
    parser.add_argument(
        "--exclude",
        type=path_flag,
        metavar="FILE.json",
        help=f"{what} these photos: near_duplicates.json of flair.near_duplicates, or a JSON list of image ids "
        "(default: none)",
    )


def finite_number(text: str) -> float:
    """The value of a flag that is any number but NaN and infinity."""
    try:
        value = float(text) if text.isascii() else math.nan
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"expected a number, found {text!r}")
    return value


def fraction(text: str) -> Fraction:
    """The value of a flag that is a decimal number of at least 0 and below 1, exactly.

    >>> fraction("0.1")
    Fraction(1, 10)
    """
    if not re.fullmatch(r"0|0?\.[0-9]{1,9}", text):
        raise argparse.ArgumentTypeError(f"expected a number of at least 0 and below 1, as 0.1, found {text!r}")
    return Fraction(text)


def positive_int(text: str) -> int:
    """The value of a flag that is a whole number of at least 1."""
    value = int(text) if re.fullmatch(r"[0-9]{1,18}", text) else 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, found {text!r}")
    return value
