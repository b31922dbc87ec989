"""The privacy statement of a run: one dict, written as privacy.json and, in words, as privacy.txt."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmark.privacy import audit_text
from benchmark.privacy.accounting import ACCOUNTANTS, by_accountant, described
from benchmark.privacy.adaptive import noise_norm, sum_noise_multiplier
from benchmark.privacy.caveats import SMALL_USERS_TIMES_DELTA, KeyState, RunRecord, caveats, price_text
from benchmark.privacy.local import LOCAL, local_headline, local_rows
from benchmark.privacy.plan import PrivacyPlan, rms_noise
from benchmark.privacy.request import Mechanism, Sampling
from benchmark.privacy.rounding import as_text, finite, rounded_up, spent_text
from benchmark.privacy.spending import Release, as_json, can_add, release_of, total_epsilon
from benchmark.run.names import PRIVACY_FILE
from flair.files import atomic
from flair.terminal.counted import counted

FORMAT_VERSION = 2
TEXT_WIDTH = 100
ARTIFICIAL = "artificial user"
CLIP_NORMS_IN_TEXT = 12
_SAMPLING = {
    Sampling.POISSON: "every user in each round with probability q, independently (Poisson)",
    Sampling.UNIFORM: "exactly the cohort's number of users in each round, without replacement",
    Sampling.CYCLIC: "cohorts of a fixed shuffled order, the same in every pass",
    Sampling.FIXED: "the same cohort in every round",
}
_FROM_GROUPS = (
    "users are dealt into {0} fixed groups; every user in each {0}th round, that of the group, with probability q, "
    "independently (Poisson)"
)
_ASSUMED = {
    Sampling.POISSON: "the same",
    Sampling.UNIFORM: "every user in each round with probability q, independently (Poisson): NOT what was done",
    Sampling.CYCLIC: "no randomness: a user takes part at most once a pass",
    Sampling.FIXED: "no randomness: a user takes part in every round",
}
_WHERE = {
    Mechanism.GAUSSIAN: "fresh in every round",
    Mechanism.BANDED: "on banded combinations of rounds (matrix factorization)",
    Mechanism.TREE: "on the nodes of a binary tree (DP-FTRL)",
}


def make_statement(plan: PrivacyPlan, run: RunRecord) -> dict[str, Any]:
    """The statement as plain JSON values; an epsilon that is not finite is None.

    Its keys are documented in docs/privacy.md.
    """
    request, rounds = plan.request, run.rounds_completed
    noise, stddev = plan.run_noise_multiplier, run.clipped_count_stddev
    fresh = request.mechanism is Mechanism.GAUSSIAN
    used = _SAMPLING[request.sampling] if request.groups == 1 else _FROM_GROUPS.format(request.groups)
    on_sum = sum_noise_multiplier(noise, stddev)
    norms = [float(norm) for norm in run.clip_norms]
    counts = {"completed": rounds, "planned": request.total_rounds}

    def total(count: int, accountant: str) -> float:
        return total_epsilon(plan, count, run.spent_before, accountant)

    return {
        "format": FORMAT_VERSION,
        "unit": ARTIFICIAL if run.artificial_users else "user",
        "adjacency": (
            "one user's contributions replaced by zeros" if plan.is_zero_out else "one user added or removed"
        ),
        "users": plan.num_users,
        "sampling": {"used": used, "assumed": _ASSUMED[request.sampling], "probability": plan.sampling_probability},
        "trainable_weights": run.num_weights,
        "clients_per_round": request.cohort,
        "simulated_clients_per_round": request.simulated_cohort,
        "rounds": counts,
        "noise": {
            "where": _WHERE[request.mechanism] if noise else "none",
            "bands": request.bands,
            "noise_multiplier": plan.noise_multiplier,
            "run_noise_multiplier": noise,
            "sum_noise_multiplier": on_sum,
            "norm_on_mean": noise_norm(on_sum, request.cohort, run.num_weights) if run.num_weights and fresh else None,
            "on_running_sum": rms_noise(request, on_sum, request.cohort),
            "clipped_count_stddev": stddev,
            "published_formula": request.published_noise,
        },
        "clipping": {
            "kind": "fixed" if run.target_unclipped_quantile is None else "adaptive",
            "target_unclipped_quantile": run.target_unclipped_quantile,
            "least": min(norms, default=None),
            "most": max(norms, default=None),
            "clip_norms": norms,
        },
        "noise_key": run.noise_key.value,
        "noise_drawn_by": None if noise == 0 else "TFF" if run.drawn_by_tff else "the noise key",
        "restored_model": run.restored_model,
        "delta": plan.delta,
        "users_times_delta": plan.num_users * plan.delta,
        "target_epsilon": request.epsilon,
        "accountant": described(request.accountant),
        "epsilon": by_accountant(plan.epsilon_at, counts),
        "spending": _spending(plan, run),
        "spent_before": as_json(run.spent_before) or None,
        "total_epsilon": by_accountant(total, counts) if run.spent_before else None,
        "own_epsilon": None if request.simulated_cohort is None else finite(plan.own_epsilon_at(rounds)),
        "replace_one_epsilon": finite(plan.replace_one_epsilon_at(rounds)),
        "audit": run.audit,
        "caveats": [caveat._asdict() for caveat in caveats(plan, run)],
    }


def _spending(plan: PrivacyPlan, run: RunRecord) -> list[dict[str, Any]] | None:
    """What another statement may add up: this run, once its noise is safe, and what was spent before it."""
    is_safe = run.noise_key is KeyState.DELETED and not run.drawn_by_tff and not run.artificial_users
    if not is_safe or not can_add(plan.request):
        return None
    # That of fewer rounds is proved only where nobody looked at the models to choose their number.
    rounds = plan.request.total_rounds if run.may_stop_early else run.rounds_completed
    return as_json([release_of(plan, rounds), *run.spent_before])


def announcement(
    plan: PrivacyPlan, num_weights: int, count_stddev: float | None, spent_before: Sequence[Release] = ()
) -> list[str]:
    """What a run of so many trainable weights says about its privacy before it begins.

    `count_stddev` is the noise on the count of an adaptive clip norm; None: the norm is fixed.
    """
    request, noise = plan.request, plan.run_noise_multiplier
    if noise == 0:
        return ["NO PRIVACY: epsilon is infinite; updates are clipped, and no noise is added (--noise_multiplier=0)"]
    on_sum = sum_noise_multiplier(noise, count_stddev)
    lines = [
        f"differential privacy: epsilon {rounded_up(plan.epsilon)} at delta {rounded_up(plan.delta)} after "
        f"{request.total_rounds:,} rounds ({request.accountant.upper()}), noise multiplier "
        f"{plan.noise_multiplier:.4g}, {request.sampling} sampling of {request.cohort:,} of {plan.num_users:,} clients "
        "a round"
    ]
    if request.mechanism is Mechanism.GAUSSIAN:
        lines.append(
            f"{num_weights:,} weights train: the noise on a round's mean update is "
            f"{noise_norm(on_sum, request.cohort, num_weights):.3g} times as long as the clip norm, "
            "which no update exceeds"
        )
    if request.mechanism is Mechanism.BANDED:
        lines.append(
            f"banded noise, {request.bands} bands: the sum of all rounds has {plan.noise_on_running_sum:.4g} clip "
            f"norms of noise (RMS), {price_text(plan)}"
        )
    if spent_before:
        total = total_epsilon(plan, request.total_rounds, spent_before, request.accountant)
        lines.append(f"with what was spent on these users before (--also_spent): epsilon {rounded_up(total)}")
    if request.simulated_cohort is not None:
        lines.append(
            f"the noise is that of a simulated cohort of {request.simulated_cohort:,}; the run itself has epsilon "
            f"{rounded_up(plan.own_epsilon_at(request.total_rounds))}"
        )
    if request.sampling is Sampling.UNIFORM:
        lines.append("cohorts have a fixed size, but epsilon assumes Poisson sampling: see the privacy statement")
    return lines


def statement_text(statement: dict[str, Any]) -> str:
    """The statement in words: its claim, a table of its numbers (4 significant digits), and its caveats.

    It is made from the dict alone, so that privacy.txt and privacy.json cannot disagree.
    """
    lines = ["PRIVACY STATEMENT", "", *_wrapped(headline(statement)), ""]
    lines += [f"{label + ':':<36}{value}" for label, value in statement_rows(statement)]
    lines += ["", "What this does not cover, or not in full:"]
    for caveat in statement["caveats"]:
        lines += _wrapped(f"[{caveat['severity']}] {caveat['name']}: {caveat['text']}", indent="    ")
    return "\n".join(lines) + "\n"


def write_statement(folder: str | os.PathLike[str], statement: dict[str, Any]) -> None:
    """Writes `privacy.txt` and `privacy.json` into `folder`, each whole or not at all."""
    atomic.write_text(Path(folder, "privacy.txt"), statement_text(statement))
    atomic.write_json(Path(folder, PRIVACY_FILE), statement)


def headline(statement: dict[str, Any]) -> str:
    """The statement in a few sentences: what would make it void, the claim and its conditions, a large delta."""
    if statement.get("trust_model") == LOCAL:
        return local_headline(statement)
    if statement["noise"]["noise_multiplier"] == 0:
        return (
            "NO PRIVACY: epsilon is infinite. Updates were clipped, but no noise was added (--noise_multiplier=0): the "
            "models tell about their training users whatever they tell."
        )
    parts = [_audit(statement), _secrecy(statement), _claim(statement), _total(statement), _delta(statement)]
    return " ".join(filter(None, parts))


def _audit(statement: dict[str, Any]) -> str:
    audit = statement.get("audit")
    return f"{audit_text.verdict(audit)}." if audit and audit["contradicted_by"] else ""


def _secrecy(statement: dict[str, Any]) -> str:
    if statement.get("noise_drawn_by") == "TFF":
        return (
            "WHAT FOLLOWS DOES NOT HOLD AGAINST SOMEBODY WHO LOOKS FOR THE NOISE: TFF's runtime draws it from a seed "
            "of 32 bits, all of which can be tried."
        )
    key = statement.get("noise_key", "--seed")
    if key == KeyState.DELETED.value:
        return ""
    place = {
        KeyState.GIVEN.value: "the file given as --noise_key_file",
        KeyState.PRESENT.value: "noise.key in the run's folder",
        "--seed": "the --seed of this run (an older version's, whose noise followed from it)",
    }[key]
    return f"WHAT FOLLOWS HOLDS ONLY WHILE {place} IS SECRET: whoever has it can take the noise away."


def _total(statement: dict[str, Any]) -> str:
    total = statement.get("total_epsilon")
    if not total:
        return ""
    return (
        "Together with what was spent on these users before (--also_spent), which is no part of that, it is "
        f"({spent_text(total['completed'][statement['accountant']['name']])}, {rounded_up(statement['delta'])})."
    )


def _delta(statement: dict[str, Any]) -> str:
    users_times_delta = statement["users"] * statement["delta"]
    if users_times_delta <= SMALL_USERS_TIMES_DELTA:
        return ""
    return f"Users * delta = {rounded_up(users_times_delta)} is not small: see below."


def _claim(statement: dict[str, Any]) -> str:
    rounds, name = statement["rounds"], statement["accountant"]["name"]
    done = f"{rounds['completed']:,} of {rounds['planned']:,} rounds"
    spent = spent_text(statement["epsilon"]["completed"][name])
    guarantee = f"({spent}, {rounded_up(statement['delta'])})-differential privacy for one {statement['unit']}"
    if statement["unit"] == ARTIFICIAL:
        guarantee += ", who is NOT A PERSON (--iid)"
    provided = (
        "provided that only the models and clip norms of this run are released, and nothing else that its training "
        "users' photos went into: no training metrics, no cohorts, no other run"
    )
    if statement.get("restored_model"):
        provided += "; and that the weights it started from were made without these users' photos"
    simulated = statement["simulated_clients_per_round"]
    if not _is_fixed_size(statement):
        imagined, holds = "", f"its own epsilon is {spent_text(statement['own_epsilon'])}"
    else:
        imagined = ", drawn by Poisson sampling,"
        holds = (
            "for cohorts of fixed size, as its own, epsilon "
            f"{spent_text(statement['replace_one_epsilon'])} is proved (one user replaced by another)"
        )
    if simulated is not None:
        return (
            f"After {done}, a run with {simulated:,} clients a round{imagined} would have {guarantee}. THIS RUN DOES "
            f"NOT: it simulates that noise with {statement['clients_per_round']:,} clients; {holds}, {provided}."
        )
    if imagined:
        return (
            f"After {done} the models would have {guarantee}, HAD cohorts been drawn by Poisson sampling. THEY WERE "
            f"NOT: {holds}, {provided}."
        )
    return f"After {done} the models have {guarantee}, {provided}."


def _is_fixed_size(statement: dict[str, Any]) -> bool:
    return bool(statement["sampling"]["used"] == _SAMPLING[Sampling.UNIFORM])


def statement_rows(statement: dict[str, Any]) -> list[tuple[str, str]]:
    """What the numbers are called and what they are, as text."""
    if statement.get("trust_model") == LOCAL:
        return local_rows(statement)
    noise, clipping, epsilon = statement["noise"], statement["clipping"], statement["epsilon"]
    is_simulated = statement["simulated_clients_per_round"] is not None
    before = statement.get("spent_before")
    return [
        ("unit of privacy", statement["unit"]),
        ("adjacency", statement["adjacency"]),
        ("users", as_text(statement["users"])),
        ("clients a round", as_text(statement["clients_per_round"])),
        ("simulated clients a round", as_text(statement["simulated_clients_per_round"])),
        ("cohorts drawn", statement["sampling"]["used"]),
        ("cohorts assumed in accounting", statement["sampling"]["assumed"]),
        ("sampling probability q", as_text(statement["sampling"]["probability"])),
        ("rounds completed", as_text(statement["rounds"]["completed"])),
        ("rounds planned", as_text(statement["rounds"]["planned"])),
        ("noise", noise["where"]),
        ("  bands", as_text(noise.get("bands"))),
        ("noise key", str(statement.get("noise_key", "-"))),
        ("noise drawn by", str(statement.get("noise_drawn_by") or "-")),
        ("started from other weights", "yes" if statement.get("restored_model") else "no"),
        ("noise multiplier, total", as_text(noise["noise_multiplier"])),
        ("  given to the aggregator", as_text(noise["run_noise_multiplier"])),
        ("  on the sum of updates", as_text(noise["sum_noise_multiplier"])),
        ("  on the unclipped count (clients)", as_text(noise["clipped_count_stddev"])),
        ("weights that train", as_text(statement.get("trainable_weights"))),
        ("noise norm on the mean update", as_text(noise.get("norm_on_mean"))),
        ("noise on the running sum of means", as_text(noise.get("on_running_sum"))),
        ("noise by ml-flair's formula", "yes" if noise["published_formula"] else "no"),
        ("clipping", clipping["kind"]),
        ("target unclipped quantile", as_text(clipping["target_unclipped_quantile"])),
        ("clip norm, least and most", f"{as_text(clipping['least'])} and {as_text(clipping['most'])}"),
        ("clip norm over the rounds", _path(clipping["clip_norms"])),
        ("delta", rounded_up(statement["delta"])),
        ("users * delta", rounded_up(statement["users"] * statement["delta"])),
        ("accountant", f"{statement['accountant']['name']} ({statement['accountant']['library']})"),
        ("epsilon asked for", as_text(statement["target_epsilon"])),
        *_epsilon_rows("epsilon", epsilon),
        ("spent before (--also_spent)", counted(len(before), "mechanism") if before else "-"),
        *_epsilon_rows("  with it", statement.get("total_epsilon")),
        ("the run's own epsilon (simulated)", spent_text(statement["own_epsilon"]) if is_simulated else "-"),
        (
            "epsilon proved, one replaced, RDP",
            spent_text(statement["replace_one_epsilon"]) if _is_fixed_size(statement) else "-",
        ),
        *(audit_text.rows(statement["audit"]) if statement.get("audit") else []),
    ]


def _epsilon_rows(label: str, found: dict[str, Any] | None) -> list[tuple[str, str]]:
    return [
        (f"{label}, rounds {part}, {name.upper()}", spent_text(found[part][name]) if found else "-")
        for part in ("completed", "planned")
        for name in ACCOUNTANTS
    ]


def _path(norms: list[float]) -> str:
    """At most a dozen of the norms, evenly spaced, the first and the last among them."""
    count, last = min(len(norms), CLIP_NORMS_IN_TEXT), len(norms) - 1
    return " ".join(as_text(norms[round(i * last / max(count - 1, 1))]) for i in range(count)) or "-"


def _wrapped(text: str, indent: str = "") -> list[str]:
    return textwrap.wrap(text, TEXT_WIDTH, subsequent_indent=indent, break_long_words=False)
