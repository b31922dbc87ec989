"""The front end of every absl program: typed flags, a `--help` that exits 0, one-line refusals, quiet TensorFlow."""

from __future__ import annotations

import math
import os
import re
import sys
import textwrap
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

from absl import flags

import flair.terminal.command
from benchmark.run import flag_file
from flair.errors import FlairError
from flair.terminal import standard_streams
from flair.terminal.command import CONTINUES, STARTS_OVER
from flair.terminal.paths import expand

_ENUM_PREFIX = re.compile(r"^<[^>]*>: ")  # absl puts the choices there; they are in the usage already
_HELP_FLAGS = ("--help", "-help", "-h", "--helpfull", "--helpshort", "-?")


def run(main: Callable[..., int | None], takes: str | None = None, stopped: str = STARTS_OVER) -> None:
    """Parses `sys.argv` into absl's FLAGS, calls `main()` and exits as `flair.terminal.command.run` does.

    With `takes`, the name of the paths that the program takes beside flags, it calls `main(paths)` with at least one.

    An unknown flag, a value of the wrong type or a missing required flag exits 2 with one line on stderr; `--help`
    prints every flag of the program with its default and exits 0 without importing anything heavy.
    """
    standard_streams.mend()
    # Must stand before the first import of TensorFlow, which prints forty lines about CUDA otherwise. A "1" is what
    # TensorFlow itself leaves in the environment of a parent process.
    if os.environ.get("TF_CPP_MIN_LOG_LEVEL", "1") == "1":
        os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    # TFF's dependencies import pkg_resources, which warns at every start; the pins keep a setuptools that has it.
    warnings.filterwarnings("ignore", "pkg_resources is deprecated", UserWarning)
    program = program_name()
    before_separator = sys.argv[1 : sys.argv.index("--")] if "--" in sys.argv else sys.argv[1:]
    if any(argument in _HELP_FLAGS for argument in before_separator):
        flair.terminal.command.run(
            lambda _argv: print(help_text(program, sys.modules["__main__"].__doc__ or "", takes))
        )
    try:
        positional = [expand(path) for path in flags.FLAGS(flag_file.expand(sys.argv))[1:]]
        if positional and takes is None:
            raise flags.Error(f"takes flags only, found {positional[0]!r}")
        if takes is not None and not positional:
            raise flags.Error(f"expected at least one {takes}")
        _check_finite()
    except FlairError as error:
        print(f"{program}: {error}", file=sys.stderr)
        sys.exit(flair.terminal.command.EXIT_USAGE)
    except (flags.Error, OSError, ValueError) as error:  # a ValueError: --noflag=value
        print(f"{program}: {_one_line(error)}; --help lists the flags", file=sys.stderr)
        sys.exit(flair.terminal.command.EXIT_USAGE)
    arguments = [] if takes is None else [positional]
    if stopped == CONTINUES and "overwrite" in flags.FLAGS and flags.FLAGS.overwrite:
        stopped = "the same command without --overwrite continues where it stopped"
    flair.terminal.command.run(lambda _argv: main(*arguments), stopped=stopped)


def _check_finite() -> None:
    for flag in _own_flags():
        if isinstance(flag.value, float) and not math.isfinite(flag.value):
            raise flags.Error(f"--{flag.name}={flag.value}: expected a finite number")


def program_name() -> str:
    """What the user typed after `python`: `-m benchmark.central_main` runs as `benchmark.central_main`."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return spec.name if spec is not None else os.path.basename(sys.argv[0])


def help_text(program: str, description: str, takes: str | None = None) -> str:
    """Every flag of this program's own modules, grouped as they were defined, with type and default."""
    values = "" if takes is None else f" {takes} [{takes} ...]"
    lines = [f"usage: python -m {program}{values} [--flag=value ...]", "", description.strip(), ""]
    for module, module_flags in flags.FLAGS.flags_by_module_dict().items():
        if module.startswith("absl."):
            continue
        for flag in module_flags:
            lines.extend(_flag_lines(flag))
    lines.append("  --flagfile=FILE")
    lines.append("      read flags from FILE, one a line; '#' starts a comment line")
    return "\n".join(lines)


def flag_lines(leave_out: Collection[str] = ()) -> list[str]:
    """`--name=value` of every set flag of this program's own modules, sorted by name: a file for --flagfile."""
    return sorted(
        f"--{flag.name}={_text(flag, flag.value)}"
        for flag in _own_flags()
        if flag.value is not None and flag.name not in leave_out
    )


def default_values() -> dict[str, str]:
    """Name -> default of this program's own flags that have one, written as `flag_lines` writes values."""
    return {flag.name: _text(flag, flag.default) for flag in _own_flags() if flag.default is not None}


def is_typed(name: str) -> bool:
    """Whether a flag was given on the command line itself, not in a --flagfile."""
    before_separator = sys.argv[1 : sys.argv.index("--")] if "--" in sys.argv else sys.argv[1:]
    return any(argument.lstrip("-").partition("=")[0] == name for argument in before_separator)


def _own_flags() -> Iterator[flags.Flag]:
    for module, module_flags in flags.FLAGS.flags_by_module_dict().items():
        if _is_own(module):
            yield from module_flags


def _text(flag: flags.Flag, value: Any) -> str:
    return str(value).lower() if flag.boolean else str(flag.serializer.serialize(value))


def _is_own(module: str) -> bool:
    return module.startswith("benchmark.") or module in (sys.argv[0], "__main__")


def _flag_lines(flag: flags.Flag) -> Sequence[str]:
    name = f"--[no]{flag.name}" if flag.boolean else f"--{flag.name}"
    choices = getattr(flag.parser, "enum_values", None)
    value = "" if flag.boolean else f"={{{','.join(choices)}}}" if choices else f"={flag.flag_type()}"
    default = "none" if flag.default is None else flag.default_as_str.strip("'")
    text = f"{_ENUM_PREFIX.sub('', flag.help)} (default: {default})"
    return [f"  {name}{value}", textwrap.fill(text, 110, initial_indent="      ", subsequent_indent="      ")]


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()).rstrip(".")
