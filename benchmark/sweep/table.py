"""The results of a sweep: mean and standard deviation over seeds, as a table, CSV and JSON."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmark.privacy.rounding import rounded_up
from benchmark.run.files import read_json
from benchmark.run.names import SUMMARY_FILE
from benchmark.run.shapes import NUMBER, NUMBER_OR_NULL
from benchmark.sweep.grid import Run
from flair.errors import FlairError
from flair.files import atomic
from flair.terminal.table import fitted

CSV_FILE, JSON_FILE = "results.csv", "results.json"
_EPSILONS = ("epsilon", "simulated_epsilon")
_SUMMARY = {"val": {"*": NUMBER}, "test": {"*": NUMBER}, "epsilon?": NUMBER_OR_NULL, "simulated_epsilon?": NUMBER}


class Spread(NamedTuple):
    """Mean and sample standard deviation over seeds; no deviation of a single seed."""

    mean: float
    sd: float | None

    def __str__(self) -> str:
        return f"{self.mean:.4f}" if self.sd is None else f"{self.mean:.4f} ± {self.sd:.4f}"


class Row(NamedTuple):
    """One setting: the seeds that are complete and the spread of every number of their summaries over them."""

    settings: tuple[tuple[str, str], ...]
    label: str
    seeds: tuple[int, ...]
    failed: tuple[int, ...]
    numbers: dict[str, Spread]


def rows_of(folder: Path, runs: Sequence[Run], complete: set[Run]) -> list[Row]:
    """One row per setting, in the grid's order. Reads the summary of every complete run; nothing in it is a time."""
    rows = []
    for settings in dict.fromkeys(run.settings for run in runs):
        own = [run for run in runs if run.settings == settings]
        done = [run for run in own if run in complete]
        found = [_numbers(folder / run.folder / SUMMARY_FILE) for run in done]
        shared = [name for name in found[0] if all(name in numbers for numbers in found)] if found else []
        spreads = {name: _spread([numbers[name] for numbers in found]) for name in shared}
        failed = tuple(run.seed for run in own if run not in complete)
        rows.append(Row(settings, own[0].label, tuple(run.seed for run in done), failed, spreads))
    return rows


def table(rows: Sequence[Row]) -> str:
    """The averaged precisions, the loss and the epsilon of every setting, as text."""
    names = list(dict.fromkeys(name for row in rows for name in row.numbers if _is_shown(name)))
    header = ["settings", "seeds", *(name.replace("averaged_precision", "AP") for name in names)]
    body = [
        [row.label, _seeds(row), *(_text(name, row.numbers[name]) if name in row.numbers else "-" for name in names)]
        for row in rows
    ]
    return fitted([header, *body])


def write(folder: Path, rows: Sequence[Row]) -> None:
    """Writes results.csv and results.json, each whole or not at all."""
    names = list(dict.fromkeys(name for row in rows for name in row.numbers))
    flags = list(dict.fromkeys(name for row in rows for name, _ in row.settings))
    lines: list[list[Any]] = [
        [*flags, "seeds", "failed", *(f"{name}_{part}" for name in names for part in ("mean", "sd"))]
    ]
    for row in rows:
        settings = dict(row.settings)
        cells: list[Any] = [*(settings.get(flag, "") for flag in flags), len(row.seeds), len(row.failed)]
        for name in names:
            spread = row.numbers.get(name)
            cells += ["", ""] if spread is None else [spread.mean, "" if spread.sd is None else spread.sd]
        lines.append(cells)
    atomic.write_csv(folder / CSV_FILE, lines)
    atomic.write_json(
        folder / JSON_FILE,
        [
            {
                "settings": dict(row.settings),
                "seeds": list(row.seeds),
                "failed_seeds": list(row.failed),
                "numbers": {name: spread._asdict() for name, spread in row.numbers.items()},
            }
            for row in rows
        ],
    )


def _numbers(path: Path) -> dict[str, float]:
    summary = read_json(path, _SUMMARY)
    if summary is None:
        raise FlairError(f"{path}: is missing, though its run is complete; run the same command again")
    numbers = {
        f"{partition}_{name}": float(value)
        for partition in ("val", "test")
        for name, value in summary[partition].items()
    }
    epsilons = {name: summary[name] for name in _EPSILONS if name in summary}
    return numbers | {name: math.inf if value is None else float(value) for name, value in epsilons.items()}


def _spread(values: Sequence[float]) -> Spread:
    with np.errstate(all="ignore"):  # an epsilon may be infinite
        return Spread(float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else None)


def _is_shown(name: str) -> bool:
    return name.endswith("averaged_precision") or name in ("val_loss", *_EPSILONS)


def _text(name: str, spread: Spread) -> str:
    # Every seed of a setting spends the same epsilon, a claim that is rounded up.
    return rounded_up(spread.mean) if name in _EPSILONS else str(spread)


def _seeds(row: Row) -> str:
    return f"{len(row.seeds)}, {len(row.failed)} failed" if row.failed else str(len(row.seeds))
