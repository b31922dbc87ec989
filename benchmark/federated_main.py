"""Trains FLAIR's benchmark model federated, with user-level differential privacy if asked.

Writes the best model (by validation loss, unless --best_metric says otherwise) to --save_model_dir and everything else
to a run folder, with a privacy statement where there is privacy. The same command continues an interrupted run, with
the result of an unbroken one.
"""

from __future__ import annotations

import os
import tempfile
import time
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmark.data.artificial import visits
from benchmark.data.records import Records, Task
from benchmark.federated import checks, settings, statements
from benchmark.federated.cohort import sample_cohort
from benchmark.federated.flags import FLAGS, RAY, TFF
from benchmark.federated.settings import Setup
from benchmark.privacy import noise_key
from benchmark.privacy.spending import check_same
from benchmark.rounds.config import SCAFFOLD
from benchmark.run import command, loggers
from benchmark.run.flags import CHANGEABLE, Flags
from benchmark.run.folder import RunFolder
from benchmark.run.names import BEST_EMA_FILE, BEST_FILE, PRIVACY_FILE
from benchmark.run.user_states import UserStates
from benchmark.training import flags as model_flags
from benchmark.training import loss as loss_flags
from benchmark.training import plan as training_plan
from benchmark.training import start
from flair import __version__
from flair.terminal.paths import command_line
from flair.terminal.progress import duration

if TYPE_CHECKING:
    import tensorflow as tf

    from benchmark.federated.scoring import Scorer
    from benchmark.privacy.noise_key import NoiseKey
    from benchmark.rounds.runtime import Runtime
    from benchmark.training.inputs import Prepared


_NEWER_FLAGS = (
    *("trainable", "cache_features", "feature_views", "feature_dtype", "augment", "audit_canaries"),
    *("fresh_photos", "datapoints_per_user_distribution", "minimum_num_datapoints_per_user"),
    *("proximal_adapts_to", "proximal_step", "proximal_patience"),
)


def main(flags: Flags) -> None:
    """Checks the flags and the data, then trains; TensorFlow is imported only after the checks."""
    model_flags.check_model_flags(flags)
    checks.check_federated_flags(flags)
    model_flags.check_feature_flags(flags, can_cache=flags.runtime != TFF)
    chosen = loggers.chosen(flags.loggers)
    records, task = model_flags.open_task(flags)
    users = {partition: len(records.users(partition)) for partition in ("train", "val", "test")}
    model_flags.check_best_metric(flags, task)
    if flags.dry_run:
        _dry_run(flags, records, task)
        return
    if not flags.iid:
        settings.check_cohort(flags, users["train"])
    saved_model, run_dir = model_flags.output_paths(flags, "federated", task.num_outputs)
    facts = flags.lines(), "round", flags.names(CHANGEABLE), flags.overwrite, flags.defaults()
    with RunFolder(run_dir, *facts, chosen) as run:
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
    from benchmark.model import trainable

    setup = Setup.of(flags, records, task, dry_run.num_clients(flags, population))
    network = _network(flags, task)
    statements.check(setup, trainable.num_weights(network))
    with tempfile.TemporaryDirectory() as folder:
        states = None
        if flags.algorithm == SCAFFOLD:
            size = trainable.num_weights(network)
            states = UserStates(Path(folder), Path(folder), setup.clients.client_ids, size)
        runtime, _, prepared = _build(setup, network, states=states)
        try:
            lines = dry_run.plan_lines(setup, network, runtime, prepared, population)
        finally:
            runtime.close()
    training_plan.print_plan("benchmark.federated_main", lines)


