"""absl flags whose values are paths: `~` and `~user` at their beginning stand for home folders."""

from __future__ import annotations

from typing import Any

from absl import flags

from flair.terminal.paths import expand


class _Path(flags.ArgumentParser):
    syntactic_help = "a path"

    def parse(self, argument: str) -> str:
        return expand(argument)


class _Paths(flags.ListParser):
    def parse(self, argument: str | list[str]) -> list[str]:
        return [expand(path) for path in super().parse(argument)]


def DEFINE_path(name: str, default: str | None, help: str, **keywords: Any) -> None:
    """A flag that is one path."""
    flags.DEFINE(_Path(), name, default, help, serializer=flags.ArgumentSerializer(), **keywords)


def DEFINE_paths(name: str, default: list[str] | None, help: str, **keywords: Any) -> None:
    """A flag that is a list of paths, separated by commas; names that do not begin with `~` stay as they are."""
    flags.DEFINE(_Paths(), name, default, help, serializer=flags.CsvListSerializer(","), **keywords)


def DEFINE_multi_paths(name: str, default: list[str], help: str) -> None:
    """A flag that is paths, separated by commas, and may be given several times."""
    flags.DEFINE_multi(_CommaPaths(), flags.ArgumentSerializer(), name, default, help)


class _CommaPaths(_Path):
    def parse(self, argument: str) -> str:
        return ",".join(expand(path) for path in argument.split(","))


flags.disclaim_key_flags()  # they belong to the module that defines them
