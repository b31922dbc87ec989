"""Trains FLAIR's benchmark model federated, with user-level differential privacy if asked.

Writes the best model (by validation loss, unless --best_metric says otherwise) to --save_model_dir and everything else
to a run folder, with a privacy statement where there is privacy. The same command continues an interrupted run, with
the result of an unbroken one.
"""

from __future__ import annotations

import os
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from benchmark.data.records import Records, Task
from benchmark.federated import checks, settings
from benchmark.federated.cohort import sample_cohort
from benchmark.federated.flags import FLAGS, RAY, TFF
from benchmark.federated.settings import Setup
from benchmark.privacy import audit, audit_text, noise_key
from benchmark.privacy.accounting import finite, rounded_up
from benchmark.privacy.local_statement import local_announcement, make_local_statement
from benchmark.privacy.spending import check_same
from benchmark.privacy.statement import announcement, make_statement, write_statement
from benchmark.rounds.config import SECURE
from benchmark.run import command
from benchmark.run.flags import CHANGEABLE, Flags
from benchmark.run.folder import RunFolder
from benchmark.run.names import AUDIT_FILE, BEST_FILE, PRIVACY_FILE
from benchmark.training import flags as model_flags
from benchmark.training import plan as training_plan
from benchmark.training import start
from flair import __version__
from flair.terminal.paths import command_line
from flair.terminal.progress import duration

if TYPE_CHECKING:
    import tensorflow as tf

    from benchmark.federated.loop import TrainingState
    from benchmark.federated.scoring import Scorer
    from benchmark.privacy.noise_key import NoiseKey
    from benchmark.rounds.runtime import Runtime
    from benchmark.training.inputs import Prepared


_NEWER_FLAGS = ("trainable", "cache_features", "feature_views", "feature_dtype", "augment", "audit_canaries")


def main(flags: Flags) -> None:
    """Checks the flags and the data, then trains; TensorFlow is imported only after the checks."""
    model_flags.check_model_flags(flags)
    checks.check_federated_flags(flags)
    model_flags.check_feature_flags(flags, can_cache=flags.runtime != TFF)
    records, task = model_flags.open_task(flags)
    users = {partition: len(records.users(partition)) for partition in ("train", "val", "test")}
    model_flags.check_best_metric(flags, task)
    if flags.dry_run:
        _dry_run(flags, records, task)
        return
    if not flags.iid:
        settings.check_cohort(flags, users["train"])
    saved_model, run_dir = model_flags.output_paths(flags, "federated", task.num_outputs)
    with RunFolder(run_dir, flags.lines(), "round", flags.names(CHANGEABLE), flags.overwrite, flags.defaults()) as run:
        summary = run.summary
        if summary is not None:
            run.check_inputs(model_flags.data_facts(flags, records), start.facts(flags))
            print(f"{run.path}: complete already, after {summary['rounds']} rounds; --overwrite starts over")
        else:
            summary = _train(flags, records, task, users, run, saved_model)
            run.finish(summary)
    _report(summary, run_dir)


def _dry_run(flags: Flags, records: Records, task: Task) -> None:
    population = training_plan.population_of(records, flags.num_users, flags.clients_per_round)
    from benchmark.federated import dry_run

    setup = Setup.of(flags, records, task, dry_run.num_clients(flags, population))
    runtime, model, _, prepared = _build(setup, _network(flags, task))
    try:
        lines = dry_run.plan_lines(setup, model, runtime, prepared, population)
    finally:
        runtime.close()
    training_plan.print_plan("benchmark.federated_main", lines)


