"""Flags in files, one per line, which --flagfile=FILE names; by absl's rules."""

from __future__ import annotations

import os
from collections.abc import Sequence

from flair.errors import FlairError
from flair.files import text_file

_NAMES = ("--flagfile", "-flagfile")
_MOST_WITHIN = 20
_MOST_FLAGS = 10_000
_COMMENTS = ("#", "//")


def expand(arguments: Sequence[str]) -> list[str]:
    """The arguments with every --flagfile before `--` replaced by the flags in it; a FlairError where that fails."""
    return _expand(list(arguments), ())


def _expand(arguments: list[str], within: tuple[str, ...]) -> list[str]:
    expanded: list[str] = []
    while arguments:
        argument = arguments.pop(0)
        if argument == "--":
            return [*expanded, argument, *arguments]
        name, equals, value = argument.partition("=")
        if name not in _NAMES:
            expanded.append(argument)
            continue
        if not equals and not arguments:
            raise FlairError("--flagfile: expected a file")
        path = os.path.expanduser((value if equals else arguments.pop(0)).strip())
        if path:
            expanded += _expand(_lines(path, within), (*within, path))
            if len(expanded) > _MOST_FLAGS:
                raise FlairError(f"--flagfile={path}: and what it names hold more than {_MOST_FLAGS:,} flags")
    return expanded


def _lines(path: str, within: tuple[str, ...]) -> list[str]:
    if path in within:
        raise FlairError(f"--flagfile={path}: names itself; expected every file once")
    if len(within) == _MOST_WITHIN:
        raise FlairError(f"--flagfile={path}: is named by {len(within)} files, each by the next; put all into one file")
    try:
        text = text_file.read(path)
    except text_file.NotText as error:
        raise FlairError(f"--flagfile={path}: is {error}; expected one flag a line") from None
    except OSError as error:
        raise FlairError(f"--flagfile={path}: cannot be read ({error.strerror}); expected one flag a line") from None
    lines = (line.strip() for line in text.split("\n"))
    return [line for line in lines if line and not line.startswith(_COMMENTS)]
