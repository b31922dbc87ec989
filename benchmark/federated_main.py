"""Trains FLAIR's benchmark model federated, with user-level differential privacy if asked.

Writes the best model (by validation loss, unless --best_metric says otherwise) to --save_model_dir and everything else
to a run folder, with a privacy statement where there is privacy. The same command continues an interrupted run, with
the result of an unbroken one.
"""

from __future__ import annotations

import functools
import os
import time
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmark.data.records import Records, Task
from benchmark.federated import checks, settings
from benchmark.federated.cohort import sample_cohort
from benchmark.federated.flags import FEDERATED_FLAGS, RAY, RAY_FLAGS, TFF
from benchmark.privacy import noise_key
from benchmark.privacy.accounting import rounded_up
from benchmark.privacy.plan import PrivacyPlan
from benchmark.privacy.request import Sampling
from benchmark.run import command
from benchmark.run.flags import CHANGEABLE, Flags, Table
from benchmark.run.folder import RunFolder
from benchmark.run.names import BEST_FILE
from benchmark.training import flags as model_flags
from benchmark.training import plan as training_plan
from benchmark.training.flags import MODEL_FLAGS
from flair import __version__
from flair.terminal.paths import command_line
from flair.terminal.progress import duration

if TYPE_CHECKING:
    import tensorflow as tf

    from benchmark.cluster.pool import WorkerPool
    from benchmark.data.clients import BatchPlan
    from benchmark.data.source import Clients
    from benchmark.federated.loop import TrainingState
    from benchmark.federated.scoring import Scorer
    from benchmark.privacy.caveats import KeyState
    from benchmark.privacy.noise_key import NoiseKey
    from benchmark.rounds.runtime import Runtime

FLAGS: Table = (*RAY_FLAGS, *FEDERATED_FLAGS, *MODEL_FLAGS)


def main(flags: Flags) -> None:
    """Checks the flags and the data, then trains; TensorFlow is imported only after the checks."""
    model_flags.check_model_flags(flags)
    checks.check_federated_flags(flags)
    records, task = model_flags.open_task(flags)
    users = {partition: len(records.users(partition)) for partition in ("train", "val", "test")}
    checks.check_best_metric(flags, task)
    if flags.dry_run:
        _dry_run(flags, records, task)
        return
    if not flags.iid:
        checks.check_cohort(flags, users["train"])
    saved_model = Path(flags.save_model_dir) / model_flags.model_file_name(flags, "federated", task.num_outputs)
    run_dir = model_flags.run_folder(flags, saved_model)
    with RunFolder(run_dir, flags.lines(), "round", flags.names(CHANGEABLE), flags.overwrite, flags.defaults()) as run:
        summary = run.summary
        if summary is not None:
            run.check_inputs(model_flags.data_facts(flags, records), model_flags.restored_model(flags))
            print(f"{run.path}: complete already, after {summary['rounds']} rounds; --overwrite starts over")
        else:
            summary = _train(flags, records, task, users, run, saved_model)
            run.finish(summary)
    _report(summary, run_dir, saved_model)


def _dry_run(flags: Flags, records: Records, task: Task) -> None:
    population = training_plan.population_of(records, flags.num_users, flags.clients_per_round)
    from benchmark.data.pipeline import evaluation_dataset
    from benchmark.federated import dry_run

    clients = dry_run.num_clients(flags, population)
    checks.check_cohort(flags, clients)
    plan = settings.privacy_plan_of(flags, clients)
    data = _client_data(flags, records)
    runtime, model = _build_runtime(flags, task, data, plan, records.digest())
    size = model_flags.image_size(flags)
    validation, _ = (evaluation_dataset(records, p, task, size, flags.eval_batch_size) for p in ("val", "test"))
    try:
        lines = dry_run.plan_lines(flags, records, task, model, runtime, data, validation, population, plan)
    finally:
        runtime.close()
    training_plan.print_plan("benchmark.federated_main", lines, "the same command without --dry_run and --num_users")


