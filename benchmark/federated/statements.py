"""What a federated run says about its privacy: before it begins, whenever it releases a model, and at the end."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmark.federated.flags import TFF
from benchmark.federated.settings import Setup
from benchmark.privacy import audit, audit_file, audit_text, noise_key
from benchmark.privacy.adaptive import sum_noise_multiplier
from benchmark.privacy.caveats import KeyState, RunRecord
from benchmark.privacy.local import local_announcement, make_local_statement
from benchmark.privacy.plan import PrivacyPlan
from benchmark.privacy.rounding import epsilon_text, finite, rounded_down, rounded_up
from benchmark.privacy.statement import announcement, make_statement, write_statement
from benchmark.rounds.config import SECURE, FederatedConfig
from benchmark.run.names import AUDIT_FILE
from benchmark.training import start
from flair.errors import FlairError

if TYPE_CHECKING:
    from benchmark.federated.loop import TrainingState
    from benchmark.rounds.runtime import Runtime


class Statements:
    """Announces, writes and sums up the privacy of one run; of a run without any there is nothing to say.

    Args:
      run_dir: where statements are written.
      runtime: of the run, which has the scores of its canaries.
      num_weights: how many numbers train.
    """

    def __init__(self, setup: Setup, run_dir: Path, runtime: Runtime, num_weights: int) -> None:
        self._setup, self._run_dir, self._runtime, self._num_weights = setup, run_dir, runtime, num_weights
        self._secure = _secure_aggregation(setup, runtime, num_weights)
        self._audited: dict[str, Any] | None = None  # what the canaries showed when the statement was last written

    def announce(self) -> None:
        """Prints what holds before the first round."""
        setup, plan = self._setup, self._setup.privacy_plan
        if self._secure is not None:
            print(
                "secure aggregation is SIMULATED: no update is masked, and this system sees each one; on devices a "
                f"client would send {self._secure['bits_per_client']:,} bits a round, masked, where a plain update "
                f"has {self._secure['plain_bits_per_client']:,}",
                flush=True,
            )
        if setup.local_plan is not None:
            print(local_announcement(setup.local_plan), flush=True)
        if plan is not None:
            stddev = None if setup.config.noise is None else setup.config.noise.clipped_count_stddev
            print("\n".join(announcement(plan, self._num_weights, stddev, setup.spent_before)), flush=True)
            if setup.flags.audit_canaries:
                print("audit:", "; ".join(audit_cost(setup, plan, self._num_weights)), flush=True)

    def write(self, state: TrainingState) -> None:
        """Writes the statement about the rounds so far."""
        setup, plan = self._setup, self._setup.privacy_plan
        has_key = (self._run_dir / noise_key.KEY_FILE).exists()
        if setup.local_plan is not None:
            flags, of_key = setup.flags, _key_state(setup, has_key)
            statement = make_local_statement(
                *(setup.local_plan, state.round, flags.l2_norm_clip, of_key, flags.iid),
                clients_looked_at=flags.rounds_per_client_eval > 0,
                may_stop_early=flags.early_stopping > 0,
            )
            write_statement(self._run_dir, statement)
        if plan is not None:
            self._audited = self._audit(plan, state.round)
            record = _run_record(setup, state.round, state.clip_norms, has_key, self._num_weights, self._audited)
            write_statement(self._run_dir, make_statement(plan, record))

    def summary(self, rounds: int) -> dict[str, Any]:
        """What summary.json has of it, as JSON values, once the last statement is written."""
        local, plan = self._setup.local_plan, self._setup.privacy_plan
        facts: dict[str, Any] = {} if self._secure is None else {"secure_aggregation": self._secure}
        if local is not None:
            facts["local_epsilon"] = {
                "of_a_round": finite(local.of_round()),
                "of_all_rounds": finite(local.epsilon_at(rounds)),
            }
        if plan is not None:
            facts["epsilon"] = finite(plan.own_epsilon_at(rounds))
            if plan.request.simulated_cohort is not None:
                facts["simulated_epsilon"] = plan.epsilon_at(rounds)
            facts |= {} if self._audited is None else {"audit": self._audited}
        return facts

    def _audit(self, plan: PrivacyPlan, rounds: int) -> dict[str, Any] | None:
        """What the canaries show so far, their scores written beside it; None without canaries."""
        scores = self._runtime.canary_scores()
        if scores is None:
            return None
        claim = _audited_claim(plan, self._setup.config, rounds)
        audit_file.write(self._run_dir / AUDIT_FILE, claim, scores)
        return audit.audit(claim, scores)


def report(summary: dict[str, Any], run_dir: Path) -> None:
    """Prints what a run's summary says about privacy."""
    read = f"read {run_dir / 'privacy.txt'} for what that means"
    if "epsilon" in summary:
        print(f"epsilon: {epsilon_text(summary['epsilon'])}; {read}")
    if "audit" in summary:
        contradicted = bool(summary["audit"]["contradicted_by"])
        print(f"audit: {audit_text.verdict(summary['audit'])}", file=sys.stderr if contradicted else sys.stdout)
    if "local_epsilon" in summary:
        local = summary["local_epsilon"]
        of_round, in_all = epsilon_text(local["of_a_round"]), epsilon_text(local["of_all_rounds"])
        print(f"local epsilon: {of_round} a round, {in_all} in all; {read}")


