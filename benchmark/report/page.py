"""The report as one HTML page that needs nothing but itself: figures are embedded, and no script runs."""

from __future__ import annotations

import base64
from collections.abc import Collection, Sequence
from typing import Any

from jinja2 import Environment, StrictUndefined

from benchmark.evaluation.text import estimate_text
from benchmark.privacy.accounting import rounded_up
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

_TEMPLATE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'">
<link rel="icon" href="data:,">
<title>{{ title }}</title>
<style>
:root { color-scheme: light; --ink: #1a1a1a; --soft: #595959; --line: #d9d9d9; --tint: #f5f7f9; --link: #005a8c; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1240px; padding: 16px; color: var(--ink); background: #fff;
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; line-height: 1.2; margin: 8px 0; }
h2 { font-size: 1.25rem; margin: 40px 0 8px; padding-bottom: 4px; border-bottom: 2px solid var(--line); }
h3 { font-size: 1.05rem; margin: 20px 0 6px; }
p { margin: 6px 0; max-width: 75ch; }
a { color: var(--link); }
.soft, figcaption, .left { color: var(--soft); font-size: .9rem; }
.warning { border-left: 4px solid #D55E00; background: #fdf3ec; padding: 8px 12px; }
nav a { display: inline-block; padding: 6px 12px 6px 0; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 380px), 1fr)); gap: 16px;
  align-items: start; }
