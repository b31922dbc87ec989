"""A release in words: what it is worth, a table a question, and what to know about it."""

from __future__ import annotations

import textwrap
from typing import Any

from benchmark.analytics.questions import FINE_LABELS, PHOTOS
from benchmark.privacy.rounding import as_text, rounded_up
from flair.terminal.table import fitted

_WIDTH = 100
_MOST_ROWS = 30


def result_text(result: dict[str, Any]) -> str:
    """The whole result, made from its JSON alone; of fine labels the first 30."""
    lines = [*_wrapped(_claim(result)), ""]
    for name, found in result["questions"].items():
        lines += [*_wrapped(_title(name, found)), *_table(name, found).splitlines(), ""]
    return "\n".join([*lines, *(line for remark in _remarks(result) for line in _wrapped(remark))])


def _claim(result: dict[str, Any]) -> str:
    name = result["accountant"]["name"]
    other = "rdp" if name == "pld" else "pld"
    epsilon, delta = rounded_up(result["epsilon"][name]), rounded_up(result["delta"])
    if not result["private"]:
        return (
            f"NOT PRIVATE: the exact values are shown (--compare_exact). Without them this would have ({epsilon}, "
            f"{delta})-differential privacy for one {result['unit']}."
        )
    return (
        f"All numbers together have ({epsilon}, {delta})-differential privacy for one {result['unit']} of "
        f"{result['users']:,} ({result['adjacency']}; {name.upper()}; by {other.upper()} epsilon "
        f"{rounded_up(result['epsilon'][other])}). Noise multiplier {as_text(result['noise_multiplier'])}."
    )


def _title(name: str, found: dict[str, Any]) -> str:
    noise = f"noise {as_text(found['noise_stddev'])} users"
    if name == PHOTOS:
        return (
            f"Photos per user, of {found['bins']} bins up to {found['max_photos']:,} photos ({noise} a bin): so many "
            "or fewer have"
        )
    counted = (
        f"Users who have a photo with the label ({noise}; a user's counts are scaled to norm {found['bound']:.4g} at "
        "most, and intervals are about what that leaves)"
    )
    if name != FINE_LABELS:
        return f"{counted}:"
    shown = f", the first {_MOST_ROWS}" if len(found["labels"]) > _MOST_ROWS else ""
    return (
        f"{counted}; fine labels with more than {as_text(found['threshold'])}, which noise alone reaches for any of "
        f"{found['of']:,} with probability 2.5%: {len(found['labels'])}{shown}. The intervals hold for all labels "
        "at once:"
    )


def _table(name: str, found: dict[str, Any]) -> str:
    key, value = ("quantile", "photos") if name == PHOTOS else ("label", "users")
    rows = found["quantiles"] if name == PHOTOS else found["labels"][:_MOST_ROWS]
    exact = ["exact"] if rows and "exact" in rows[0] else []
    cells = [[str(row[key]), *(f"{row[one]:,.0f}" for one in (value, "low", "high", *exact))] for row in rows]
    header = ["share of users" if name == PHOTOS else "label", value, "95% from", "to", *exact]
    return fitted([header, *cells])


def _remarks(result: dict[str, Any]) -> list[str]:
    remarks = []
    if result["users_times_delta"] > 0.01:
        remarks.append(
            f"Users * delta is {rounded_up(result['users_times_delta'])}, which is not small: see docs/privacy.md."
        )
    remarks.append(
        "The same command again draws other noise and spends the same epsilon once more. The number of users, the "
        "names of the labels and the bounds are taken as public."
    )
    return remarks


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, _WIDTH, break_long_words=False)
