"""Trains FLAIR's benchmark model on the pooled photos of all users.

Writes the best model (by validation loss, unless --best_metric says otherwise) to --save_model_dir and everything else
to a run folder. The same command continues an interrupted run, with the result of an unbroken one.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmark.central.flags import FLAGS
from benchmark.data.records import Records, Task
from benchmark.run import command, loggers, tf_config
from benchmark.run.flags import ALIKE, CHANGEABLE, Flags, Role
from benchmark.run.folder import RunFolder, WatchedRunFolder
from benchmark.run.names import BEST_FILE
from benchmark.run.schedules import learning_rates
from benchmark.training import flags as model_flags
from benchmark.training import loss as loss_flags
from benchmark.training import start
from flair.errors import FlairError
from flair.terminal.counted import counted
from flair.terminal.progress import duration

if TYPE_CHECKING:
    from benchmark.central.step import CentralTrainer
    from benchmark.data.inputs import Training
    from benchmark.run.devices import Devices
    from benchmark.training.inputs import Prepared


def main(flags: Flags) -> None:
    """Checks the flags and the data, then trains; TensorFlow is imported only after the checks."""
    model_flags.check_model_flags(flags)
    model_flags.check_feature_flags(flags)
    chosen = loggers.chosen(flags.loggers)
    records, task = model_flags.open_task(flags)
    users = {partition: len(records.users(partition)) for partition in ("train", "val", "test")}
    model_flags.check_best_metric(flags, task)
    if flags.warmup_epochs > flags.num_epochs:
        raise FlairError(
            f"--warmup_epochs={flags.warmup_epochs:g}: the learning rate would never be reached in "
            f"--num_epochs={flags.num_epochs}; give at most that many"
        )
    if flags.dry_run:
        _dry_run(flags, records, task)
        return
    saved_model, run_dir = model_flags.output_paths(flags, "central", task.num_outputs)
    # A longer run with a constant learning rate is the shorter one, continued.
    changeable = [role for role in CHANGEABLE if role is not Role.LENGTH or flags.learning_rate_schedule == "constant"]
    is_chief = tf_config.place().worker == 0
    folder = (
        RunFolder(run_dir, flags.lines(), "epoch", flags.names(changeable), flags.overwrite, flags.defaults(), chosen)
        if is_chief
        else WatchedRunFolder(run_dir)
    )
    with folder as run:
        summary = run.summary
        if summary is not None and flags.num_epochs <= summary["num_epochs"] and not flags.overwrite:
            run.check_inputs(model_flags.data_facts(flags, records), start.facts(flags))
            print(f"{run.path}: complete already, after {counted(summary['epochs'], 'epoch')}; --overwrite starts over")
        else:
            run.reopen()
            summary = _train(flags, records, task, users, run, saved_model)
            run.finish(summary)
    if is_chief:
        _report(summary, run_dir)


def _train(
    flags: Flags, records: Records, task: Task, users: dict[str, int], run: RunFolder, saved_model: Path
) -> dict[str, Any]:
    started = time.monotonic()
    photos = {partition: records.num_photos(partition) for partition in users}
    print(
        f"{photos['train']:,} photos of {users['train']:,} users to train, {photos['val']:,} of {users['val']:,} to "
        f"validate, {photos['test']:,} of {users['test']:,} to test; {task.num_outputs} labels",
        flush=True,
    )
    data = {**model_flags.data_facts(flags, records), "users": users, "photos": photos}
    restored = start.facts(flags)
    run.check_inputs(data, restored)  # before features are computed
    devices, trainer, training, prepared = _build(flags, records, task)
    workers = devices.worker, devices.num_workers
    validation, test = (prepared.inputs.evaluation(partition, *workers) for partition in ("val", "test"))
    run.describe(
        data=data,
        labels=list(task.label_names),
        seed=flags.seed,
        restored_model=restored,
        network_sha256=start.network_digest(flags, trainer.network),
        **loss_flags.facts(flags, trainer.loss.offsets),
    )
    from benchmark.central import loop
    from benchmark.evaluation import passes
    from benchmark.model import loading, trainable
    from benchmark.run.interruption import SafePoints

    steps = training.steps_per_epoch
    warmup, schedule = round(flags.warmup_epochs * steps), flags.learning_rate_schedule
    config = loop.LoopConfig(
        num_epochs=flags.num_epochs,
        learning_rates=learning_rates(flags.learning_rate, flags.num_epochs * steps, schedule, warmup),
        best_metric=flags.best_metric,
        early_stopping=flags.early_stopping,
        seconds_per_checkpoint=60 * flags.minutes_per_checkpoint,
    )
    with devices.together():
        devices.barrier()
        if not run.is_described:
            raise FlairError(f"{run.path}: has no run of worker 0; give a --run_dir on a disk that all machines share")
        with SafePoints("step or evaluation") as safe_points:
            state = loop.train(trainer, training, validation, run, config, safe_points)
        devices.barrier()
        loading.load_by_name(trainer.network, run.path / BEST_FILE)
        if run.is_written:
            loading.save_model(trainer.network, saved_model)
            loading.save_archive(trainer.network, saved_model.with_suffix(".keras"))
        results = {
            name: passes.accumulate(trainer.model, data, task, devices=devices)
            for name, data in (("val", validation), ("test", test))
        }
    devices.leave()
    return {
        "setting": "central",
        "model": flags.model,
        "parameters": trainer.network.count_params(),
        "trainable_weights": trainable.num_weights(trainer.network),
        "num_epochs": flags.num_epochs,
        "epochs": state.epoch,
        "best_epoch": state.best_epoch,
        **{name: result.metrics(task) for name, result in results.items()},
        "know_nothing": {name: result.know_nothing() for name, result in results.items()},
        "training_seconds": round(state.seconds, 3),
        "seconds": round(time.monotonic() - started, 3),
        "saved_model": str(saved_model),
    }


def _build(flags: Flags, records: Records, task: Task) -> tuple[Devices, CentralTrainer, Training, Prepared]:
    from benchmark.central.step import CentralTrainer
    from benchmark.run.devices import Devices
    from benchmark.training.inputs import prepare

    devices = Devices()
    loss = loss_flags.loss_config(flags, loss_flags.logit_offsets(flags, records, task))
    if devices.num_workers > 1:
        restored = start.facts(flags)
        facts = [*flags.lines(ALIKE), records.digest(), restored and restored["sha256"], loss.offsets]
        with devices.together():
            devices.check_equal(repr(facts), "some flags, data or starting weights")
    microbatch = flags.microbatch_size or (64 if devices.is_cpu else flags.train_batch_size)
    with devices.scope():
        network = model_flags.build_model(flags, task.num_outputs)
    start.restore(flags, network)
    prepared = prepare(flags, records, task, network)
    trainer = CentralTrainer(prepared.model, task, flags.clipnorm, devices, microbatch, network, loss)
    training = prepared.inputs.training(flags.train_batch_size, flags.seed, devices.replicas, devices.num_replicas)
    return devices, trainer, training, prepared


def _dry_run(flags: Flags, records: Records, task: Task) -> None:
    if tf_config.place().num_workers > 1:
        raise FlairError("--dry_run measures one process: leave TF_CONFIG out")
    devices, trainer, _, prepared = _build(flags, records, task)
    records.photo_index("test")  # of which no photo is read, but a training would refuse damaged files
    from benchmark.central import dry_run
    from benchmark.training import plan as training_plan

    lines = dry_run.plan_lines(flags, records, task, devices, trainer, prepared)
    training_plan.print_plan("benchmark.central_main", lines)


def _report(summary: dict[str, Any], run_dir: Path) -> None:
    for partition in ("val", "test"):
        print(f"final {partition} metrics of the best model (epoch {summary['best_epoch']}):")
        for name, value in summary[partition].items():
            print(f"    {name:<30} {value:.6f}")
        print(
            f"    (macro averaged precision of a scorer that knows nothing: {summary['know_nothing'][partition]:.6f})"
        )
    print(f"best model: {summary.get('saved_model', run_dir / BEST_FILE)}")
    print(f"run folder: {run_dir}")
    print(f"{counted(summary['epochs'], 'epoch')} in {duration(summary['training_seconds'])} of training")
    print("next:", loggers.command_to_watch(run_dir))


if __name__ == "__main__":
    command.run(main, FLAGS, stopped=command.CONTINUES)