def _train(
    flags: Flags, records: Records, task: Task, users: dict[str, int], run: RunFolder, saved_model: Path
) -> dict[str, Any]:
    started = time.monotonic()
    from benchmark.federated import loop
    from benchmark.model import loading
    from benchmark.run.interruption import SafePoints

    data = _client_data(flags, records)
    checks.check_cohort(flags, len(data.client_ids))
    plan = settings.privacy_plan_of(flags, len(data.client_ids))
    print(
        f"{len(data.client_ids):,} clients to train on, {users['val']:,} users to validate on, {users['test']:,} to "
        f"test on; {task.num_outputs} labels",
        flush=True,
    )
    restored = model_flags.restored_model(flags)
    key = (
        None
        if plan is None
        else _noise_key(flags, run, data, task, plan, None if restored is None else restored["sha256"])
    )
    run.describe(
        data={**model_flags.data_facts(flags, records), "users": users},
        clients=len(data.client_ids),
        labels=list(task.label_names),
        seed=flags.seed,
        restored_model=restored,
        cohort_seed=settings.cohort_seed(flags) if key is None else None,
        noise_key_sha256=None if key is None else key.sha256,
    )
    if plan is not None:
        _announce(plan)
    options = loop.LoopConfig(
        total_rounds=flags.total_rounds,
        rounds_per_eval=flags.rounds_per_eval,
        rounds_per_checkpoint=flags.rounds_per_checkpoint,
        best_metric=flags.best_metric,
        initial_clip=None if plan is None else flags.l2_norm_clip,
    )
    runtime, model = _build_runtime(flags, task, data, plan, records.digest(), key)
    try:
        scorer = _scorer(flags, runtime, model, records, task)
        with SafePoints("round") as safe_points:
            state = loop.train(
                *(runtime, model, scorer, _cohort_function(flags, data, key), plan, run, options, safe_points),
                before_release=lambda state: _write_privacy(flags, plan, state, run),
            )
        if flags.runtime != RAY:
            runtime.close()  # TFF's worker holds gigabytes; those of Ray are needed still
        loading.load_by_name(model, run.path / BEST_FILE)
        saved_model.parent.mkdir(parents=True, exist_ok=True)
        loading.save_weights(model, saved_model)
        scores: dict[str, Any] = {partition: scorer.evaluate(partition) for partition in ("val", "test")}
        if flags.federated_eval:
            scores["clients"] = _federated_eval(flags, scorer, records, plan, run)
    finally:
        runtime.close()
    summary = {
        "setting": "federated" if plan is None else "federated, private",
        "model": flags.model,
        "parameters": model.count_params(),
        "rounds": state.round,
        "best_round": state.best_round,
        **scores,
        "training_seconds": round(state.seconds, 3),
        "seconds": round(time.monotonic() - started, 3),
        "saved_model": str(saved_model),
    }
    if plan is not None:
        if not flags.keep_noise_key:
            noise_key.forget_key(run.path)
        _write_privacy(flags, plan, state, run)
        summary["epsilon"] = plan.own_epsilon_at(state.round)
        if plan.simulated_cohort is not None:
            summary["simulated_epsilon"] = plan.epsilon_at(state.round)
    return summary


def _federated_eval(
    flags: Flags, scorer: Scorer, records: Records, plan: PrivacyPlan | None, run: RunFolder
) -> dict[str, Any]:
    from benchmark.federated import client_scores as per_client

    clients = per_client.sample_clients(records.users("test"), flags.federated_eval_clients, flags.seed)
    scores = scorer.score_clients("test", clients)
    per_client.write_csv(run.path / "clients.csv", scores)
    found = {"count": len(scores), "test": per_client.summarize(scores)}
    if flags.federated_eval_local_training:
        config = settings.federated_config(flags, plan).client
        compared = scorer.compare_local_training("test", clients, config, flags.seed)
        for name in ("before", "after"):
            chosen = [getattr(one, name) for one in compared]
            per_client.write_csv(run.path / f"clients_{name}_local_training.csv", chosen)
            found[f"{name}_local_training"] = {"count": len(chosen), **per_client.summarize(chosen)} if chosen else None
    return found


