"""Flags that would change nothing are refused: a sweep over one of them would compare equal runs.

A flag counts as given where its value is not the default, because the flags.txt of a run names every flag and a run
repeated from it must pass.
"""

from __future__ import annotations

import math
import sys

from absl import flags

from benchmark.rounds.config import FED_SGD, MIME_LITE
from flair.errors import FlairError

FLAGS = flags.FLAGS
_WITH_SECOND_MOMENT = ("adam", "adamw", "yogi")
_OF_PRIVACY = (
    *("l2_norm_clip", "target_unclipped_quantile", "clipped_count_stddev", "delta", "accountant"),
    *("simulated_clients_per_round", "published_noise", "noise_key_file", "keep_noise_key"),
)


def refuse_ineffective(is_private: bool, is_adaptive: bool) -> None:
    """Refuses the federated flags that have no effect together with the others.

    Args:
      is_private: the run has differential privacy.
      is_adaptive: its clipping norm adapts.

    Raises:
      FlairError: names the flag and what makes it idle.
    """
    _refuse_client_flags()
    _refuse_server_flags()
    if not is_private:
        _refuse(_OF_PRIVACY, "without --epsilon or --noise_multiplier")
    else:
        _refuse(("client_datasets_random_seed",), "with privacy, whose cohorts follow from a secret key")
    if is_private and not is_adaptive:
        _refuse(("clipped_count_stddev",), "with a fixed clipping norm (--target_unclipped_quantile=0 or tree)")
    for side in ("client", "server"):
        warmup = FLAGS[f"{side}_warmup_rounds"].value
        if warmup > FLAGS.total_rounds:
            raise FlairError(
                f"--{side}_warmup_rounds={warmup}: the learning rate would never be reached in "
                f"--total_rounds={FLAGS.total_rounds}; give at most that many"
            )
    if _is_changed("clients_per_thread"):
        print(
            f"--clients_per_thread={FLAGS.clients_per_thread} has no effect; it is kept for old scripts",
            file=sys.stderr,
        )


def _refuse_client_flags() -> None:
    # Local training after the rounds is plain SGD whatever the algorithm, with these flags.
    trains_locally = FLAGS.federated_eval_local_training
    clipping = ("client_clipnorm", "global_clipnorm")
    if FLAGS.algorithm == FED_SGD and not trains_locally:
        _refuse(("client_learning_rate", *clipping), "with --algorithm=fed_sgd, whose clients send plain gradients")
    if FLAGS.algorithm == MIME_LITE and not trains_locally:
        _refuse(clipping, "with --algorithm=mime_lite, which does not clip")
    if FLAGS.client_clipnorm == 0:
        _refuse(("global_clipnorm",), "with --client_clipnorm=0")


def _refuse_server_flags() -> None:
    optimizer = FLAGS.server_optimizer
    if optimizer != "momentum" and FLAGS.algorithm != MIME_LITE:
        _refuse(("server_momentum",), f"with --server_optimizer={optimizer}")
    if optimizer not in (*_WITH_SECOND_MOMENT, "adagrad"):
        _refuse(("server_epsilon",), f"with --server_optimizer={optimizer}")
    if optimizer not in _WITH_SECOND_MOMENT:
        _refuse(("server_beta_2",), f"with --server_optimizer={optimizer}")
    if optimizer != "adamw":
        _refuse(("server_weight_decay",), f"with --server_optimizer={optimizer}")
    if FLAGS.server_lr_schedule == "constant":
        _refuse(("server_final_learning_rate",), "with --server_lr_schedule=constant")


def _refuse(names: tuple[str, ...], reason: str) -> None:
    for name in names:
        if _is_changed(name):
            value = FLAGS[name].value
            shown = f"{value:g}" if isinstance(value, float) and math.isfinite(value) else value
            raise FlairError(f"--{name}={shown} has no effect {reason}; leave it out")


def _is_changed(name: str) -> bool:
    return bool(FLAGS[name].value != FLAGS[name].default)
