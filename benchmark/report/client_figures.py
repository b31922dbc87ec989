"""The figures of single clients while runs trained, from their clients.csv.gz: who gains, who is left behind."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from benchmark.metrics.spread import distribution
from benchmark.report.drawing import Canvas, Left, Outcome, legend_name
from benchmark.report.runs import ClientRow, Run

SECTION = "clients"
_SCORES = {  # Column -> its name on an axis, and which tenth of the users is the worst.
    "micro_averaged_precision": ("micro averaged precision (0 to 1)", "lowest_decile"),
    "loss": ("loss (cross-entropy, nats a label)", "highest_decile"),
}
_NOT_PRIVATE = " Of a private run NOT PRIVATE."
_DIVERGENCE_BINS = 8
_Curve = tuple[Run, Sequence[float], Sequence[float]]


def draw_clients(runs: Sequence[Run]) -> list[Outcome]:
    """The figures, or why there are none."""
    shown = [run for run in runs if run.clients]
    if not shown:
        return [Left(SECTION, "Single clients: left out, no run looked at any (train with --rounds_per_client_eval).")]
    drawer = _Drawer(runs)
    outcomes = [drawer.worst_decile(shown, column) for column in _SCORES]
    outcomes.append(drawer.local_training(shown))
    return [*outcomes, *drawer.drift(shown)]


class _Drawer(Canvas):
    def worst_decile(self, runs: Sequence[Run], column: str) -> Outcome:
        curves, medians = [], []
        label, worst = _SCORES[column]
        for run in runs:
            rows = [row for row in run.clients if row.kind == "val"]
            spreads = {step: distribution(values) for step, values in _by(rows, lambda row: row.step, column)}
            curves.append((run, list(spreads), [spread[worst] for spread in spreads.values()]))
            medians.append((run, list(spreads), [spread["p50"] for spread in spreads.values()]))

        def draw(axes: Axes) -> None:
            for run, steps, values in medians:
                axes.plot(steps, values, color=self.style[run.name].colour, linewidth=0.9, alpha=0.45)
            for run, steps, values in curves:
                self.line(axes, run, steps, values)
            axes.set(xlabel="round", ylabel=label)
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))

        title = f"Worst tenth of validation users, {column.replace('_', ' ')}"
        caption = "Mean of the tenth of the sampled users that the round's model does worst on. Pale: the median user."
        alt = _alt(title, curves)
        return self.figure(SECTION, f"{column}_of_worst_decile", title, caption, alt, draw, runs)

    def local_training(self, runs: Sequence[Run]) -> Outcome:
        curves: list[tuple[_Curve, _Curve]] = []
        for run in runs:
            before, after = (_by_size(run, kind) for kind in ("val_before", "val_after"))
            if before[1] and after[1]:
                curves.append((before, after))
        if not curves:
            reason = "Local training: left out, no run trained users by themselves (--federated_eval_local_training)."
            return Left(SECTION, reason)

        def draw(axes: Axes) -> None:
            for (run, x, y), (_, *of_after) in curves:
                style = self.style[run.name]
                look: dict[str, Any] = {"color": style.colour, "marker": style.marker, "markersize": 4}
                axes.plot(x, y, ":", markerfacecolor="white", label=f"{legend_name(run.name)}, before", **look)
                axes.plot(*of_after, "-", label=f"{legend_name(run.name)}, after", **look)
            _size_axis(axes, [x for (_, x, _), _ in curves])
            axes.set_ylabel("mean loss of a user (nats a label)")

        title = "Before and after local training, by client size"
        caption = "Validation users by their photos, at the last round with a look at clients: loss on the half of the "
        caption += "photos that is held out, before and after each trained on the other half."
        alt = _alt(f"{title}, largest users after it", [after for _, after in curves])
        shown = [run for (run, *_), _ in curves for _ in range(2)]  # two lines each in the legend
        return self.figure(SECTION, "local_training_by_size", title, caption, alt, draw, shown)

    def drift(self, runs: Sequence[Run]) -> list[Outcome]:
        by_size, by_labels = [], []
        for run in runs:
            rows = [row for row in run.clients if row.cosine_to_mean is not None]
            of_size = _by(rows, lambda row: _power(row.photos), "cosine_to_mean")
            by_size.append((run, [x for x, _ in of_size], [float(np.mean(y)) for _, y in of_size]))
            by_labels.append((run, *_binned([row for row in rows if row.label_divergence is not None])))
        label = "cosine to the mean update (-1 to 1)"
        caption = "Mean over the clients whose updates were looked at, of all rounds together."

        def draw_sizes(axes: Axes) -> None:
            for run, x, y in by_size:
                self.line(axes, run, x, y)
            _size_axis(axes, [x for _, x, _ in by_size])
            axes.set_ylabel(label)

        def draw_labels(axes: Axes) -> None:
            for run, x, y in by_labels:
                self.line(axes, run, x, y)
            axes.set(xlabel="divergence of the client's labels from all (bits)", ylabel=label)

        sizes, labels = "Agreement with the mean update, by client size", "Agreement with the mean update, by labels"
        more = f"{caption} Far right: labels unlike those of the training photos together.{_NOT_PRIVATE}"
        return [
            self.figure(
                *(SECTION, "cosine_by_size", sizes, caption + _NOT_PRIVATE, _alt(sizes, by_size), draw_sizes, runs)
            ),
            self.figure(SECTION, "cosine_by_labels", labels, more, _alt(labels, by_labels), draw_labels, runs),
        ]


def _by(rows: Iterable[ClientRow], key: Callable[[ClientRow], int], column: str) -> list[tuple[int, list[float]]]:
    """The numbers in a column, by the key of their rows, in the order of the keys."""
    found: dict[int, list[float]] = {}
    for row in rows:
        value = getattr(row, column)
        if value is not None:
            found.setdefault(key(row), []).append(value)
    return sorted(found.items())


def _by_size(run: Run, kind: str) -> _Curve:
    """Mean loss in the rows of this kind at the last look, by the size of the validation user."""
    last = max(row.step for row in run.clients)
    rows = [row for row in run.clients if row.step == last]
    size = {row.client: row.photos for row in rows if row.kind == "val"}
    chosen = [row for row in rows if row.kind == kind and row.client in size]
    found = _by(chosen, lambda row: _power(size[row.client]), "loss")
    return run, [power for power, _ in found], [float(np.mean(losses)) for _, losses in found]


def _binned(rows: Sequence[ClientRow]) -> tuple[list[float], list[float]]:
    """Mean divergence and mean cosine in bins of equally many clients, from the least divergence to the largest."""
    points = np.array(sorted((row.label_divergence, row.cosine_to_mean) for row in rows)).reshape(-1, 2)
    bins = [one for one in np.array_split(points, min(_DIVERGENCE_BINS, len(points)) or 1) if len(one)]
    return [float(one[:, 0].mean()) for one in bins], [float(one[:, 1].mean()) for one in bins]


def _power(photos: int) -> int:
    """The size group of a client: 0 of 1 photo, 1 of 2 and 3, 2 of 4 to 7, ..."""
    return photos.bit_length() - 1


def _size_axis(axes: Axes, powers: Iterable[Sequence[float]]) -> None:
    shown = sorted({int(one) for of_run in powers for one in of_run})
    names = ["1" if power == 0 else f"{2**power}–{2 ** (power + 1) - 1}" for power in shown]
    axes.set_xticks(shown, names, rotation=30 if len(shown) > 5 else 0, fontsize=8)
    axes.set_xlabel("photos of the client")


def _alt(title: str, curves: Sequence[Any]) -> str:
    return f"{title}: " + "; ".join(f"{run.name} {values[-1]:.3g}" for run, _, values in curves if values)
