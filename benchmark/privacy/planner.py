"""Answers before a run: the noise for an epsilon, the epsilon of a noise, the rounds that both allow."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from benchmark.privacy import accounting
from benchmark.privacy.accounting import ACCOUNTANTS
from benchmark.privacy.adaptive import clipped_count_stddev, noise_norm, sum_noise_multiplier
from benchmark.privacy.caveats import SMALL_USERS_TIMES_DELTA
from benchmark.privacy.plan import HARDLY_LESS, PrivacyPlan, make_plan, price
from benchmark.privacy.request import Mechanism, PrivacyRequest, Sampling
from benchmark.privacy.rounding import as_text, finite, rounded_up
from benchmark.privacy.spending import Release, as_json, check_can_add, total_epsilon
from flair.errors import FlairError
from flair.terminal.counted import counted


def asks_for(request: PrivacyRequest) -> str:
    """What a request leaves open: "noise", "epsilon", or with both of them given "rounds"."""
    if request.epsilon is not None and request.noise_multiplier is not None:
        return "rounds"
    return "noise" if request.epsilon is not None else "epsilon"


def check(num_users: int, request: PrivacyRequest) -> None:
    """Raises FlairError on values that mean nothing; instant."""
    if request.total_rounds > accounting.MAX_ROUNDS:
        raise FlairError(f"--total_rounds={request.total_rounds}: expected at most {accounting.MAX_ROUNDS:,}")
    if request.noise_multiplier == 0:
        raise FlairError("--noise_multiplier=0: without noise epsilon is infinite, and there is nothing to plan")
    if asks_for(request) != "rounds":
        request.check(num_users)
        return
    if request.published_noise:
        raise FlairError("--published_noise sets the noise multiplier: leave one of the two flags out")
    replace(request, noise_multiplier=None).check(num_users)
    replace(request, epsilon=None).check(num_users)


def answer(
    num_users: int, request: PrivacyRequest, num_weights: int | None = None, spent_before: Sequence[Release] = ()
) -> dict[str, Any]:
    """The answer by both accountants, as JSON values; an epsilon that is not finite is None.

    With `num_weights` it also says how long the noise on so many numbers is (`adaptive.noise_norm`), and with
    `spent_before` the epsilon of all together.
    """
    check(num_users, request)
    if spent_before:
        check_can_add(request)
    plans = _plans(num_users, request)
    return {
        "asks_for": asks_for(request),
        "num_users": num_users,
        "clients_per_round": request.cohort,
        "simulated_clients_per_round": request.simulated_cohort,
        "client_sampling": request.sampling.value,
        "mechanism": request.mechanism.value,
        "sampling_probability": plans["pld"].sampling_probability,
        "total_rounds": request.total_rounds,
        "delta": plans["pld"].delta,
        "epsilon_asked": request.epsilon,
        "published_noise": request.published_noise,
        "bands": plans["pld"].request.bands,
        "price": price(plans["pld"]),
        "spent_before": as_json(spent_before),
        "by": {
            name: (
                _by_accountant(request, plans[name], name, num_weights, spent_before)
                if name in plans
                else dict.fromkeys(_KEYS)
            )
            for name in ACCOUNTANTS
        },
    }


def table_cohorts(num_users: int, cohort: int) -> list[int]:
    """The cohort sizes of a table: 1, 2, 5, 10 ... between a thousandth and all of the users, and `cohort` itself.

    >>> table_cohorts(41131, 200)
    [50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000]
    """
    series = [lead * 10**power for power in range(len(str(num_users))) for lead in (1, 2, 5)]
    return sorted({size for size in series if num_users / 1000 <= size <= num_users} | {cohort})


def answer_text(found: dict[str, Any]) -> str:
    """One answer in words, the accountants side by side."""
    lines = [_setting(found), "", f"{'':<38}{'PLD':>12}{'RDP':>12}"]
    for label, key in _ROWS:
        pld, rdp = found["by"]["pld"][key], found["by"]["rdp"][key]
        if pld is not None or rdp is not None:
            lines.append(f"{label:<38}{_text(key, pld):>12} {_text(key, rdp):>11}")
    return "\n".join([*lines, "", *_remarks(found)])


def table_header(found: dict[str, Any]) -> str:
    """The first line of a table of answers like `found`."""
    name = _ANSWERED_BY[found["asks_for"]].replace("_", " ")
    norm = f"{'its norm':>12}" if found["by"]["pld"]["noise_norm"] is not None else ""
    return f"{'clients':>9}{'q':>12}{name + ', PLD':>24}{name + ', RDP':>24}{'noise on mean, PLD':>20}{norm}"


def table_row(found: dict[str, Any]) -> str:
    """One line of a table."""
    key = _ANSWERED_BY[found["asks_for"]]
    pld, rdp = found["by"]["pld"], found["by"]["rdp"]
    return (
        f"{found['clients_per_round']:>9,}{found['sampling_probability']:>12.4g}"
        f"{_text(key, pld[key]):>24}{_text(key, rdp[key]):>24}{as_text(pld['noise_on_mean']):>20}"
        + (f"{as_text(pld['noise_norm']):>12}" if pld["noise_norm"] is not None else "")
    )


_ROWS = (
    ("noise multiplier (sigma)", "noise_multiplier"),
    ("  given to the aggregator", "run_noise_multiplier"),
    ("  on the sum, adaptive clipping", "sum_noise_multiplier"),
    ("  on the unclipped count (clients)", "clipped_count_stddev"),
    ("noise on the mean (clip norms)", "noise_on_mean"),
    ("  its norm over all weights", "noise_norm"),
    ("noise on the running sum of means", "noise_on_running_sum"),
    ("epsilon", "epsilon"),
    ("  spent before", "spent_epsilon"),
    ("  with what was spent before", "total_epsilon"),
    ("the run's own epsilon", "own_epsilon"),
    ("epsilon proved, one user replaced", "replace_one_epsilon"),
    ("rounds affordable", "rounds"),
)
_KEYS = tuple(key for _, key in _ROWS)
_ANSWERED_BY = {"noise": "noise_multiplier", "epsilon": "epsilon", "rounds": "rounds"}
# What is claimed, or the noise that a claim needs.
_ROUNDED_UP = (
    *("epsilon", "spent_epsilon", "total_epsilon", "own_epsilon", "replace_one_epsilon"),
    *("noise_multiplier", "run_noise_multiplier"),
)


def _plans(num_users: int, request: PrivacyRequest) -> dict[str, PrivacyPlan]:
    if asks_for(request) == "rounds":
        request = replace(request, epsilon=None)
    if asks_for(request) != "noise" or request.published_noise:
        return dict.fromkeys(ACCOUNTANTS, make_plan(num_users, request))
    plans = {"pld": make_plan(num_users, replace(request, accountant="pld"))}
    # Below an epsilon of some 0.004 only PLD has an answer; RDP's column then stays empty.
    with contextlib.suppress(FlairError):
        plans["rdp"] = make_plan(num_users, replace(request, accountant="rdp"))
    return plans


def _by_accountant(
    request: PrivacyRequest, plan: PrivacyPlan, name: str, num_weights: int | None, spent_before: Sequence[Release]
) -> dict[str, Any]:
    noise, rounds = plan.run_noise_multiplier, request.total_rounds
    gaussian = request.mechanism is Mechanism.GAUSSIAN
    count_stddev = clipped_count_stddev(request.cohort, noise, request.published_noise) if gaussian else None
    on_sum = sum_noise_multiplier(noise, count_stddev)
    return {
        "noise_multiplier": plan.noise_multiplier,
        "run_noise_multiplier": noise,
        "sum_noise_multiplier": on_sum if count_stddev else None,
        "clipped_count_stddev": count_stddev,
        "noise_on_mean": plan.noise_multiplier / request.accounted_cohort if gaussian else None,
        "noise_norm": noise_norm(on_sum, request.cohort, num_weights) if num_weights and gaussian else None,
        "noise_on_running_sum": plan.noise_on_running_sum,
        "epsilon": finite(plan.epsilon_at(rounds, name)),
        "spent_epsilon": finite(total_epsilon(plan, 0, spent_before, name)) if spent_before else None,
        "total_epsilon": finite(total_epsilon(plan, rounds, spent_before, name)) if spent_before else None,
        "own_epsilon": finite(plan.own_epsilon_at(rounds, name)) if request.simulated_cohort else None,
        "replace_one_epsilon": finite(plan.replace_one_epsilon_at(rounds)) if name == "rdp" else None,
        "rounds": _rounds(plan, request.epsilon, name, spent_before) if asks_for(request) == "rounds" else None,
    }


def _rounds(plan: PrivacyPlan, target: float | None, name: str, spent_before: Sequence[Release]) -> int:
    """The rounds with which epsilon, together with what was spent before, is at most the target."""
    assert target is not None
    guess = max(1, _rounds(plan, target, "rdp", spent_before)) if name == "pld" else 1

    def cost(rounds: int) -> float:
        return total_epsilon(plan, rounds, spent_before, name) if spent_before else plan.epsilon_at(rounds, name)

    return accounting.rounds_affordable(cost, target, guess)


def _setting(found: dict[str, Any]) -> str:
    cohort = f"{found['clients_per_round']:,} clients a round"
    if found["simulated_clients_per_round"]:
        cohort += f" simulating {found['simulated_clients_per_round']:,}"
    return (
        f"{found['num_users']:,} users, {cohort} ({found['client_sampling']}, q {found['sampling_probability']:.4g}), "
        f"{found['total_rounds']:,} rounds, delta {rounded_up(found['delta'])}, {found['mechanism']} noise"
        + (f" of {counted(found['bands'], 'band')}" if found["bands"] else "")
    )


def _remarks(found: dict[str, Any]) -> list[str]:
    remarks = []
    if found["published_noise"]:
        remarks.append(
            f"The noise is ml-flair's for epsilon {found['epsilon_asked']:g}, which counts rounds * users / cohort "
            "releases where there are rounds; the epsilon above is what it really gives."
        )
    if found["simulated_clients_per_round"]:
        remarks.append("A run with a simulated cohort does NOT have the stated epsilon; its own is above.")
    if found["client_sampling"] == Sampling.UNIFORM.value:
        remarks.append(
            "The epsilon assumes Poisson sampling, which fixed-size cohorts are not; what is proved for them is above."
        )
    for name, times in found["price"].items():
        other = {"fresh": "fresh noise with Poisson cohorts", "banded": "banded noise with cyclic cohorts"}[name]
        remarks.append(f"The noise on the running sum is {times:.3g} times that of {other} at the same epsilon.")
    if found["mechanism"] == Mechanism.BANDED.value and found["price"].get("fresh", 0) > HARDLY_LESS:
        remarks.append("Banded noise does not pay here, unless cohorts cannot be drawn in secret.")
    users_times_delta = found["num_users"] * found["delta"]
    if users_times_delta > SMALL_USERS_TIMES_DELTA:
        remarks.append(f"Users * delta is {rounded_up(users_times_delta)}, which is not small: see docs/privacy.md.")
    is_too_little = found["asks_for"] == "rounds" and not found["by"]["pld"]["rounds"]
    if is_too_little:
        remarks.append("Not even one round is affordable.")
    spent = found["by"]["pld"]["spent_epsilon"]
    if found["epsilon_asked"] and found["spent_before"] and (spent is None or spent > found["epsilon_asked"]):
        return [*remarks, "More was spent before.", "next: the same question with a larger --epsilon"]
    if found["spent_before"] and found["simulated_clients_per_round"]:
        remarks.append("With what was spent before, the run's own epsilon is added up and not the simulated one.")
    if found["by"]["rdp"]["noise_multiplier"] is None:
        remarks.append("RDP cannot state an epsilon that low; PLD can.")
    if is_too_little:
        return [*remarks, "next: the same question with a larger --epsilon, --noise_multiplier or both"]
    return [*remarks, f"next: {_next_command(found)}"]


def _next_command(found: dict[str, Any]) -> str:
    noise = f"--noise_multiplier={rounded_up(found['by']['pld']['noise_multiplier'], 6)}"
    budget = f"--epsilon={found['epsilon_asked']:g}" if found["asks_for"] == "noise" else noise
    rounds = found["by"]["pld"]["rounds"] or found["total_rounds"]
    parts = [
        "python -m benchmark.federated_main --tfrecords_dir=DIR",
        budget,
        f"--clients_per_round={found['clients_per_round']} --total_rounds={rounds}",
    ]
    if found["simulated_clients_per_round"]:
        parts.append(f"--simulated_clients_per_round={found['simulated_clients_per_round']}")
    if found["client_sampling"] == Sampling.FIXED.value:
        parts.append("--reuse_clients")
    elif found["client_sampling"] != Sampling.POISSON.value:
        parts.append(f"--client_sampling={found['client_sampling']}")
    if found["mechanism"] != Mechanism.GAUSSIAN.value:
        parts.append(f"--aggregator={found['mechanism']}")
    if found["bands"]:
        parts.append(f"--bands={found['bands']}")
    if found["published_noise"]:
        parts.append("--published_noise")
    if found["spent_before"]:
        parts.append("--also_spent=FILE")
    return " ".join(parts)


def _text(key: str, value: float | int | None) -> str:
    return rounded_up(value) if value is not None and key in _ROUNDED_UP else as_text(value)
