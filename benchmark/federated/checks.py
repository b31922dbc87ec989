"""Refuses federated flags that cannot work together, or that would change nothing.

All of it happens before TensorFlow is loaded. A flag counts as given where its value is not the default, because the
flags.txt of a run names every flag and a run repeated from it must pass. A flag that changes nothing is refused,
because a sweep over it would compare equal runs. The table of flags has refused numbers out of bounds.
"""

from __future__ import annotations

import importlib.util
import re
import sys

from benchmark.federated.flags import CORRELATED, EXAMPLES, POISSON, PRIVACY_FLAGS, RAY, RAY_FLAGS, TFF, TRAIN_LOSS
from benchmark.federated.privacy_checks import check_local_flags, check_privacy_flags
from benchmark.federated.settings import has_noise, is_local, is_private, target_quantile
from benchmark.privacy.request import Mechanism, Sampling
from benchmark.rounds.config import FED_PROX, FED_SGD, MIME_LITE, SCAFFOLD, SECURE
from benchmark.run.flags import Flags
from benchmark.training.flags import caches_features
from benchmark.training.loss import check_frequencies_are_free
from flair.errors import FlairError

# Flags of privacy that say how updates are clipped where no noise is added.
_OF_CLIPPING = ("epsilon", "noise_multiplier", "l2_norm_clip", "target_unclipped_quantile")
_OF_LOCAL = ("local_noise_multiplier", "l2_norm_clip", "delta", "accountant", "noise_key_file", "keep_noise_key")
_WITH_SECOND_MOMENT = ("adam", "adamw", "yogi")


def check_federated_flags(flags: Flags) -> None:
    """Refuses what cannot work by a FlairError that names the flag, what was given and what is possible."""
    if flags.reuse_clients and flags.client_sampling is not None:
        raise FlairError("--reuse_clients and --client_sampling are both given: a reused cohort is not sampled")
    _check_artificial_clients(flags)
    if flags.federated_eval_clients and not flags.federated_eval:
        raise FlairError("--federated_eval_clients has no effect without --federated_eval; add that or leave it out")
    if flags.federated_eval_local_training and not flags.federated_eval and not flags.rounds_per_client_eval:
        raise FlairError(
            "--federated_eval_local_training has no effect without --federated_eval or --rounds_per_client_eval; add "
            "one of them or leave it out"
        )
    _check_client_eval(flags)
    if flags.early_stopping >= flags.total_rounds:
        raise FlairError(
            f"--early_stopping={flags.early_stopping}: nothing would stop --total_rounds={flags.total_rounds} before "
            "they are over; give less, or leave it out"
        )
    if flags.proximal_strength > 0 and flags.algorithm != FED_PROX:
        raise FlairError(f"--proximal_strength={flags.proximal_strength:g} has no effect without --algorithm=fed_prox")
    if flags.algorithm == FED_PROX and flags.proximal_strength == 0 and flags.proximal_adapts_to is None:
        raise FlairError("--algorithm=fed_prox needs --proximal_strength above 0 (say 0.01), or --proximal_adapts_to")
    if flags.proximal_adapts_to is not None:
        _check_adapting_flags(flags)
    scheduled = flags.client_lr_schedule != "constant" or flags.client_warmup_rounds > 0
    if scheduled and flags.algorithm in (FED_SGD, MIME_LITE):
        raise FlairError(
            f"--client_lr_schedule and --client_warmup_rounds have no effect with --algorithm={flags.algorithm}"
        )
    if scheduled and flags.runtime == TFF and (flags.algorithm == FED_PROX or is_private(flags)):
        raise FlairError(
            "TFF schedules the clients' learning rate for fed_avg without privacy only; use --runtime=inprocess"
        )
    if flags.runtime == RAY and flags.dry_run and caches_features(flags):
        raise FlairError(
            "--dry_run: workers of --runtime=ray open features that are there; plan with --runtime=inprocess"
        )
    _check_ray_flags(flags)
    if flags.algorithm == SCAFFOLD:
        _check_scaffold_flags(flags)
    if flags.aggregator == SECURE:
        _check_secure_flags(flags)
    if is_local(flags):
        check_local_flags(flags)
    if flags.logit_adjustment is not None and (has_noise(flags) or is_local(flags)):
        check_frequencies_are_free(flags.logit_adjustment, flags.also_spent)
    _refuse_ineffective(flags)
    if is_private(flags):
        check_privacy_flags(flags)
    elif flags.aggregator in CORRELATED:
        raise FlairError(f"--aggregator={flags.aggregator} adds noise: give --epsilon or --noise_multiplier")


