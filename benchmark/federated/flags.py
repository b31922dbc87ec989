"""The flags of federated training, with the published names and defaults."""

from __future__ import annotations

from benchmark.privacy.accounting import ACCOUNTANTS
from benchmark.privacy.audit import LEAST_CANARIES
from benchmark.privacy.request import AUTO, LEAST_NOISE, MOST_BANDED_ROUNDS, MOST_BANDS, MOST_NOISE, Mechanism, Sampling
from benchmark.rounds.config import AGGREGATORS, ALGORITHMS, FED_AVG, SERVER_OPTIMIZERS
from benchmark.run.flags import Role, Table, boolean, choice, integer, number, path, paths, text
from benchmark.run.schedules import SCHEDULES
from benchmark.training.flags import BEST_METRIC, EARLY_STOPPING, LOGGERS, MODEL_FLAGS, OVERWRITE, RUN_DIR

INPROCESS, TFF, RAY = "inprocess", "tff", "ray"
RUNTIMES = (INPROCESS, TFF, RAY)
EXAMPLES, EQUAL = "examples", "uniform"
WEIGHTINGS = (EXAMPLES, EQUAL)
# Aggregators whose noise in one round depends on that of others.
CORRELATED = (Mechanism.BANDED.value, Mechanism.TREE.value)
CONSTANT, POISSON = "constant", "poisson"
TRAIN_LOSS = "train_loss"
PROXIMAL_LOSSES = (TRAIN_LOSS, "val_loss")

