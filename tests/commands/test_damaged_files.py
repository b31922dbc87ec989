"""A thousand random damages over the files that commands read again: no traceback, no endless wait, nothing believed.

A damaged file is refused in one line, its content is made anew, or what is read is exactly what the whole file gives,
because the damage hit bytes without a meaning. Two kinds of files are plain text for people to write: what is in
flags.txt, metrics.csv, times.csv, a list of photos to exclude, the dataset's own metadata. There a value that has the
right form and agrees with its neighbours counts as written, and the test holds only that form.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from benchmark.data.opening import open_records
from benchmark.data.records import Task
from benchmark.evaluation import result as evaluation_result
from benchmark.evaluation.predictions import PredictionWriter, open_predictions
from benchmark.evaluation.predictor import Predictor
from benchmark.model import loading, networks
from benchmark.model import saved as saved_model
from benchmark.personalization.log import EpisodeLog, LabelResult, UserResult
from benchmark.privacy.noise_key import key_of_run
from benchmark.report.runs import open_runs
from benchmark.run.folder import RunFolder
from benchmark.sweep import table as sweep_table
from benchmark.sweep.grid import make_runs
from flair.curation.exclusion import Exclusion, read_exclusion
from flair.curation.manifest import Testset, read_testset, write_testset
from flair.curation.reviews import PairChange, PhotoChange, ReviewFile, read_reviews
from flair.dataset.metadata import load_records, load_taxonomy
from flair.download.state import DownloadState, Entry
from flair.duplicates.features import read_features
from flair.files.atomic import write_json
from flair.files.growing import PartStore
from flair.miniature.dataset import make_dataset
from flair.records.hdf5.writer import write_hdf5
from flair.records.tfrecord.writer import write_tfrecords
from tests.support.damage import damages, outcome, plain, restored
from tests.support.feature_files import write_features
from tests.support.tiny_network import TINY

FLAGS = ["--clipnorm=10.0", "--learning_rate=0.1", "--num_epochs=3", "--seed=7"]
METRICS = {"loss": 0.25, "macro_averaged_precision": 0.5}
TASK = Task("labels", ("animal", "plant"), 2)


class Case(NamedTuple):
    """Files, and what reads them.

    Attributes:
      make: writes them to an empty folder.
      files: names of the files that are damaged, in turn.
      count: damages in all.
      read: what a command makes of the folder; a value that JSON can spell.
      accepts: whether a value is right beside that of the whole files, given the name of the file.
    """

    make: Callable[[Path], None]
    files: tuple[str, ...]
    count: int
    read: Callable[[Path], Any]
    accepts: Callable[[str, Any], bool] = lambda _name, _value: False


def _make_run(folder: Path) -> None:
    with RunFolder(folder, FLAGS, "epoch") as run:
        run.describe(data={"digest": "abc", "tfrecords_dir": "records"}, labels=["animal", "plant"])
        run.start_at(0)
        for step in (1, 2, 3):
            run.add_row(step, {"train_loss": 1 / step, "val_loss": 0.5 / step}, 1.5 * step)
            run.checkpoints.save(step, {"model/0": np.arange(30.0) * step, "model/1": np.int64(step)}, {"epoch": step})


def _make_complete_run(folder: Path) -> None:
    _make_run(folder)
    with RunFolder(folder, FLAGS, "epoch") as run:
        facts: dict[str, Any] = {"num_epochs": 3, "epochs": 3, "best_epoch": 2, "training_seconds": 4.5}
        run.finish({**facts, "val": METRICS, "test": METRICS, "know_nothing": {"val": 0.1, "test": 0.1}})
    estimate = {"value": 0.5, "low": 0.25, "high": None}
    label = {"label": "animal", "photos": 3, "averaged_precision": 0.5, "low": None, "high": None}
    result = {"partition": "test", "users": 4, "metrics": {"loss": estimate}, "per_label": [label]}
    result["per_user"] = {"loss": {"p50": 0.5, "percentiles": [0.5] * 101}}
    evaluation_result.write_json(folder / "evaluation.json", {"format": 1, "results": [result]})


def _go_on(folder: Path) -> Any:
    with RunFolder(folder, FLAGS, "epoch") as run:
        run.describe(data={"digest": "abc", "tfrecords_dir": "records"})
        found = run.checkpoints.latest()
        assert found is not None
        run.start_at(found.step)
        run.add_row(found.step + 1, {"train_loss": 0.125, "val_loss": 0.0625}, 100.0)
        flags = (folder / "flags.txt").read_text()
        arrays = {name: found.arrays[name].tolist() for name in sorted(found.arrays)}
        return {"step": found.step, "arrays": arrays, "state": found.state, "flags": flags, "rows": run.rows}


def _accepts_go_on(name: str, value: Any) -> bool:
    step = value["step"]
    arrays = {"model/0": (np.arange(30.0) * step).tolist(), "model/1": step}
    whole = value["arrays"] == arrays and value["state"] == {"epoch": step}
    if name.startswith("checkpoints/"):  # the one before
        return whole and step == 2 and list(value["rows"]) == [1, 2, 3]
    is_run = whole and step == 3 and value["flags"] == "".join(f"{flag}\n" for flag in FLAGS)
    return is_run and name in ("metrics.csv", "times.csv") and _is_table(value["rows"])


def _is_table(rows: dict[int, dict[str, float]]) -> bool:
    is_ordered = list(rows) == sorted(rows) and all(step > 0 for step in rows)
    return is_ordered and all(isinstance(value, float) for row in rows.values() for value in row.values())


def _report(folder: Path) -> Any:
    (run,) = open_runs([str(folder)])
    with RunFolder(folder, FLAGS, "epoch") as opened:
        summary = opened.summary
    facts = {"settings": run.settings, "evaluation": run.evaluation, "summary": run.summary, "again": summary}
    return {"rows": run.rows, "seconds": run.seconds, "run": facts, "continued": run.facts["continued"]}


def _accepts_report(name: str, value: Any) -> bool:
    times = list(value["seconds"].values())
    is_sane = _is_table(value["rows"]) and times == sorted(times) and all(0 <= one < math.inf for one in times)
    return name in ("metrics.csv", "times.csv", "flags.txt") and is_sane


SWEEP = make_runs({"learning_rate": ["0.1"]}, 0, 1)


def _make_sweep(folder: Path) -> None:
    _make_complete_run(folder / SWEEP[0].folder)


def _sweep_table(folder: Path) -> Any:
    return sweep_table.rows_of(folder, SWEEP, set(SWEEP))


def _make_weights(folder: Path) -> None:
    loading.save_model(networks.build_model(TINY, (32, 48, 3), 3, seed=1), folder / "best.h5")


def _weights(folder: Path) -> Any:
    saved = saved_model.describe(folder / "best.h5", TINY)
    numbers = [array.tobytes() for array in saved_model.load(saved).get_weights()]
    return [saved.network, saved.image_size, saved.compute_dtype, hashlib.sha256(b"".join(numbers)).digest()]


def _make_key(folder: Path) -> None:
    key = key_of_run(folder, None, ["identity"], "", has_begun=False)
    write_json(folder / "run.json", {"started": "now", "noise_key_sha256": key.sha256})


def _noise(folder: Path) -> Any:
    return key_of_run(folder, None, ["identity"], "", has_begun=True).stream("noise", 3).uint64(0, 4)


SCORES = np.random.default_rng(0).random((40, 3), np.float32)
LOSSES = np.arange(40, dtype=np.float32)
FACTS = {"model": "a" * 64, "image_size": [32, 32], "records": "b", "photos": "c"}


def _make_predictions(folder: Path) -> None:
    writer = PredictionWriter(folder, SCORES.shape, FACTS)
    writer.add(SCORES, LOSSES)
    writer.publish()


def _predictions(folder: Path) -> Any:
    found = open_predictions(folder)
    return None if found is None else [found.facts, found.scores, found.losses]


def _make_unfinished(folder: Path) -> None:
    writer = PredictionWriter(folder, SCORES.shape, FACTS)
    writer.add(SCORES[:25], LOSSES[:25])
    writer.save()


def _finish(folder: Path) -> Any:
    writer = PredictionWriter(folder, SCORES.shape, FACTS)
    writer.add(SCORES[writer.num_done :], LOSSES[writer.num_done :])
    found = writer.publish()
    return [found.facts, found.scores, found.losses]


class _Digest:
    """Records of which only the digest is asked for."""

    def digest(self) -> str:
        return "b"


def _open_evaluation(folder: Path) -> None:
    records: Any = _Digest()
    Predictor(folder, records, TASK, 8, False)


USER_RESULTS = [UserResult(n, f"{n}@N00", 9, 4, 5, 0.125, 1 / (n + 3), 0.3, math.nan, 1e-17) for n in range(12)]
LABEL_RESULTS = [LabelResult(n, "food, drink", 5, 30, 10, 0.5, 1 / (n + 7)) for n in range(12)]


def _make_log(folder: Path) -> None:
    for name, results in (("users.csv", USER_RESULTS), ("labels.csv", LABEL_RESULTS)):
        log = EpisodeLog(folder / name, type(results[0]))
        for result in results:
            log.add(result)


def _log(folder: Path) -> Any:
    return [
        EpisodeLog(folder / "users.csv", UserResult).results,
        EpisodeLog(folder / "labels.csv", LabelResult).results,
    ]


def _accepts_log(_name: str, value: Any) -> bool:
    # Episodes at the end that are cut off are run again.
    return all(
        plain(found) == plain(whole[: len(found)])
        for found, whole in zip(value, (USER_RESULTS, LABEL_RESULTS), strict=True)
    )


def _make_dataset(folder: Path) -> None:
    make_dataset(folder, num_users=6, num_images=12, seed=1)


def _metadata(folder: Path) -> Any:
    taxonomy = {fine: sorted(coarse) for fine, coarse in load_taxonomy(folder).items()}
    return [load_records(folder), taxonomy]


def _make_tfrecords(folder: Path) -> None:
    _make_dataset(folder / "dataset")
    write_tfrecords(folder / "dataset", folder / "users", num_workers=1)
    write_tfrecords(folder / "dataset", folder / "shards", layout="sharded", num_workers=1)


def _make_hdf5(folder: Path) -> None:
    _make_dataset(folder / "dataset")
    write_hdf5(folder / "dataset", folder / "flair.hdf5", image_format="jpeg", num_workers=1)


def _read_records(place: Path) -> Any:
    records = open_records(place)
    photos = {
        partition: {user: records.read_user(partition, user) for user in records.users(partition)}
        for partition in ("train", "val", "test")
    }
    counts = [records.num_photos(partition) for partition in photos]
    return [repr(photos), counts, records.labels, records.fine_grained_labels, records.exclude_digest]


def _make_state(folder: Path) -> None:
    state = DownloadState(folder)
    for number in range(3):
        name = f"small_images-{number:02d}.tar.gz"
        state.record(name, Entry(f"http://mirror/{name}", f"{number}" * 64, 1000 + number, 3, 30))
        state.listing(name).write_text("11 10\n12 10\n13 10\n")


def _state(folder: Path) -> Any:
    state, present = DownloadState(folder), {"11": 10, "12": 10, "13": 10}
    names = [f"small_images-{number:02d}.tar.gz" for number in range(3)]
    return [[state.get(name), state.get(name) and state.gone(name, present)] for name in names]


def _accepts_state(name: str, value: Any) -> bool:
    # Photos that may be gone are unpacked again.
    return name.endswith(".photos") and all(entry is not None and gone > 0 for entry, gone in value[:1])


def _make_reviews(folder: Path) -> None:
    for mark in ("ok", "problematic"):
        changes = [PhotoChange("123", mark), PhotoChange("99", "blacklist"), PairChange(("123", "99"), "duplicate")]
        ReviewFile(folder / "reviews.json").update(lambda _, made=changes: made, "Ann", "2026-01-02T03:04:05Z")


def _reviews(folder: Path) -> Any:
    found = read_reviews(folder / "reviews.json")
    return [sorted(found.photos.items()), sorted(found.pairs.items())]


def _make_exclusion(folder: Path) -> None:
    write_json(folder / "pairs.json", {"1": ["2"], "2": ["1"], "7": ["8", "9"]})
    write_json(folder / "list.json", ["10", "11", "12"])


def _exclusion(folder: Path) -> Any:
    return [read_exclusion(folder / name) for name in ("pairs.json", "list.json")]


def _make_testset(folder: Path) -> None:
    ids = tuple(str(number) for number in range(100, 160))
    write_testset(
        Testset("flair-b-0", "test", ids, parameters={"num_images": 60}, seed=3, refusals={"1": "no"}), folder
    )


def _make_features(folder: Path) -> None:
    write_features(folder / "features.npy", SCORES, [str(number) for number in range(40)], {"model": "m"})


def _features(folder: Path) -> Any:
    table = read_features(folder / "features.npy", ["3", "1"])
    return [table.values, table.rows]


PLACE = np.dtype([("row", "<i8"), ("value", "<f4")])


def _make_parts(folder: Path) -> None:
    for tasks in ((0, 1, 2), (3, 4)):
        store = PartStore(folder, PLACE)
        for task in tasks:
            store.add(np.array([(task, 0.5), (task, 0.25)], PLACE))
        store.save()


def _parts(folder: Path) -> Any:
    store = PartStore(folder, PLACE)
    for task in range(store.done, 5):
        store.add(np.array([(task, 0.5), (task, 0.25)], PLACE))
    return store.rows()


def _is_exclusion(_name: str, value: Any) -> bool:
    return all(isinstance(one, Exclusion) for one in value)


RUN_FILES = ("flags.txt", "metrics.csv", "times.csv", "run.json")
CHECKPOINTS = tuple(f"checkpoints/checkpoint-{step:010d}.npz" for step in (2, 3))
EVENTS = "tensorboard/events.out.tfevents.run"
STATE = tuple(f".download/{name}" for name in ("state.json", "small_images-00.tar.gz.photos"))
PARTS = ("part-000000000-000000003.npy", "part-000000003-000000005.npy")
USER_FILE = "users/train/{}.tfrecords"
CASES = {
    "a run that goes on": Case(_make_run, (*RUN_FILES, *CHECKPOINTS, EVENTS), 240, _go_on, _accepts_go_on),
    "a complete run": Case(
        _make_complete_run, (*RUN_FILES, "summary.json", "evaluation.json"), 140, _report, _accepts_report
    ),
    "weights": Case(_make_weights, ("best.h5",), 60, _weights),
    "a noise key": Case(_make_key, ("noise.key",), 20, _noise),
    "a sweep": Case(_make_sweep, (f"{SWEEP[0].folder}/summary.json",), 30, _sweep_table),
    "predictions": Case(_make_predictions, ("predictions.npy", "losses.npy", "made_from.json"), 60, _predictions),
    "unfinished predictions": Case(
        _make_unfinished,
        tuple(f"unfinished/{name}" for name in ("predictions.npy", "losses.npy", "done.json")),
        60,
        _finish,
    ),
    "an unfinished evaluation": Case(_open_evaluation, ("unfinished.json",), 20, _open_evaluation),
    "episodes": Case(_make_log, ("users.csv", "labels.csv"), 60, _log, _accepts_log),
    "metadata": Case(
        _make_dataset, ("labels_and_metadata.json", "label_relationship.txt"), 30, _metadata, lambda *_: True
    ),
    "TFRecords, a file a user": Case(
        _make_tfrecords,
        ("users/label_index.json", "users/prepare_info.json", "users/train/USER"),
        45,
        lambda folder: _read_records(folder / "users"),
    ),
    "TFRecords, shards": Case(
        _make_tfrecords,
        ("shards/label_index.json", "shards/train/user_index.json", "shards/dev/shard-00000-of-00001.tfrecords"),
        45,
        lambda folder: _read_records(folder / "shards"),
    ),
    "HDF5": Case(_make_hdf5, ("flair.hdf5",), 50, lambda folder: _read_records(folder / "flair.hdf5")),
    "a download": Case(_make_state, STATE, 30, _state, _accepts_state),
    "reviews": Case(_make_reviews, ("reviews.json",), 30, _reviews),
    "exclusions": Case(_make_exclusion, ("pairs.json", "list.json"), 20, _exclusion, _is_exclusion),
    "a test set": Case(_make_testset, ("flair-b-0.json",), 20, lambda folder: read_testset(folder / "flair-b-0.json")),
    "features": Case(_make_features, ("features.npy", "features.json"), 20, _features),
    "parts": Case(_make_parts, PARTS, 20, _parts),
}


def test_there_are_a_thousand_damages() -> None:
    assert sum(case.count for case in CASES.values()) == 1000


@pytest.mark.parametrize("name", CASES)
def test_damaged_files_are_refused_or_made_anew(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    case, whole = CASES[name], tmp_path / "whole"
    whole.mkdir()
    case.make(whole)
    expected = plain(case.read(restored(whole, tmp_path / "damaged")))
    failures = []
    for number, damage in enumerate(damages(name, case.count)):
        file = case.files[number % len(case.files)]
        folder = restored(whole, tmp_path / "damaged")
        path = folder / file if "USER" not in file else min((folder / file).parent.glob("*.tfrecords"))
        damage.apply(path)
        problem = outcome(
            case.read, folder, lambda value, file=file: plain(value) == expected or case.accepts(file, value)
        )
        if problem is not None:
            failures.append(f"{file}: {damage.name}: {problem}")
    capsys.readouterr()
    assert not failures, f"{len(failures)} of {case.count}:\n" + "\n".join(failures)