def _client_data(flags: Flags, records: Records) -> Clients:
    if flags.tfds_data_dir is not None and not flags.iid:
        from benchmark.data.tfds import TFDSRecords
        from benchmark.data.tff_clients import FlairClientData

        assert isinstance(records, TFDSRecords)
        return FlairClientData(records)
    from benchmark.data.source import training_clients

    return training_clients(records, flags.iid, flags.seed, flags.mean_datapoints_per_user)


def _batch_plan(flags: Flags, task: Task) -> BatchPlan:
    from benchmark.data.clients import BatchPlan

    return BatchPlan(
        task,
        model_flags.image_size(flags),
        flags.client_batch_size,
        flags.client_epochs_per_round,
        flags.max_elements_per_client,
    )


def _noise_key(
    flags: Flags, run: RunFolder, data: Clients, task: Task, plan: PrivacyPlan, restored: str | None
) -> NoiseKey:
    """The secret key of a private run. Runs of one --noise_key_file share it only if all of this is equal."""
    from benchmark.data.clients import content_digest

    depends_on = [
        *(
            settings.federated_config(flags, plan),
            _batch_plan(flags, task),
            settings.sampling(flags),
            restored,
        ),
        *(flags.clients_per_round, flags.iid, flags.mean_datapoints_per_user, flags.seed),
        *(flags.model, flags.normalization, flags.compute_dtype),
    ]
    content = ""
    # Every photo is read for it, half a minute for all of FLAIR, so only where another run may have the same file.
    if not run.has_begun and (flags.keep_noise_key or flags.noise_key_file is not None):
        content = f"{content_digest(data)} flair {__version__} tensorflow {metadata.version('tensorflow')}"
    return noise_key.key_of_run(run.path, flags.noise_key_file, list(map(repr, depends_on)), content, run.has_begun)


def _cohort_function(flags: Flags, data: Clients, key: NoiseKey | None) -> Any:
    def cohort_of(round_number: int) -> list[str]:
        return sample_cohort(
            data.client_ids,
            seed=settings.cohort_seed(flags) if key is None else key,
            round_number=round_number,
            clients_per_round=flags.clients_per_round,
            sampling=settings.sampling(flags),
        )

    return cohort_of


def _build_runtime(
    flags: Flags, task: Task, data: Clients, plan: PrivacyPlan | None, digest: str, key: NoiseKey | None = None
) -> tuple[Runtime, Any]:
    batches = _batch_plan(flags, task)
    config = settings.federated_config(flags, plan)
    if flags.runtime == RAY:
        import tensorflow as tf

        # They are the workers'; TensorFlow here would take all of their memory.
        tf.config.set_visible_devices([], "GPU")
    model, load_report = model_flags.build_model_from_flags(flags, task.num_outputs)
    if load_report is not None:
        print(f"{flags.restore_model_path}: {load_report}", flush=True)
    if flags.runtime == TFF:
        from benchmark.rounds.tff import TffRuntime

        build = functools.partial(model_flags.build_model_from_flags, task.num_outputs)
        return TffRuntime(lambda: build()[0], config, data, batches, flags.seed), model
    if flags.runtime == RAY:
        from benchmark.cluster.runtime import RayRuntime
        from benchmark.data.source import ClientSource

        place = os.path.abspath(*model_flags.data_place(flags).values())
        source = ClientSource(place, digest, flags.iid, flags.seed, flags.mean_datapoints_per_user)
        arguments, pool = model_flags.model_arguments(flags, task.num_outputs), _ray_workers(flags)
        try:
            runtime = RayRuntime(
                *(model, arguments, config, data, source, batches, flags.seed, key, pool),
                eval_batch_size=flags.eval_batch_size,
            )
        except BaseException:
            pool.close()
            raise
        return runtime, model
    from benchmark.rounds.inprocess import InProcessRuntime

    return InProcessRuntime(model, config, data, batches, flags.seed, key), model


