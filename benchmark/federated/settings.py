"""What the federated flags mean together, as plain data: cohorts, privacy, algorithm."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from benchmark.data.artificial import Artificial
from benchmark.data.records import Records, Task
from benchmark.federated.flags import CORRELATED, EQUAL, POISSON
from benchmark.federated.proximal import ProximalConfig
from benchmark.privacy.adaptive import clipped_count_stddev, sum_noise_multiplier
from benchmark.privacy.local import LocalPlan, make_local_plan
from benchmark.privacy.plan import PrivacyPlan, make_plan
from benchmark.privacy.request import Mechanism, PrivacyRequest, Sampling, bands_from
from benchmark.privacy.spending import Release, read_spending
from benchmark.rounds.config import (
    SCAFFOLD,
    CanaryConfig,
    ClientConfig,
    FederatedConfig,
    LocalNoiseConfig,
    NoiseConfig,
    OptimizerConfig,
)
from benchmark.run.flags import Flags
from benchmark.run.names import USER_STATES_DIR
from benchmark.run.schedules import learning_rates
from benchmark.run.user_states import UserStates, bytes_on_disk, versions_at_most
from benchmark.training.flags import augments, image_size
from benchmark.training.loss import logit_offsets, loss_config
from flair.errors import FlairError

if TYPE_CHECKING:
    from benchmark.data.clients import BatchPlan, Clients


@dataclass(frozen=True)
class Setup:
    """What a run is made of, once the number of its clients is known."""

    flags: Flags
    records: Records
    task: Task
    clients: Clients
    privacy_plan: PrivacyPlan | None
    local_plan: LocalPlan | None
    config: FederatedConfig
    batch_plan: BatchPlan
    spent_before: Sequence[Release]

    @classmethod
    def of(cls, flags: Flags, records: Records, task: Task, num_clients: int | None = None) -> Setup:
        """`num_clients` is planned for; None: as many as there are."""
        from benchmark.data.clients import BatchPlan

        clients = _open_clients(flags, records)
        num_clients = len(clients.client_ids) if num_clients is None else num_clients
        check_cohort(flags, num_clients)
        privacy_plan = privacy_plan_of(flags, num_clients)
        epochs, most = flags.client_epochs_per_round, flags.max_elements_per_client
        batch_plan = BatchPlan(task, image_size(flags), flags.client_batch_size, epochs, most, augments(flags))
        plans = privacy_plan, local_plan_of(flags, num_clients)
        config = federated_config(flags, privacy_plan, logit_offsets(flags, records, task))
        spent_before = read_spending(flags.also_spent or (), num_clients)
        return cls(flags, records, task, clients, *plans, config, batch_plan, spent_before)


def is_private(flags: Flags) -> bool:
    """Whether the run does what differential privacy asks for, if with a noise of 0."""
    return flags.epsilon != 0 or flags.noise_multiplier is not None


def has_noise(flags: Flags) -> bool:
    """Whether noise is added, and so a secret key needed; --noise_multiplier=0 only clips."""
    return is_private(flags) and flags.noise_multiplier != 0


def is_local(flags: Flags) -> bool:
    """Whether clients add noise themselves."""
    return flags.local_noise_multiplier is not None


def mechanism(flags: Flags) -> Mechanism:
    """Where the noise of a private run goes."""
    return Mechanism(flags.aggregator) if flags.aggregator in CORRELATED else Mechanism.GAUSSIAN


def target_quantile(flags: Flags) -> float:
    """Fraction of updates that the adaptive clip norm leaves unclipped; 0: fixed, as with correlated or no noise."""
    is_adaptive = mechanism(flags) is Mechanism.GAUSSIAN and has_noise(flags)
    return float(flags.target_unclipped_quantile) if is_adaptive else 0.0


def sampling(flags: Flags) -> Sampling:
    """How cohorts are drawn."""
    if flags.reuse_clients:
        return Sampling.FIXED
    if flags.client_sampling is not None:
        return Sampling(flags.client_sampling)
    if mechanism(flags) is Mechanism.TREE:
        return Sampling.CYCLIC
    return Sampling.POISSON if is_private(flags) else Sampling.UNIFORM


def artificial(flags: Flags) -> Artificial | None:
    """How the artificial clients of --iid are made; None: clients are users."""
    if not flags.iid:
        return None
    is_poisson = flags.datapoints_per_user_distribution == POISSON
    sizes = is_poisson, flags.minimum_num_datapoints_per_user
    return Artificial(flags.seed, flags.mean_datapoints_per_user, flags.fresh_photos, *sizes)


def cohort_seed(flags: Flags) -> int:
    """The seed of the cohorts of a run without privacy."""
    return int(flags.seed if flags.client_datasets_random_seed is None else flags.client_datasets_random_seed)


def check_cohort(flags: Flags, num_clients: int) -> None:
    """Refuses a cohort larger than the number of clients, and what was spent on another number of them."""
    read_spending(flags.also_spent or (), num_clients)
    if flags.clients_per_round > num_clients:
        raise FlairError(
            f"--clients_per_round={flags.clients_per_round}: there are only {num_clients:,} clients in the train "
            "partition; give at most that many"
        )


def privacy_request(flags: Flags) -> PrivacyRequest:
    """What a private run asks for."""
    return PrivacyRequest(
        cohort=flags.clients_per_round,
        total_rounds=flags.total_rounds,
        epsilon=flags.epsilon if flags.epsilon != 0 else None,
        noise_multiplier=flags.noise_multiplier,
        delta=flags.delta,
        simulated_cohort=flags.simulated_clients_per_round,
        sampling=sampling(flags),
        accountant=flags.accountant,
        mechanism=mechanism(flags),
        published_noise=flags.published_noise,
        bands=bands_from(flags.bands) if flags.aggregator == Mechanism.BANDED else None,
        server_momentum=flags.server_momentum if flags.server_optimizer == "momentum" else 0.0,
    )


def privacy_plan_of(flags: Flags, num_users: int) -> PrivacyPlan | None:
    """The privacy of the run, None without; FlairError when this many users cannot give it."""
    return make_plan(num_users, privacy_request(flags)) if is_private(flags) else None


def local_plan_of(flags: Flags, num_users: int) -> LocalPlan | None:
    """The local privacy of the run, None without."""
    if not is_local(flags):
        return None
    return make_local_plan(num_users, flags.local_noise_multiplier, privacy_request(flags))


def proximal_config(flags: Flags) -> ProximalConfig | None:
    """How FedProx's mu adapts, None where it stays."""
    if flags.proximal_adapts_to is None:
        return None
    how = flags.proximal_step, flags.proximal_patience
    return ProximalConfig(flags.proximal_adapts_to, flags.proximal_strength, *how)


