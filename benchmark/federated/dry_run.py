"""What `federated_main --dry_run` prints."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Mapping, Sequence

import numpy as np
import tensorflow as tf

from benchmark.data.clients import ClientData
from benchmark.data.records import Records
from benchmark.federated import settings
from benchmark.federated.flags import INPROCESS, RAY, TFF
from benchmark.federated.settings import Setup
from benchmark.federated.statements import audit_cost
from benchmark.model.trainable import num_weights
from benchmark.privacy import accounting
from benchmark.privacy.adaptive import noise_norm, sum_noise_multiplier
from benchmark.privacy.local import local_announcement
from benchmark.privacy.plan import PrivacyPlan
from benchmark.privacy.request import Mechanism
from benchmark.privacy.rounding import rounded_up
from benchmark.privacy.spending import total_epsilon
from benchmark.rounds.config import FED_PROX, FED_SGD, MIME_LITE, SCAFFOLD, ClientConfig, FederatedConfig
from benchmark.rounds.runtime import Runtime
from benchmark.run.flags import Flags
from benchmark.run.user_states import bytes_on_disk
from benchmark.training import flags as model_flags
from benchmark.training import plan as training_plan
from benchmark.training.inputs import Prepared
from benchmark.training.plan import Part, Population, entry, rate
from benchmark.training.timing import extraction_parts, memory_row, scoring_parts, seconds_of

_TIMED_PHOTOS = 64  # shown to clients in the larger of the two timed rounds, at least
_LOOKED_AT = 64  # clients among which those to time are chosen
_MEMORY_NOTES = {
    INPROCESS: "it does not grow with the cohort",
    TFF: "TFF's worker besides: about 2 to 3 times the model's weights for every client of the cohort",
    RAY: "every worker besides: about as much each",
}


def num_clients(flags: Flags, population: Population) -> int:
    """Clients that the population makes: its users, or the artificial ones of --iid."""
    per_client = flags.mean_datapoints_per_user
    if not flags.iid or per_client is None:
        return population.users["train"]
    return -(-population.photos["train"] // int(per_client))


def plan_lines(
    setup: Setup, model: tf.keras.Model, runtime: Runtime, prepared: Prepared, population: Population
) -> list[str]:
    """The lines of the plan; times two small rounds and an evaluation batch."""
    flags, records, task, privacy_plan = setup.flags, setup.records, setup.task, setup.privacy_plan
    photos = _photos_shown(flags, records, population)
    fixed, per_photo, timed = _round_seconds(flags, runtime, setup.clients)
    cohort, rounds = flags.clients_per_round, flags.total_rounds
    # One validation more, of the best model at the end; as many of the average of weights.
    models = 2 if flags.ema_decay else 1
    validations = models * (-(-rounds // flags.rounds_per_eval) + 1)
    data = prepared.inputs.evaluation("val")
    scored, scoring = scoring_parts(prepared.model, data, task, flags.eval_batch_size, population, validations, models)
    extraction = extraction_parts(prepared.body, population, flags.feature_views)
    return [
        *training_plan.data_lines(population, str(records.root)),
        *model_flags.model_lines(flags, task, model),
        *_algorithm_lines(flags, setup.config),
        *entry("rounds", *_rounds_rows(flags)),
        *entry("cohort", _cohort_row(flags, population, photos)),
        *([] if setup.local_plan is None else entry("privacy", local_announcement(setup.local_plan))),
        *([] if privacy_plan is None else _privacy_lines(setup, privacy_plan, num_weights(model))),
        *_state_lines(setup, num_clients(flags, population), num_weights(model)),
        *entry("memory", memory_row(), _MEMORY_NOTES[flags.runtime]),
        *training_plan.time_lines(
            [
                *(*extraction, Part("rounds", rounds, fixed + cohort * photos * per_photo)),
                *_looks(flags, photos * per_photo, photos / scoring.photos_per_second),
                *scored,
            ],
            f"a round is {fixed:.2g} s and {cohort:,} clients x {photos:.3g} photos shown, {rate(1 / per_photo)} a "
            f"second ({timed} timed, --runtime={flags.runtime}); evaluation {rate(scoring.photos_per_second)} photos/s",
        ),
    ]


def _rounds_rows(flags: Flags) -> list[str]:
    looks = f", a look at clients every {flags.rounds_per_client_eval:,}" if flags.rounds_per_client_eval else ""
    rows = [f"{flags.total_rounds:,}, an evaluation every {flags.rounds_per_eval:,}{looks}"]
    if flags.ema_decay:
        rows.append(f"an average of the weights, of decay {flags.ema_decay:g}, is evaluated beside the model")
    if flags.early_stopping:
        rows.append(f"fewer where no model of {flags.early_stopping:,} rounds is better")
    return rows


def _looks(flags: Flags, training: float, scoring: float) -> list[Part]:
    """Looks at clients, from the seconds in which one trains and in which as many photos are scored."""
    if not flags.rounds_per_client_eval:
        return []
    count, times = flags.clients_per_client_eval, flags.total_rounds // flags.rounds_per_client_eval
    count = min(count, flags.clients_per_round)
    # Validation users and clients of the round are scored, and these trained; users train on half of their photos.
    locally = (training + scoring) / 2 if flags.federated_eval_local_training else 0.0
    per_client = training + 2 * scoring / flags.client_epochs_per_round + locally
    return [Part("looks at clients", times, count * per_client)]


def _privacy_lines(setup: Setup, privacy_plan: PrivacyPlan, weights: int) -> list[str]:
    """Epsilon, delta and every noise of the plan, and what an audit costs."""
    noise, request = setup.config.noise, privacy_plan.request
    assert noise is not None
    if noise.noise_multiplier == 0:
        return entry("privacy", "NONE: updates are clipped, and no noise is added (--noise_multiplier=0)")
    own, cohort, rounds = privacy_plan.run_noise_multiplier, request.accounted_cohort, request.total_rounds
    stddev = noise.clipped_count_stddev
    on_sum = sum_noise_multiplier(own, stddev)
    pld, rdp = (rounded_up(privacy_plan.epsilon_at(rounds, name)) for name in accounting.ACCOUNTANTS)
    simulated = ", simulated" if request.simulated_cohort else ""
    together = []
    if setup.spent_before:
        total = rounded_up(total_epsilon(privacy_plan, rounds, setup.spent_before, request.accountant))
        together.append(f"epsilon {total} together with what --also_spent says was spent before")
    lines = entry(
        "privacy",
        f"epsilon {pld} by PLD, {rdp} by RDP, at delta {rounded_up(privacy_plan.delta)} after {rounds:,} rounds",
        f"{privacy_plan.num_users:,} users, {request.sampling.value} cohorts of {cohort:,}{simulated}",
        *together,
    )
    sigma = privacy_plan.noise_multiplier
    rows = [f"{sigma:.4g} in total, in clipping norms, on the sum over {cohort:,} clients"]
    rows += _sigma_by_both(privacy_plan)
    if request.simulated_cohort is not None:
        rows.append(
            f"{own:.4g} on the run's own {request.cohort:,} clients, whose own epsilon is "
            f"{rounded_up(privacy_plan.own_epsilon_at(rounds))}"
        )
    if stddev is None:
        rows.append(f"per query: {own:.4g} on the updates; the clipping norm is fixed")
    else:
        rows.append(
            f"per query: {on_sum:.4g} on the updates, standard deviation {stddev:.4g} clients on the count that adapts "
            "the clipping norm"
        )
    if request.mechanism is Mechanism.GAUSSIAN:
        rows.append(f"{sigma / cohort:.4g} on each number of the mean update")
        norm = noise_norm(on_sum, request.cohort, weights)
        rows.append(f"{norm:.3g} clipping norms on its {weights:,} numbers together")
    if request.mechanism is Mechanism.BANDED:
        kept = 4 * weights * (len(noise.column) - 1) / 2**20
        rows.append(f"{len(noise.column)} bands: {kept:,.0f} MiB for the noise of the rounds before")
    rows.append(f"{privacy_plan.noise_on_running_sum:.4g} on the sum of the mean updates so far (RMS over all rounds)")
    lines += entry("sigma", *rows)
    if setup.flags.audit_canaries:
        lines += entry("audit", *audit_cost(setup, privacy_plan, weights))
    return lines


def _state_lines(setup: Setup, users: int, weights: int) -> list[str]:
    """The disk that the users' control variates take."""
    flags = setup.flags
    if flags.algorithm != SCAFFOLD:
        return []
    users = flags.clients_per_round if flags.reuse_clients else users
    _, run_dir = model_flags.output_paths(flags, "federated", setup.task.num_outputs)
    folder = settings.user_state_dir(flags, run_dir).absolute()
    free = shutil.disk_usage(next(path for path in (folder, *folder.parents) if path.exists())).free
    one, most = bytes_on_disk(weights), settings.states_at_most(flags, users, weights)
    return entry(
        "states",
        f"{one / 1e6:,.3g} MB on disk for every user that has taken part, at most {most / 1e9:,.3g} GB with those that",
        f"checkpoints keep; {free / 1e9:,.3g} GB are free in {folder}",
    )