def _ray_workers(flags: Flags) -> WorkerPool:
    from benchmark.cluster.pool import start_workers

    pool = start_workers(flags.ray_address, flags.num_workers, flags.worker_cpus, flags.worker_gpus)
    print(pool.summary(), flush=True)
    return pool


def _scorer(flags: Flags, runtime: Runtime, model: tf.keras.Model, records: Records, task: Task) -> Scorer:
    from benchmark.cluster.runtime import RayRuntime
    from benchmark.federated.scoring import LocalScorer

    if isinstance(runtime, RayRuntime):
        from benchmark.cluster.scorer import RayScorer

        return RayScorer(model, records, task, runtime.pool)
    return LocalScorer(model, records, _batch_plan(flags, task), flags.eval_batch_size)


def _announce(plan: PrivacyPlan) -> None:
    print(
        f"differential privacy: epsilon {rounded_up(plan.epsilon)} at delta {rounded_up(plan.delta)} after "
        f"{plan.total_rounds:,} rounds ({plan.request.accountant.upper()}), noise multiplier "
        f"{plan.noise_multiplier:.4g}, {plan.sampling} sampling of {plan.cohort:,} of {plan.num_users:,} clients a "
        "round",
        flush=True,
    )
    if plan.simulated_cohort is not None:
        print(
            f"the noise is that of a simulated cohort of {plan.simulated_cohort:,}; the run itself has epsilon "
            f"{rounded_up(plan.own_epsilon_at(plan.total_rounds))}",
            flush=True,
        )
    if plan.sampling is Sampling.UNIFORM:
        print("cohorts have a fixed size, but epsilon assumes Poisson sampling: see the privacy statement", flush=True)


def _write_privacy(flags: Flags, plan: PrivacyPlan | None, state: TrainingState, run: RunFolder) -> None:
    if plan is None:
        return
    from benchmark.privacy.caveats import RunRecord
    from benchmark.privacy.statement import make_statement, write_statement

    noise = settings.federated_config(flags, plan).noise
    assert noise is not None
    adaptive = noise.target_unclipped_quantile > 0
    record = RunRecord(
        rounds_completed=state.round,
        clip_norms=state.clip_norms,
        target_unclipped_quantile=noise.target_unclipped_quantile if adaptive else None,
        clipped_count_stddev=noise.clipped_count_stddev,
        artificial_users=flags.iid,
        restored_model=flags.restore_model_path is not None,
        noise_key=_state_of_key(flags, run),
        drawn_by_tff=flags.runtime == TFF,
    )
    write_statement(run.path, make_statement(plan, record))


def _state_of_key(flags: Flags, run: RunFolder) -> KeyState:
    from benchmark.privacy.caveats import KeyState

    if flags.noise_key_file is not None:
        return KeyState.GIVEN
    return KeyState.PRESENT if (run.path / noise_key.KEY_FILE).exists() else KeyState.DELETED


def _report(summary: dict[str, Any], run_dir: Path, saved_model: Path) -> None:
    for partition in ("val", "test"):
        print(f"final {partition} metrics of the best model (round {summary['best_round']}):")
        for name, value in summary[partition].items():
            print(f"    {name:<30} {value:.6f}")
    for name, spread in summary.get("clients", {}).get("test", {}).items():
        print(f"{name} over {summary['clients']['count']} test clients: " + _spread(spread))
    print(f"best model: {saved_model}")
    print(f"run folder: {run_dir}")
    if "epsilon" in summary:
        print(f"epsilon: {rounded_up(summary['epsilon'])}; read {run_dir / 'privacy.txt'} for what that means")
    print(f"{summary['rounds']} rounds in {duration(summary['training_seconds'])} of training")
    print("next:", command_line("tensorboard", logdir=run_dir))


def _spread(values: dict[str, float]) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {value:.4f}" for name, value in values.items())


if __name__ == "__main__":
    command.run(main, FLAGS, stopped=command.CONTINUES)