figure { margin: 0; padding: 8px; border: 1px solid var(--line); border-radius: 6px; max-width: 520px; }
figure img { display: block; width: 100%; height: auto; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { text-align: left; vertical-align: top; padding: 6px 10px 6px 0; border-bottom: 1px solid var(--line); }
thead th { border-bottom: 2px solid var(--ink); }
td .interval { display: block; color: var(--soft); font-size: .85em; white-space: nowrap; }
.scroll { overflow-x: auto; }
.narrow th { width: 22rem; font-weight: normal; color: var(--soft); }
details { margin: 8px 0; }
summary { cursor: pointer; padding: 6px 0; }
pre { white-space: pre-wrap; background: var(--tint); padding: 10px; font-size: .8rem; margin: 0; }
.severity { font-weight: 600; }
@media (max-width: 760px) {
  table, tbody, tr, td, tbody th { display: block; width: 100%; }
  thead { display: none; }
  tbody tr { border: 1px solid var(--line); border-radius: 6px; padding: 6px 10px; margin: 10px 0; }
  th, td { border: 0; padding: 3px 0; }
  tbody th { font-weight: 600; }
  td[data-label] { display: grid; grid-template-columns: minmax(6.5rem, 38%) 1fr; gap: 8px; }
  td[data-label]::before { content: attr(data-label); color: var(--soft); }
  .narrow th { width: auto; }
  .narrow tbody tr { border-width: 0 0 1px; border-radius: 0; padding: 4px 0; margin: 0; }
}
</style>
</head>
<body>
<header>
<h1>{{ title }}</h1>
<p class="soft">{{ runs|length }} {{ "run" if runs|length == 1 else "runs" }}, made {{ made }} by flair-toolkit
{{ version }}. Averaged precision (AP): macro is the mean over labels, micro pools all decisions. Intervals are 95%,
from a bootstrap over users.</p>
{% if any_private %}<p class="warning">Curves and results of private runs come from users' data without noise. They are
not covered by the privacy statement: show this page only to those who may see that data.</p>{% endif %}
<nav>{% for key, heading in sections %}<a href="#{{ key }}">{{ heading }}</a>{% endfor %}</nav>
</header>
<main>
<section id="table">
<h2>Table of results</h2>
<div class="scroll"><table>
<thead><tr><th>run</th><th>partition</th><th>trained</th><th>epsilon</th>
{% for name in metrics %}<th>{{ metric_names[name] }}</th>{% endfor %}</tr></thead>
<tbody>
{% for row in results %}<tr><th>{{ row.run }}</th><td data-label="partition">{{ row.partition }}</td>
<td data-label="trained">{{ row.trained }}</td><td data-label="epsilon">{{ row.epsilon }}</td>
{% for name in metrics %}<td data-label="{{ metric_names[name] }}"><span>{{ row.cells[name].value }}
<span class="interval">{{ row.cells[name].interval }}</span></span></td>
{% endfor %}</tr>
{% else %}<tr><td>No run has results yet.</td></tr>
{% endfor %}</tbody></table></div>
{% for note in notes %}<p class="left">{{ note }}</p>{% endfor %}
{% if comparisons %}<h3>Paired differences</h3>
<div class="scroll"><table>
<thead><tr><th>difference</th><th>partition</th>
{% for name in compared %}<th>{{ metric_names[name] }}</th>{% endfor %}</tr></thead>
<tbody>{% for row in comparisons %}<tr><th>{{ row.what }}</th><td data-label="partition">{{ row.partition }}</td>
{% for name in compared %}<td data-label="{{ metric_names[name] }}"><span>{{ row.cells[name].value }}
<span class="interval">{{ row.cells[name].interval }}</span></span></td>{% endfor %}</tr>{% endfor %}</tbody>
</table></div>
<p class="left">The same users are redrawn for both, so that an interval without 0 is a difference that chance among
users does not explain.</p>{% endif %}
</section>
{% for key, heading in figure_sections %}
<section id="{{ key }}">
<h2>{{ heading }}</h2>
{% if drawn[key] %}<div class="figures">{% for one in drawn[key] %}
<figure id="figure-{{ one.name }}"><img src="data:image/png;base64,{{ one.data }}" alt="{{ one.alt }}">
<figcaption>{{ one.caption }}</figcaption></figure>{% endfor %}</div>{% endif %}
{% for reason in left[key] %}<p class="left">{{ reason }}</p>{% endfor %}
{% if key == "privacy" %}{% for one in statements %}
<h3>Privacy statement of {{ one.run }}</h3>
<p>{{ one.headline }}</p>
<details><summary>All numbers of the statement</summary>
<table class="narrow"><tbody>{% for name, value in one.rows %}<tr><th>{{ name }}</th><td>{{ value }}</td></tr>
{% endfor %}</tbody></table></details>
<p>What it does not cover, or not in full:</p>
<ul>{% for caveat in one.caveats %}<li><span class="severity">{{ caveat.severity }}: {{ caveat.name }}.</span>
{{ caveat.text }}</li>{% endfor %}</ul>
{% else %}<p class="left">No run has a privacy statement.</p>{% endfor %}{% endif %}
</section>
{% endfor %}
<section id="settings">
<h2>Settings that differ</h2>
{% if settings %}<div class="scroll"><table>
<thead><tr><th>flag</th>{% for run in runs %}<th>{{ run.name }}</th>{% endfor %}</tr></thead>
<tbody>{% for name, values in settings %}<tr><th>--{{ name }}</th>
{% for value in values %}<td data-label="{{ runs[loop.index0].name }}">{{ value }}</td>{% endfor %}</tr>
{% endfor %}</tbody></table></div>
<p class="left">– where a run's command has no such flag; folders and the frequency of checkpoints are left out.</p>
{% else %}<p class="left">None: there is one run, or all have the same settings.</p>{% endif %}
</section>
<section id="runs">
<h2>Runs</h2>
{% for run in described %}<h3>{{ run.name }}</h3>
<table class="narrow"><tbody>{% for name, value in run.facts %}<tr><th>{{ name }}</th><td>{{ value }}</td></tr>
{% endfor %}</tbody></table>
<details><summary>All settings</summary><pre>{{ run.flags }}</pre></details>
{% for note in run.notes %}<p class="left">{{ note }}</p>{% endfor %}
{% endfor %}
</section>
</main>
</body>
</html>
"""


def render(
    runs: Sequence[Run],
    outcomes: Sequence[Outcome],
    title: str,
    made: str,
    comparisons: list[Any],
    hidden: Collection[str] = (),
) -> str:
    """The page as HTML; everything that comes from a run folder is escaped."""
    extra: list[dict[str, Any]] = [
        {"name": f"{run.name}-{one.name}", "alt": f"{run.name}: {one.caption}", "caption": f"{run.name}: {one.caption}"}
        | {"data": base64.b64encode(one.png).decode()}
        for run in runs
        for one in run.figures
    ]
    headings = _TITLES | ({"more": "More figures of the runs"} if extra else {})
    drawn = {
        key: [one._asdict() | {"data": base64.b64encode(one.png).decode()} for one in outcomes if _is_drawn(one, key)]
        for key in _TITLES
    } | {"more": extra}
    left = {key: [one.reason for one in outcomes if isinstance(one, Left) and one.section == key] for key in _TITLES}
    rows = [row for run in runs for row in _result_rows(run)]
    compared = [name for name in _METRICS if any(name in one["metrics"] for one in comparisons)]
    shown = [name for name in _METRICS if any(name in row["metrics"] for row in rows)]
    without = [run.name for run in runs if run.evaluation is None and run.results()]
    notes = [f"No intervals for {', '.join(without)}: run benchmark.evaluate_main on them."] if without else []
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    return environment.from_string(_TEMPLATE).render(
        title=title,
        made=made,
        version=__version__,
        runs=runs,
        any_private=any(run.is_private for run in runs),
        sections=[("table", "Table"), *headings.items(), ("settings", "Settings"), ("runs", "Runs")],
        figure_sections=list(headings.items()),
        drawn=drawn,
        left=left | {"more": []},
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


def _is_drawn(one: Outcome, section: str) -> bool:
    return isinstance(one, Drawn) and one.section == section


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