def _check_client_eval(flags: Flags) -> None:
    given = f"--rounds_per_client_eval={flags.rounds_per_client_eval}"
    if not flags.rounds_per_client_eval:
        if flags.is_changed("clients_per_client_eval"):
            raise FlairError(
                "--clients_per_client_eval has no effect without --rounds_per_client_eval; add that or leave it out"
            )
        return
    if flags.runtime == TFF:
        raise FlairError(f"{given}: --runtime=tff shows no client's update; use --runtime=inprocess or ray")
    if flags.rounds_per_client_eval > flags.total_rounds:
        raise FlairError(f"{given}: no client would be looked at in --total_rounds={flags.total_rounds}; give less")
    if flags.aggregator == SECURE:
        raise FlairError(
            f"{given} looks at single updates, which --aggregator={SECURE} hides from the server; leave one of them out"
        )


def _check_secure_flags(flags: Flags) -> None:
    given = f"--aggregator={SECURE}"
    if is_private(flags):
        raise FlairError(
            f"{given}: a private run clips and sums updates by an aggregator of its own, which is not simulated as a "
            "secure sum; leave --aggregator out"
        )
    if flags.runtime == TFF:
        raise FlairError(f"--runtime=tff: TFF's own runtime has no secure sums; use --runtime=inprocess with {given}")
    if flags.client_sampling == Sampling.POISSON:
        raise FlairError(
            f"--client_sampling=poisson: with {given} the bits of a sum hold a cohort of known size; use uniform or "
            "cyclic"
        )
    if flags.algorithm == MIME_LITE:
        raise FlairError(f"--algorithm=mime_lite sends full gradients beside the secure sum of {given}; use fed_avg")
    if flags.debug_measurements:
        raise FlairError(f"--debug_measurements sends norms of updates beside the secure sum of {given}; leave it out")


def _check_artificial_clients(flags: Flags) -> None:
    mean, least = flags.mean_datapoints_per_user, flags.minimum_num_datapoints_per_user
    if mean is not None and not flags.iid:
        raise FlairError("--mean_datapoints_per_user sizes the artificial clients of --iid; add --iid or leave it out")
    if flags.fresh_photos and mean is None:
        raise FlairError(
            "--fresh_photos draws the photos of the artificial clients of --iid: give --iid and "
            "--mean_datapoints_per_user (say 50), or leave it out"
        )
    is_poisson = flags.datapoints_per_user_distribution == POISSON
    if is_poisson and not flags.fresh_photos:
        raise FlairError("--datapoints_per_user_distribution=poisson has no effect without --fresh_photos; add that")
    if least > 1 and not is_poisson:
        raise FlairError(
            f"--minimum_num_datapoints_per_user={least} has no effect without "
            "--datapoints_per_user_distribution=poisson; leave it out"
        )
    if is_poisson and least > mean:
        raise FlairError(
            f"--minimum_num_datapoints_per_user={least}: expected at most --mean_datapoints_per_user={mean}"
        )


def _check_adapting_flags(flags: Flags) -> None:
    given = f"--proximal_adapts_to={flags.proximal_adapts_to}"
    if flags.algorithm != FED_PROX:
        raise FlairError(f"{given} has no effect without --algorithm=fed_prox; add that or leave it out")
    if flags.proximal_strength > 1 or flags.proximal_step == 0:
        raise FlairError(
            f"{given}: mu adapts between 0 and 1, by a step above 0; given were --proximal_strength="
            f"{flags.proximal_strength:g} and --proximal_step={flags.proximal_step:g}"
        )
    if flags.proximal_adapts_to != TRAIN_LOSS and flags.rounds_per_eval >= flags.total_rounds:
        raise FlairError(
            f"{given}: mu would not adapt before the last round; give a --rounds_per_eval below --total_rounds="
            f"{flags.total_rounds}"
        )
    if flags.runtime == TFF:
        raise FlairError(
            f"--runtime=tff: mu is fixed in TFF's own process; use --runtime=inprocess or ray with {given}"
        )
    if flags.proximal_adapts_to == TRAIN_LOSS and (is_private(flags) or is_local(flags)):
        raise FlairError(
            f"{given}: the loss of the clients has no noise, and would shape a private model; give val_loss"
        )


def _check_scaffold_flags(flags: Flags) -> None:
    given = f"--algorithm={SCAFFOLD}"
    if is_private(flags) or is_local(flags):
        raise FlairError(
            f"{given}: a user's control variate is kept and shapes every later update, and the server's mean of them "
            "would need noise and accounting of its own, so no epsilon can be stated; use fed_avg, fed_prox or fed_sgd"
        )
    if flags.runtime == TFF:
        raise FlairError(
            f"--runtime=tff: TFF's own clients keep nothing from one round to the next; use --runtime=inprocess or ray "
            f"with {given}"
        )
    if flags.aggregator != "mean":
        raise FlairError(
            f"--aggregator={flags.aggregator} would act on updates alone, and {given} sends control variates beside "
            "them; leave --aggregator out"
        )
    if flags.client_weighting == EXAMPLES:
        raise FlairError(
            f"--client_weighting=examples: the control variates of {given} add up to nothing only where every client "
            "counts once; leave it out"
        )
    if flags.rounds_per_client_eval:
        raise FlairError(
            f"--rounds_per_client_eval={flags.rounds_per_client_eval} trains clients of a round a second time, and in "
            f"{given} their control variates have moved by then; leave it out"
        )
    if flags.fresh_photos:
        raise FlairError(
            f"--fresh_photos: an artificial client has other photos at every visit, and {given} keeps what it learned "
            "of them; leave it out"
        )


