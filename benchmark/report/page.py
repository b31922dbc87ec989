"""The report as one HTML page that needs nothing but itself.

Figures are embedded, and no script runs. The page's own text and style are in page.html beside this file.
"""

from __future__ import annotations

import base64
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from benchmark.evaluation.text import estimate_text
from benchmark.privacy.rounding import rounded_up
from benchmark.privacy.statement import headline, statement_rows
from benchmark.report.drawing import Drawn, Left, Outcome
from benchmark.report.runs import Run, different_settings
from benchmark.run.folder import place_of
from flair import __version__
from flair.terminal.progress import duration

_TITLES = {
    "curves": "Learning curves",
    "results": "Results with their uncertainty",
    "labels": "Labels",
    "users": "Users",
    "clients": "Clients during training",
    "privacy": "Privacy, clipping and updates",
}
_METRICS = {
    "macro_averaged_precision": "macro AP",
    "micro_averaged_precision": "micro AP",
    "averaged_precision": "AP",
    "accuracy": "accuracy",
    "macro_f1": "macro F1",
    "micro_f1": "micro F1",
    "f1": "F1",
    "loss": "loss",
}


def render(
    runs: Sequence[Run],
    outcomes: Sequence[Outcome],
    title: str,
    made: str,
    comparisons: list[Any],
    hidden: Collection[str] = (),
) -> str:
    """The page as HTML; everything that comes from a run folder is escaped."""
    more = [
        Drawn("more", f"{run.name}-{one.name}", f"{run.name}: {one.caption}", f"{run.name}: {one.caption}", one.png)
        for run in runs
        for one in run.figures
    ]
    headings = _TITLES | ({"more": "More figures of the runs"} if more else {})
    drawn: dict[str, list[dict[str, Any]]] = {key: [] for key in headings}
    left: dict[str, list[str]] = {key: [] for key in headings}
    for one in (*outcomes, *more):
        if isinstance(one, Left):
            left[one.section].append(one.reason)
        else:
            drawn[one.section].append(one._asdict() | {"data": base64.b64encode(one.png).decode()})
    rows = [row for run in runs for row in _result_rows(run)]
    compared = [name for name in _METRICS if any(name in one["metrics"] for one in comparisons)]
    shown = [name for name in _METRICS if any(name in row["metrics"] for row in rows)]
    without = [run.name for run in runs if run.evaluation is None and run.results()]
    notes = [f"No intervals for {', '.join(without)}: run benchmark.evaluate_main on them."] if without else []
    folder = FileSystemLoader(Path(__file__).parent)
    environment = Environment(loader=folder, autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    return environment.get_template("page.html").render(
        title=title,
        made=made,
        version=__version__,
        runs=runs,
        any_private=any(run.is_private for run in runs),
        sections=[("table", "Table"), *headings.items(), ("settings", "Settings"), ("runs", "Runs")],
        figure_sections=list(headings.items()),
        drawn=drawn,
        left=left,
        metrics=shown,
        metric_names=_METRICS,
        results=[row | {"cells": _cells(row["metrics"], shown)} for row in rows],
        notes=notes,
        compared=compared,
        comparisons=[
            {"what": f"{one['a']} − {one['b']}", "partition": one["partition"]}
            | {"cells": _cells(one["metrics"], compared)}
            for one in comparisons
        ],
        statements=[_statement(run) for run in runs if run.privacy is not None],
        settings=different_settings(runs, hidden) if len(runs) > 1 else [],
        described=[_describe(run) for run in runs],
    )


def _result_rows(run: Run) -> list[dict[str, Any]]:
    summary = run.summary
    trained = f"{summary[unit]} {unit}" if (unit := f"{run.step_name}s") in summary else "-"
    if "training_seconds" in summary:
        trained += f", {duration(summary['training_seconds'])}"
    epsilon = rounded_up(summary["epsilon"]) if isinstance(summary.get("epsilon"), float) else "none"
    if run.is_private and epsilon == "none":
        epsilon = "infinite" if "epsilon" in summary else "see below"
    common = {"run": run.name, "trained": trained, "epsilon": epsilon}
    return [common | {"partition": one["partition"], "metrics": one["metrics"]} for one in run.results()]


def _cells(metrics: dict[str, Any], names: Sequence[str]) -> dict[str, dict[str, str]]:
    cells = {}
    for name in names:
        value, _, interval = estimate_text(metrics[name], 3).partition(" ") if name in metrics else ("-", "", "")
        cells[name] = {"value": value, "interval": interval}
    return cells


def _statement(run: Run) -> dict[str, Any]:
    assert run.privacy is not None
    return {
        "run": run.name,
        "headline": headline(run.privacy),
        "rows": [(name.strip(), value) for name, value in statement_rows(run.privacy)],
        "caveats": run.privacy["caveats"],
    }


def _describe(run: Run) -> dict[str, Any]:
    facts, summary = run.facts, run.summary
    data, machine = facts.get("data", {}), facts.get("machine", {})
    versions = ", ".join(f"{name} {version}" for name, version in facts.get("versions", {}).items())
    rows = [
        ("folder", run.path),
        ("setting", summary.get("setting")),
        ("started", facts.get("started")),
        ("continued", ", ".join(facts.get("continued", []))),
        ("records", place_of(data)),
        ("digest of the records", data.get("digest")),
        ("git revision", facts.get("git_revision")),
        ("machine", ", ".join(str(machine[key]) for key in ("processor", "platform") if key in machine)),
        ("versions", versions),
        ("parameters", f"{summary['parameters']:,}" if "parameters" in summary else None),
    ]
    flags = "\n".join(f"--{name}={value}" for name, value in sorted(run.settings.items()))
    return {"name": run.name, "facts": [row for row in rows if row[1]], "flags": flags, "notes": run.notes}
