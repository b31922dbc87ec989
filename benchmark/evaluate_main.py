"""Evaluates saved models and others' predictions: every metric with its 95% interval from a bootstrap over users.

For each model and partition: the metrics that training prints, exact average precision, calibration error, averaged
precision of each label, the spread over users, and the predictions as .npy with an id file; for several models also
paired differences (--compare). With val and others among --partitions also decisions by thresholds of each label that
are chosen on val. Partitions may be test sets' manifests. Predictions are made anew and compared with those of the last
evaluation in --output_dir; an interrupted evaluation is continued. docs/evaluation.md explains the numbers and files.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmark.data.opening import make_task, open_records
from benchmark.data.records import Records, Task
from benchmark.evaluation import text as evaluation_report
from benchmark.evaluation.given import GivenPredictions, Model, find_models
from benchmark.evaluation.sets import EvaluationSet, choose_sets, load_sets, prepared_with
from benchmark.model.saved import MOST_PIXELS, NETWORK_HELP, SavedModel
from benchmark.run import command
from benchmark.run.flags import Flags, Role, Table, boolean, integer, multi_paths, path, paths, text
from benchmark.run.names import BEST_FILE, EVALUATION_FILE
from flair.curation.exclusion import read_exclusion
from flair.errors import FlairError
from flair.files import lock
from flair.files.regular_file import file_sha256
from flair.terminal.counted import counted
from flair.terminal.paths import command_line
from flair.terminal.progress import duration

if TYPE_CHECKING:
    from benchmark.evaluation.result import Scored

VAL = "val"  # where thresholds are chosen
FLAGS: Table = (
    path("tfrecords_dir", None, "Folder that prepare_tfrecords.py wrote.", Role.DATA, required=True),
    paths(
        "models",
        None,
        "Saved models: .h5 or .keras files, run folders (their best.h5), folders of .h5 files or of run folders. Or "
        "what others predict: .npy files of scores with ids.csv beside them, or MODULE:FUNCTION, which is imported.",
        Role.RESULT,
        required=True,
    ),
    text("network", None, NETWORK_HELP, Role.RESULT),
    path(
        "feature_dir",
        None,
        "Folder of features that trainings of the models with --trainable=head left; none: photos are decoded.",
        Role.DATA,
    ),
    paths(
        "partitions", ["val", "test"], "Partitions, or test sets: names in --testsets_dir or .json files.", Role.RESULT
    ),
    path("testsets_dir", "testsets", "Folder of the test sets that flair.sample_testset wrote.", Role.RESULT),
    path("exclude", None, "Leave out the photos of this JSON file: ids, or near_duplicates.json.", Role.RESULT),
    multi_paths(
        "compare", [], "Two models, a,b: the paired difference a - b. May be given several times.", Role.RESULT
    ),
    path("output_dir", "evaluation", "Folder for the result, the tables and the predictions.", Role.PLACE),
    boolean(
        "reuse_predictions",
        "Take finished predictions of the same model and photos instead of making them anew.",
        Role.RESULT,
    ),
    boolean(
        "use_fine_grained_labels",
        "The models predict the fine-grained labels; none: as their outputs tell.",
        Role.RESULT,
        default=None,
    ),
    text("binary_label", None, "The models predict this one label; none: as their run folder tells.", Role.RESULT),
    integer(
        "image_height",
        None,
        "Height of the input, in pixels; none: the model's.",
        Role.RESULT,
        least=16,
        most=MOST_PIXELS,
    ),
    integer(
        "image_width",
        None,
        "Width of the input, in pixels; none: the model's.",
        Role.RESULT,
        least=16,
        most=MOST_PIXELS,
    ),
    integer("eval_batch_size", 512, "Photos a batch; changes speed, never a number.", Role.SPEED, least=1),
    integer("num_resamples", 1000, "Resamples of the bootstrap.", Role.RESULT, least=100),
    integer("seed", 0, "Seed of the bootstrap.", Role.RESULT, least=0, most=2**48),
)


def main(flags: Flags) -> None:
    """Checks flags, models and data; predicts; computes; writes and prints."""
    started = time.monotonic()
    models = find_models(flags.models, flags.network, flags.image_height, flags.image_width)
    if flags.feature_dir is not None and not any(isinstance(model, SavedModel) for model in models):
        raise FlairError(f"--feature_dir={flags.feature_dir}: none of the models is a saved one; leave it out")
    pairs = [_pair(text, models) for text in flags.compare]
    records = open_records(flags.tfrecords_dir)
    task = choose_task(flags, records, models)
    chosen = choose_sets(flags.partitions, flags.testsets_dir)
    exclusion = None if flags.exclude is None else read_exclusion(flags.exclude)
    folder = Path(flags.output_dir)
    if folder.exists() and not folder.is_dir():
        raise FlairError(f"--output_dir={folder}: is a file; expected a folder")
    given = [model for model in models if isinstance(model, GivenPredictions)]
    for model in given:
        if folder.resolve() in model.path.resolve().parents:
            raise FlairError(f"--models={model.path}: lies in --output_dir={folder}, which is written; choose another")
    folder.mkdir(parents=True, exist_ok=True)
    busy = f"{folder}: another evaluation is writing there; choose another --output_dir"
    with lock.exclusive(folder / "evaluation.lock", busy):
        sets = load_sets(records, task, chosen, exclusion)
        for model in given:
            model.check(sets)
        evaluation_report.print_sets(sets)
        if prepared_with(records, exclusion):
            print(f"--exclude={flags.exclude}: {records.root} was prepared with it; no more photos leave", flush=True)
        elif exclusion is not None and not any(one.num_excluded for one in sets):
            print(f"--exclude={flags.exclude}: takes no photo away; is it of this dataset?", flush=True)
        _evaluate(flags, folder, models, pairs, sets, records, task)
    seconds = duration(time.monotonic() - started)
    print(f"evaluated {counted(len(models), 'model')} in {seconds}")
    runs = list(dict.fromkeys(str(model.run_dir) for model in models if _is_result_of_run(model)))
    if runs:
        print("next:", command_line("python -m benchmark.report_main", *runs))
    else:
        print(f"next: the predictions are in {folder}; docs/evaluation.md says how to read them")


def choose_task(flags: Flags, records: Records, models: list[Model]) -> Task:
    """What the models predict, as their number of outputs, the flags and their run folders tell.

    Raises:
      FlairError: these do not agree; one line with both numbers.
    """
    first = models[0]
    trained_on = {model.binary_label for model in models} - {None}
    for model in models[1:]:
        if model.num_outputs != first.num_outputs or len(trained_on) > 1:
            raise FlairError(
                f"--models: {first.path} predicts {_outputs(first)} and {model.path} {_outputs(model)}; "
                "evaluate them separately"
            )
    fine, binary = flags.use_fine_grained_labels, flags.binary_label
    if binary is None and first.num_outputs == 1:
        binary = next(iter(trained_on), None)
        if binary is None:
            raise FlairError(f"{first.path}: has 1 output; say by --binary_label which label it predicts")
    if fine is None:
        is_only_fine = first.num_outputs == len(records.fine_grained_labels) != len(records.labels)
        fine = is_only_fine if binary is None else binary not in records.labels
    task = make_task(records, bool(fine), binary)
    if task.num_outputs != first.num_outputs:
        asked = f"--binary_label={binary}" if binary else f"--use_fine_grained_labels={str(bool(fine)).lower()}"
        raise FlairError(
            f"{first.path}: has {first.num_outputs:,} outputs, but {asked} means {task.num_outputs:,} of "
            f"{records.root} ({len(records.labels):,} coarse labels, {len(records.fine_grained_labels):,} fine-grained)"
        )
    for model in models:
        if model.labels is not None and model.labels != task.label_names:
            raise FlairError(
                f"{model.path}: was trained on other labels ({_few(model.labels)}) than {records.root} has "
                f"({_few(task.label_names)})"
            )
    return task


def _evaluate(
    flags: Flags,
    folder: Path,
    models: list[Model],
    pairs: list[tuple[str, str]],
    sets: list[EvaluationSet],
    records: Records,
    task: Task,
) -> None:
    from benchmark.evaluation import result as evaluation_result
    from benchmark.evaluation import thresholds
    from benchmark.evaluation.predictor import Predictor

    predictor = Predictor(folder, records, task, flags.eval_batch_size, flags.reuse_predictions, flags.feature_dir)
    scored: dict[tuple[str, str], Scored] = {}
    results = []
    for model in models:
        size = flags.image_height or model.image_size[0], flags.image_width or model.image_size[1]
        if not (model.is_size_known or (flags.image_height and flags.image_width)):
            print(f"{model.path}: does not say its input size; {size[0]}x{size[1]} is taken", flush=True)
        reruns = {}
        for one in sets:
            predictions, reruns[one.name] = predictor.predict(model, size, one, folder / one.name / model.name)
            found = evaluation_result.Scored(one, predictions, task, flags.num_resamples, flags.seed)
            scored[model.name, one.name] = found
        val = scored.get((model.name, VAL)) if len(sets) > 1 else None
        chosen = None if val is None else thresholds.choose(val.photos)
        for one in sets:
            place, applied = folder / one.name / model.name, None if one.name == VAL else chosen
            result = evaluation_result.result_of(scored[model.name, one.name], place, applied)
            results.append({"model": model.name, **result, "rerun": reruns[one.name], "predictions": str(place)})
    facts = [_model_facts(model, predictor.digest_of(model)) for model in models]
    content = {
        "format": evaluation_result.FORMAT_VERSION,
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "data": {
            "tfrecords_dir": flags.tfrecords_dir,
            "digest": records.digest(),
            "feature_dir": flags.feature_dir,
        },
        "task": {"feature": task.feature, "binary_label": task.label_names[0] if task.is_binary else None},
        "interval": evaluation_result.interval_facts(flags.num_resamples, flags.seed),
        "exclude": flags.exclude,
        "models": facts,
        "partitions": [evaluation_result.set_facts(one) for one in sets],
        "results": results,
        "comparisons": [
            {"partition": one.name, "a": a, "b": b}
            | {"metrics": evaluation_result.difference(scored[a, one.name], scored[b, one.name])}
            for a, b in pairs
            for one in sets
        ],
        "drops": [
            {"model": model.name, "from": "test", "partition": one.name}
            | {"metrics": evaluation_result.drop(scored[model.name, "test"], scored[model.name, one.name])}
            for model in models
            for one in sets
            if one.manifest is not None and (model.name, "test") in scored
        ],
    }
    path = folder / EVALUATION_FILE
    evaluation_result.write_json(path, content)
    predictor.finish()
    for model, about in zip(models, facts, strict=True):
        if _is_result_of_run(model):
            assert model.run_dir is not None
            own = [result for result in results if result["model"] == model.name]
            of_run = content | {"models": [about], "results": own, "comparisons": [], "drops": []}
            of_run["best_sha256"] = file_sha256(model.run_dir / BEST_FILE)
            evaluation_result.write_json(model.run_dir / EVALUATION_FILE, of_run)
    evaluation_report.print_results(content)
    print(f"result: {path}; predictions, per_label.csv and per_user.csv: {folder}/PARTITION/MODEL/", flush=True)


def _model_facts(model: Model, sha256: str) -> dict[str, Any]:
    return {
        "name": model.name,
        "path": str(model.path),
        "sha256": sha256,
        "network": model.network,
        "image_size": list(model.image_size),
        "run_dir": None if model.run_dir is None else str(model.run_dir),
    }


def _is_result_of_run(model: Model) -> bool:
    # last.h5 and other files of a run are not what it was trained for.
    run = model.run_dir
    if run is None or not (run / BEST_FILE).is_file():
        return False
    path = Path(model.path)
    return path == run / BEST_FILE or path.with_suffix("") == run


def _pair(text: str, models: list[Model]) -> tuple[str, str]:
    parts = text.split(",")
    halves = [(",".join(parts[:end]).strip(), ",".join(parts[end:]).strip()) for end in range(1, len(parts))]
    if len(halves) > 1:  # names may have commas of their own
        halves = [names for names in halves if all(len(_models_called(name, models)) == 1 for name in names)]
    if len(halves) != 1:
        raise FlairError(f"--compare={text}: expected two models, as --compare=a,b")
    a, b = (_model_called(name, text, models) for name in halves[0])
    if a == b:
        raise FlairError(f"--compare={text}: both are {a}")
    return a, b


def _models_called(name: str, models: list[Model]) -> list[str]:
    exact = [model.name for model in models if name in (model.name, str(model.path), str(model.run_dir))]
    return exact or [model.name for model in models if name in (*Path(model.path).parts, Path(model.path).stem)]


def _model_called(name: str, text: str, models: list[Model]) -> str:
    found = _models_called(name, models)
    if len(found) != 1:
        known = ", ".join(model.name for model in models)
        raise FlairError(f"--compare={text}: {name!r} names {len(found) or 'no'} models; the models are {known}")
    return found[0]


def _outputs(model: Model) -> str:
    outputs = counted(model.num_outputs, "output")
    return f"{outputs} ({model.binary_label})" if model.binary_label else outputs


def _few(names: tuple[str, ...]) -> str:
    return ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")


if __name__ == "__main__":
    command.run(main, FLAGS, stopped=command.CONTINUES)