def _check_ray_flags(flags: Flags) -> None:
    if flags.runtime != RAY:
        for flag in RAY_FLAGS:
            if flags.is_changed(flag.name):
                raise FlairError(f"--{flag.name} has no effect without --runtime=ray; add that or leave it out")
        return
    if flags.worker_gpus > 1 and flags.worker_gpus != int(flags.worker_gpus):
        raise FlairError(f"--worker_gpus={flags.worker_gpus:g}: expected a whole number, or a fraction below 1")
    address = flags.ray_address
    if address is not None and address != "auto":
        host, _, port = address.rpartition(":")
        if "/" in address or not host or not re.fullmatch(r"[0-9]{1,5}", port) or not 0 < int(port) < 65536:
            raise FlairError(
                f"--ray_address={address}: expected host:port as `ray start --head` printed it (the default port is "
                "6379), or auto, on a machine of the cluster"
            )
    if importlib.util.find_spec("ray") is None:
        raise FlairError("--runtime=ray: the package ray is not installed; add it with `make environment EXTRAS=ray`")


def _refuse_ineffective(flags: Flags) -> None:
    algorithm, optimizer, private = flags.algorithm, flags.server_optimizer, is_private(flags)
    # Local training after the rounds is plain SGD whatever the algorithm, with these flags.
    trains_locally = flags.federated_eval_local_training
    clipping = ("client_clipnorm", "global_clipnorm")
    with_optimizer = f"with --server_optimizer={optimizer}"
    # Where a condition holds, flags have no effect, for a reason.
    rules = (
        (
            algorithm == FED_SGD and not trains_locally,
            ("client_learning_rate", *clipping),
            "with --algorithm=fed_sgd, whose clients send plain gradients",
        ),
        (algorithm == MIME_LITE and not trains_locally, clipping, "with --algorithm=mime_lite, which does not clip"),
        (algorithm != SCAFFOLD, ("user_state_dir",), f"with --algorithm={algorithm}, which keeps nothing of users"),
        (flags.proximal_adapts_to is None, ("proximal_step", "proximal_patience"), "without --proximal_adapts_to"),
        (flags.client_clipnorm == 0, ("global_clipnorm",), "with --client_clipnorm=0"),
        (optimizer != "momentum" and algorithm != MIME_LITE, ("server_momentum",), with_optimizer),
        (optimizer not in (*_WITH_SECOND_MOMENT, "adagrad"), ("server_epsilon",), with_optimizer),
        (optimizer not in _WITH_SECOND_MOMENT, ("server_beta_2",), with_optimizer),
        (optimizer != "adamw", ("server_weight_decay",), with_optimizer),
        (flags.server_lr_schedule == "constant", ("server_final_learning_rate",), "with --server_lr_schedule=constant"),
        (
            not private and not is_local(flags),
            [flag.name for flag in PRIVACY_FLAGS],
            "without --epsilon or --noise_multiplier",
        ),
        (
            is_local(flags),
            [flag.name for flag in PRIVACY_FLAGS if flag.name not in _OF_LOCAL],
            "with --local_noise_multiplier, whose clients clip to a fixed norm",
        ),
        (flags.aggregator != Mechanism.BANDED, ("bands",), "without --aggregator=banded"),
        (
            private and not has_noise(flags),
            [flag.name for flag in PRIVACY_FLAGS if flag.name not in _OF_CLIPPING],
            "with --noise_multiplier=0, which only clips",
        ),
        (has_noise(flags), ("client_datasets_random_seed",), "with privacy, whose cohorts follow from a secret key"),
        (
            private and target_quantile(flags) == 0,
            ("clipped_count_stddev",),
            f"with a fixed clipping norm (--target_unclipped_quantile=0, {' or '.join(CORRELATED)})",
        ),
    )
    for is_ineffective, names, reason in rules:
        for name in names:
            if is_ineffective and flags.is_changed(name):
                shown = f"{flags[name]:g}" if isinstance(flags[name], float) else flags[name]
                shown = ",".join(shown) if isinstance(shown, list) else shown
                raise FlairError(f"--{name}={shown} has no effect {reason}; leave it out")
    for side in ("client", "server"):
        warmup = flags[f"{side}_warmup_rounds"]
        if warmup > flags.total_rounds:
            raise FlairError(
                f"--{side}_warmup_rounds={warmup}: the learning rate would never be reached in "
                f"--total_rounds={flags.total_rounds}; give at most that many"
            )
    if flags.is_changed("clients_per_thread"):
        print(
            f"--clients_per_thread={flags.clients_per_thread} has no effect; it is kept for old scripts",
            file=sys.stderr,
        )