def _train(
    flags: Flags, records: Records, task: Task, users: dict[str, int], run: RunFolder, saved_model: Path
) -> dict[str, Any]:
    started = time.monotonic()
    from benchmark.federated import loop, scoring
    from benchmark.model import loading, trainable
    from benchmark.run.interruption import SafePoints

    setup = Setup.of(flags, records, task)
    privacy_plan, local_plan, client_ids = setup.privacy_plan, setup.local_plan, setup.clients.client_ids
    print(
        f"{len(client_ids):,} clients to train on, {users['val']:,} users to validate on, "
        f"{users['test']:,} to test on; {task.num_outputs} labels",
        flush=True,
    )
    data, restored = {**model_flags.data_facts(flags, records), "users": users}, start.facts(flags)
    run.check_inputs(data, restored)  # before the network is built, and features are computed
    check_same(run.path / PRIVACY_FILE, setup.spent_before)
    network = _network(flags, task)
    digest = start.network_digest(flags, network)
    key = None
    if settings.has_noise(flags) or settings.is_local(flags):
        key = _noise_key(setup, run, None if restored is None else restored["sha256"], digest)
    run.describe(
        data=data,
        network_sha256=digest,
        clients=len(client_ids),
        labels=list(task.label_names),
        seed=flags.seed,
        restored_model=restored,
        cohort_seed=None if settings.has_noise(flags) else settings.cohort_seed(flags),
        noise_key_sha256=None if key is None else key.sha256,
    )
    config = loop.LoopConfig(
        total_rounds=flags.total_rounds,
        rounds_per_eval=flags.rounds_per_eval,
        rounds_per_checkpoint=flags.rounds_per_checkpoint,
        best_metric=flags.best_metric,
        initial_clip=None if privacy_plan is None else flags.l2_norm_clip,
    )

    def cohort_of(round_number: int) -> list[str]:
        return sample_cohort(
            client_ids,
            seed=settings.cohort_seed(flags) if key is None or local_plan is not None else key,
            round_number=round_number,
            clients_per_round=flags.clients_per_round,
            sampling=settings.sampling(flags),
            groups=1 if privacy_plan is None else privacy_plan.request.groups,
        )

    def state_privacy(state: TrainingState) -> dict[str, Any] | None:
        has_key, found = (run.path / noise_key.KEY_FILE).exists(), None
        if local_plan is not None:
            of_key = settings.key_state(flags, has_key)
            write_statement(
                run.path, make_local_statement(local_plan, state.round, flags.l2_norm_clip, of_key, flags.iid)
            )
        if privacy_plan is not None:
            scores = runtime.canary_scores()
            if scores is not None:
                claim = settings.audited_claim(privacy_plan, setup.config, state.round)
                audit.write(run.path / AUDIT_FILE, claim, scores)
                found = audit.audit(claim, scores)
            happened = setup.config, state.round, state.clip_norms, has_key, num_weights
            record = settings.run_record(flags, *happened, setup.spent_before, found)
            write_statement(run.path, make_statement(privacy_plan, record))
        return found

    runtime, model, scorer, _ = _build(setup, network, key)
    num_weights = trainable.num_weights(model)
    try:
        secure = _secure_aggregation(flags, runtime, num_weights)
        if secure is not None:
            print(
                "secure aggregation is SIMULATED: no update is masked, and this system sees each one; on devices a "
                f"client would send {secure['bits_per_client']:,} bits a round, masked, where a plain update has "
                f"{secure['plain_bits_per_client']:,}",
                flush=True,
            )
        if local_plan is not None:
            print(local_announcement(local_plan), flush=True)
        if privacy_plan is not None:
            settings.check_noise_memory(privacy_plan, num_weights)
            noise = setup.config.noise
            stddev = None if noise is None else noise.clipped_count_stddev
            print("\n".join(announcement(privacy_plan, num_weights, stddev, setup.spent_before)), flush=True)
            if flags.audit_canaries:
                print("audit:", settings.audit_cost(flags, privacy_plan, setup.config, num_weights), flush=True)
        with SafePoints("round") as safe_points:
            state = loop.train(
                runtime, model, scorer, cohort_of, privacy_plan, run, config, safe_points, before_release=state_privacy
            )
        if flags.runtime != RAY:
            runtime.close()  # TFF's worker holds gigabytes; those of Ray are needed still
        loading.load_by_name(model, run.path / BEST_FILE)
        saved_model.parent.mkdir(parents=True, exist_ok=True)
        loading.save_weights(model, saved_model)
        scores: dict[str, Any] = {partition: scorer.evaluate(partition) for partition in ("val", "test")}
        if flags.federated_eval:
            chosen = scoring.sample_clients(records.users("test"), flags.federated_eval_clients, flags.seed)
            local_training = setup.config.client if flags.federated_eval_local_training else None
            scores["clients"] = scoring.evaluate_clients(scorer, chosen, run.path, local_training, flags.seed)
    finally:
        runtime.close()
    summary = {
        "setting": _setting(flags),
        "model": flags.model,
        "parameters": model.count_params(),
        "trainable_weights": num_weights,
        "rounds": state.round,
        "best_round": state.best_round,
        **scores,
        "training_seconds": round(state.seconds, 3),
        "seconds": round(time.monotonic() - started, 3),
        "saved_model": str(saved_model),
    }
    if key is not None and not flags.keep_noise_key:
        noise_key.forget_key(run.path)
    found = state_privacy(state)
    if secure is not None:
        summary["secure_aggregation"] = secure
    if local_plan is not None:
        summary["local_epsilon"] = {
            "of_a_round": finite(local_plan.of_round()),
            "of_all_rounds": finite(local_plan.epsilon_at(state.round)),
        }
    if privacy_plan is not None:
        summary["epsilon"] = finite(privacy_plan.own_epsilon_at(state.round))
        if found is not None:
            summary["audit"] = found
        if privacy_plan.request.simulated_cohort is not None:
            summary["simulated_epsilon"] = privacy_plan.epsilon_at(state.round)
    return summary


