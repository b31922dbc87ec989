"""Names of the files in a run folder, and short names for runs beside each other."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable
from pathlib import Path

FLAGS_FILE, RUN_FILE, SUMMARY_FILE = "flags.txt", "run.json", "summary.json"
METRICS_FILE, TIMES_FILE = "metrics.csv", "times.csv"
BEST_FILE, LAST_FILE = "best.h5", "last.h5"
BEST_EMA_FILE, LAST_EMA_FILE = "best_ema.h5", "last_ema.h5"
EVALUATION_FILE, PRIVACY_FILE, KEY_FILE = "evaluation.json", "privacy.json", "noise.key"
AUDIT_FILE, CLIENTS_FILE = "audit.json", "clients.csv.gz"
LOCK_FILE, TENSORBOARD_DIR, CHECKPOINTS_DIR = "run.lock", "tensorboard", "checkpoints"
# W&B gives its folder this name itself.
WANDB_DIR, WANDB_ID_FILE, MLFLOW_DIR, MLFLOW_ID_FILE = "wandb", "wandb.id", "mlflow", "mlflow.id"
USER_STATES_DIR = "user_states"


def run_folder_of(path: Path) -> Path | None:
    """The run folder that a saved model belongs to: the one it lies in, or the one of its name beside it."""
    candidates = (path.parent, path.with_suffix(""))
    return next((folder for folder in candidates if (folder / FLAGS_FILE).is_file()), None)


def distinct(paths: Iterable[Path]) -> list[Path]:
    """The paths without those that name the same file or folder again, as `a/../a/b.h5` does after `a/b.h5`."""
    found: dict[str, Path] = {}
    for path in paths:
        found.setdefault(os.path.abspath(path), path)
    return list(found.values())


def short_names(paths: Iterable[str | os.PathLike[str]]) -> list[str]:
    """Names that tell distinct paths apart: the paths without what all share at the front, and no longer than needed.

    `.h5` is left out where no other path has the name without it. A name is a relative path, under which results lie.

    >>> short_names(["/demo/central/cnn_17", "/demo/federated/cnn_17", "/demo/private/cnn_17"])
    ['central', 'federated', 'private']
    >>> short_names(["runs/a.h5", "runs/b.h5"]), short_names(["/runs/one/best"])
    (['a', 'b'], ['best'])
    >>> short_names(["runs/a.h5", "runs/a"])
    ['a.h5', 'a']
    """
    parts = [Path(os.path.abspath(path)).parts[1:] for path in paths]
    bare = [(*one[:-1], one[-1].removesuffix(".h5")) for one in parts]
    parts = bare if len(set(bare)) == len(parts) else parts
    columns = zip(*(one[:-1] for one in parts), strict=False)
    shared = len(list(itertools.takewhile(lambda column: len(set(column)) == 1, columns)))
    rests = [one[shared:] for one in parts]
    longest = max(map(len, rests), default=0)
    for length in range(1, longest + 1):
        names = ["/".join(rest[:length]) for rest in rests]
        if len(set(names)) == len(names):
            return names
    return ["/".join(one) for one in parts]