RAY_FLAGS: Table = (
    integer(
        "num_workers",
        None,
        "With --runtime=ray: workers that share a round; none: as many as there is room for.",
        Role.SPEED,
        least=1,
    ),
    text(
        "ray_address",
        None,
        "With --runtime=ray: host:port of a running Ray cluster, or auto; none: a cluster of this machine for this "
        "run.",
        Role.SPEED,
    ),
    integer("worker_cpus", 1, "With --runtime=ray: processor cores, and threads, of a worker.", Role.SPEED, least=1),
    number(
        "worker_gpus",
        0.0,
        "With --runtime=ray: GPUs of a worker, whole ones or below 1; 0.5 lets two workers share one.",
        Role.SPEED,
        least=0,
    ),
)
_TRAINING_FLAGS: Table = (
    choice("algorithm", FED_AVG, ALGORITHMS, "Federated algorithm.", Role.RESULT),
    number("client_learning_rate", 0.1, "Learning rate of the clients' SGD.", Role.RESULT, least=0),
    number(
        "client_clipnorm",
        10.0,
        "Bound on the L2 norm of a client's gradient; 0 turns clipping off.",
        Role.RESULT,
        least=0,
    ),
    boolean("global_clipnorm", "--client_clipnorm bounds all weights together, not each by itself.", Role.RESULT),
    choice(
        "client_lr_schedule",
        "constant",
        SCHEDULES,
        "How the clients' learning rate falls over the rounds.",
        Role.RESULT,
    ),
    integer("client_warmup_rounds", 0, "Rounds over which the clients' learning rate rises.", Role.RESULT, least=0),
    number(
        "proximal_strength", 0.0, "FedProx: strength of the pull towards the global weights (mu).", Role.RESULT, least=0
    ),
    choice(
        "proximal_adapts_to",
        None,
        PROXIMAL_LOSSES,
        "FedProx: mu starts at --proximal_strength, rises where this loss does not fall and falls while it does: the "
        "clients' in every round, or that of each evaluation; none: mu stays.",
        Role.RESULT,
    ),
    number("proximal_step", 0.1, "By how much an adapting mu rises and falls.", Role.RESULT, least=0, most=1),
    integer(
        "proximal_patience",
        1,
        "Times in a row that the loss has to fall before an adapting mu does.",
        Role.RESULT,
        least=1,
    ),
    choice("server_optimizer", "adam", SERVER_OPTIMIZERS, "Optimizer of the global weights.", Role.RESULT),
    number("server_learning_rate", 0.1, "Learning rate of the server optimizer.", Role.RESULT, least=0),
    number(
        "server_momentum",
        0.9,
        "Momentum of --server_optimizer=momentum and of MimeLite's clients.",
        Role.RESULT,
        least=0,
        below=1,
    ),
    number(
        "server_epsilon", 0.01, "Epsilon in the denominator of adam, adamw, yogi and adagrad.", Role.RESULT, above=0
    ),
    number(
        "server_beta_2", 0.999, "Decay of the second moment of adam, adamw and yogi.", Role.RESULT, least=0, below=1
    ),
    number("server_weight_decay", 0.004, "Decoupled weight decay of --server_optimizer=adamw.", Role.RESULT, least=0),
    choice(
        "server_lr_schedule",
        "constant",
        SCHEDULES,
        "How the server's learning rate falls over the rounds.",
        Role.RESULT,
    ),
    number(
        "server_final_learning_rate", 0.0, "Where a linear or cosine --server_lr_schedule ends.", Role.RESULT, least=0
    ),
    integer("server_warmup_rounds", 0, "Rounds over which the server's learning rate rises.", Role.RESULT, least=0),
    choice(
        "aggregator",
        "mean",
        (*AGGREGATORS, *CORRELATED),
        "How updates are combined: mean, or TFF's adaptive clipping, zeroing, both (robust) or compression; secure "
        "simulates TFF's secure sum; with "
        "--epsilon or --noise_multiplier also banded or tree, whose noise cancels in part over the rounds.",
        Role.RESULT,
    ),
    choice(
        "client_weighting",
        None,
        WEIGHTINGS,
        "How updates are averaged: by a client's examples, or every client once (uniform); none: examples without "
        "privacy, uniform with and in SCAFFOLD.",
        Role.RESULT,
    ),
    integer("client_epochs_per_round", 2, "Passes of a client over its photos a round.", Role.RESULT, least=1),
    integer("client_batch_size", 16, "Photos a step on a client.", Role.RESULT, least=1),
    integer(
        "clients_per_round",
        200,
        "Clients in a round: exactly, or expected under Poisson sampling.",
        Role.RESULT,
        least=1,
    ),
    integer(
        "clients_per_thread",
        50,
        "Kept from the published benchmark, no effect: memory does not grow with the cohort.",
        Role.SPEED,
    ),
    integer("client_datasets_random_seed", None, "Seed of the cohorts without privacy; none: --seed.", Role.RESULT),
    choice(
        "client_sampling",
        None,
        [each.value for each in (Sampling.UNIFORM, Sampling.POISSON, Sampling.CYCLIC)],
        "How cohorts are drawn; none: poisson with privacy, uniform without.",
        Role.RESULT,
    ),
    boolean("reuse_clients", "The same cohort in every round.", Role.RESULT),
    boolean("iid", "Artificial clients whose photos are drawn across the whole split.", Role.RESULT),
    integer(
        "mean_datapoints_per_user",
        None,
        "With --iid: photos of every artificial client; none: as the users have.",
        Role.RESULT,
        least=1,
    ),
    boolean(
        "fresh_photos",
        "With --iid: an artificial client draws --mean_datapoints_per_user photos anew, with replacement, whenever it "
        "takes part; off: photos are dealt out once.",
        Role.RESULT,
    ),
    choice(
        "datapoints_per_user_distribution",
        CONSTANT,
        (CONSTANT, POISSON),
        "With --fresh_photos: how many an artificial client draws; poisson: about --mean_datapoints_per_user.",
        Role.RESULT,
    ),
    integer(
        "minimum_num_datapoints_per_user",
        1,
        "With --datapoints_per_user_distribution=poisson: a smaller number is drawn again.",
        Role.RESULT,
        least=1,
    ),
    integer(
        "total_rounds",
        5000,
        f"Rounds of training; with banded noise at most {MOST_BANDED_ROUNDS:,}.",
        Role.RESULT,
        least=1,
    ),
    integer("rounds_per_eval", 10, "Rounds between evaluations on the val partition.", Role.RESULT, least=1),
    integer("rounds_per_checkpoint", 10, "Rounds between checkpoints.", Role.SAVING, least=1),
    integer("max_elements_per_client", 512, "Photos of a client used in a pass, at most.", Role.RESULT, least=1),
    path(
        "user_state_dir",
        None,
        "With --algorithm=scaffold: folder for what is kept of every user; none: user_states in the run folder.",
        Role.PLACE,
    ),
)
PRIVACY_FLAGS: Table = (
    number("epsilon", 0.0, "Target epsilon of user-level differential privacy; 0: none.", Role.RESULT, least=0),
    number(
        "noise_multiplier",
        None,
        f"Noise relative to the clipping norm, instead of --epsilon: from {LEAST_NOISE:g}, or 0, which only clips, for "
        "ablations.",
        Role.RESULT,
        least=0,
        most=MOST_NOISE,
    ),
    number(
        "local_noise_multiplier",
        None,
        "Local privacy: each client clips its update to --l2_norm_clip and adds noise of this many clipping norms "
        "itself; instead of --epsilon and --noise_multiplier.",
        Role.RESULT,
        least=LEAST_NOISE,
        most=MOST_NOISE,
    ),
    number("delta", None, "Delta of differential privacy; none: users^-1.1.", Role.RESULT, above=0, below=1),
    choice("accountant", "pld", ACCOUNTANTS, "Accountant that turns --epsilon into noise.", Role.RESULT),
    number(
        "l2_norm_clip",
        0.1,
        "Bound on the L2 norm of a client's update, or where the adaptive one starts.",
        Role.RESULT,
        above=0,
    ),
    number(
        "target_unclipped_quantile",
        0.1,
        "Fraction of updates that the adaptive clipping norm leaves unclipped; 0 keeps the norm fixed.",
        Role.RESULT,
        least=0,
        most=1,
    ),
    number(
        "clipped_count_stddev",
        None,
        "Noise of the adaptive norm's count, in clients; none: chosen.",
        Role.RESULT,
        least=0,
    ),
    integer(
        "simulated_clients_per_round",
        None,
        "Scale the noise as if so many clients took part, --clients_per_round or more. The run itself does not have "
        "the stated epsilon.",
        Role.RESULT,
        least=1,
    ),
    text(
        "bands",
        AUTO,
        f"Rounds over which --aggregator=banded takes noise back (at least 1 and at most {MOST_BANDS:,}), and groups "
        "that users are dealt into; auto: the number with the least noise for --epsilon.",
        Role.RESULT,
    ),
    boolean("published_noise", "The noise of ml-flair's formula, which counts rounds wrongly.", Role.RESULT),
    path(
        "noise_key_file",
        None,
        "Repeat the noise and the cohorts that follow from this file of 64 hexadecimal digits; the privacy then holds "
        "only while the file is secret. None: a new secret key, deleted when the run is complete.",
        Role.RESULT,
    ),
    boolean(
        "keep_noise_key",
        "Leave noise.key in the run folder when the run is complete, for a --noise_key_file.",
        Role.RESULT,
    ),
    integer(
        "audit_canaries",
        0,
        "Clients that are nobody, about half of which take part beside the users: measures what the run gives away, at "
        f"some cost for the model; from {LEAST_CANARIES}, or 0: none.",
        Role.RESULT,
        least=0,
    ),
    paths(
        "also_spent",
        None,
        "Results about the same users, of benchmark.analytics_main or privacy.json of other runs: the statement adds "
        "up what all of it spent. The noise stays that of --epsilon.",
        Role.RESULT,
    ),
)
_OTHER_FLAGS: Table = (
    boolean("debug_measurements", "Record statistics of the updates before noise, which are not private.", Role.RESULT),
    choice(
        "runtime",
        INPROCESS,
        RUNTIMES,
        "inprocess: a resident model with TFF's aggregators; ray: the same on several workers or machines; tff: TFF's "
        "own worker.",
        Role.RESULT,
    ),
    BEST_METRIC,
    EARLY_STOPPING,
    number(
        "ema_decay",
        0.0,
        "Also average the weights over the rounds, each counting this many times as much as the next one (say 0.99): "
        "best_ema.h5 and last_ema.h5; 0: no average.",
        Role.RESULT,
        least=0,
        below=1,
    ),
    boolean("federated_eval", "At the end, score each test client by itself: the spread over clients.", Role.RESULT),
    integer(
        "federated_eval_clients", None, "Clients of --federated_eval, drawn at random; none: all.", Role.RESULT, least=1
    ),
    boolean(
        "federated_eval_local_training",
        "With --federated_eval or --rounds_per_client_eval: also train each client (of the latter: each validation "
        "user) on half of its photos and score the other half before and after.",
        Role.RESULT,
    ),
    integer(
        "rounds_per_client_eval",
        0,
        "Rounds between looks at single clients, which clients.csv.gz keeps: scores of validation users and of clients "
        "of the round, and how far the updates of the round lie apart. Not private; not with --runtime=tff; 0: none.",
        Role.RESULT,
        least=0,
    ),
    integer(
        "clients_per_client_eval",
        50,
        "With --rounds_per_client_eval: validation users that are scored, the same ones every time, and clients of "
        "the round.",
        Role.RESULT,
        least=1,
    ),
    LOGGERS,
    RUN_DIR,
    OVERWRITE,
)
FLAGS: Table = (*RAY_FLAGS, *_TRAINING_FLAGS, *PRIVACY_FLAGS, *_OTHER_FLAGS, *MODEL_FLAGS)
"""All flags of `federated_main`."""