def _train(
    flags: Flags, records: Records, task: Task, users: dict[str, int], run: RunFolder, saved_model: Path
) -> dict[str, Any]:
    started = time.monotonic()
    from benchmark.federated import loop, scoring
    from benchmark.federated.client_eval import ClientEvaluation
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
    model = _network(flags, task)
    num_weights = trainable.num_weights(model)
    statements.check(setup, num_weights)  # before a key is drawn
    digest = start.network_digest(flags, model)
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
        **loss_flags.facts(flags, setup.config.client.loss.offsets),
    )
    config = loop.LoopConfig(
        total_rounds=flags.total_rounds,
        rounds_per_eval=flags.rounds_per_eval,
        rounds_per_checkpoint=flags.rounds_per_checkpoint,
        best_metric=flags.best_metric,
        initial_clip=None if privacy_plan is None else flags.l2_norm_clip,
        early_stopping=flags.early_stopping,
        ema_decay=flags.ema_decay,
        proximal=settings.proximal_config(flags),
    )

    def cohort_of(round_number: int) -> list[str]:
        cohort = sample_cohort(
            client_ids,
            seed=settings.cohort_seed(flags) if key is None or local_plan is not None else key,
            round_number=round_number,
            clients_per_round=flags.clients_per_round,
            sampling=settings.sampling(flags),
            groups=1 if privacy_plan is None else privacy_plan.request.groups,
        )
        return visits(cohort, round_number) if flags.fresh_photos else cohort

    # Whoever never takes part would hold the mean of all control variates near zero.
    users_of_run = cohort_of(0) if flags.reuse_clients else client_ids
    states = settings.user_states(flags, run.path, users_of_run, num_weights)
    if states is not None and not run.has_begun:
        states.claim()  # before features are computed
    runtime, scorer, _ = _build(setup, model, key, states)
    try:
        stated = statements.Statements(setup, run.path, runtime, num_weights)
        stated.announce()
        with SafePoints("round") as safe_points:
            how = run, config, safe_points, stated.write, ClientEvaluation.of(setup, scorer)
            state = loop.train(runtime, model, scorer, cohort_of, privacy_plan, *how)
        if flags.runtime != RAY:
            runtime.close()  # TFF's worker holds gigabytes; those of Ray are needed still
        loading.load_by_name(model, run.path / BEST_FILE)
        saved_model.parent.mkdir(parents=True, exist_ok=True)
        loading.save_model(model, saved_model)
        loading.save_archive(model, saved_model.with_suffix(".keras"))
        scores: dict[str, Any] = {partition: scorer.evaluate(partition) for partition in ("val", "test")}
        if flags.federated_eval:
            chosen = scoring.sample_clients(records.users("test"), flags.federated_eval_clients, flags.seed)
            local_training = setup.config.client if flags.federated_eval_local_training else None
            scores["clients"] = scoring.evaluate_clients(scorer, chosen, run.path, local_training, flags.seed)
        average = {}
        if flags.ema_decay:
            loading.load_by_name(model, run.path / BEST_EMA_FILE)
            tested = {partition: scorer.evaluate(partition) for partition in ("val", "test")}
            average = {"ema": {"best_round": state.ema_best_round, **tested}}
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
        **average,
        "training_seconds": round(state.seconds, 3),
        "seconds": round(time.monotonic() - started, 3),
        "saved_model": str(saved_model),
    }
    if key is not None and not flags.keep_noise_key:
        noise_key.forget_key(run.path)
    stated.write(state)
    return summary | stated.summary(state.round)


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
        *([] if setup.config.client.loss.is_cross_entropy else [setup.config.client.loss]),
        # Cohorts follow from a seed under local privacy, not from the key.
        *([] if setup.local_plan is None else [setup.config.client.local_noise, settings.cohort_seed(flags)]),
    ]
    content = ""
    # Every photo is read for it, half a minute for all of FLAIR, so only where another run may have the same file.
    if not run.has_begun and (flags.keep_noise_key or flags.noise_key_file is not None):
        content = f"{content_digest(setup.clients)} flair {__version__} tensorflow {metadata.version('tensorflow')}"
    return noise_key.key_of_run(run.path, flags.noise_key_file, list(map(repr, depends_on)), content, run.has_begun)