def user_state_dir(flags: Flags, run_dir: Path) -> Path:
    """Where a run of SCAFFOLD keeps the users' control variates."""
    return run_dir / USER_STATES_DIR if flags.user_state_dir is None else Path(flags.user_state_dir)


def user_states(flags: Flags, run_dir: Path, user_ids: Sequence[str], num_weights: int) -> UserStates | None:
    """The store of the users' control variates, None without SCAFFOLD."""
    if flags.algorithm != SCAFFOLD:
        return None
    most = states_at_most(flags, len(user_ids), num_weights)
    return UserStates(user_state_dir(flags, run_dir), run_dir, user_ids, num_weights, most)


def states_at_most(flags: Flags, num_users: int, num_weights: int) -> int:
    """Bytes of disk that the control variates of a run take in the end, at most."""
    rounds = flags.total_rounds, flags.rounds_per_checkpoint
    return bytes_on_disk(num_weights) * versions_at_most(num_users, flags.clients_per_round, *rounds)


def canary_config(setup: Setup) -> CanaryConfig | None:
    """The canaries of an audited run; those that are in take part as probably as a client."""
    plan, count = setup.privacy_plan, setup.flags.audit_canaries
    return CanaryConfig(count, plan.request.cohort / plan.num_users) if plan is not None and count else None


def federated_config(
    flags: Flags, privacy_plan: PrivacyPlan | None, offsets: tuple[float, ...] = ()
) -> FederatedConfig:
    """The algorithm of the flags, with the noise of `privacy_plan` and the offsets of `training.loss.logit_offsets`."""
    client = ClientConfig(
        algorithm=flags.algorithm,
        learning_rates=_rates(flags, "client"),
        clipnorm=flags.client_clipnorm,
        global_clipnorm=flags.global_clipnorm,
        proximal_strength=flags.proximal_strength,
        weighted=privacy_plan is None
        and not is_local(flags)
        and flags.client_weighting != EQUAL
        and flags.algorithm != SCAFFOLD,
        local_noise=LocalNoiseConfig(flags.local_noise_multiplier, flags.l2_norm_clip) if is_local(flags) else None,
        loss=loss_config(flags, offsets),
    )
    server = OptimizerConfig(
        name=flags.server_optimizer,
        learning_rates=_rates(flags, "server", flags.server_final_learning_rate),
        momentum=flags.server_momentum,
        epsilon=flags.server_epsilon,
        beta_2=flags.server_beta_2,
        weight_decay=flags.server_weight_decay,
    )
    noise = None if privacy_plan is None else _noise_config(flags, privacy_plan)
    aggregator = "mean" if flags.aggregator in CORRELATED else flags.aggregator
    return FederatedConfig(client, server, aggregator, noise, flags.debug_measurements)


def _noise_config(flags: Flags, privacy_plan: PrivacyPlan) -> NoiseConfig:
    sigma, adaptive = privacy_plan.run_noise_multiplier, target_quantile(flags) > 0
    stddev = flags.clipped_count_stddev
    if adaptive and stddev is None:
        stddev = clipped_count_stddev(flags.clients_per_round, sigma, flags.published_noise)
    if adaptive:
        sum_noise_multiplier(sigma, stddev)  # refuses a deviation too small to share the noise
    return NoiseConfig(
        mechanism=mechanism(flags),
        noise_multiplier=sigma,
        clients_per_round=float(flags.clients_per_round),
        l2_norm_clip=flags.l2_norm_clip,
        target_unclipped_quantile=target_quantile(flags),
        clipped_count_stddev=stddev if adaptive else None,
        column=privacy_plan.column,
    )


def _rates(flags: Flags, side: str, final: float = 0.0) -> tuple[float, ...]:
    base, schedule, warmup = (flags[f"{side}_{name}"] for name in ("learning_rate", "lr_schedule", "warmup_rounds"))
    rates: Sequence[float] = learning_rates(base, flags.total_rounds, schedule, warmup, final).tolist()
    return tuple(rates) if len(set(rates)) > 1 else (float(base),)


def _open_clients(flags: Flags, records: Records) -> Clients:
    from benchmark.data.clients import training_clients

    if flags.tfds_data_dir is not None and not flags.iid:
        from benchmark.data.tfds import TFDSRecords
        from benchmark.data.tff_clients import FlairClientData

        assert isinstance(records, TFDSRecords)
        return FlairClientData(records)
    return training_clients(records, artificial(flags))
