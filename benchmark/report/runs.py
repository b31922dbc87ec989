"""Reads run folders for a report: curves, settings, results, the privacy statement, more figures."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from benchmark.privacy.statement import headline, statement_rows
from benchmark.run import members
from benchmark.run.files import read_flags, read_json, read_seconds, read_table
from benchmark.run.names import (
    BEST_FILE,
    CLIENTS_FILE,
    EVALUATION_FILE,
    FLAGS_FILE,
    METRICS_FILE,
    PRIVACY_FILE,
    RUN_FILE,
    SUMMARY_FILE,
    TIMES_FILE,
    distinct,
    short_names,
)
from benchmark.run.shapes import ESTIMATE, NUMBER, NUMBER_OR_NULL
from flair.errors import FlairError
from flair.files import regular_file
from flair.files.regular_file import file_sha256

FIGURES_DIR, CAPTIONS_FILE = "figures", "captions.json"
SECRET = "secret (the run is private)"
_PNG = b"\x89PNG\r\n\x1a\n"
_LARGEST_PNG = 20_000_000
# What a report reads of each file; there may be more.
_RESULT = {
    "partition": str,
    "users": int,
    "metrics": {"*": ESTIMATE},
    "per_label": [{"label": str, "photos": int, "averaged_precision": NUMBER_OR_NULL, "low": object, "high": object}],
    "per_user": {"*": {"p50": NUMBER_OR_NULL, "percentiles": [NUMBER_OR_NULL]}},
}
_SHAPES: dict[str, Any] = {
    RUN_FILE: {"started?": str, "data?": dict, "machine?": dict, "versions?": dict, "continued?": [str]},
    SUMMARY_FILE: {"val?": {"*": NUMBER_OR_NULL}, "test?": {"*": NUMBER_OR_NULL}, "training_seconds?": NUMBER}
    | {"parameters?": int},
    PRIVACY_FILE: {"caveats": [{"severity": str, "name": str, "text": str}]},
    EVALUATION_FILE: {"results": [_RESULT]},
    CAPTIONS_FILE: {},
}


class ExtraFigure(NamedTuple):
    """A PNG that a run folder brings along."""

    name: str
    png: bytes
    caption: str


class ClientRow(NamedTuple):
    """A row of clients.csv.gz (docs/evaluation.md); None where a cell is empty."""

    step: int
    client: str
    kind: str
    photos: int
    loss: float | None
    micro_averaged_precision: float | None
    cosine_to_mean: float | None
    label_divergence: float | None


@dataclass
class Run:
    """One run folder.

    Attributes:
      name: short and unique in the report.
      step_name: `epoch` or `round`.
      rows: step -> metric -> value, as metrics.csv has them.
      seconds: step -> seconds of training until then.
      settings: flag -> value; the seed of a private run is not told.
      facts, summary, privacy, evaluation: run.json, summary.json, privacy.json, evaluation.json; empty or None where
        there is no such file.
      clients: rows of clients.csv.gz.
      notes: what a reader should know, such as that an evaluation is of another state of the run.
    """

    path: Path
    name: str
    step_name: str
    rows: dict[int, dict[str, float]]
    seconds: dict[int, float]
    settings: dict[str, str]
    facts: dict[str, Any]
    summary: dict[str, Any]
    privacy: dict[str, Any] | None
    evaluation: dict[str, Any] | None
    figures: list[ExtraFigure] = field(default_factory=list)
    clients: list[ClientRow] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def is_private(self) -> bool:
        """Whether it has a privacy statement."""
        return self.privacy is not None

    @property
    def has_noise(self) -> bool:
        """Whether it has a statement that promises something, which its seed might help to break."""
        return self.privacy is not None and self.privacy["noise"]["noise_multiplier"] != 0

    def series(self, column: str) -> tuple[list[int], list[float]]:
        """Steps and values of one column of metrics.csv."""
        points = [(step, row[column]) for step, row in sorted(self.rows.items()) if column in row]
        return [step for step, _ in points], [value for _, value in points]

    def results(self) -> list[dict[str, Any]]:
        """The results of the evaluation, if there is one; else those of summary.json, which have no intervals."""
        if self.evaluation is not None:
            return list(self.evaluation["results"])
        return [
            {
                "partition": partition,
                "metrics": {n: {"value": v, "low": None, "high": None} for n, v in self.summary[partition].items()},
            }
            for partition in ("val", "test")
            if isinstance(self.summary.get(partition), dict)
        ]


def open_runs(folders: Iterable[str]) -> list[Run]:
    """Opens run folders, or the run folders that lie in the given ones.

    Raises:
      FlairError: a folder is missing, is no run folder and holds none, or holds damaged files.
    """
    paths = distinct(path for folder in folders for path in _run_folders(folder))
    return [_open(path, name) for path, name in zip(paths, short_names(paths), strict=True)]


def different_settings(runs: Sequence[Run], hidden: Collection[str] = ()) -> list[tuple[str, list[str]]]:
    """(flag, its value in each run) for every flag that is not the same in all runs that know it, but for `hidden`.

    Runs of one command know the same flags, so that a flag one of them does not have is not set there.
    """
    kinds = [(run.step_name, run.settings) for run in runs]
    known: dict[str, set[str]] = {}
    for kind, settings in kinds:
        for name in settings:
            known.setdefault(name, set()).add(kind)
    rows = []
    for name in sorted(known):
        if name in hidden:
            continue
        values = [settings.get(name, "none" if kind in known[name] else "–") for kind, settings in kinds]
        if len(set(values) - {"–"}) > 1:
            rows.append((name, values))
    return rows


def _run_folders(name: str) -> list[Path]:
    folder = Path(name)
    if not folder.is_dir():
        raise FlairError(f"{name}: no such folder; expected a run folder, or one that holds run folders")
    if (folder / FLAGS_FILE).is_file():
        return [folder]
    found = sorted(path.parent for depth in ("*", "*/*", "*/*/*") for path in folder.glob(f"{depth}/{FLAGS_FILE}"))
    if not found:
        raise FlairError(f"{name}: is no run folder and holds none (no {FLAGS_FILE}); a training writes one")
    return found


def _open(path: Path, name: str) -> Run:
    step_name, rows = read_table(path / METRICS_FILE)
    run = Run(
        path=path,
        name=name,
        step_name=step_name,
        rows=rows,
        seconds=read_seconds(path / TIMES_FILE),
        settings=read_flags(path / FLAGS_FILE) or {},
        facts=_read(path / RUN_FILE) or {},
        summary=_read(path / SUMMARY_FILE) or {},
        privacy=_read(path / PRIVACY_FILE),
        evaluation=_read(path / EVALUATION_FILE),
        figures=_extra_figures(path / FIGURES_DIR),
        clients=_clients(path / CLIENTS_FILE),
    )
    _check_statement(run)
    if run.has_noise and "seed" in run.settings:
        run.settings["seed"] = SECRET
    if not run.summary:
        run.notes.append("The run is not complete.")
    _check_evaluation(run)
    return run


def _clients(path: Path) -> list[ClientRow]:
    try:
        return [
            ClientRow(
                *(int(row["round"]), row["client"], row["kind"], int(row["photos"])),
                *(float(row[name]) if row[name] else None for name in ClientRow._fields[4:]),
            )
            for row in members.read(path)
            if int(row["photos"]) > 0
        ]
    except (KeyError, ValueError) as error:
        raise FlairError(f"{path}: is damaged ({type(error).__name__}: {error}); restore it or move it away") from None


def _check_evaluation(run: Run) -> None:
    if run.evaluation is None:
        return
    best = run.path / BEST_FILE
    if run.evaluation.get("exclude"):
        run.notes.append(f"Evaluated without the photos of {run.evaluation['exclude']}.")
    recorded = run.evaluation.get("best_sha256")
    if recorded is not None and best.is_file() and recorded != file_sha256(best):
        run.evaluation = None
        run.notes.append("Its evaluation.json is of an earlier state of the run and is left out; evaluate it again.")


def _check_statement(run: Run) -> None:
    if run.privacy is None:
        return
    try:
        headline(run.privacy)
        statement_rows(run.privacy)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise FlairError(
            f"{run.path / PRIVACY_FILE}: is no privacy statement ({type(error).__name__}: {error}); restore it"
        ) from None


def _read(path: Path) -> dict[str, Any] | None:
    return read_json(path, _SHAPES[path.name])


def _extra_figures(folder: Path) -> list[ExtraFigure]:
    if not folder.is_dir():
        return []
    captions: Mapping[str, Any] = _read(folder / CAPTIONS_FILE) or {}
    found = []
    for path in sorted(folder.glob("*.png")):
        with regular_file.open_file(path) as file:
            png = file.read(_LARGEST_PNG + 1)
        if len(png) > _LARGEST_PNG or not png.startswith(_PNG):
            raise FlairError(f"{path}: is no PNG image of at most {_LARGEST_PNG:,} bytes; delete it or make it again")
        caption = captions.get(path.name, path.stem.replace("_", " "))
        found.append(ExtraFigure(path.name, png, str(caption)))
    return found