def _network(flags: Flags, task: Task) -> tf.keras.Model:
    """The whole network with its starting weights."""
    if flags.runtime == RAY:
        import tensorflow as tf

        # They are the workers'; TensorFlow here would take all of their memory.
        tf.config.set_visible_devices([], "GPU")
    model = model_flags.build_model(flags, task.num_outputs)
    start.restore(flags, model)
    return model


def _build(
    setup: Setup, network: tf.keras.Model, key: NoiseKey | None = None, states: UserStates | None = None
) -> tuple[Runtime, Scorer, Prepared]:
    """What trains, what scores, and the model and photos as both take them."""
    from benchmark.federated.scoring import LocalScorer
    from benchmark.training.inputs import prepare

    flags = setup.flags
    runtime: Runtime
    prepared = prepare(flags, setup.records, setup.task, network, can_cache=flags.runtime != TFF)
    if flags.runtime == RAY:
        return *_build_ray(setup, prepared, key, states), prepared
    clients = prepared.inputs.clients(setup.clients)
    if flags.runtime == TFF:
        from benchmark.rounds.tff import TffRuntime

        def build() -> tf.keras.Model:
            same = model_flags.build_model(flags, setup.task.num_outputs)
            start.restore(flags, same, is_announced=False)
            return same

        runtime = TffRuntime(build, setup.config, setup.clients, setup.batch_plan, flags.seed)
    else:
        from benchmark.rounds.inprocess import InProcessRuntime

        canaries = settings.canary_config(setup)
        of_run = setup.batch_plan, flags.seed, key, canaries, states
        runtime = InProcessRuntime(prepared.model, setup.config, clients, *of_run)
    return runtime, LocalScorer(prepared.model, setup.records, prepared.inputs, setup.batch_plan, clients), prepared


def _build_ray(
    setup: Setup, prepared: Prepared, key: NoiseKey | None, states: UserStates | None
) -> tuple[Runtime, Scorer]:
    from benchmark.cluster.pool import start_workers
    from benchmark.cluster.runtime import RayRuntime
    from benchmark.cluster.scorer import RayScorer
    from benchmark.data.clients import ClientSource

    flags = setup.flags
    place = os.path.abspath(*model_flags.data_place(flags).values())
    source = ClientSource(place, setup.records.digest(), settings.artificial(flags))
    arguments = model_flags.model_arguments(flags, setup.task.num_outputs), flags.trainable
    pool = start_workers(flags.ray_address, flags.num_workers, flags.worker_cpus, flags.worker_gpus)
    print(pool.summary(), flush=True)
    try:
        runtime = RayRuntime(
            *(prepared.model, arguments, setup.config, setup.clients, source, setup.batch_plan, flags.seed, key, pool),
            eval_batch_size=flags.eval_batch_size,
            features=prepared.source,
            canaries=settings.canary_config(setup),
            user_states=states,
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
    if "ema" in summary:
        for partition in ("val", "test"):
            print(f"of the best average of weights (round {summary['ema']['best_round']}), {partition}:")
            for name, value in summary["ema"][partition].items():
                print(f"    {name:<30} {value:.6f}")
    for name, spread in summary.get("clients", {}).get("test", {}).items():
        shown = ", ".join(f"{part.replace('_', ' ')} {value:.4f}" for part, value in spread.items())
        print(f"{name} over {summary['clients']['count']} test clients: {shown}")
    print(f"best model: {summary.get('saved_model', run_dir / BEST_FILE)}")
    print(f"run folder: {run_dir}")
    statements.report(summary, run_dir)
    print(f"{summary['rounds']} rounds in {duration(summary['training_seconds'])} of training")
    if "audit" in summary:
        print("next:", command_line("python -m benchmark.audit_main", run_dir=run_dir))
    else:
        print("next:", loggers.command_to_watch(run_dir))


if __name__ == "__main__":
    command.run(main, FLAGS, stopped=command.CONTINUES)
