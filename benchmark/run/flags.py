"""The flags of a command: a table in which each flag says its type, default and role.

A command parses its table into `Flags` of its own; nothing is global. From the roles follows what a continued run may
change, what a run records, what has to agree between machines, and what a sweep may vary.
"""

from __future__ import annotations

import dataclasses
import enum
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from absl import flags as absl_flags

from flair.terminal.flags import Bounds
from flair.terminal.paths import expand


class Role(enum.Enum):
    """What a flag decides."""

    RESULT = "result"  # what is computed
    LENGTH = "length"  # how far a run goes: a longer run is a shorter one, continued
    DATA = "data"  # where the photos are; each machine has a path of its own
    START = "start"  # the weights that training starts from; a continued run compares the file's content
    PLACE = "place"  # where results are written
    SAVING = "saving"  # when the run is saved
    SPEED = "speed"  # how fast it is; results are equal up to rounding
    CALL = "call"  # what this one call does; a run does not record it


# Roles of the flags that ...
CHANGEABLE = (Role.LENGTH, Role.START, Role.PLACE, Role.SAVING, Role.SPEED, Role.CALL)  # a continued run may change
RECORDED = tuple(role for role in Role if role is not Role.CALL)  # a run's flags.txt names
ALIKE = (Role.RESULT, Role.LENGTH, Role.SPEED)  # all machines of a job have to be given alike
SWEPT = (Role.RESULT, Role.LENGTH, Role.DATA, Role.START)  # a sweep may vary
SETTINGS = (*SWEPT, Role.SPEED)  # a report shows as settings of a run


@dataclass(frozen=True)
class Flag:
    """One line of a table; `define(flag_values=...)` adds the flag to absl's values, `was` is its name before."""

    name: str
    role: Role
    define: Callable[..., Any]
    was: str | None = None


Table = Sequence[Flag]


def integer(name: str, default: int | None, help: str, role: Role, **bounds: float) -> Flag:
    """A flag that is a whole number within `Bounds(**bounds)`, which --help tells."""
    return _defined(_Whole(Bounds(**bounds)), name, default, help, role)


def number(name: str, default: float | None, help: str, role: Role, **bounds: float) -> Flag:
    """A flag that is a finite number within `Bounds(**bounds)`, which --help tells."""
    return _defined(_Number(Bounds(**bounds)), name, default, help, role)


def text(name: str, default: str | None, help: str, role: Role) -> Flag:
    """A flag that is any text."""
    return Flag(name, role, partial(absl_flags.DEFINE_string, name, default, help))


def boolean(name: str, help: str, role: Role, default: bool | None = False) -> Flag:
    """A flag that is on or off: --name or --noname."""
    return Flag(name, role, partial(absl_flags.DEFINE_boolean, name, default, help))


def choice(name: str, default: str | None, choices: Iterable[str], help: str, role: Role) -> Flag:
    """A flag that is one of `choices`."""
    return Flag(name, role, partial(absl_flags.DEFINE_enum, name, default, list(choices), help))


def path(name: str, default: str | None, help: str, role: Role, required: bool = False, was: str | None = None) -> Flag:
    """A flag that is one path; `~` and `~user` at its beginning stand for home folders."""
    return dataclasses.replace(_defined(_Path(), name, default, help, role, required=required), was=was)


def paths(name: str, default: list[str] | None, help: str, role: Role, required: bool = False) -> Flag:
    """A flag that is a list of paths, separated by commas; names that do not begin with `~` stay as they are."""
    serializer = absl_flags.CsvListSerializer(",")
    return _defined(_Paths(), name, default, help, role, serializer, required=required)


def multi_paths(name: str, default: list[str], help: str, role: Role) -> Flag:
    """A flag that is paths, separated by commas, and may be given several times."""
    serializer = absl_flags.ArgumentSerializer()
    return Flag(name, role, partial(absl_flags.DEFINE_multi, _CommaPaths(), serializer, name, default, help))


def one_of(first: Flag, second: Flag) -> tuple[Flag, Flag]:
    """Two flags of which exactly one has to be given."""

    def define_second(flag_values: absl_flags.FlagValues) -> None:
        second.define(flag_values=flag_values)
        absl_flags.register_multi_flags_validator(
            [first.name, second.name],
            lambda given: list(given.values()).count(None) == 1,
            f"give either --{first.name} or --{second.name}",
            flag_values,
        )

    return first, Flag(second.name, second.role, define_second)