def check(setup: Setup, num_weights: int) -> None:
    """Refuses noise that has no room in memory, and so many canaries that an adaptive clip norm follows them."""
    plan, canaries = setup.privacy_plan, setup.flags.audit_canaries
    if plan is None:
        return
    check_noise_memory(plan, num_weights)
    if canaries and _settled_quantile(setup, _canaries_cost(setup, plan, num_weights)) >= 1:
        raise FlairError(
            f"--audit_canaries={canaries}: so many, beside {plan.num_users:,} users, would raise an adaptive clip "
            "norm for ever, since canaries are always clipped; give fewer, or --target_unclipped_quantile=0"
        )


def audit_cost(setup: Setup, plan: PrivacyPlan, num_weights: int) -> list[str]:
    """What the canaries will cost and can show, in words."""
    canaries, cost = setup.flags.audit_canaries, _canaries_cost(setup, plan, num_weights)
    provable, delta = audit.most_provable(canaries, plan.delta), rounded_up(plan.delta)
    lines = [
        f"{canaries:,} canaries, half of them in: {audit_text.cost_text(cost)}",
        f"guesses can prove epsilon {rounded_down(provable)} at most"
        if provable > 0
        else f"at delta {delta} guesses can prove no epsilon (--delta=1e-6 would let them); noise and influence can",
    ]
    if settled := _settled_quantile(setup, cost):
        target = setup.flags.target_unclipped_quantile
        lines.append(f"the clip norm settles where {settled:.3g} of the users' updates are not clipped, not {target:g}")
    return lines


def _canaries_cost(setup: Setup, plan: PrivacyPlan, num_weights: int) -> dict[str, float]:
    claim = _audited_claim(plan, setup.config, plan.request.total_rounds)
    return audit.cost(claim, setup.flags.audit_canaries / 2, num_weights)


def _settled_quantile(setup: Setup, cost: dict[str, float]) -> float:
    """The part of users' updates that an adaptive clip norm comes to leave unclipped; 0 where it is fixed."""
    noise = setup.config.noise
    if noise is None or not noise.target_unclipped_quantile:
        return 0.0
    # A canary is always clipped, and TFF's count is of the expected users: it is off by a half for each canary.
    return noise.target_unclipped_quantile + cost["part_of_cohort"] / 2


def check_noise_memory(plan: PrivacyPlan, num_weights: int) -> None:
    """Refuses banded noise that would take more than half of the machine's memory."""
    band, memory = 4 * num_weights, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    kept = len(plan.column) - 1
    if kept * band > memory / 2:
        raise FlairError(
            f"{len(plan.column):,} bands: the noise of {kept:,} rounds, {num_weights:,} weights each, stays in memory "
            f"and takes {kept * band / 2**30:.1f} GiB of this machine's {memory / 2**30:.1f}; give at most "
            f"--bands={1 + int(memory / 2 // band)}, or train fewer weights"
        )


def _key_state(setup: Setup, has_key: bool) -> KeyState:
    if setup.flags.noise_key_file is not None:
        return KeyState.GIVEN
    return KeyState.PRESENT if has_key else KeyState.DELETED


def _run_record(
    setup: Setup, rounds: int, clip_norms: Sequence[float], has_key: bool, num_weights: int, found: dict | None
) -> RunRecord:
    flags, noise = setup.flags, setup.config.noise
    assert noise is not None
    return RunRecord(
        rounds_completed=rounds,
        clip_norms=clip_norms,
        target_unclipped_quantile=noise.target_unclipped_quantile or None,
        clipped_count_stddev=noise.clipped_count_stddev,
        artificial_users=flags.iid,
        restored_model=start.is_given(flags),
        noise_key=_key_state(setup, has_key) if noise.noise_multiplier > 0 else KeyState.NONE,
        drawn_by_tff=flags.runtime == TFF,
        num_weights=num_weights,
        spent_before=setup.spent_before,
        audit=found,
        clients_looked_at=flags.rounds_per_client_eval > 0,
        may_stop_early=flags.early_stopping > 0,
    )


def _audited_claim(plan: PrivacyPlan, config: FederatedConfig, rounds: int) -> audit.Claim:
    """What is claimed of the run itself after so many rounds."""
    noise, request = config.noise, plan.request
    assert noise is not None
    return audit.Claim(
        epsilon=plan.own_epsilon_at(rounds),
        delta=plan.delta,
        accountant=request.accountant,
        noise_multiplier=sum_noise_multiplier(noise.noise_multiplier, noise.clipped_count_stddev),
        clipped_count_stddev=noise.clipped_count_stddev,
        sampling_probability=request.cohort / plan.num_users,
        rounds=rounds,
        clients_per_round=request.cohort,
    )


def _secure_aggregation(setup: Setup, runtime: Runtime, num_weights: int) -> dict[str, Any] | None:
    """What a client would send in a round of --aggregator=secure, in bits; None for the other aggregators."""
    from benchmark.rounds.server import RoundServer

    if setup.config.aggregator != SECURE:
        return None
    assert isinstance(runtime, RoundServer)
    bits = runtime.aggregation.spec.secure_bits(setup.flags.clients_per_round)
    return {"simulated": True, "bits_per_client": bits, "plain_bits_per_client": 32 * num_weights}
