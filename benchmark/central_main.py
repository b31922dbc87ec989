"""Trains FLAIR's benchmark model on the pooled photos of all users.

Writes the best model (by validation loss, unless --best_metric says otherwise) to --save_model_dir and everything else
to a run folder. The same command continues an interrupted run, with the result of an unbroken one.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from absl import flags

from benchmark.data.records import Records, Task
from benchmark.run import command, path_flags, tf_config
from benchmark.run.folder import RunFolder, WatchedRunFolder
from benchmark.run.schedules import SCHEDULES, learning_rates
from benchmark.training import flags as model_flags
from flair.errors import FlairError
from flair.terminal.paths import command_line
from flair.terminal.progress import duration

if TYPE_CHECKING:
    from benchmark.central.loop import Options
    from benchmark.central.step import CentralTrainer
    from benchmark.data.pipeline import EvaluationData, TrainingData
    from benchmark.run.devices import Devices

flags.DEFINE_float("learning_rate", 1e-4, "Learning rate of Adam.", lower_bound=0)
flags.DEFINE_float(
    "clipnorm", 10.0, "Bound on the L2 norm of the gradient of each weight; 0 turns clipping off.", lower_bound=0
)
flags.DEFINE_integer("train_batch_size", 512, "Photos a training step, over all devices.", lower_bound=1)
flags.DEFINE_integer(
    "microbatch_size",
    None,
    "Photos a device passes forward and backward at once; a larger batch is split, with the same result up to "
    "rounding. None: 64 without a GPU, the whole batch with one.",
    lower_bound=1,
)
flags.DEFINE_integer("num_epochs", 100, "Passes over the training photos.", lower_bound=1)
flags.DEFINE_enum("learning_rate_schedule", "constant", SCHEDULES, "How the learning rate falls after the warm-up.")
flags.DEFINE_float("warmup_epochs", 0.0, "Epochs over which the learning rate rises from zero.", lower_bound=0)
flags.DEFINE_string(
    "best_metric", "loss", "Validation metric that chooses the best model; loss is minimized, any other maximized."
)
flags.DEFINE_integer(
    "early_stopping", 0, "Epochs without a better model after which training stops; 0 never stops early.", lower_bound=0
)
path_flags.DEFINE_path("run_dir", None, "Folder of this run; none: the saved model's path without .h5.")
flags.DEFINE_boolean("overwrite", False, "Start over, forgetting the run that --run_dir holds.")
flags.DEFINE_float("minutes_per_checkpoint", 10.0, "Minutes between checkpoints inside an epoch.", lower_bound=0)

FLAGS = flags.FLAGS
# Flags that a continued run may change: its result stays the same, up to rounding for microbatch_size. Restored weights
# are compared by content.
_CHANGEABLE = ("overwrite", "minutes_per_checkpoint", "microbatch_size", "run_dir", "flagfile", "restore_model_path")
# Flags that may differ between the machines of a job: where things lie, and when to save.
_OF_A_MACHINE = (
    *model_flags.NOT_RECORDED,
    "tfrecords_dir",
    "tfds_data_dir",
    "save_model_dir",
    "restore_model_path",
    "run_dir",
    "minutes_per_checkpoint",
)


class _Built(NamedTuple):
    devices: Devices
    trainer: CentralTrainer
    training: TrainingData
    validation: EvaluationData
    test: EvaluationData


def main() -> None:
    """Checks the flags and the data, then trains; TensorFlow is imported only after the checks."""
    model_flags.check_model_flags()
    records, task = model_flags.open_task()
    users = {partition: len(records.users(partition)) for partition in ("train", "val", "test")}
    _check_best_metric(task)
    if FLAGS.warmup_epochs > FLAGS.num_epochs:
        raise FlairError(
            f"--warmup_epochs={FLAGS.warmup_epochs:g}: the learning rate would never be reached in "
            f"--num_epochs={FLAGS.num_epochs}; give at most that many"
        )
    if FLAGS.dry_run:
        _dry_run(records, task)
        return
    saved_model = Path(FLAGS.save_model_dir) / model_flags.model_file_name("central", task.num_outputs)
    run_dir = model_flags.run_folder(saved_model)
    # A longer run with a constant learning rate is the shorter one, continued.
    changeable = (*_CHANGEABLE, "num_epochs") if FLAGS.learning_rate_schedule == "constant" else _CHANGEABLE
    flag_lines, defaults = command.flag_lines(model_flags.NOT_RECORDED), command.default_values()
    is_chief = tf_config.place().worker == 0
    folder = (
        RunFolder(run_dir, flag_lines, "epoch", changeable, FLAGS.overwrite, defaults)
        if is_chief
        else WatchedRunFolder(run_dir)
    )
    with folder as run:
        summary = run.summary
        if summary is not None and FLAGS.num_epochs <= summary["num_epochs"] and not FLAGS.overwrite:
            run.check_inputs(model_flags.data_facts(records), model_flags.restored_model())
            print(f"{run.path}: complete already, after {_epochs(summary['epochs'])}; --overwrite starts over")
        else:
            run.reopen()
            summary = _train(records, task, users, run, saved_model)
            run.finish(summary)
    if is_chief:
        _report(summary, run_dir, saved_model)


def _train(records: Records, task: Task, users: dict[str, int], run: RunFolder, saved_model: Path) -> dict[str, Any]:
    started = time.monotonic()
    photos = {partition: records.num_photos(partition) for partition in users}
    print(
        f"{photos['train']:,} photos of {users['train']:,} users to train, {photos['val']:,} of {users['val']:,} to "
        f"validate, {photos['test']:,} of {users['test']:,} to test; {task.num_outputs} labels",
        flush=True,
    )
    run.describe(
        data={**model_flags.data_facts(records), "users": users, "photos": photos},
        labels=list(task.label_names),
        seed=FLAGS.seed,
        restored_model=model_flags.restored_model(),
    )
    devices, trainer, training, validation, test = _build(records, task)
    from benchmark.central.loop import train
    from benchmark.evaluation import passes
    from benchmark.model import loading
    from benchmark.run.interruption import SafePoints
    from benchmark.run.names import BEST_FILE

    with devices.together():
        devices.barrier()
        if not run.is_described:
            raise FlairError(f"{run.path}: has no run of worker 0; give a --run_dir on a disk that all machines share")
        with SafePoints("step or evaluation") as safe_points:
            position = train(trainer, training, validation, run, _options(training.steps_per_epoch), safe_points)
        devices.barrier()
        loading.load_by_name(trainer.model, run.path / BEST_FILE)
        if run.is_written:
            loading.save_weights(trainer.model, saved_model)
        results = {
            name: passes.accumulate(trainer.model, data, task, devices=devices)
            for name, data in (("val", validation), ("test", test))
        }
    devices.leave()
    return {
        "setting": "central",
        "model": FLAGS.model,
        "parameters": trainer.model.count_params(),
        "num_epochs": FLAGS.num_epochs,
        "epochs": position.epoch,
        "best_epoch": position.best_epoch,
        **{name: result.metrics(task) for name, result in results.items()},
        "know_nothing": {name: result.know_nothing() for name, result in results.items()},
        "training_seconds": round(position.seconds, 3),
        "seconds": round(time.monotonic() - started, 3),
        "saved_model": str(saved_model),
    }


def _build(records: Records, task: Task) -> _Built:
    from benchmark.central.step import CentralTrainer
    from benchmark.data.pipeline import TrainingData, evaluation_dataset
    from benchmark.run.devices import Devices

    devices = Devices()
    if devices.num_workers > 1:
        _check_alike(devices, records)
    microbatch = FLAGS.microbatch_size or (64 if devices.is_cpu else FLAGS.train_batch_size)
    trainer = CentralTrainer(
        lambda: model_flags.build_model(task.num_outputs), task, FLAGS.clipnorm, devices, microbatch
    )
    load_report = model_flags.restore_model(trainer.model)
    if load_report is not None:
        print(f"{FLAGS.restore_model_path}: {load_report}", flush=True)
    size = model_flags.image_size()
    share = (devices.replicas, devices.num_replicas)
    training = TrainingData(records, "train", task, FLAGS.train_batch_size, size, FLAGS.seed, *share)
    workers = (devices.worker, devices.num_workers)
    validation, test = (
        evaluation_dataset(records, partition, task, size, FLAGS.eval_batch_size, None, *workers)
        for partition in ("val", "test")
    )
    return _Built(devices, trainer, training, validation, test)


def _check_alike(devices: Devices, records: Records) -> None:
    restored = model_flags.restored_model()
    facts = [*command.flag_lines(_OF_A_MACHINE), records.digest(), restored and restored["sha256"]]
    with devices.together():
        devices.check_equal(repr(facts), "some flags, data or starting weights")


def _dry_run(records: Records, task: Task) -> None:
    if tf_config.place().num_workers > 1:
        raise FlairError("--dry_run measures one process: leave TF_CONFIG out")
    built = _build(records, task)
    from benchmark.central import dry_run
    from benchmark.training import plan as training_plan

    lines = dry_run.plan_lines(records, task, built.devices, built.trainer, built.validation)
    training_plan.print_plan("benchmark.central_main", lines, "the same command without --dry_run and --num_users")


def _options(steps_per_epoch: int) -> Options:
    from benchmark.central.loop import Options

    warmup = round(FLAGS.warmup_epochs * steps_per_epoch)
    total = FLAGS.num_epochs * steps_per_epoch
    return Options(
        num_epochs=FLAGS.num_epochs,
        learning_rates=learning_rates(FLAGS.learning_rate, total, FLAGS.learning_rate_schedule, warmup),
        best_metric=FLAGS.best_metric,
        early_stopping=FLAGS.early_stopping,
        seconds_per_checkpoint=60 * FLAGS.minutes_per_checkpoint,
    )


def _check_best_metric(task: Task) -> None:
    from benchmark.metrics.histogram import metric_names

    known = metric_names(task.is_binary)
    if FLAGS.best_metric not in known:
        raise FlairError(f"--best_metric={FLAGS.best_metric}: no such metric; the metrics are {', '.join(known)}")


def _epochs(count: int) -> str:
    return "1 epoch" if count == 1 else f"{count:,} epochs"


def _report(summary: dict[str, Any], run_dir: Path, saved_model: Path) -> None:
    for partition in ("val", "test"):
        print(f"final {partition} metrics of the best model (epoch {summary['best_epoch']}):")
        for name, value in summary[partition].items():
            print(f"    {name:<30} {value:.6f}")
        print(
            f"    (macro averaged precision of a scorer that knows nothing: {summary['know_nothing'][partition]:.6f})"
        )
    print(f"best model: {saved_model}")
    print(f"run folder: {run_dir}")
    print(f"{_epochs(summary['epochs'])} in {duration(summary['training_seconds'])} of training")
    print("next:", command_line("tensorboard", logdir=run_dir))


if __name__ == "__main__":
    command.run(main, stopped=command.CONTINUES)
