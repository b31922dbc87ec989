"""Paths as users type them: home folders in flags, and paths shown so that they can be typed again."""

from __future__ import annotations

import argparse
import os
import shlex
import sys


def expand(path: str) -> str:
    """The path with `~` or `~user` at its beginning replaced by that home folder; a folder of that name is `./~`.

    Shells do that at the beginning of a word only: `--dataset_dir=~/flair` reaches a command as it is typed.

    Raises:
      ValueError: there is no such user; one line that says what to type instead.
    """
    expanded = os.path.expanduser(path)
    if expanded == path and path.startswith("~"):
        home = path.partition("/")[0]
        raise ValueError(f"{path!r}: {home} is the home folder of nobody here; a folder of that name is ./{home}")
    return expanded


def path_flag(text: str) -> str:
    """The value of a flag that is a path: the `type` of its argument."""
    try:
        return expand(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def word(path: str | os.PathLike[str]) -> str:
    """A path as one word of a shell command, which is not taken for a flag, and which `expand` leaves as it is.

    >>> from pathlib import Path
    >>> word("my data"), word("-x"), word(Path("./~"))
    ("'my data'", './-x', "'./~'")
    """
    return _quoted(f"./{os.fspath(path)}" if os.fspath(path).startswith("-") else path)


def command_line(program: str, *paths: str | os.PathLike[str], **flags: str | os.PathLike[str] | None) -> str:
    """The command as it can be typed in a shell, with the flags that are not None.

    >>> command_line("python -m flair.verify", dataset_dir="my data", exclude=None)
    "python -m flair.verify --dataset_dir='my data'"
    """
    given = [f"--{name}={_quoted(value)}" for name, value in flags.items() if value is not None]
    return " ".join([program, *given, *map(word, paths)])


def _quoted(path: str | os.PathLike[str]) -> str:
    text = os.fspath(path)
    if text.startswith("~") and not isinstance(path, str):
        text = f"./{text}"  # which a Path drops; text is as it was typed
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:  # as bash, zsh and ksh read it
        shown = (
            chr(byte) if 32 <= byte < 127 and byte not in b"\\'" else f"\\x{byte:02x}" for byte in os.fsencode(text)
        )
        return f"$'{''.join(shown)}'"
    return shlex.quote(text)
