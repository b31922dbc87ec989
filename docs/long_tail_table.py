"""Prints what losses, logit adjustment and thresholds bring: a table of settings, from an evaluation of their runs.

    python3 docs/long_tail_table.py EVALUATION_DIR FIRST_SETTING

EVALUATION_DIR is what `benchmark.evaluate_main` wrote on `val,test` for the runs of sweeps. FIRST_SETTING is
the one that the others are compared with, as the table calls it. Every number is the mean over the seeds of a setting.
Users of the test partition are redrawn for all seeds and settings together, so that the interval of a difference is
that of a paired one; what another seed would change shows in the standard deviation over seeds.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmark.evaluation import thresholds
from benchmark.evaluation.bootstrap import UserBootstrap, interval
from benchmark.evaluation.resampled import ScoredPhotos, metrics, replicate
from flair.errors import FlairError
from flair.terminal import command
from flair.terminal.table import fitted

NUM_RESAMPLES, SEED = 200, 0
# Of the evaluation, and of decisions at 0.5 and at the thresholds chosen on val.
COLUMNS = {
    "AP": ("metrics", "macro_exact_average_precision"),
    "F1 at 0.5": ("at_half", "mean_label_f1"),
    "F1 at chosen": ("at_chosen", "mean_label_f1"),
    "ECE": ("metrics", "macro_calibration_error"),
}


class Number(NamedTuple):
    """A number of every seed, float64 [seeds], and of every resample of the users, [seeds, resamples]."""

    values: np.ndarray
    replicates: np.ndarray
    num_users: int


def main(argv: Sequence[str]) -> None:
    """Reads the predictions of every run, computes, prints."""
    parser = argparse.ArgumentParser(
        prog="docs/long_tail_table.py",
        description=__doc__,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("evaluation_dir", metavar="EVALUATION_DIR", type=Path)
    parser.add_argument("first_setting", metavar="FIRST_SETTING")
    flags = parser.parse_args(argv)
    folder, first = flags.evaluation_dir, flags.first_setting
    content = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))
    names = [model["name"] for model in content["models"]]
    settings: dict[str, list[str]] = {}
    for name in names:
        settings.setdefault(re.sub(r"[,/]?seed=\d+.*", "", name), []).append(name)
    if first not in settings:
        raise FlairError(f"{first}: no such setting; expected one of {'; '.join(settings)}")
    found = {name: _numbers(folder, runs) for name, runs in settings.items()}
    header = ["setting", "seeds", *COLUMNS]
    print(fitted([header, *([name, str(len(settings[name])), *map(_text, of.values())] for name, of in found.items())]))
    # Resamples of few photos a label all have larger calibration errors, about which no interval can be drawn.
    compared = [column for column in COLUMNS if column != "ECE"]
    print(f"\nless {first}:")
    rows = [[name, *(_difference(of[c], found[first][c]) for c in compared)] for name, of in found.items()]
    print(fitted([["setting", *compared], *(row for row in rows if row[0] != first)]))
    gains = [[name, _difference(of["F1 at chosen"], of["F1 at 0.5"])] for name, of in found.items()]
    print("\nwhat thresholds chosen on val add to the F1 at 0.5:")
    print(fitted([["setting", "chosen - 0.5"], *gains]))


def _numbers(folder: Path, runs: list[str]) -> dict[str, Number]:
    of_runs, num_users = [], 0
    for run in runs:
        photos, val = (_photos(folder / partition, run) for partition in ("test", "val"))
        num_users = photos.num_users
        bootstrap = UserBootstrap(num_users, NUM_RESAMPLES, SEED)
        size, chosen = photos.labels.shape[1], thresholds.choose(val)
        kinds = {
            "metrics": (metrics(photos, False), replicate(photos, bootstrap, False).metrics),
            "at_half": thresholds.decisions(photos, np.full(size, thresholds.HALF), bootstrap, False),
            "at_chosen": thresholds.decisions(photos, chosen.of_label, bootstrap, False),
        }
        of_runs.append({c: (kinds[kind][0][name], kinds[kind][1][name]) for c, (kind, name) in COLUMNS.items()})
    values = {
        column: [np.array(parts) for parts in zip(*(one[column] for one in of_runs), strict=True)] for column in COLUMNS
    }
    return {column: Number(*of, num_users) for column, of in values.items()}


def _photos(folder: Path, run: str) -> ScoredPhotos:
    labels = np.load(folder / "labels.npy", mmap_mode="r")
    ids = (folder / "ids.csv").read_text(encoding="utf-8").splitlines()[1:]
    users, numbers = np.unique([line.rpartition(",")[2] for line in ids], return_inverse=True)
    scores, losses = (np.load(folder / run / f"{name}.npy", mmap_mode="r") for name in ("predictions", "losses"))
    return ScoredPhotos(scores, labels, losses, numbers, len(users))


def _text(number: Number) -> str:
    spread = f" ± {np.std(number.values, ddof=1):.4f}" if len(number.values) > 1 else ""
    return f"{number.values.mean():.4f}{spread}"


def _difference(a: Number, b: Number) -> str:
    difference = a.replicates.mean(axis=0) - b.replicates.mean(axis=0)
    return _estimate(a.values.mean() - b.values.mean(), difference, a.num_users)


def _estimate(value: float, replicates: np.ndarray, num_users: int) -> str:
    low, high = interval(replicates, num_users, value) or (np.nan, np.nan)
    return f"{value:.4f} [{low:.4f}, {high:.4f}]"


if __name__ == "__main__":
    command.run(main)