def _secure_aggregation(flags: Flags, runtime: Runtime, num_weights: int) -> dict[str, Any] | None:
    """What a client would send in a round of --aggregator=secure, in bits; None for the other aggregators."""
    from benchmark.rounds.server import RoundServer

    if flags.aggregator != SECURE:
        return None
    assert isinstance(runtime, RoundServer)
    bits = runtime.aggregation.spec.secure_bits(flags.clients_per_round)
    return {"simulated": True, "bits_per_client": bits, "plain_bits_per_client": 32 * num_weights}


def _noise_key(setup: Setup, run: RunFolder, restored: str | None, network: str | None) -> NoiseKey:
    """The secret key of a private run. Runs of one --noise_key_file share it only if all of this is equal."""
    from benchmark.data.clients import content_digest

    flags = setup.flags
    depends_on = [
        *(setup.config, setup.batch_plan, settings.sampling(flags), restored),
        *(flags.clients_per_round, flags.iid, flags.mean_datapoints_per_user, flags.seed),
        *(flags.model, flags.normalization, flags.compute_dtype),
        # Only where they were given, so that a run of before they existed has the key it had.
        *(f"{name}={flags[name]}" for name in _NEWER_FLAGS if flags.is_changed(name)),
        *([] if network is None else [network]),
        *([setup.config.noise.column] if setup.config.noise and setup.config.noise.column else []),
        *([] if setup.config.client.local_noise is None else [setup.config.client.local_noise]),
    ]
    content = ""
    # Every photo is read for it, half a minute for all of FLAIR, so only where another run may have the same file.
    if not run.has_begun and (flags.keep_noise_key or flags.noise_key_file is not None):
        content = f"{content_digest(setup.clients)} flair {__version__} tensorflow {metadata.version('tensorflow')}"
    return noise_key.key_of_run(run.path, flags.noise_key_file, list(map(repr, depends_on)), content, run.has_begun)


class _Built(NamedTuple):
    runtime: Runtime
    network: tf.keras.Model
    scorer: Scorer
    prepared: Prepared


def _network(flags: Flags, task: Task) -> tf.keras.Model:
    """The whole network with its starting weights."""
    if flags.runtime == RAY:
        import tensorflow as tf

        # They are the workers'; TensorFlow here would take all of their memory.
        tf.config.set_visible_devices([], "GPU")
    model = model_flags.build_model(flags, task.num_outputs)
    start.restore(flags, model)
    return model


