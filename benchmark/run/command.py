"""How a command with a table of flags starts: `--help`, one-line refusals, quiet TensorFlow."""

from __future__ import annotations

import itertools
import os
import re
import sys
import textwrap
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn

from absl import flags as absl_flags

import flair.terminal.command
from benchmark.run import flag_file
from benchmark.run.flags import Flags, Table, define
from flair.errors import FlairError
from flair.terminal import standard_streams
from flair.terminal.command import CONTINUES, STARTS_OVER
from flair.terminal.flags import in_new_spelling
from flair.terminal.paths import expand

_ENUM_PREFIX = re.compile(r"^<[^>]*>: ")  # absl begins a help text with the choices, which `_flag_lines` has already
_HELP_FLAGS = ("--help", "-help", "-h", "--helpfull", "--helpshort", "-?")


def run(
    main: Callable[..., int | None], table: Table, takes: str | None = None, stopped: str = STARTS_OVER
) -> NoReturn:
    """Parses the command line, calls `main(flags)` and exits as `flair.terminal.command.run` does.

    An unknown flag, a value of the wrong type or a missing required flag exits 2 with one line on stderr. `--help`
    prints every flag of the program with its default, and exits 0 without importing anything heavy.

    Args:
      takes: what the paths are called that the command takes beside flags, one or more; then this calls
        `main(flags, paths)`.
      stopped: what the same command does after Ctrl-C, see `flair.terminal.command.run`.
    """
    given = sys.argv[1:]
    standard_streams.mend()
    # This comes before the first import of TensorFlow, which prints forty lines about CUDA otherwise. A "1" is what
    # TensorFlow itself leaves in the environment of a parent process.
    if os.environ.get("TF_CPP_MIN_LOG_LEVEL", "1") == "1":
        os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    # TFF's dependencies import pkg_resources, which warns at every start; the pins keep a setuptools that has it.
    warnings.filterwarnings("ignore", "pkg_resources is deprecated", UserWarning)
    program = program_name(main)
    if any(argument in _HELP_FLAGS for argument in _before_separator(given)):
        description = sys.modules[main.__module__].__doc__ or ""
        flair.terminal.command.run(lambda _argv: print(help_text(program, description, table, takes)))
    try:
        flags = parse(table, given)
        paths = [expand(path) for path in flags.positional]
        if paths and takes is None:
            raise absl_flags.Error(f"takes flags only, found {paths[0]!r}")
        if takes is not None and not paths:
            raise absl_flags.Error(f"expected at least one {takes}")
    except FlairError as error:
        _refuse(f"{program}: {error}")
    except (absl_flags.Error, OSError, ValueError) as error:  # a ValueError: --noflag=value
        _refuse(f"{program}: {' '.join(str(error).split()).rstrip('.')}; --help lists the flags")
    if stopped == CONTINUES and any(flag.name == "overwrite" for flag in table) and flags.overwrite:
        stopped = "the same command without --overwrite continues where it stopped"
    flair.terminal.command.run(lambda _argv: main(flags) if takes is None else main(flags, paths), stopped=stopped)


def parse(table: Table, arguments: Sequence[str]) -> Flags:
    """The flags as given; raises FlairError for a --flagfile that cannot be read, absl.flags.Error for a flag."""
    new_names = {flag.was: flag.name for flag in table if flag.was is not None}
    typed = (argument.lstrip("-").partition("=")[0] for argument in _before_separator(arguments))
    expanded = in_new_spelling(flag_file.expand(arguments), new_names)
    return Flags(table, expanded, (new_names.get(name, name) for name in typed))


def program_name(main: Callable[..., Any]) -> str:
    """What the user typed after `python`: `-m benchmark.central_main` runs as `benchmark.central_main`."""
    if main.__module__ != "__main__":
        return main.__module__
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return spec.name if spec is not None else os.path.basename(sys.argv[0])


def help_text(program: str, description: str, table: Table, takes: str | None = None) -> str:
    """Every flag of a table, in its order, with type and default."""
    paths = "" if takes is None else f" {takes} [{takes} ...]"
    lines = [f"usage: python -m {program}{paths} [--flag=value ...]", "", description.strip(), ""]
    values = define(table)
    for flag in table:
        lines.extend(_flag_lines(values[flag.name]))
    lines.append("  --flagfile=FILE")
    lines.append("      read flags from FILE, one a line; '#' starts a comment line")
    return "\n".join(lines)


def _before_separator(arguments: Sequence[str]) -> Iterator[str]:
    return itertools.takewhile(lambda argument: argument != "--", arguments)


def _refuse(line: str) -> NoReturn:
    print(line, file=sys.stderr)
    sys.exit(flair.terminal.command.EXIT_USAGE)


def _flag_lines(flag: absl_flags.Flag) -> Sequence[str]:
    name = f"--[no]{flag.name}" if flag.boolean else f"--{flag.name}"
    choices = getattr(flag.parser, "enum_values", None)
    value = "" if flag.boolean else f"={{{','.join(choices)}}}" if choices else f"={flag.flag_type()}"
    default = "none" if flag.default is None else flag.default_as_str.strip("'")
    bounds = str(getattr(flag.parser, "bounds", ""))
    text = f"{_ENUM_PREFIX.sub('', flag.help)} ({bounds}{'; ' if bounds else ''}default: {default})"
    return [f"  {name}{value}", textwrap.fill(text, 110, initial_indent="      ", subsequent_indent="      ")]
