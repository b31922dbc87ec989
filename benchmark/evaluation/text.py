"""Prints an evaluation for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from benchmark.evaluation.bootstrap import FEW_USERS, FEW_USERS_WARNING, RARE_LABEL_USERS, RARE_LABEL_WARNING
from flair.terminal.counted import counted
from flair.terminal.table import Columns

if TYPE_CHECKING:
    from benchmark.evaluation.sets import EvaluationSet

LABELS_IN_FULL = 40
_MAIN = ("macro_averaged_precision", "micro_averaged_precision", "averaged_precision", "accuracy", "loss")
_RARE_SHOWN = 5


def print_sets(sets: Sequence[EvaluationSet]) -> None:
    """One line per set."""
    for photos in sets:
        manifest = f", the test set {photos.manifest} of {photos.partition}" if photos.manifest else ""
        excluded = f"; {photos.num_excluded:,} photos are excluded" if photos.num_excluded else ""
        users = counted(len(photos.users), "user")
        print(f"{photos.name}: {len(photos.rows):,} photos of {users}{manifest}{excluded}", flush=True)


def print_results(content: Mapping[str, Any]) -> None:
    """Every metric of every model on every set, labels, users, comparisons, and a table at the end."""
    for result in content["results"]:
        _print_metrics(result)
    for one in content["partitions"]:
        _print_labels(one["name"], [result for result in content["results"] if result["partition"] == one["name"]])
    for result in content["results"]:
        if "thresholds" in result:
            _print_thresholds(result)
    for comparison in content["comparisons"]:
        title = f"{comparison['a']} - {comparison['b']} on {comparison['partition']}, paired difference"
        _print_estimates(title, comparison["metrics"])
    _print_table(content)
    for one in content["partitions"]:
        _print_few_users(one, next(result for result in content["results"] if result["partition"] == one["name"]))
    facts = content["interval"]
    print(
        f"[{100 * facts['level']:g}% intervals over users: {facts['resamples']:,} resamples, seed {facts['seed']}; "
        "what another training seed would change is not in them]"
    )


def estimate_text(estimate: Mapping[str, float | None], digits: int = 6) -> str:
    """`0.123456 [0.100000, 0.150000]`, without the brackets where there is no interval.

    >>> estimate_text({"value": 0.5, "low": 0.25, "high": None}, 2)
    '0.50'
    """
    value, low, high = estimate["value"], estimate["low"], estimate["high"]
    if value is None:
        return "-"
    if low is None or high is None:
        return f"{value:.{digits}f}"
    return f"{value:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def _print_metrics(result: Mapping[str, Any]) -> None:
    _print_estimates(f"{result['partition']} metrics of {result['model']}", result["metrics"])
    print(f"    (macro averaged precision of a scorer that knows nothing: {result['know_nothing']:.6f})")
    if "clopper_pearson" in result:
        exact = result["clopper_pearson"]
        print(
            f"    accuracy {exact['right']:,} of {exact['photos']:,} photos, Clopper-Pearson "
            f"[{exact['low']:.6f}, {exact['high']:.6f}] (takes photos for independent)"
        )
    for name, spread in result["per_user"].items():
        shown = ", ".join(f"{key.replace('_', ' ')} {spread[key]:.4f}" for key in ("mean", "p10", "p50", "p90"))
        print(f"    {name} by user: {shown}, worst decile {spread['worst_decile']:.4f}")


def _print_estimates(title: str, estimates: Mapping[str, Mapping[str, float | None]]) -> None:
    print(f"{title}:")
    for name, estimate in estimates.items():
        print(f"    {name:<32}{estimate_text(estimate)}")


def _print_thresholds(result: Mapping[str, Any]) -> None:
    found = result["thresholds"]
    others = len(result["per_label"]) - found["own"]
    print(
        f"decisions of {result['model']} on {result['partition']} by thresholds chosen on {found['chosen_on']}: "
        f"{found['own']:,} labels have one of their own; {others:,}, of fewer than {found['least_users']} users there, "
        f"have the global one, {found['global']:.4f}"
    )
    kinds = ("at_half", "at_global", "at_chosen", "gain")
    columns = Columns("<4", "<20", *["<26"] * len(kinds))
    print(columns.line("", "", "at 0.5", "at the global one", "at the chosen ones", "chosen - 0.5").rstrip())
    for name in found["gain"]:
        print(columns.line("", name, *(estimate_text(found[kind][name], 4) for kind in kinds)).rstrip())


def _print_labels(name: str, results: Sequence[Mapping[str, Any]]) -> None:
    order = sorted(range(len(results[0]["per_label"])), key=lambda i: -results[0]["per_label"][i]["photos"])
    shown = order[:LABELS_IN_FULL]
    rest = f", the {len(shown)} most frequent of {len(order):,}" if len(order) > len(shown) else ""
    print(f"averaged precision by label on {name}{rest}:")
    width = max(len(results[0]["per_label"][i]["label"]) for i in shown) + 2
    columns = Columns("<4", f"<{width}", ">8,", ">8,", "<2", *["<24"] * len(results))
    print(columns.line("", "label", "photos", "users", "", *(_fit(result["model"], 22) for result in results)).rstrip())
    for i in shown:
        rows = [result["per_label"][i] for result in results]
        cells = [estimate_text({**row, "value": row["averaged_precision"]}, 3) for row in rows]
        print(columns.line("", *(rows[0][key] for key in ("label", "photos", "users")), "", *cells).rstrip())


def _print_few_users(partition: Mapping[str, Any], result: Mapping[str, Any]) -> None:
    """Says of intervals that are too narrow by how much, as simulations have it."""
    name = partition["name"]
    if partition["users"] < FEW_USERS:
        print(f"{name}: {partition['users']:,} users are few: {FEW_USERS_WARNING}")
    rare = [row["label"] for row in result["per_label"] if 0 < row["users"] < RARE_LABEL_USERS]
    if rare:
        shown = ", ".join(rare[:_RARE_SHOWN]) + (", ..." if len(rare) > _RARE_SHOWN else "")
        print(f"{name}: {len(rare):,} labels of fewer than {RARE_LABEL_USERS} users ({shown}): {RARE_LABEL_WARNING}")


def _print_table(content: Mapping[str, Any]) -> None:
    main = [name for name in _MAIN if name in content["results"][0]["metrics"]]
    drops = {(drop["model"], drop["partition"]): drop["metrics"] for drop in content["drops"]}
    width, of_set = (max(len(result[key]) + 2 for result in content["results"]) for key in ("model", "partition"))
    header = [name.replace("averaged_precision", "AP").replace("_", " ") for name in main]
    if drops:
        header += [f"{header[0]}: drop from test"]
    columns = Columns(f"<{max(width, 7)}", f"<{max(of_set, 4)}", *["<25"] * len(header))
    print("\n" + columns.line("model", "on", *header).rstrip())
    for result in content["results"]:
        cells = [estimate_text(result["metrics"][name], 4) for name in main]
        found = drops.get((result["model"], result["partition"]))
        if drops:
            cells.append("-" if found is None else estimate_text(found[main[0]], 4))
        print(columns.line(result["model"], result["partition"], *cells).rstrip())


def _fit(text: str, width: int) -> str:
    return text if len(text) <= width else f"…{text[1 - width :]}"