def _build(setup: Setup, model: tf.keras.Model, key: NoiseKey | None = None) -> _Built:
    from benchmark.federated.scoring import LocalScorer
    from benchmark.training.inputs import prepare

    flags, outputs = setup.flags, setup.task.num_outputs
    runtime: Runtime
    scorer: Scorer
    prepared = prepare(flags, setup.records, setup.task, model, can_cache=flags.runtime != TFF)
    if flags.runtime == RAY:
        runtime, scorer = _build_ray(setup, prepared, key)
        return _Built(runtime, model, scorer, prepared)
    if flags.runtime == TFF:
        from benchmark.rounds.tff import TffRuntime

        def build() -> tf.keras.Model:
            same = model_flags.build_model(flags, outputs)
            start.restore(flags, same, is_announced=False)
            return same

        runtime = TffRuntime(build, setup.config, setup.clients, setup.batch_plan, flags.seed)
    else:
        from benchmark.rounds.inprocess import InProcessRuntime

        clients = prepared.inputs.clients(setup.clients)
        canaries = settings.canary_config(flags, len(setup.clients.client_ids))
        runtime = InProcessRuntime(prepared.model, setup.config, clients, setup.batch_plan, flags.seed, key, canaries)
    return _Built(runtime, model, LocalScorer(prepared.model, prepared.inputs, setup.batch_plan), prepared)


def _build_ray(setup: Setup, prepared: Prepared, key: NoiseKey | None) -> tuple[Runtime, Scorer]:
    from benchmark.cluster.pool import start_workers
    from benchmark.cluster.runtime import RayRuntime
    from benchmark.cluster.scorer import RayScorer
    from benchmark.data.source import ClientSource

    flags = setup.flags
    place = os.path.abspath(*model_flags.data_place(flags).values())
    source = ClientSource(place, setup.records.digest(), flags.iid, flags.seed, flags.mean_datapoints_per_user)
    arguments = model_flags.model_arguments(flags, setup.task.num_outputs), flags.trainable
    pool = start_workers(flags.ray_address, flags.num_workers, flags.worker_cpus, flags.worker_gpus)
    print(pool.summary(), flush=True)
    try:
        runtime = RayRuntime(
            *(prepared.model, arguments, setup.config, setup.clients, source, setup.batch_plan, flags.seed, key, pool),
            eval_batch_size=flags.eval_batch_size,
            features=prepared.source,
            canaries=settings.canary_config(flags, len(setup.clients.client_ids)),
        )
    except BaseException:
        pool.close()
        raise
    return runtime, RayScorer(prepared.model, setup.records, setup.task, pool)


def _setting(flags: Flags) -> str:
    if settings.is_local(flags):
        return "federated, locally private"
    if not settings.is_private(flags):
        return "federated"
    return "federated, private" if settings.has_noise(flags) else "federated, clipped without noise"


def _report(summary: dict[str, Any], run_dir: Path) -> None:
    for partition in ("val", "test"):
        print(f"final {partition} metrics of the best model (round {summary['best_round']}):")
        for name, value in summary[partition].items():
            print(f"    {name:<30} {value:.6f}")
    for name, spread in summary.get("clients", {}).get("test", {}).items():
        shown = ", ".join(f"{part.replace('_', ' ')} {value:.4f}" for part, value in spread.items())
        print(f"{name} over {summary['clients']['count']} test clients: {shown}")
    print(f"best model: {summary.get('saved_model', run_dir / BEST_FILE)}")
    print(f"run folder: {run_dir}")
    if "epsilon" in summary:
        epsilon = "infinite" if summary["epsilon"] is None else rounded_up(summary["epsilon"])
        print(f"epsilon: {epsilon}; read {run_dir / 'privacy.txt'} for what that means")
    if "audit" in summary:
        contradicted = bool(summary["audit"]["contradicted_by"])
        print(f"audit: {audit_text.verdict(summary['audit'])}", file=sys.stderr if contradicted else sys.stdout)
    if "local_epsilon" in summary:
        of_round, in_all = (
            "infinite" if summary["local_epsilon"][name] is None else rounded_up(summary["local_epsilon"][name])
            for name in ("of_a_round", "of_all_rounds")
        )
        print(f"local epsilon: {of_round} a round, {in_all} in all; read {run_dir / 'privacy.txt'} for what that means")
    print(f"{summary['rounds']} rounds in {duration(summary['training_seconds'])} of training")
    if "audit" in summary:
        print("next:", command_line("python -m benchmark.audit_main", run_dir=run_dir))
    else:
        print("next:", command_line("tensorboard", logdir=run_dir))


if __name__ == "__main__":
    command.run(main, FLAGS, stopped=command.CONTINUES)
