"""The figures of a report: one panel each, so that a phone shows them as legibly as a desk."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from benchmark.privacy.rounding import rounded_up
from benchmark.report.client_figures import SECTION, draw_clients
from benchmark.report.drawing import Canvas, Drawn, Left, Outcome, dot, legend_name, plain
from benchmark.report.runs import Run

LABELS_SHOWN = 20
_TIME = "time"
_ABSCISSAS = ("epoch", "round", _TIME)
# Suffix of a column of metrics.csv -> its name on an axis, with its unit.
_METRICS = {
    "macro_averaged_precision": "macro averaged precision (0 to 1)",
    "micro_averaged_precision": "micro averaged precision (0 to 1)",
    "averaged_precision": "averaged precision (0 to 1)",
    "loss": "loss (cross-entropy, nats a label)",
}
_EVERY_ROUND = "In each round of training."
# Figures over rounds: ending of a column -> its name on an axis, with its unit; the caption; why they are left out.
_OVER_ROUNDS: tuple[tuple[dict[str, str], str, str], ...] = (
    ({"clip_norm": "clip norm (L2)"}, _EVERY_ROUND, "Clip norm: left out, no run clips updates."),
    (
        {
            "fraction_clipped": "fraction of clients clipped (0 to 1)",
            "update_norm": "update norm before clipping (mean, L2)",
            "signal_to_noise": "signal to noise (norms of mean and noise)",
            "cosine": "cosine of noised to clean mean (-1 to 1)",
        },
        "Made of clean updates, and so NOT PRIVATE of a private run.",
        "Clipping and signal to noise: left out, no run is private and has recorded them.",
    ),
    (
        {
            "average_client_norm": "mean norm of the clients' updates (L2)",
            "server_update_norm": "norm of the aggregated update (L2)",
        },
        _EVERY_ROUND,
        "Update norms: left out, no run recorded them (train with --debug_measurements).",
    ),
)
_DRIFT = (
    {
        "gradient_diversity": "gradient diversity (1: orthogonal)",
        "cosine_to_mean": "cosine to the mean update (-1 to 1)",
    },
    "In each round whose clients were looked at. Made of clean updates: of a private run NOT PRIVATE.",
    "Drift over rounds: left out, no run looked at updates (train with --rounds_per_client_eval).",
)
_NOT_EVALUATED = (
    Left(
        "results", "Intervals, labels and users: left out, no run has an evaluation.json (run benchmark.evaluate_main)."
    ),
    Left("labels", "Averaged precision by label: left out, no run has an evaluation.json."),
    Left("users", "Distribution over users: left out, no run has an evaluation.json."),
)
_Evaluated = list[tuple[Run, dict[str, Any]]]


def draw_all(runs: Sequence[Run]) -> list[Outcome]:
    """Every figure of the report, or why it is left out."""
    drawer = _Drawer(runs)
    outcomes: list[Outcome] = []
    for metric, step in itertools.product(_METRICS, _ABSCISSAS):
        outcomes += drawer.learning_curve(metric, step)
    if not outcomes:
        outcomes.append(Left("curves", "Learning curves: left out, no run has evaluated itself yet."))
    outcomes += drawer.against_epsilon()
    for figures in _OVER_ROUNDS:
        outcomes += drawer.over_rounds("privacy", *figures)
    outcomes += drawer.over_rounds(SECTION, *_DRIFT)
    outcomes += draw_clients(runs)
    partition, found = _evaluated(runs)
    if not found:
        return [*outcomes, *_NOT_EVALUATED]
    outcomes += drawer.results(partition, found)
    outcomes.append(drawer.by_label(partition, found))
    outcomes += drawer.by_user(partition, found)
    return outcomes


class _Drawer(Canvas):
    def learning_curve(self, metric: str, step: str) -> list[Outcome]:
        column = f"val_{metric}"
        over_time = step == _TIME
        chosen = [run for run in self.runs if over_time or step == run.step_name]
        curves = [(run, *run.series(column)) for run in chosen]
        curves = [(run, steps, values) for run, steps, values in curves if values]
        if over_time:
            curves = [(run, steps, values) for run, steps, values in curves if set(steps) <= set(run.seconds)]
        if not curves:
            return []
        unit, divisor = _time_unit([run.seconds[s] for run, steps, _ in curves for s in steps if over_time])
        title = f"Validation {_short(metric)} over {'training time' if over_time else f'{step}s'}"

        def draw(axes: Axes) -> None:
            for run, steps, values in curves:
                x = [run.seconds[s] / divisor for s in steps] if over_time else steps
                if metric == "loss" and not over_time:
                    axes.plot(*run.series("train_loss"), color=self.style[run.name].colour, linewidth=0.9, alpha=0.45)
                self.line(axes, run, x, values)
            axes.set(xlabel=f"training time ({unit})" if over_time else step, ylabel=_METRICS[metric])
            if not over_time:
                axes.xaxis.set_major_locator(MaxNLocator(integer=True))

        alt = f"{title}: " + _ends([(run.name, values[-1]) for run, _, values in curves])
        caption = "On the validation users, at each evaluation of the run."
        if metric == "loss" and not over_time:
            caption += " Pale: the training loss, of the photos that were trained on."
        name = f"{metric}_over_{_TIME if over_time else f'{step}s'}"
        return [self.figure("curves", name, title, caption, alt, draw, [run for run, *_ in curves])]

    def against_epsilon(self) -> list[Outcome]:
        private = [run for run in self.runs if any("epsilon" in row for row in run.rows.values())]
        if not private:
            return [Left("privacy", "Metric against epsilon: left out, no run is private.")]
        outcomes: list[Outcome] = []
        for metric in _METRICS:
            column = f"val_{metric}"
            curves: list[Any] = []
            for run in private:
                rows = [row for _, row in sorted(run.rows.items()) if {"epsilon", column} <= row.keys()]
                points = [(row["epsilon"], row[column]) for row in rows]
                if points:
                    curves.append((run, *zip(*points, strict=True)))
            if curves:
                outcomes.append(self._epsilon_figure(metric, curves))
        return outcomes or [Left("privacy", "Metric against epsilon: left out, no private run has evaluated yet.")]

    def _epsilon_figure(self, metric: str, curves: list[Any]) -> Drawn:
        ends = [(run, run.series(f"val_{metric}")[1]) for run in self.runs if run not in [run for run, *_ in curves]]
        levels = [(run, values[-1]) for run, values in ends if values]

        def draw(axes: Axes) -> None:
            for run, epsilons, values in curves:
                self.line(axes, run, epsilons, values)
            for run, level in levels:
                style = self.style[run.name]
                axes.axhline(level, color=style.colour, linestyle="--", linewidth=1.2, label=legend_name(run.name))
            axes.set(xlabel="epsilon spent so far (users, smaller is more private)", ylabel=_METRICS[metric])

        title = f"Validation {_short(metric)} against epsilon"
        caption = "Each point is an evaluation of a private run."
        if levels:
            caption += " Dashed: where runs without privacy ended."
        alt = f"{title}: " + "; ".join(f"{run.name} {v[-1]:.3g} at epsilon {rounded_up(e[-1])}" for run, e, v in curves)
        shown = [*(run for run, *_ in curves), *(run for run, _ in levels)]
        return self.figure("privacy", f"{metric}_against_epsilon", title, caption, alt, draw, shown)

    def over_rounds(self, section: str, labels: Mapping[str, str], caption: str, missing: str) -> list[Outcome]:
        """A figure for each ending of a column that any run has, named by its label without what it is measured in."""
        outcomes = [self._path(section, ending, label, caption) for ending, label in labels.items()]
        return [one for one in outcomes if one is not None] or [Left(section, missing)]

    def _path(self, section: str, ending: str, label: str, caption: str) -> Drawn | None:
        """The first column of each run whose name ends so, over rounds; None where no run has one."""
        found = []
        for run in self.runs:
            columns = dict.fromkeys(c for row in run.rows.values() for c in row if c.split("/")[-1] == ending)
            found += [(run, *run.series(column)) for column in list(columns)[:1]]
        if not found:
            return None

        def draw(axes: Axes) -> None:
            for run, steps, values in found:
                self.line(axes, run, steps, values, markers=section == SECTION)
            axes.set(xlabel="round", ylabel=label)
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))

        title = f"{_short(label.partition(' (')[0], start=True)} over rounds"
        alt = f"{title}: " + _ends([(run.name, values[-1]) for run, _, values in found])
        return self.figure(section, ending, title, caption, alt, draw, [run for run, *_ in found])

    def results(self, partition: str, found: _Evaluated) -> list[Outcome]:
        outcomes: list[Outcome] = []
        for metric in _METRICS:
            rows = [(run, result["metrics"][metric]) for run, result in found if metric in result["metrics"]]
            rows = [(run, one) for run, one in rows if one["value"] is not None]
            if not rows:
                continue

            def draw(axes: Axes, rows: list[Any] = rows, metric: str = metric) -> None:
                for position, (run, one) in enumerate(rows):
                    dot(axes, one, position, self.style[run.name])
                axes.set_yticks(range(len(rows)), [legend_name(run.name, 18) for run, _ in rows])
                axes.set(ylim=(len(rows) - 0.4, -0.6), xlabel=_METRICS[metric])

            title = f"{_short(metric, start=True)} on {partition}"
            alt = f"{title}: " + _ends([(run.name, one["value"]) for run, one in rows])
            caption = "The best model of each run, with the 95% interval over users."
            height = 1.5 + 0.32 * len(rows)
            outcomes.append(self.figure("results", f"{metric}_{partition}", title, caption, alt, draw, [], height))
        return outcomes

    def by_label(self, partition: str, found: _Evaluated) -> Outcome:
        first = sorted(found[0][1]["per_label"], key=lambda row: -row["photos"])
        labels = [row["label"] for row in first[:LABELS_SHOWN]]
        tables = [(run, {row["label"]: row for row in result["per_label"]}) for run, result in found]
        tables = [(run, rows) for run, rows in tables if all(label in rows for label in labels)]
        offsets: list[float] = np.linspace(-0.3, 0.3, len(tables)).tolist() if len(tables) > 1 else [0.0]

        def draw(axes: Axes) -> None:
            for offset, (run, rows) in zip(offsets, tables, strict=True):
                for position, label in enumerate(labels):
                    row = rows[label] | {"value": rows[label]["averaged_precision"]}
                    in_legend = "" if position else legend_name(run.name)
                    dot(axes, row, position + offset, self.style[run.name], in_legend)
            names = [plain(f"{row['label']} ({row['photos']:,})") for row in first[: len(labels)]]
            axes.set_yticks(range(len(labels)), names)
            axes.set(ylim=(len(labels) - 0.4, -0.6), xlabel="averaged precision (0 to 1)", xlim=(-0.02, 1.02))

        title = f"Averaged precision by label on {partition}"
        caption = "In brackets the photos with the label. Bars are 95% intervals over users; none where fewer than two "
        caption += "users have the label."
        if len(labels) < len(first):
            caption += f" The {len(labels)} most frequent of {len(first):,} labels; per_label.csv has all."
        means = [
            (run.name, float(np.mean([np.float64(rows[label]["averaged_precision"]) for label in labels])))
            for run, rows in tables
        ]
        alt = f"{title}, mean of the labels shown: " + _ends(means)
        height = 1.4 + len(labels) * max(0.24, 0.09 * len(tables))
        shown = [run for run, _ in tables]
        return self.figure("labels", f"by_label_{partition}", title, caption, alt, draw, shown, height)

    def by_user(self, partition: str, found: _Evaluated) -> list[Outcome]:
        outcomes: list[Outcome] = []
        for metric in dict.fromkeys(name for _, result in found for name in result["per_user"]):
            spreads = [(run, result["per_user"][metric]) for run, result in found if metric in result["per_user"]]

            def draw(axes: Axes, spreads: list[Any] = spreads, metric: str = metric) -> None:
                for run, spread in spreads:
                    self.line(axes, run, range(len(spread["percentiles"])), spread["percentiles"], markers=False)
                label = _METRICS.get(metric, f"{metric.replace('_', ' ')} (0 to 1)")
                axes.set(xlabel="users with at most this value (%)", ylabel=f"a user's {label}", xlim=(0, 100))

            title = f"{_short(metric, start=True)} of single users on {partition}"
            means = [(run.name, spread["p50"]) for run, spread in spreads]
            alt = f"{title}, median user: " + _ends(means)
            users = found[0][1]["users"]
            caption = f"All {users:,} users, from the lowest value to the highest."
            shown = [run for run, _ in spreads]
            outcomes.append(self.figure("users", f"{metric}_by_user_{partition}", title, caption, alt, draw, shown))
        return outcomes


def _evaluated(runs: Sequence[Run]) -> tuple[str, _Evaluated]:
    """The partition most runs are evaluated on, test rather than another, and their results."""
    found = [(run, result) for run in runs if run.evaluation is not None for result in run.results()]
    counts = Counter(result["partition"] for _, result in found)
    partition = max(counts, key=lambda name: (name == "test", counts[name]), default="")
    return partition, [(run, result) for run, result in found if result["partition"] == partition]


def _time_unit(seconds: Sequence[float]) -> tuple[str, float]:
    longest = max(seconds, default=0.0)
    return ("hours", 3600.0) if longest > 7200 else ("minutes", 60.0) if longest > 120 else ("seconds", 1.0)


def _short(metric: str, start: bool = False) -> str:
    text = metric.replace("_", " ")
    return text[0].upper() + text[1:] if start else text


def _ends(values: Sequence[tuple[str, float | None]]) -> str:
    return "; ".join(f"{name} {'-' if value is None else f'{value:.3g}'}" for name, value in values)
