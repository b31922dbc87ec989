"""Numbers within bounds, flags that were renamed, and flags that several commands share; imports nothing heavy.

Every command names what it makes by --output_file (one file) or --output_dir (a folder). A folder that one command
writes and others read is named by what is in it: --dataset_dir, --tfrecords_dir, --archives_dir, --testsets_dir.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import re
import sys
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

from flair.terminal.paths import path_flag


@dataclasses.dataclass(frozen=True)
class Bounds:
    """Where a number may lie; it does not reach `above` and `below` themselves.

    >>> str(Bounds(least=0, below=1)), Bounds(least=0, below=1).hold(1)
    ('at least 0 and below 1', False)
    """

    least: float | None = None
    most: float | None = None
    above: float | None = None
    below: float | None = None

    def hold(self, value: float) -> bool:
        """Whether the value is finite and within them."""
        return (
            -math.inf < value < math.inf
            and (self.least is None or value >= self.least)
            and (self.most is None or value <= self.most)
            and (self.above is None or value > self.above)
            and (self.below is None or value < self.below)
        )

    def __str__(self) -> str:
        words = {"at least": self.least, "above": self.above, "at most": self.most, "below": self.below}
        given = {word: bound for word, bound in words.items() if bound is not None}
        return " and ".join(f"{word} {bound:{',' if isinstance(bound, int) else 'g'}}" for word, bound in given.items())

    def refusal(self, what: str) -> str:
        """What was expected of a flag that is `what`."""
        return f"expected {what}{' of' if str(self).startswith('at') else ''} {self}".rstrip()


class Number:
    """The `type` of a flag that is a finite number within bounds, which --help tells."""

    what = "a number"

    def __init__(self, **bounds: float) -> None:
        self.bounds = Bounds(**bounds)

    def __call__(self, text: str) -> Any:
        """The value; an ArgumentTypeError that says what was expected."""
        try:
            value = self.value(text) if text.isascii() else math.nan
        except ValueError:
            value = math.nan
        if not self.bounds.hold(value):
            raise argparse.ArgumentTypeError(f"{self.bounds.refusal(self.what)}, found {text!r}")
        return value

    def value(self, text: str) -> Any:
        """The number that the text is; a ValueError where it is not one."""
        return float(text)


class Whole(Number):
    """The `type` of a flag that is a whole number within bounds."""

    what = "a whole number"

    def value(self, text: str) -> Any:
        """The number that the text is; a ValueError where it is not one."""
        return int(text) if re.fullmatch(r"-?[0-9]{1,18}", text) else math.nan


class _Fraction(Number):
    def value(self, text: str) -> Any:
        return Fraction(text) if re.fullmatch(r"0|0?\.[0-9]{1,9}", text) else math.nan


positive_int = Whole(least=1)
finite_number = Number()
fraction = _Fraction(least=0, below=1)
"""A decimal number such as 0.1, exactly."""
port_number = Whole(least=0, most=65535)
seed_number = Whole(least=0, most=2**48)


class TellsBounds(argparse.HelpFormatter):
    """Help that tells the bounds of a number before its default."""

    def _get_help_string(self, action: argparse.Action) -> str:
        text, bounds = super()._get_help_string(action) or "", str(getattr(action.type, "bounds", ""))
        if not bounds:
            return text
        before, default, after = text.rpartition("(default: ")
        return f"{before}({bounds}; default: {after}" if default else f"{text} ({bounds})"


class _OverLines(TellsBounds, argparse.RawDescriptionHelpFormatter):
    """The same, with the line breaks of the description."""


class Parser(argparse.ArgumentParser):
    """A parser that tells bounds, and takes a renamed flag by its old spelling, too: `add_argument(..., was=OLD)`."""

    def __init__(self, prog: str, description: str | None, **options: Any) -> None:
        has_lines = "\n" in f"{description}{options.get('epilog', '')}"
        options = {"formatter_class": _OverLines if has_lines else TellsBounds, **options}
        self._new_names: dict[str, str] = {}
        super().__init__(prog=prog, description=description, **options)

    def add_argument(self, *names: str, was: str | None = None, **options: Any) -> argparse.Action:
        """Adds a flag; `was` is its name in earlier versions."""
        if was is not None:
            self._new_names[was] = names[0].lstrip("-")
        return super().add_argument(*names, **options)

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:
        """As argparse does it, after old spellings were replaced."""
        given = sys.argv[1:] if args is None else args
        return super().parse_known_args(in_new_spelling(given, self._new_names), namespace)


def in_new_spelling(arguments: Sequence[str], new_names: Mapping[str, str]) -> list[str]:
    """The arguments before `--` with old names of flags replaced, which a line on stderr says; `new_names`: old -> new.

    >>> in_new_spelling(["--output=a", "--seed", "2"], {"output": "output_file"})
    ['--output_file=a', '--seed', '2']
    """
    given = list(arguments)
    end = given.index("--") if "--" in given else len(given)
    for old, new in new_names.items():
        spelling = re.compile(rf"(--?){old}(?==|\Z)")
        places = [place for place in range(end) if spelling.match(given[place])]
        for place in places:
            given[place] = spelling.sub(rf"\g<1>{new}", given[place], count=1)
        if places:
            print(f"--{old} is now --{new}; the old spelling works as well", file=sys.stderr)
    return given


def make_parser(prog: str, description: str) -> Parser:
    """A parser with the flag for the source."""
    parser = Parser(prog, description)
    parser.add_argument(
        "--dataset_dir", type=path_flag, required=True, help="folder with labels_and_metadata.json and small_images"
    )
    return parser


def add_shared_flags(parser: argparse.ArgumentParser) -> None:
    """Adds --exclude, --limit_users, --num_workers and --overwrite."""
    add_exclude_flag(parser, "leave out")
    parser.add_argument(
        "--limit_users",
        type=Whole(least=3),
        metavar="N",
        help="write N users only, whole, from all partitions in their proportions (default: all users)",
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
    parser.add_argument(
        "--seed", type=seed_number, default=0, help="of which photos --heldout_fraction takes (default: 0)"
    )


def add_exclude_flag(parser: argparse.ArgumentParser, what: str) -> None:
    """Adds --exclude; `what` is done with the photos."""
    parser.add_argument(
        "--exclude",
        type=path_flag,
        metavar="FILE.json",
        help=f"{what} these photos: near_duplicates.json of flair.near_duplicates, or a JSON list of image ids "
        "(default: none)",
    )