def _sigma_by_both(privacy_plan: PrivacyPlan) -> list[str]:
    """What each accountant asks for, where an epsilon was asked for and cohorts are drawn at random."""
    request = privacy_plan.request
    if request.epsilon is None or privacy_plan.separation is not None or request.published_noise:
        return []
    _, q, compositions = request.released(1.0, privacy_plan.num_users, request.total_rounds)
    settled = request.epsilon, q, compositions, privacy_plan.delta
    asked = (
        f"{accounting.noise_multiplier_for(name, *settled):.4g} by {name.upper()}" for name in accounting.ACCOUNTANTS
    )
    return [f"needed for epsilon {request.epsilon:g}: {', '.join(asked)}"]


def _algorithm_lines(flags: Flags, config: FederatedConfig) -> list[str]:
    client, server = config.client, config.server_optimizer
    weighting = "by examples" if client.weighted else "every client once"
    mu = f", mu {client.proximal_strength:g}" if client.algorithm == FED_PROX else ""
    mu += f" at first, then by {flags.proximal_adapts_to}" if flags.proximal_adapts_to else ""
    loss = "" if client.loss.is_cross_entropy else f", {flags.loss} loss"
    loss += ", logits adjusted by label frequencies" if flags.logit_adjustment else ""
    return [
        *entry("algorithm", f"{client.algorithm}{mu}, {flags.aggregator}, {weighting}{loss}"),
        *entry("client", _client_row(flags, client)),
        *entry("server", f"{server.name} {_rates(server.learning_rates)}"),
    ]


