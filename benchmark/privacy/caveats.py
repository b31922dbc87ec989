"""What a privacy statement does not cover: its caveats, from the facts of a run."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from benchmark.privacy import audit_text
from benchmark.privacy.adaptive import clip_collapses
from benchmark.privacy.plan import PrivacyPlan, price
from benchmark.privacy.request import Mechanism, Sampling
from benchmark.privacy.rounding import rounded_up, small_delta
from benchmark.privacy.spending import Release

WEAK_EPSILON = 10.0
SMALL_USERS_TIMES_DELTA = 0.01


class KeyState(enum.Enum):
    """Where the key is that noise and cohorts follow from."""

    DELETED = "deleted"  # drawn for this run, and deleted when it was complete
    PRESENT = "in the run folder"  # drawn for this run, and still there
    GIVEN = "given as a file"  # from a --noise_key_file, which stays
    NONE = "none"  # there is no noise, and cohorts follow from --seed


class Caveat(NamedTuple):
    """One limit of the statement; severity "critical" (no such guarantee), "high", "medium" or "note"."""

    severity: str
    name: str
    text: str


FLOATING_POINT = Caveat(
    "note",
    "floating point",
    "The proof is about real numbers; the noise is rounded to float32. Attacks on low-order bits (Mironov 2012) are "
    "out of its scope.",
)
CLIENTS_LOOKED_AT = Caveat(
    "high",
    "clients looked at",
    "clients.csv.gz (--rounds_per_client_eval) names the clients of some rounds, with exact losses, norms and angles "
    "of updates and distances of labels; not_private/gradient_diversity and not_private/cosine_to_mean in metrics.csv "
    "are made of clean updates. None of it is covered: keep it private, or delete it before giving the folder away.",
)


@dataclasses.dataclass(frozen=True)
class RunRecord:
    """What happened in a run, as far as its privacy goes.

    Attributes:
      clip_norms: the L2 clip norm in force in each completed round, in order.
      target_unclipped_quantile: None where the clip norm is fixed.
      clipped_count_stddev: standard deviation of the noise on the count of unclipped clients, in clients of the run;
        None where the clip norm is fixed.
      artificial_users: users were drawn across the split (--iid), so that the unit is not a person.
      restored_model: training started from other weights (--restore_model_path, --backbone_weights).
      drawn_by_tff: the noise is TFF's own (--runtime=tff); only the cohorts follow from the key.
      num_weights: how many numbers of the model train; None where that is not known.
      spent_before: what earlier results about the same users were (--also_spent).
      audit: what `audit.audit` found; None of a run without canaries.
      clients_looked_at: single clients were looked at (--rounds_per_client_eval).
      may_stop_early: a rule that looks at the models decides after which round training ends (--early_stopping).
    """

    rounds_completed: int
    clip_norms: Sequence[float]
    target_unclipped_quantile: float | None = None
    clipped_count_stddev: float | None = None
    artificial_users: bool = False
    restored_model: bool = False
    noise_key: KeyState = KeyState.PRESENT
    drawn_by_tff: bool = False
    num_weights: int | None = None
    spent_before: Sequence[Release] = ()
    audit: dict[str, Any] | None = None
    clients_looked_at: bool = False
    may_stop_early: bool = False


def stopped_early(planned_epsilon: float, of_local: bool = False) -> Caveat:
    """Of a run that --early_stopping ended; nothing adds up the epsilon of local privacy."""
    added_up = "" if of_local else ", and that is what another statement adds up"
    return Caveat(
        "high",
        "early stopping",
        "After which round training ends was decided by a rule that looks at its models, on validation users "
        "(--early_stopping). The epsilon of the rounds completed is that of a run which was to be so long from the "
        "start; what holds whatever the rule decides is the epsilon of all planned rounds, "
        f"{rounded_up(planned_epsilon)} (https://arxiv.org/abs/1605.08294){added_up}.",
    )


def caveats(plan: PrivacyPlan, run: RunRecord) -> list[Caveat]:
    """The limits of what `plan` promises about `run`, the gravest first."""
    if plan.noise_multiplier == 0:
        return [
            Caveat(
                "critical",
                "no noise",
                "Updates were clipped and their sum divided by the expected number of clients, as in a private run, "
                "but no noise was added (--noise_multiplier=0): an ablation. Nothing here protects anybody, and "
                "cohorts follow from --seed.",
            )
        ]
    return gravest_first(
        [*_about_accounting(plan, run), *_about_noise(plan, run), *_about_release(run), *_about_audit(run)]
    )


def gravest_first(found: Sequence[Caveat]) -> list[Caveat]:
    """Caveats by their severity; those of one severity stay in their order."""
    order = ("critical", "high", "medium", "note")
    return sorted(found, key=lambda caveat: order.index(caveat.severity))


def price_text(plan: PrivacyPlan) -> str:
    """The noise of a plan beside that of other mechanisms with the same epsilon, in words."""
    named = {"fresh": "fresh noise with Poisson cohorts", "banded": "banded noise with the same cohorts"}
    return (
        " and ".join(f"{times:.3g} times that of {named[name]}" for name, times in price(plan).items()) or "unmatched"
    )


def _about_accounting(plan: PrivacyPlan, run: RunRecord) -> Iterator[Caveat]:
    request, rounds = plan.request, run.rounds_completed
    if request.simulated_cohort is not None:
        yield Caveat(
            "critical",
            "simulated cohort",
            f"The epsilon stated is that of a run with {request.simulated_cohort:,} clients a round; the run itself "
            f"does NOT have this epsilon. It trained {request.cohort:,} clients a round with noise multiplier "
            f"{plan.run_noise_multiplier:.4g}: its own epsilon is {rounded_up(plan.own_epsilon_at(rounds))}"
            f"{', had its cohorts been drawn by Poisson sampling' if request.sampling is Sampling.UNIFORM else ''}.",
        )
    if run.artificial_users:
        yield Caveat(
            "critical",
            "artificial users",
            "Clients were drawn across the split (--iid): the photos of one person lie in many clients, so that "
            "the epsilon protects an artificial client, not a person.",
        )
    proved = plan.replace_one_epsilon_at(rounds)
    if proved is not None:
        yield Caveat(
            "high",
            "fixed-size sampling",
            f"Each cohort was exactly {request.cohort:,} users drawn without replacement, but an epsilon assumes "
            "Poisson sampling; the two can differ widely (https://arxiv.org/abs/2405.20769). What is proved for "
            f"this sampling is epsilon {rounded_up(proved)} when one user is replaced by another (RDP). Use "
            "--client_sampling=poisson for the stated epsilon.",
        )
    if request.sampling is Sampling.FIXED:
        yield Caveat(
            "note",
            "fixed cohort",
            f"The same {request.cohort:,} users trained every round: no amplification by sampling is claimed for "
            "them, and the other users are not used.",
        )
    if request.mechanism is Mechanism.TREE:
        yield Caveat(
            "note",
            "tree aggregation",
            f"The epsilon holds because no user takes part twice within {plan.separation:,} rounds, which the "
            "run's schedule ensures; adjacency is zeroing out one user's contributions. At this epsilon the noise on "
            f"the sum of all rounds is {price_text(plan)}.",
        )
    if request.mechanism is Mechanism.BANDED:
        apart = (
            f"no user takes part twice within {plan.separation:,} rounds, which the run's schedule ensures"
            if request.sampling is Sampling.CYCLIC
            else f"users are dealt into {request.bands:,} fixed groups, of which rounds sample one after the other"
        )
        yield Caveat(
            "note",
            "banded noise",
            f"The epsilon holds because {apart}, and the noise is shared by {request.bands:,} rounds; adjacency is "
            f"{'zeroing out' if plan.is_zero_out else 'adding or removing'} one user's contributions. At this epsilon "
            f"the noise on the sum of all rounds is {price_text(plan)}.",
        )
    if run.may_stop_early and rounds < request.total_rounds:
        yield stopped_early(plan.epsilon_at(request.total_rounds))
    users_times_delta = plan.num_users * plan.delta
    if users_times_delta > SMALL_USERS_TIMES_DELTA:
        severity, outcome = (
            ("high", "publishing one user's data outright would satisfy it")
            if users_times_delta >= 1
            else ("medium", "publishing all photos of one user drawn at random with that probability would satisfy it")
        )
        yield Caveat(
            severity,
            "large delta",
            f"users * delta = {rounded_up(users_times_delta)} is not small: {outcome}. "
            f"--delta={small_delta(plan.num_users, SMALL_USERS_TIMES_DELTA)} or less would make it small, for "
            "more noise.",
        )
    if plan.epsilon_at(rounds) > WEAK_EPSILON:
        yield Caveat(
            "high",
            "weak guarantee",
            f"An epsilon above {WEAK_EPSILON:g} promises little: use more noise, fewer rounds or more users.",
        )
    if run.spent_before:
        yield Caveat(
            "medium",
            "spent before",
            "The noise is that of this run's own epsilon; what was spent on its users before (--also_spent) is in the "
            "total alone. That those were the same users is taken on trust: only their number was compared.",
        )
    if request.published_noise:
        yield Caveat(
            "note",
            "published noise",
            f"The noise is ml-flair's for epsilon {request.epsilon:g} (--published_noise), which counts "
            "rounds * users / cohort releases where there are rounds: far more noise than that epsilon needs. The "
            "epsilon stated here is what this noise really gives.",
        )


def _about_noise(plan: PrivacyPlan, run: RunRecord) -> Iterator[Caveat]:
    if run.drawn_by_tff:
        yield Caveat(
            "critical",
            "noise of TFF's runtime",
            "TFF's worker process draws the noise from a generator that it seeds with 32 bits: whoever has the "
            "models can try them all, and take the noise away. A run that was continued drew other noise for the "
            "rounds since its checkpoint, which is counted once. For comparisons with TFF only; "
            "--runtime=inprocess and ray draw the noise from a cipher with a key of 256 bits.",
        )
    if run.noise_key is KeyState.PRESENT:
        yield Caveat(
            "critical",
            "noise key",
            "Noise and cohorts (with --runtime=tff cohorts alone) follow from noise.key in the run's folder: "
            "whoever reads it can take the noise away. It is deleted when the run is complete, unless "
            "--keep_noise_key is given; publish nothing of this folder before.",
        )
    if run.noise_key is KeyState.GIVEN:
        yield Caveat(
            "critical",
            "noise key file",
            "Noise and cohorts follow from the file given as --noise_key_file, so that whoever has it can take the "
            "noise away. Release one run of such a file only: repeated on another machine, runtime or number of "
            "workers, its models differ by more than rounding in the end, but their noise is the same.",
        )
    if run.target_unclipped_quantile is not None and run.clipped_count_stddev is not None:
        stddev, quantile = run.clipped_count_stddev, run.target_unclipped_quantile
        if clip_collapses(plan.request.cohort, stddev, quantile, plan.request.sampling is Sampling.POISSON):
            yield Caveat(
                "note",
                "collapsing clip",
                f"With {plan.request.cohort:,} clients the noise on the unclipped count ({stddev:.3g} clients) and the "
                "changing size of the cohort alone push the fraction above the target "
                f"{quantile:g}, so that the clip norm shrinks towards zero: "
                "private, but training stops. Use larger cohorts, a larger --target_unclipped_quantile, or a "
                "fixed clip (0).",
            )
    yield FLOATING_POINT


def _about_release(run: RunRecord) -> Iterator[Caveat]:
    yield Caveat(
        "high",
        "un-noised measurements",
        "Covered are the model after each round and the clip norms. Training loss and metrics, cohort sizes, "
        "per-client metrics, columns that begin with not_private and debug measurements come from the training users "
        "without noise: keep them private.",
    )
    if run.clients_looked_at:
        yield CLIENTS_LOOKED_AT
    yield Caveat(
        "medium",
        "tuning",
        "Every further run on these users, such as trying hyper-parameters, costs epsilon of its own, and choosing "
        "the best of several costs too (https://arxiv.org/abs/2110.03620).",
    )
    yield Caveat(
        "medium",
        "evaluation users",
        "Validation and test users are not protected: their metrics are exact and choose the best model.",
    )
    yield Caveat(
        "medium",
        "unit",
        "What is hidden is one user's photos and labels altogether; a person shown in other users' photos is not "
        "protected.",
    )
    yield Caveat(
        "note",
        "trusted server",
        "This is central differential privacy: who runs the training sees every client's update.",
    )
    if run.restored_model:
        yield Caveat(
            "high",
            "restored weights",
            "Training started from other weights: if users of this training took part in making those, epsilon "
            "does not hold for them.",
        )


def _about_audit(run: RunRecord) -> Iterator[Caveat]:
    audit = run.audit
    if audit is None:
        return
    if audit["contradicted_by"]:
        yield Caveat(
            "critical",
            "contradicted by the audit",
            f"{audit_text.verdict(audit)}. Do not release these models: noise, clipping or cohorts are not what is "
            f"accounted for, or this is one of the (at most) {100 - 100 * audit['confidence']:.3g} in 100 honest runs "
            "that chance contradicts, and the same run with another key would not be.",
        )
    yield Caveat(
        "note",
        "canaries",
        f"{audit['included']:,} clients that are nobody took part beside the users, whose guarantee they do not "
        f"change: {audit_text.cost_text(audit['cost'])}.",
    )
