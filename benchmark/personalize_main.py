"""Adapts a saved model to one user at a time, or to few-shot tasks, and reports whether that helps.

An episode of a user: adapt the global model on some of the user's photos (support), test it before and after on others
(query). Sizes are Meta-Dataset's. The report has means with 95% intervals over users, paired differences, percentiles,
and for whom it helps; one row a user and an episode as CSV, figures as PNG. With --episodes=labels the episodes are
few-shot tasks over fine-grained labels. The same command continues an interrupted run, with the numbers of an unbroken
one. docs/personalization.md says what the numbers mean.
"""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

from benchmark.data.opening import make_task, open_records
from benchmark.data.records import Records, Task
from benchmark.model import saved as saved_model
from benchmark.model.saved import SavedModel
from benchmark.personalization import flags as personalize_flags
from benchmark.personalization import run_labels, run_users
from benchmark.personalization.few_shot import HeadConfig, TrainingConfig
from benchmark.personalization.flags import LABELS, USERS
from benchmark.personalization.log import EpisodeLog, LabelResult, UserResult
from benchmark.personalization.run_labels import EMBEDDING_FILE
from benchmark.personalization.runner import RunConfig
from benchmark.personalization.sources import LabelEpisodeSource, UserEpisodeSource, taxonomy_folder
from benchmark.personalization.users import Adaptation
from benchmark.run import command
from benchmark.run.files import read_json
from benchmark.run.flags import CHANGEABLE, Flags, Table
from benchmark.run.folder import RunFolder
from benchmark.run.names import FLAGS_FILE, RUN_FILE
from benchmark.training import loss as loss_flags
from flair.dataset.catalog import TAXONOMY_FILE
from flair.errors import FlairError
from flair.files.regular_file import file_sha256
from flair.terminal.paths import command_line
from flair.terminal.progress import duration

FLAGS: Table = (*personalize_flags.FLAGS, *loss_flags.LOSS_FLAGS)
EPISODES_FILE, USERS_FILE, FIGURES_DIR, FEATURES_DIR = "episodes.csv", "users.csv", "figures", "features"


def main(flags: Flags) -> None:
    """Checks the flags and the data, then runs the episodes; TensorFlow is imported only after the checks."""
    personalize_flags.check_flags(flags)
    loss_flags.check_loss_flags(flags)
    for flag in loss_flags.LOSS_FLAGS:
        if flags.episodes == LABELS and flags.is_changed(flag.name):
            raise FlairError(f"--{flag.name}={flags[flag.name]} has no effect on --episodes={LABELS}; leave it out")
    saved = saved_model.describe(Path(flags.model), flags.network)
    records = open_records(flags.tfrecords_dir)
    task = _task(flags, records, saved)
    records.users(flags.partition)
    with RunFolder(
        *(personalize_flags.run_dir(flags), flags.lines(), "episode", flags.names(CHANGEABLE), flags.overwrite),
        flags.defaults(),
    ) as run:
        if flags.overwrite:
            _remove_results(run.path)
        facts = _facts(flags, records)
        if not flags.overwrite and any((run.path / name).exists() for name in (EPISODES_FILE, FEATURES_DIR)):
            _check_same(run.path, facts)
        summary = run.summary
        if summary is not None and summary["episodes"] == flags.num_episodes and flags.dump_dir is None:
            print(f"{run.path}: complete already; --overwrite starts over")
        else:
            try:
                summary = _run(flags, records, task, saved, run, facts)
            except FlairError:
                _forget_unless_begun(run)
                raise
    _report(summary, run.path)


def _facts(flags: Flags, records: Records) -> dict[str, Any]:
    """What the results come from, beside the flags."""
    files = {"model": flags.model}
    if flags.duplicates is not None and Path(flags.duplicates).is_file():
        files["duplicates"] = flags.duplicates
    if flags.taxonomy is not None:
        files["taxonomy"] = str(taxonomy_folder(flags.taxonomy) / TAXONOMY_FILE)
    if flags.logit_adjustment not in (None, loss_flags.TRAIN):
        files["logit_adjustment"] = flags.logit_adjustment
    facts = {name: {"path": path, "digest": file_sha256(Path(path))} for name, path in files.items()}
    return {"data": {"tfrecords_dir": flags.tfrecords_dir, "digest": records.digest()}, **facts}


def _run(
    flags: Flags, records: Records, task: Task, saved: SavedModel, run: RunFolder, facts: dict[str, Any]
) -> dict[str, Any]:
    started = time.monotonic()
    run.describe(**facts, labels=list(task.label_names), seed=flags.seed)
    kind = UserResult if flags.episodes == USERS else LabelResult
    log = EpisodeLog(run.path / EPISODES_FILE, kind)
    if log.results:
        print(f"{run.path}: continued after {len(log.results):,} episodes", flush=True)
    run.reopen()
    size = (flags.image_height or saved.image_size[0], flags.image_width or saved.image_size[1])
    if not (saved.is_size_known or (flags.image_height and flags.image_width)):
        print(f"{saved.path}: does not say its input size; {size[0]}x{size[1]} is taken", flush=True)
    places = flags.dump_dir, flags.feature_dir
    config = RunConfig(records, flags.partition, task, saved, size, flags.num_episodes, flags.seed, *places)
    steps, learning_rate = personalize_flags.steps_and_learning_rate(flags)
    result = _run_episodes(flags, config, log, run.path)
    summary = {
        "episodes": flags.num_episodes,
        "kind": flags.episodes,
        "partition": flags.partition,
        "model": flags.model,
        "image_size": list(size),
        "seed": flags.seed,
        "steps": steps,
        "learning_rate": learning_rate,
        **result,
        "seconds": round(time.monotonic() - started, 3),
    }
    run.finish(summary)
    return summary


