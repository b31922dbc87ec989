"""The flags of federated training, with the published names and defaults, and what they mean together.

Imports nothing heavy: every combination that cannot work is refused before TensorFlow is loaded.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from absl import flags

from benchmark.data.records import Task
from benchmark.federated import idle_flags
from benchmark.federated.cohort import CYCLIC, FIXED, POISSON, SAMPLINGS, UNIFORM
from benchmark.federated.ray_flags import check_ray_flags
from benchmark.metrics.histogram import metric_names
from benchmark.privacy import plan as privacy
from benchmark.privacy.accounting import ACCOUNTANTS
from benchmark.rounds.config import (
    AGGREGATORS,
    ALGORITHMS,
    FED_AVG,
    FED_PROX,
    FED_SGD,
    GAUSSIAN,
    MIME_LITE,
    SERVER_OPTIMIZERS,
    TREE,
    ClientConfig,
    FederatedConfig,
    NoiseConfig,
    OptimizerConfig,
)
from benchmark.run import path_flags
from benchmark.run.schedules import SCHEDULES, learning_rates
from flair.errors import FlairError

INPROCESS, TFF, RAY = "inprocess", "tff", "ray"
RUNTIMES = (INPROCESS, TFF, RAY)
EXAMPLES, EQUAL = "examples", "uniform"
WEIGHTINGS = (EXAMPLES, EQUAL)

flags.DEFINE_enum("algorithm", FED_AVG, ALGORITHMS, "Federated algorithm.")
flags.DEFINE_float("client_learning_rate", 0.1, "Learning rate of the clients' SGD.", lower_bound=0)
flags.DEFINE_float(
    "client_clipnorm", 10.0, "Bound on the L2 norm of a client's gradient; 0 turns clipping off.", lower_bound=0
)
flags.DEFINE_boolean("global_clipnorm", False, "--client_clipnorm bounds all weights together, not each by itself.")
flags.DEFINE_enum("client_lr_schedule", "constant", SCHEDULES, "How the clients' learning rate falls over the rounds.")
flags.DEFINE_integer("client_warmup_rounds", 0, "Rounds over which the clients' learning rate rises.", lower_bound=0)
flags.DEFINE_float(
    "proximal_strength", 0.0, "FedProx: strength of the pull towards the global weights (mu).", lower_bound=0
)
flags.DEFINE_enum("server_optimizer", "adam", SERVER_OPTIMIZERS, "Optimizer of the global weights.")
flags.DEFINE_float("server_learning_rate", 0.1, "Learning rate of the server optimizer.", lower_bound=0)
flags.DEFINE_float("server_momentum", 0.9, "Momentum of --server_optimizer=momentum and of MimeLite's clients.")
flags.DEFINE_float("server_epsilon", 0.01, "Epsilon in the denominator of adam, adamw, yogi and adagrad.")
flags.DEFINE_float("server_beta_2", 0.999, "Decay of the second moment of adam, adamw and yogi.", 0, 1)
flags.DEFINE_float("server_weight_decay", 0.004, "Decoupled weight decay of --server_optimizer=adamw.", lower_bound=0)
flags.DEFINE_enum("server_lr_schedule", "constant", SCHEDULES, "How the server's learning rate falls over the rounds.")
flags.DEFINE_float(
    "server_final_learning_rate", 0.0, "Where a linear or cosine --server_lr_schedule ends.", lower_bound=0
)
flags.DEFINE_integer("server_warmup_rounds", 0, "Rounds over which the server's learning rate rises.", lower_bound=0)
flags.DEFINE_enum(
    "aggregator",
    "mean",
    (*AGGREGATORS, TREE),
    "How updates are combined: mean, or TFF's adaptive clipping, zeroing, both (robust) or compression; tree adds "
    "the noise of DP-FTRL and needs --epsilon or --noise_multiplier.",
)
flags.DEFINE_enum(
    "client_weighting",
    None,
    WEIGHTINGS,
    "How updates are averaged: by a client's examples, or every client once (uniform); none: examples without "
    "privacy, uniform with.",
)
flags.DEFINE_integer("client_epochs_per_round", 2, "Passes of a client over its photos a round.", lower_bound=1)
flags.DEFINE_integer("client_batch_size", 16, "Photos a step on a client.", lower_bound=1)
flags.DEFINE_integer("clients_per_round", 200, "Clients in a round: exactly, or expected under Poisson sampling.")
flags.DEFINE_integer(
    "clients_per_thread", 50, "Kept from the published benchmark, no effect: memory does not grow with the cohort."
)
flags.DEFINE_integer("client_datasets_random_seed", None, "Seed of the cohorts without privacy; none: --seed.")
flags.DEFINE_enum(
    "client_sampling", None, SAMPLINGS[:3], "How cohorts are drawn; none: poisson with privacy, uniform without."
)
flags.DEFINE_boolean("reuse_clients", False, "The same cohort in every round.")
flags.DEFINE_boolean("iid", False, "Artificial clients whose photos are drawn across the whole split.")
flags.DEFINE_integer(
    "mean_datapoints_per_user", None, "With --iid: photos of every artificial client; none: as the users have.", 1
)
flags.DEFINE_integer("total_rounds", 5000, "Rounds of training.", lower_bound=1)
flags.DEFINE_integer("rounds_per_eval", 10, "Rounds between evaluations on the val partition.", lower_bound=1)
flags.DEFINE_integer("rounds_per_checkpoint", 10, "Rounds between checkpoints.", lower_bound=1)
flags.DEFINE_integer("max_elements_per_client", 512, "Photos of a client used in a pass, at most.", lower_bound=1)
flags.DEFINE_float("epsilon", 0.0, "Target epsilon of user-level differential privacy; 0: none.")
flags.DEFINE_float("noise_multiplier", None, "Noise relative to the clipping norm, instead of --epsilon.")
flags.DEFINE_float("delta", None, "Delta of differential privacy, a probability; none: users^-1.1.")
flags.DEFINE_enum("accountant", "pld", ACCOUNTANTS, "Accountant that turns --epsilon into noise.")
flags.DEFINE_float("l2_norm_clip", 0.1, "Bound on the L2 norm of a client's update, or where the adaptive one starts.")
flags.DEFINE_float(
    "target_unclipped_quantile",
    0.1,
    "Fraction of updates that the adaptive clipping norm leaves unclipped; 0 keeps the norm fixed.",
    0,
    1,
)
flags.DEFINE_float("clipped_count_stddev", None, "Noise of the adaptive norm's count, in clients; none: chosen.")
flags.DEFINE_integer(
    "simulated_clients_per_round",
    None,
    "Scale the noise as if so many clients took part. The run itself does not have the stated epsilon.",
)
flags.DEFINE_boolean("published_noise", False, "The noise of ml-flair's formula, which counts rounds wrongly.")
path_flags.DEFINE_path(
    "noise_key_file",
    None,
    "Repeat the noise and the cohorts that follow from this file of 64 hexadecimal digits; the privacy then holds only "
    "while the file is secret. None: a new secret key, deleted when the run is complete.",
)
flags.DEFINE_boolean(
    "keep_noise_key", False, "Leave noise.key in the run folder when the run is complete, for a --noise_key_file."
)
flags.DEFINE_boolean(
    "debug_measurements", False, "Record statistics of the updates before noise, which are not private."
)
flags.DEFINE_enum(
    "runtime",
    INPROCESS,
    RUNTIMES,
    "inprocess: a resident model with TFF's aggregators; ray: the same on several workers or machines; tff: TFF's own "
    "worker.",
)
flags.DEFINE_string(
    "best_metric", "loss", "Validation metric that chooses the best model; loss is minimized, any other maximized."
)
flags.DEFINE_boolean("federated_eval", False, "At the end, score each test client by itself: the spread over clients.")
flags.DEFINE_integer("federated_eval_clients", None, "Clients of --federated_eval, drawn at random; none: all.", 1)
flags.DEFINE_boolean(
    "federated_eval_local_training",
    False,
    "With --federated_eval: also train each client on half of its photos and score the other half before and after.",
)
path_flags.DEFINE_path("run_dir", None, "Folder of this run; none: the saved model's path without .h5.")
flags.DEFINE_boolean("overwrite", False, "Start over, forgetting the run that --run_dir holds.")

FLAGS = flags.FLAGS


def is_private() -> bool:
    """Whether the run has differential privacy."""
    return FLAGS.epsilon != 0 or FLAGS.noise_multiplier is not None


def target_quantile() -> float:
    """Fraction of updates that the adaptive clipping norm leaves unclipped; 0: fixed, as always under tree."""
    return 0.0 if FLAGS.aggregator == TREE else float(FLAGS.target_unclipped_quantile)


def sampling() -> str:
    """How cohorts are drawn."""
    if FLAGS.reuse_clients:
        return FIXED
    if FLAGS.client_sampling is not None:
        return str(FLAGS.client_sampling)
    if FLAGS.aggregator == TREE:
        return CYCLIC
    return POISSON if is_private() else UNIFORM


def cohort_seed() -> int:
    """The seed of the cohorts of a run without privacy."""
    return int(FLAGS.seed if FLAGS.client_datasets_random_seed is None else FLAGS.client_datasets_random_seed)


def check_federated_flags() -> None:
    """Refuses what cannot work, at once and in one line.

    Raises:
      FlairError: names the flag, what was given and what is possible.
    """
    if FLAGS.clients_per_round < 1:
        raise FlairError(f"--clients_per_round={FLAGS.clients_per_round}: expected at least 1")
    if FLAGS.reuse_clients and FLAGS.client_sampling is not None:
        raise FlairError("--reuse_clients and --client_sampling are both given: a reused cohort is not sampled")
    if FLAGS.mean_datapoints_per_user is not None and not FLAGS.iid:
        raise FlairError("--mean_datapoints_per_user sizes the artificial clients of --iid; add --iid or leave it out")
    for name in ("federated_eval_clients", "federated_eval_local_training"):
        if FLAGS[name].value and not FLAGS.federated_eval:
            raise FlairError(f"--{name} has no effect without --federated_eval; add that or leave it out")
    if FLAGS.proximal_strength > 0 and FLAGS.algorithm != FED_PROX:
        raise FlairError(f"--proximal_strength={FLAGS.proximal_strength:g} has no effect without --algorithm=fed_prox")
    if FLAGS.algorithm == FED_PROX and FLAGS.proximal_strength == 0:
        raise FlairError("--algorithm=fed_prox needs --proximal_strength above 0 (say 0.01)")
    numbers = ("server_momentum", "server_epsilon", "server_weight_decay", "server_final_learning_rate")
    for name in (*numbers, "l2_norm_clip", "clipped_count_stddev"):
        if FLAGS[name].value is not None and not 0 <= FLAGS[name].value < math.inf:
            raise FlairError(f"--{name}={FLAGS[name].value:g}: expected a finite number, 0 or above")
    if FLAGS.server_momentum >= 1:
        raise FlairError(f"--server_momentum={FLAGS.server_momentum:g}: expected a number below 1 (say 0.9)")
    if not FLAGS.server_beta_2 < 1:
        raise FlairError(f"--server_beta_2={FLAGS.server_beta_2:g}: expected a number below 1 (say 0.999)")
    if FLAGS.server_epsilon == 0:
        raise FlairError("--server_epsilon=0: expected a number above 0 (say 0.01)")
    if math.isnan(FLAGS.target_unclipped_quantile):
        raise FlairError("--target_unclipped_quantile=nan: expected a fraction, 0 to 1")
    if FLAGS.l2_norm_clip <= 0:
        raise FlairError(f"--l2_norm_clip={FLAGS.l2_norm_clip:g}: expected a norm above 0 (say 0.1)")
    scheduled = FLAGS.client_lr_schedule != "constant" or FLAGS.client_warmup_rounds > 0
    if scheduled and FLAGS.algorithm in (FED_SGD, MIME_LITE):
        raise FlairError(
            f"--client_lr_schedule and --client_warmup_rounds have no effect with --algorithm={FLAGS.algorithm}"
        )
    if scheduled and FLAGS.runtime == TFF and (FLAGS.algorithm == FED_PROX or is_private()):
        raise FlairError(
            "TFF schedules the clients' learning rate for fed_avg without privacy only; use --runtime=inprocess"
        )
    check_ray_flags(FLAGS.runtime == RAY)
    idle_flags.refuse_ineffective(is_private(), is_private() and target_quantile() > 0)
    _check_privacy_flags()


def _check_privacy_flags() -> None:
    if not is_private():
        if FLAGS.aggregator == TREE:
            raise FlairError("--aggregator=tree adds noise: give --epsilon or --noise_multiplier")
        return
    if FLAGS.client_weighting == EXAMPLES:
        raise FlairError(
            "--client_weighting=examples: with differential privacy every client counts once, or a user with many "
            "photos would have more influence than the noise covers; leave it out"
        )
    quantile = FLAGS.target_unclipped_quantile
    if FLAGS.aggregator == TREE and quantile > 0 and quantile != FLAGS["target_unclipped_quantile"].default:
        raise FlairError(
            f"--target_unclipped_quantile={quantile:g}: with --aggregator=tree the clip norm is fixed, because the "
            "noise of a node would have to fit all clip norms of the rounds below it; give 0"
        )
    if FLAGS.runtime == TFF and FLAGS.aggregator == TREE:
        raise FlairError(
            "--runtime=tff: TFF's own tree aggregation keeps its noise in its state, from where any checkpoint would "
            "give it away; use --runtime=inprocess or ray"
        )
    if FLAGS.runtime == TFF and FLAGS.noise_key_file is not None:
        raise FlairError(
            f"--noise_key_file={FLAGS.noise_key_file}: TFF's own runtime draws noise that cannot be repeated; use "
            "--runtime=inprocess or ray, or leave it out"
        )
    if FLAGS.aggregator not in ("mean", TREE):
        raise FlairError(
            f"--aggregator={FLAGS.aggregator}: with differential privacy the noise clips already; "
            "leave --aggregator out, or use tree"
        )
    if FLAGS.algorithm == MIME_LITE:
        raise FlairError(
            "--algorithm=mime_lite sends full gradients to the server without noise, so no epsilon can be stated; "
            "use fed_avg, fed_prox or fed_sgd with differential privacy"
        )
    privacy.check_flags(**_privacy_arguments())


def check_best_metric(task: Task) -> None:
    """Refuses a `--best_metric` that evaluation does not give."""
    known = metric_names(task.is_binary)
    if FLAGS.best_metric not in known:
        raise FlairError(f"--best_metric={FLAGS.best_metric}: no such metric; the metrics are {', '.join(known)}")


def make_privacy_plan(num_users: int) -> privacy.PrivacyPlan | None:
    """The privacy of the run, None without; FlairError when this many users cannot give it."""
    return privacy.make_plan(num_users=num_users, **_privacy_arguments()) if is_private() else None


def check_cohort(num_clients: int) -> None:
    """Refuses a cohort larger than the number of clients."""
    if FLAGS.clients_per_round > num_clients:
        raise FlairError(
            f"--clients_per_round={FLAGS.clients_per_round}: there are only {num_clients:,} clients in the train "
            "partition; give at most that many"
        )


def federated_config(plan: privacy.PrivacyPlan | None) -> FederatedConfig:
    """The algorithm of the flags, with the noise of `plan`."""
    client = ClientConfig(
        algorithm=FLAGS.algorithm,
        learning_rates=_rates(FLAGS.client_learning_rate, FLAGS.client_lr_schedule, FLAGS.client_warmup_rounds),
        clipnorm=FLAGS.client_clipnorm,
        global_clipnorm=FLAGS.global_clipnorm,
        proximal_strength=FLAGS.proximal_strength,
        weighted=plan is None and FLAGS.client_weighting != EQUAL,
    )
    server = OptimizerConfig(
        name=FLAGS.server_optimizer,
        learning_rates=_rates(
            FLAGS.server_learning_rate,
            FLAGS.server_lr_schedule,
            FLAGS.server_warmup_rounds,
            FLAGS.server_final_learning_rate,
        ),
        momentum=FLAGS.server_momentum,
        epsilon=FLAGS.server_epsilon,
        beta_2=FLAGS.server_beta_2,
        weight_decay=FLAGS.server_weight_decay,
    )
    noise = None if plan is None else _noise_config(plan)
    aggregator = "mean" if FLAGS.aggregator == TREE else FLAGS.aggregator
    return FederatedConfig(client, server, aggregator, noise, FLAGS.debug_measurements)


def _noise_config(plan: privacy.PrivacyPlan) -> NoiseConfig:
    sigma, adaptive = plan.run_noise_multiplier, target_quantile() > 0
    stddev = FLAGS.clipped_count_stddev
    if adaptive and stddev is None:
        stddev = privacy.clipped_count_stddev(FLAGS.clients_per_round, sigma, plan.published_noise)
    if adaptive:
        privacy.adaptive_noise(sigma, stddev)  # refuses a deviation too small to share the noise
    return NoiseConfig(
        mechanism=TREE if FLAGS.aggregator == TREE else GAUSSIAN,
        noise_multiplier=sigma,
        clients_per_round=float(FLAGS.clients_per_round),
        l2_norm_clip=FLAGS.l2_norm_clip,
        target_unclipped_quantile=target_quantile(),
        clipped_count_stddev=stddev if adaptive else None,
    )


def _privacy_arguments() -> dict:
    return {
        "cohort": FLAGS.clients_per_round,
        "total_rounds": FLAGS.total_rounds,
        "epsilon": FLAGS.epsilon if FLAGS.epsilon != 0 else None,
        "noise_multiplier": FLAGS.noise_multiplier,
        "delta": FLAGS.delta,
        "simulated_cohort": FLAGS.simulated_clients_per_round,
        "sampling": privacy.Sampling(sampling()),
        "accountant": FLAGS.accountant,
        "mechanism": privacy.Mechanism.TREE if FLAGS.aggregator == TREE else privacy.Mechanism.GAUSSIAN,
        "published_noise": FLAGS.published_noise,
    }


def _rates(base: float, schedule: str, warmup: int, final: float = 0.0) -> tuple[float, ...]:
    rates: Sequence[float] = learning_rates(base, FLAGS.total_rounds, schedule, warmup, final).tolist()
    return tuple(rates) if len(set(rates)) > 1 else (float(base),)
