"""An audit in words: rows of numbers, a verdict, what its canaries cost."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmark.privacy.rounding import as_text, epsilon_text, rounded_down


def verdict(audit: Mapping[str, Any]) -> str:
    """Whether the audit contradicts what is claimed, in a sentence."""
    named = {
        "bound": f"by guesses about its canaries, {rounded_down(audit['bound'])}",
        "noise": f"by the size of its noise, {rounded_down(audit['noise']['epsilon'])}",
        "influence": f"by how far a canary moves it, {rounded_down(audit['influence']['epsilon'])}",
    }
    claimed, confidence = epsilon_text(audit["claimed"]), f"{100 * audit['confidence']:g}% confidence"
    found = audit["contradicted_by"]
    if not found:
        return (
            f"the audit does not contradict epsilon {claimed}: it is at least {rounded_down(audit['bound'])} "
            f"({confidence}), which says nothing about attacks that were not tried"
        )
    shown = "; ".join(named[name] for name in found)
    return f"THE AUDIT CONTRADICTS EPSILON {claimed}: it is at least ({confidence}) {shown}"


def rows(audit: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What the numbers of an audit are called and what they are, as text."""
    noise, influence = audit["noise"], audit["influence"]
    confidence = f"{100 * audit['confidence']:g}%"
    table = [
        ("audit: canaries", f"{audit['canaries']:,}, {audit['included']:,} of them in, {audit['rounds']:,} rounds"),
        ("  epsilon claimed", f"{epsilon_text(audit['claimed'])} (by {audit['accountant'].upper()})"),
        (f"  epsilon, at least ({confidence})", rounded_down(audit["bound"])),
    ]
    for attack in audit["attacks"]:
        guessed = f"{attack['correct']:,} of {attack['guesses']:,} guesses right"
        estimate = "too few for a fit" if attack["estimate"] is None else f"Gaussian fit {as_text(attack['estimate'])}"
        table.append((f"    {attack['scores']}", f"{rounded_down(attack['bound'])}, {guessed}; {estimate}, no bound"))
    table.append(
        (
            "  by the noise, if it is Gaussian",
            f"epsilon at least {rounded_down(noise['epsilon'])}: {as_text(noise['claimed'])} claimed on the sum, "
            f"at most {as_text(noise['at_most'])} on {noise['weights']}",
        )
    )
    if influence["mean"] is not None:
        table.append(
            (
                "  by a canary's influence",
                f"epsilon at least {rounded_down(influence['epsilon'])}: {as_text(influence['mean'])} clip norms on "
                f"average of {influence['canaries']:,}, at least {as_text(influence['at_least'])}",
            )
        )
    return [*table, ("  cost of the canaries", cost_text(audit["cost"]))]


def cost_text(cost: Mapping[str, float]) -> str:
    """What canaries cost, in a line."""
    return (
        f"{100 * cost['part_of_cohort']:.3g}% of the cohort; the sum of all rounds carries "
        f"{as_text(cost['canaries_on_running_sum'])} clip norms of them, beside "
        f"{as_text(cost['noise_on_running_sum'])} of noise"
    )