def _run_episodes(flags: Flags, config: RunConfig, log: EpisodeLog, folder: Path) -> dict[str, Any]:
    steps, learning_rate = personalize_flags.steps_and_learning_rate(flags)
    records, seed = config.records, flags.seed
    if flags.episodes == USERS:
        division = flags.split, flags.num_support, flags.num_query, flags.duplicates
        sgd = steps, learning_rate, flags.batch_size, flags.proximal_strength, flags.clipnorm
        loss = loss_flags.loss_config(flags, loss_flags.logit_offsets(flags, records, config.task))
        of_users = UserEpisodeSource(records, flags.partition, seed, *division)
        adaptation = Adaptation(flags.trainable, *sgd, loss)
        return run_users.run(config, of_users, adaptation, flags.query_size_limit, log, folder)
    drawing = flags.ways, flags.shots, flags.num_query, flags.taxonomy
    of_labels = LabelEpisodeSource(records, flags.partition, seed, flags.label_set, *drawing)
    head, training = HeadConfig(steps, learning_rate, flags.proximal_strength), None
    if flags.training_episodes:
        how = TrainingConfig(flags.training_episodes, flags.training_learning_rate)
        training = LabelEpisodeSource(records, "train", seed, "train", *drawing), how
    return run_labels.run(config, of_labels, head, training, log, folder)


def _task(flags: Flags, records: Records, saved: SavedModel) -> Task:
    if flags.episodes == LABELS:
        return make_task(records, True, None)  # the classifier is not used, the photos' labels are
    binary = flags.binary_label or (saved.binary_label if saved.num_outputs == 1 else None)
    task = make_task(records, flags.use_fine_grained_labels, binary)
    if task.num_outputs != saved.num_outputs:
        hint = "; give --use_fine_grained_labels" if saved.num_outputs == len(records.fine_grained_labels) else ""
        hint = "; give the --binary_label it was trained on" if saved.num_outputs == 1 else hint
        raise FlairError(
            f"--model={saved.path}: has {saved.num_outputs} outputs, the records have {task.num_outputs} labels{hint}"
        )
    if saved.labels is not None and tuple(saved.labels) != task.label_names:
        raise FlairError(
            f"--model={saved.path}: was trained on other labels ({', '.join(saved.labels[:5])}, ...) than "
            f"{records.root} has ({', '.join(task.label_names[:5])}, ...)"
        )
    return task


def _check_same(folder: Path, facts: dict[str, Any]) -> None:
    path = folder / RUN_FILE
    before = read_json(path, {f"{name}?": {"digest?": str} for name in facts}) or {}
    for name, fact in facts.items():
        if before.get(name, {}).get("digest") != fact["digest"]:
            flag = "tfrecords_dir" if name == "data" else name
            raise FlairError(
                f"{folder}: the run was begun with another content of --{flag} than is there now; give the same to "
                "continue it, another --run_dir, or --overwrite"
            )


def _forget_unless_begun(run: RunFolder) -> None:
    # Or the same command with its flags mended would be refused, as another run's.
    path = run.path / EPISODES_FILE
    if not run.has_begun and (not path.is_file() or path.read_bytes().count(b"\n") <= 1):
        _remove_results(run.path)
        (run.path / FLAGS_FILE).unlink(missing_ok=True)


def _remove_results(folder: Path) -> None:
    for name in (EPISODES_FILE, USERS_FILE, EMBEDDING_FILE):
        (folder / name).unlink(missing_ok=True)
    for name in (FIGURES_DIR, FEATURES_DIR):
        shutil.rmtree(folder / name, ignore_errors=True)


def _report(summary: dict[str, Any], folder: Path) -> None:
    describe = run_users.describe if summary["kind"] == USERS else run_labels.describe
    print("\n".join(describe(summary)))
    of_kind = [USERS_FILE] if summary["kind"] == USERS else [EMBEDDING_FILE] if "training_episodes" in summary else []
    files = [EPISODES_FILE, *of_kind, "summary.json", f"{FIGURES_DIR}/"]
    print(f"{folder}: {', '.join(files)}")
    print(f"{summary['episodes']:,} episodes in {duration(summary['seconds'])}")
    report = command_line("python -m benchmark.report_main", folder)
    print(f"next: {report}   # docs/personalization.md says what the numbers mean")


if __name__ == "__main__":
    command.run(main, FLAGS, stopped=command.CONTINUES)
