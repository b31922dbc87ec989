"""Refuses flags that privacy, central or local, does not allow together; the rest is in `checks`."""

from __future__ import annotations

import dataclasses

from benchmark.federated.flags import CORRELATED, EXAMPLES, TFF
from benchmark.federated.settings import has_noise, is_private, mechanism, privacy_request, sampling
from benchmark.privacy.audit import LEAST_CANARIES
from benchmark.privacy.request import Mechanism, Sampling
from benchmark.privacy.spending import check_can_add, read_spending
from benchmark.rounds.config import MIME_LITE
from benchmark.run.flags import Flags
from flair.errors import FlairError


def check_privacy_flags(flags: Flags) -> None:
    """Refuses what central privacy, or a clip without noise, does not allow."""
    if flags.client_weighting == EXAMPLES:
        raise FlairError(
            "--client_weighting=examples: with differential privacy every client counts once, or a user with many "
            "photos would have more influence than the noise covers; leave it out"
        )
    quantile = flags.target_unclipped_quantile
    if flags.aggregator in CORRELATED and quantile > 0 and flags.is_changed("target_unclipped_quantile"):
        raise FlairError(
            f"--target_unclipped_quantile={quantile:g}: with --aggregator={flags.aggregator} the clip norm is fixed, "
            "because the noise that rounds share would have to fit the clip norms of all of them; give 0"
        )
    if not has_noise(flags) and quantile > 0 and flags.is_changed("target_unclipped_quantile"):
        raise FlairError(
            f"--target_unclipped_quantile={quantile:g}: with --noise_multiplier=0 the clip norm is fixed at "
            "--l2_norm_clip, because TFF adapts it only with noise on the count that it asks for; give 0"
        )
    if flags.runtime == TFF and flags.aggregator in CORRELATED:
        raise FlairError(
            f"--runtime=tff: the noise of --aggregator={flags.aggregator} cannot be given to TFF's own runtime, whose "
            "tree aggregation keeps it in every checkpoint; use --runtime=inprocess or ray"
        )
    if flags.runtime == TFF and flags.noise_key_file is not None:
        raise FlairError(
            f"--noise_key_file={flags.noise_key_file}: TFF's own runtime draws noise that cannot be repeated; use "
            "--runtime=inprocess or ray, or leave it out"
        )
    if flags.proximal_adapts_to is not None and flags.noise_key_file is not None:
        raise FlairError(
            f"--noise_key_file={flags.noise_key_file}: mu follows the validation loss (--proximal_adapts_to), so two "
            "runs of one key could share their noise and differ in their updates; leave one of them out"
        )
    if flags.aggregator not in ("mean", *CORRELATED):
        raise FlairError(
            f"--aggregator={flags.aggregator}: with differential privacy the noise clips already; "
            f"leave --aggregator out, or use {' or '.join(CORRELATED)}"
        )
    if flags.algorithm == MIME_LITE:
        raise FlairError(
            "--algorithm=mime_lite sends full gradients to the server without noise, so no epsilon can be stated; "
            "use fed_avg, fed_prox or fed_sgd with differential privacy"
        )
    if flags.audit_canaries:
        _check_canaries(flags)
    privacy_request(flags).check()
    if flags.also_spent is not None:
        check_can_add(privacy_request(flags))
        if flags.iid:
            raise FlairError(
                "--also_spent: artificial clients (--iid) are not the users of another result; leave it out"
            )
        read_spending(flags.also_spent)


def check_local_flags(flags: Flags) -> None:
    """Refuses what privacy on every client does not allow."""
    given = f"--local_noise_multiplier={flags.local_noise_multiplier:g}"
    if is_private(flags):
        central = (
            f"--epsilon={flags.epsilon:g}" if flags.epsilon != 0 else f"--noise_multiplier={flags.noise_multiplier:g}"
        )
        raise FlairError(
            f"{given} and {central} are both given: how local and central privacy add up is not stated here; give one"
        )
    if flags.client_weighting == EXAMPLES:
        raise FlairError(
            f"--client_weighting=examples: with {given} a client would tell its number of photos without noise; leave "
            "it out"
        )
    if flags.aggregator != "mean":
        raise FlairError(
            f"--aggregator={flags.aggregator}: with {given} updates are clipped and noised already, and their mean is "
            "what is meant; leave --aggregator out"
        )
    if flags.algorithm == MIME_LITE:
        raise FlairError(
            f"--algorithm=mime_lite sends full gradients, to which {given} adds no noise; use fed_avg, fed_prox or "
            "fed_sgd with local privacy"
        )
    if flags.runtime == TFF:
        raise FlairError(f"--runtime=tff: TFF's own clients add no noise; use --runtime=inprocess or ray with {given}")
    dataclasses.replace(privacy_request(flags), noise_multiplier=1.0).check()  # but for the noise, which is local


def _check_canaries(flags: Flags) -> None:
    given = f"--audit_canaries={flags.audit_canaries}"
    if flags.audit_canaries < LEAST_CANARIES:
        raise FlairError(f"{given}: so few prove nothing; give at least {LEAST_CANARIES} (say 100), or leave it out")
    if flags.runtime == TFF:
        raise FlairError(f"{given}: TFF's own runtime takes no canaries; use --runtime=inprocess or ray")
    if mechanism(flags) is not Mechanism.GAUSSIAN or sampling(flags) is not Sampling.POISSON:
        raise FlairError(
            f"{given}: a canary takes part in every round by a coin of its own, under fresh noise, and so must the "
            "users; use --client_sampling=poisson and --aggregator=mean, or leave it out"
        )