class Flags:
    """A command's flags as they were given: `flags.total_rounds` is the value of --total_rounds.

    Args:
      arguments: what follows the program's name, with every --flagfile replaced by what is in it.
      typed: names of flags that were given on the command line itself.

    Attributes:
      positional: arguments that are not flags.
    """

    def __init__(self, table: Table, arguments: Sequence[str] = (), typed: Iterable[str] = ()) -> None:
        self._values = define(table)
        self._roles = {flag.name: flag.role for flag in table}
        self._typed = frozenset(typed)
        self.positional: list[str] = self._values(["", *arguments])[1:]

    def __getattr__(self, name: str) -> Any:
        roles = self.__dict__.get("_roles", {})
        if name not in roles:
            raise AttributeError(name)
        return self._values[name].value

    def __getitem__(self, name: str) -> Any:
        """The value of a flag whose name is computed."""
        return self._values[name].value

    def is_changed(self, name: str) -> bool:
        """Whether a flag has another value than its default."""
        return bool(self._values[name].value != self._values[name].default)

    def is_typed(self, name: str) -> bool:
        """Whether a flag was given on the command line itself, not in a --flagfile."""
        return name in self._typed

    def names(self, roles: Iterable[Role]) -> list[str]:
        """The flags of these roles."""
        wanted = set(roles)
        return [name for name, role in self._roles.items() if role in wanted]

    def lines(self, roles: Iterable[Role] = RECORDED) -> list[str]:
        """`--name=value` of every flag of these roles that has a value, sorted by name: a file for --flagfile."""
        given = (self._values[name] for name in self.names(roles))
        return sorted(f"--{flag.name}={_text(flag, flag.value)}" for flag in given if flag.value is not None)

    def defaults(self) -> dict[str, str]:
        """Name -> default of the flags that have one, written as `lines` writes values."""
        known = (self._values[name] for name in self._roles)
        return {flag.name: _text(flag, flag.default) for flag in known if flag.default is not None}


def names_of(tables: Iterable[Table], roles: Iterable[Role]) -> dict[str, Role]:
    """Name -> role of the flags in any of the tables that have one of the roles."""
    wanted = set(roles)
    return {flag.name: flag.role for table in tables for flag in table if flag.role in wanted}


def define(table: Table) -> absl_flags.FlagValues:
    """absl's values of a table, each flag at its default; refuses a flag without a role, or one that is there twice."""
    values = absl_flags.FlagValues()
    for flag in table:
        if not isinstance(flag.role, Role):
            raise TypeError(f"--{flag.name} has no role; its line in the table of flags has to say one")
        flag.define(flag_values=values)
    return values


def _defined(
    parser: absl_flags.ArgumentParser,
    name: str,
    default: Any,
    help: str,
    role: Role,
    serializer: absl_flags.ArgumentSerializer | None = None,
    **options: bool,
) -> Flag:
    serializer = serializer or absl_flags.ArgumentSerializer()
    return Flag(name, role, partial(absl_flags.DEFINE, parser, name, default, help, serializer=serializer, **options))


def _text(flag: absl_flags.Flag, value: Any) -> str:
    return str(value).lower() if flag.boolean else str(flag.serializer.serialize(value))


class _Bounded:
    what = "a number"

    def __init__(self, bounds: Bounds) -> None:
        super().__init__()
        self.bounds = bounds

    def parse(self, argument: Any) -> Any:
        try:
            value = self.convert(argument)  # type: ignore[attr-defined]
        except ValueError:
            value = math.nan
        if not self.bounds.hold(value):
            raise ValueError(self.bounds.refusal(self.what))
        return value


class _Number(_Bounded, absl_flags.FloatParser):
    pass


class _Whole(_Bounded, absl_flags.IntegerParser):
    what = "a whole number"


class _Path(absl_flags.ArgumentParser):
    syntactic_help = "a path"

    def parse(self, argument: str) -> str:
        return expand(argument)


class _Paths(absl_flags.ListParser):
    def parse(self, argument: str | list[str]) -> list[str]:
        return [expand(path) for path in super().parse(argument)]


class _CommaPaths(_Path):
    def parse(self, argument: str) -> str:
        return ",".join(expand(path) for path in argument.split(","))
