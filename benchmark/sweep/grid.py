"""The runs of a sweep: every combination of the grid's values, with every seed."""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple
from urllib.parse import quote

from benchmark.run.flags import Role
from flair.errors import FlairError

# A sweep over a flag of one of these roles would put runs into one folder, or compare equal runs.
_NOT_SWEPT = {
    Role.PLACE: "the sweep gives every run a folder of its own",
    Role.CALL: "it is no setting of a run",
    Role.SAVING: "it changes no result",
    Role.SPEED: "it changes no result",
}
_BOOLEANS = {"true": "1", "t": "1", "false": "0", "f": "0"}  # as absl reads them
_LONGEST_NAME = 200  # file systems stop at 255 bytes


class Run(NamedTuple):
    """One run of the sweep: its settings (flag, value) in the grid's order, and its seed."""

    settings: tuple[tuple[str, str], ...]
    seed: int

    @property
    def label(self) -> str:
        """The settings in words, without the seed."""
        return ", ".join(f"{name}={value}" for name, value in self.settings) or "as given"

    @property
    def folder(self) -> str:
        """Name of the run's folder, a function of settings and seed.

        >>> Run((("client_learning_rate", "0.1"), ("restore_model_path", "/a/b.h5")), 2).folder
        'client_learning_rate=0.1,restore_model_path=%2Fa%2Fb.h5,seed=2'
        """
        pairs = [*self.settings, ("seed", str(self.seed))]
        name = ",".join(f"{name}={quote(value, safe='+')}" for name, value in pairs)
        if len(name) <= _LONGEST_NAME:
            return name
        return f"{name[: _LONGEST_NAME - 17]}-{hashlib.sha256(name.encode()).hexdigest()[:16]}"

    @property
    def flags(self) -> list[str]:
        """The flags that make this run out of the sweep's common ones."""
        return [*(f"--{name}={value}" for name, value in self.settings), f"--seed={self.seed}"]


def parse_grid(texts: Sequence[str], roles: Mapping[str, Role]) -> dict[str, list[str]]:
    """`name=value,value` texts as flag name -> values; `roles` are those of the flags of the trainings.

    Raises:
      FlairError: a text of another form, a flag or a value given twice, a flag that cannot be swept.

    >>> parse_grid(["client_learning_rate=0.01,0.1", "--algorithm=fed_avg"], {})
    {'client_learning_rate': ['0.01', '0.1'], 'algorithm': ['fed_avg']}
    """
    grid: dict[str, list[str]] = {}
    for text in texts:
        name, equals, joined = text.removeprefix("--").partition("=")
        values = [value.strip() for value in joined.split(",")]
        if not (name and equals and all(values)):
            raise FlairError(f"--grid {text}: expected flag=value,value,... such as client_learning_rate=0.01,0.1")
        role = Role.CALL if name == "flagfile" else roles.get(name)
        if role in _NOT_SWEPT:
            raise FlairError(f"--grid {text}: --{name} cannot be swept, {_NOT_SWEPT[role]}")
        if name == "seed":
            raise FlairError(f"--grid {text}: the seeds are --seeds=N, from --seed on")
        if name in grid:
            raise FlairError(f"--grid {text}: --{name} is in the grid already; give all its values at once")
        same = {_number(value): value for value in values}
        if len(same) < len(values):
            raise FlairError(f"--grid {text}: a value is given twice, which would be one run in one folder")
        grid[name] = values
    return grid


def make_runs(grid: dict[str, list[str]], first_seed: int, num_seeds: int) -> list[Run]:
    """Every combination, the last flag of the grid changing fastest, each with all its seeds.

    >>> [run.folder for run in make_runs({"model": ["cnn", "resnet18"]}, 0, 1)]
    ['model=cnn,seed=0', 'model=resnet18,seed=0']
    """
    combinations = itertools.product(*([(name, value) for value in values] for name, values in grid.items()))
    seeds = range(first_seed, first_seed + num_seeds)
    return [Run(settings, seed) for settings in combinations for seed in seeds]


def _number(value: str) -> str | float:
    """`0.1` and `1e-1` are one value, and so are `true` and `1`."""
    try:
        number = float(_BOOLEANS.get(value.lower(), value))
    except ValueError:
        return value
    return number if math.isfinite(number) else str(number)