def _client_row(flags: Flags, client: ClientConfig) -> str:
    passes = f"{flags.client_epochs_per_round} epochs in batches of {flags.client_batch_size}"
    if client.algorithm == FED_SGD:
        return f"the mean gradient over {passes}"
    if client.algorithm == MIME_LITE:
        momentum = f"the server's momentum {flags.server_momentum:g}"
        return f"SGD {_rates(client.learning_rates)} with {momentum}, {passes}, gradients not clipped"
    whole = "altogether" if client.global_clipnorm else "a weight"
    clipped = f"clipped to {client.clipnorm:g} {whole}" if client.clipnorm else "not clipped"
    return f"SGD {_rates(client.learning_rates)}, {passes}, gradients {clipped}"


def _rates(rates: Sequence[float]) -> str:
    if len(rates) == 1:
        return f"{rates[0]:g}"
    return f"{rates[0]:.3g} rising to {max(rates):.3g}, {rates[-1]:.3g} in the last round"


def _cohort_row(flags: Flags, population: Population, photos: float) -> str:
    clients = num_clients(flags, population)
    kind = "artificial clients" if flags.iid else "users"
    sampling = settings.sampling(flags)
    q = f" (q = {flags.clients_per_round / clients:.4g})" if sampling.is_random else ""
    return (
        f"{flags.clients_per_round:,} of {clients:,} {kind} a round, {sampling}{q}, {photos:.3g} photos shown to each"
    )


def _photos_shown(flags: Flags, records: Records, population: Population) -> float:
    """Photos that a client is shown per round, on average over clients."""
    most, epochs = flags.max_elements_per_client, flags.client_epochs_per_round
    if flags.iid and flags.mean_datapoints_per_user is not None:
        return float(min(flags.mean_datapoints_per_user, most) * epochs)
    counts = np.bincount(records.photo_index("train").user)
    # The records say what share of a client's photos --max_elements_per_client lets through.
    used = np.minimum(counts, most).sum() / counts.sum()
    return float(population.photos["train"] / population.users["train"] * used * epochs)


def _round_seconds(flags: Flags, runtime: Runtime, data: ClientData) -> tuple[float, float, int]:
    """Seconds of a round without clients and per photo shown, from two small rounds; photos timed."""
    most, epochs = flags.max_elements_per_client, int(flags.client_epochs_per_round)
    looked_at = itertools.islice(data.client_ids, _LOOKED_AT)
    shown = {client: min(len(data.read(client)), most) * epochs for client in looked_at}
    many = _timed_clients(shown)
    first = [min(many, key=shown.__getitem__)]
    runtime.run_round(0, many)  # compiles
    runtime.run_round(1, first)
    large = seconds_of(lambda: runtime.run_round(2, many))
    photos, few = (sum(shown[client] for client in clients) for clients in (many, first))
    if photos == few:
        return 0.0, large / photos, photos
    small = seconds_of(lambda: runtime.run_round(3, first))
    # Noise of the clock must not make a photo cost nothing.
    per_photo = max(large - small, 0.01 * large) / (photos - few)
    return max(small - few * per_photo, 0.0), per_photo, photos + few


def _timed_clients(shown: Mapping[str, int]) -> list[str]:
    """Two clients or more that are shown enough photos together, none of them a large one where there is a choice."""
    ordinary = [client for client in shown if shown[client] <= _TIMED_PHOTOS]
    candidates = ordinary if len(ordinary) > 1 else sorted(shown, key=shown.__getitem__)[:2]
    chosen: list[str] = []
    for client in candidates:
        if len(chosen) < 2 or sum(shown[one] for one in chosen) < _TIMED_PHOTOS:
            chosen.append(client)
    return chosen
