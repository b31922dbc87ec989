"""Which training command a sweep runs, found from its flags, and the flags that command knows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from benchmark.run.flags import Table
from flair.errors import FlairError


def names_of(arguments: Iterable[str]) -> list[str]:
    """Names of the flags in expanded arguments.

    >>> names_of(["--seed=3", "--iid", "--epsilon", "2"])
    ['seed', 'iid', 'epsilon']
    """
    return [argument.lstrip("-").partition("=")[0] for argument in arguments if argument.startswith("-")]


def value_of(name: str, arguments: Sequence[str]) -> str | None:
    """The last value of a flag in expanded arguments, None where it is not among them.

    >>> value_of("seed", ["--seed=3", "--iid", "--seed", "4"])
    '4'
    """
    found = None
    for position, argument in enumerate(arguments):
        given, equals, value = argument.partition("=")
        if argument.startswith("-") and given.lstrip("-") == name:
            found = value if equals else next(iter(arguments[position + 1 : position + 2]), "")
    return found


def choose_setting(given: str | None, names: Sequence[str], tables: Mapping[str, Table]) -> str:
    """`central` or `federated`, whichever knows all flags.

    Args:
      given: --setting, None to find it.
      names: of all flags of the sweep.
      tables: of the flags of each training.

    Raises:
      FlairError: neither knows them all, or both do.
    """
    unknown = {}
    for setting in [given] if given else tables:
        known = {flag.name for flag in tables[setting]}
        unknown[setting] = [name for name in names if not _is_known(name, known)]
    fitting = [setting for setting, missing in unknown.items() if not missing]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        raise FlairError("the flags are those of both trainings: give --setting=central or --setting=federated")
    missing = min(unknown.items(), key=lambda pair: len(pair[1]))
    raise FlairError(f"--{missing[1][0]}: no such flag of benchmark.{missing[0]}_main; its --help lists them")


def _is_known(name: str, known: set[str]) -> bool:
    return name in known or name.removeprefix("no") in known
