"""Evaluation from the command line: against scikit-learn and training, reruns, interruptions, test sets, refusals."""

from __future__ import annotations

import json
import shutil
import signal
import time
from functools import partial

import h5py
import numpy as np
import pytest
import tensorflow as tf
from sklearn import metrics as sklearn_metrics

from benchmark.evaluation.bootstrap import FEW_USERS_WARNING, RARE_LABEL_USERS, RARE_LABEL_WARNING
from benchmark.evaluation.predictions import PredictionWriter, compare, open_predictions
from benchmark.evaluation.thresholds import LEAST_USERS, best_threshold
from benchmark.model import loading, networks, weights
from benchmark.model import saved as saved_model
from flair.dataset.metadata import load_users
from flair.errors import FlairError
from flair.files.regular_file import file_sha256
from tests.support.commands import read_csv, refused, run, start
from tests.support.tiny_network import TINY

pytestmark = pytest.mark.timeout(900)  # the first test trains, on whatever the other tests leave of the machine
SIZE = (32, 32)
EVALUATE = "benchmark.evaluate_main"
_evaluate, _refused = partial(run, EVALUATE), partial(refused, EVALUATE)


def _save(path, num_outputs, seed=0, size=SIZE):
    loading.save_model(networks.build_model("cnn", (*size, 3), num_outputs, seed=seed), path)
    return path


@pytest.fixture(scope="module")
def num_labels(tfrecords):
    return len(json.loads((tfrecords / "label_index.json").read_text())["labels"])


@pytest.fixture(scope="module")
def evaluated(tfrecords, miniature, num_labels, tmp_path_factory):
    """A trained run and a random model, evaluated on test and on a test set of half its photos, with two excluded."""
    root = tmp_path_factory.mktemp("evaluated")
    flags = (
        f"--tfrecords_dir={tfrecords}",
        f"--model={TINY}",
        "--image_height=32",
        "--image_width=32",
        "--num_epochs=1",
    )
    trained = run("benchmark.central_main", *flags, f"--save_model_dir={root / 'trained'}", "--train_batch_size=32")
    _save(root / "random.h5", num_labels, seed=5)
    ids = [r.image_id for user in load_users(miniature) if user.partition == "test" for r in user.records]
    manifest = {"name": "half-0", "partition": "test", "image_ids": ids[::2]}
    (root / "half-0.json").write_text(json.dumps(manifest))
    (root / "exclude.json").write_text(json.dumps([ids[1], ids[2]]))
    done = _evaluate(*_flags(root, tfrecords))
    (of_run,) = (root / "trained").glob("*/evaluation.json")
    shutil.copy(of_run, root / "own.json")  # later evaluations write it again
    return root, json.loads((root / "out" / "evaluation.json").read_text()), done.stdout, trained.stdout, ids


def _flags(root, tfrecords, out="out"):
    return (
        f"--tfrecords_dir={tfrecords}",
        f"--models={root / 'trained'},{root / 'random.h5'}",
        f"--network={TINY}",
        "--partitions=val,test,half-0",
        f"--testsets_dir={root}",
        f"--exclude={root / 'exclude.json'}",
        "--compare=trained,random",
        "--num_resamples=200",
        f"--output_dir={root / out}",
    )


def _result(content, model, partition):
    return next(r for r in content["results"] if (r["model"], r["partition"]) == (model, partition))


def test_metrics_are_scikit_learns_on_the_saved_predictions(evaluated):
    root, content, _, _, _ = evaluated
    for model in ("trained", "random"):
        for partition in ("val", "test", "half-0"):
            scores = np.load(root / "out" / partition / model / "predictions.npy")
            labels = np.load(root / "out" / partition / "labels.npy")
            found = {name: one["value"] for name, one in _result(content, model, partition)["metrics"].items()}
            decided = (scores > 0.5).astype(int)
            for name, mean in (
                ("precision", "micro"),
                ("recall", "micro"),
                ("precision", "macro"),
                ("recall", "macro"),
            ):
                score = getattr(sklearn_metrics, f"{name}_score")
                wanted = score(labels, decided, average=mean, zero_division=0)
                assert found[f"{mean}_{name}"] == pytest.approx(wanted, abs=1e-9)
            wanted = sklearn_metrics.average_precision_score(labels, scores, average="micro")
            assert found["micro_exact_average_precision"] == pytest.approx(wanted, abs=1e-6)
            exact = [
                sklearn_metrics.average_precision_score(labels[:, i], scores[:, i]) if labels[:, i].any() else 0.0
                for i in range(labels.shape[1])
            ]
            assert found["macro_exact_average_precision"] == pytest.approx(np.mean(exact), abs=1e-6)
            table = _result(content, model, partition)["per_label"]
            assert [row["exact_average_precision"] for row in table] == pytest.approx(exact, abs=1e-6)
            assert [row["photos"] for row in table] == labels.sum(axis=0).tolist()


def test_thresholds_of_val_decide_on_the_other_sets(evaluated):
    root, content, printed, _, _ = evaluated
    for model in ("trained", "random"):
        assert "thresholds" not in _result(content, model, "val")
        of_val = np.load(root / "out" / "val" / model / "predictions.npy"), np.load(root / "out" / "val" / "labels.npy")
        owners = np.array([row["user_id"] for row in read_csv(root / "out" / "val" / "ids.csv")])
        for partition in ("test", "half-0"):
            result = _result(content, model, partition)
            found, table = result["thresholds"], result["per_label"]
            cuts = np.array([row["threshold"] for row in table])
            for row, scores, labels in zip(table, of_val[0].T, of_val[1].T, strict=True):
                is_own = len(set(owners[labels > 0])) >= LEAST_USERS
                assert row["is_own_threshold"] == is_own
                assert row["threshold"] == (best_threshold(scores, labels) if is_own else found["global"])
            assert found["own"] == sum(row["is_own_threshold"] for row in table)
            labels = np.load(root / "out" / partition / "labels.npy")
            scores = np.load(root / "out" / partition / model / "predictions.npy").astype(np.float64)
            for kind, at in (("at_half", 0.5), ("at_global", found["global"]), ("at_chosen", cuts)):
                wanted = sklearn_metrics.f1_score(labels, scores > at, average="macro", zero_division=0)
                assert found[kind]["mean_label_f1"]["value"] == pytest.approx(wanted)
            assert found["at_half"]["macro_f1"]["value"] == pytest.approx(result["metrics"]["macro_f1"]["value"])
            gain = found["at_chosen"]["micro_f1"]["value"] - found["at_half"]["micro_f1"]["value"]
            assert found["gain"]["micro_f1"]["value"] == pytest.approx(gain)
            assert f"decisions of {model} on {partition} by thresholds chosen on val: {found['own']} labels" in printed


def test_the_table_of_the_long_tail_has_a_line_for_every_setting(evaluated):
    root, content, _, _, _ = evaluated
    door = "docs/long_tail_table.py"
    lines = run(door, root / "out", "random").stdout.splitlines()
    assert lines[0].split()[:4] == ["setting", "seeds", "AP", "F1"]
    ap = _result(content, "trained", "test")["metrics"]["macro_exact_average_precision"]["value"]
    assert next(line for line in lines if line.startswith("trained")).split()[1:3] == ["1", f"{ap:.4f}"]
    less = ap - _result(content, "random", "test")["metrics"]["macro_exact_average_precision"]["value"]
    assert lines[lines.index("less random:") + 2].split()[:2] == ["trained", f"{less:.4f}"]
    assert "nobody: no such setting; expected one of" in run(door, root / "out", "nobody", code=1).stderr


def test_intervals_of_few_users_and_rare_labels_come_with_how_narrow_they_are(evaluated):
    _, content, printed, _, _ = evaluated
    for one in content["partitions"]:
        assert f"{one['name']}: {one['users']:,} users are few: {FEW_USERS_WARNING}" in printed
        table = _result(content, "trained", one["name"])["per_label"]
        rare = [row["label"] for row in table if 0 < row["users"] < RARE_LABEL_USERS]
        assert rare  # of 40 users in all
        said = f"{one['name']}: {len(rare)} labels of fewer than {RARE_LABEL_USERS} users ({', '.join(rare[:5])}"
        assert said in printed and RARE_LABEL_WARNING in printed


def test_point_estimates_are_those_training_printed(evaluated):
    root, content, _, printed, _ = evaluated
    summary = json.loads(next((root / "trained").glob("*/summary.json")).read_text())
    found = _result(content, "trained", "val")["metrics"]
    assert {name: found[name]["value"] for name in summary["val"]} == pytest.approx(summary["val"], abs=1e-6)
    shown = printed.partition("final val metrics")[2].partition("final test metrics")[0]
    for name in summary["val"]:
        value = float(next(line for line in shown.splitlines() if line.strip().startswith(f"{name} ")).split()[1])
        assert found[name]["value"] == pytest.approx(value, abs=1e-6), name


def test_ids_name_each_row_and_excluded_photos_are_gone(evaluated):
    root, content, printed, _, ids = evaluated
    rows = read_csv(root / "out" / "test" / "ids.csv")
    assert {row["image_id"] for row in rows} == set(ids) - {ids[1], ids[2]}
    half = [row["image_id"] for row in read_csv(root / "out" / "half-0" / "ids.csv")]
    assert set(half) == set(ids[::2]) - {ids[2]}
    place = {row["image_id"]: number for number, row in enumerate(rows)}
    whole, part = (np.load(root / "out" / name / "random" / "predictions.npy") for name in ("test", "half-0"))
    np.testing.assert_allclose(part, whole[[place[image_id] for image_id in half]], atol=1e-5)
    facts = {one["name"]: one for one in content["partitions"]}
    assert facts["test"]["excluded"] == 2 and facts["half-0"]["excluded"] == 1 and facts["val"]["excluded"] == 0
    assert "2 photos are excluded" in printed


def test_comparisons_drops_users_and_tables(evaluated):
    root, content, printed, _, _ = evaluated
    assert [(c["partition"], c["a"], c["b"]) for c in content["comparisons"]] == [
        (name, "trained", "random") for name in ("val", "test", "half-0")
    ]
    for c in content["comparisons"]:
        a, b = (_result(content, model, c["partition"])["metrics"]["loss"] for model in ("trained", "random"))
        loss = c["metrics"]["loss"]
        assert loss["value"] == pytest.approx(a["value"] - b["value"])
        assert loss["low"] <= loss["high"]
    assert [(d["model"], d["partition"]) for d in content["drops"]] == [("trained", "half-0"), ("random", "half-0")]
    drop = content["drops"][0]["metrics"]["micro_averaged_precision"]["value"]
    test, half = (
        _result(content, "trained", n)["metrics"]["micro_averaged_precision"]["value"] for n in ("test", "half-0")
    )
    assert drop == pytest.approx(test - half)
    users = read_csv(root / "out" / "test" / "random" / "per_user.csv")
    spread = _result(content, "random", "test")["per_user"]["loss"]
    losses = [float(row["loss"]) for row in users]
    assert spread["mean"] == pytest.approx(np.mean(losses)) and spread["p50"] == pytest.approx(np.median(losses))
    assert spread["worst_decile"] == pytest.approx(max(losses))
    for text in ("drop from test", "paired difference", "next: python -m benchmark.report_main", "worst decile"):
        assert text in printed


def test_the_run_folder_gets_its_own_result(evaluated):
    root, content, _, _, _ = evaluated
    (run,) = (path.parent for path in (root / "trained").glob("*/flags.txt"))
    own = json.loads((root / "own.json").read_text())
    assert {result["model"] for result in own["results"]} == {"trained"}
    assert own["best_sha256"] == file_sha256(run / "best.h5")
    assert own["results"] == [result for result in content["results"] if result["model"] == "trained"]


def test_a_rerun_compares_its_predictions_with_the_old_ones(evaluated, tfrecords, num_labels):
    root, content, _, _, _ = evaluated
    shutil.copytree(root / "out", root / "again")
    shutil.copy(root / "random.h5", root / "kept.h5")
    _save(root / "random.h5", num_labels, seed=6)
    try:
        done = _evaluate(*_flags(root, tfrecords, "again"))
    finally:
        shutil.move(root / "kept.h5", root / "random.h5")
    assert "test, trained: old predictions == new predictions" in done.stdout
    assert "test, random: old predictions != new predictions" in done.stdout
    assert "the model file changed since" in done.stdout
    again = json.loads((root / "again" / "evaluation.json").read_text())
    assert _result(again, "trained", "test")["metrics"] == _result(content, "trained", "test")["metrics"]


def test_refusals_are_one_line_and_quick(tfrecords, num_labels, evaluated, tmp_path):
    root = evaluated[0]
    data = f"--tfrecords_dir={tfrecords}"
    _save(tmp_path / "five.h5", 5)
    _save(tmp_path / "one.h5", 1)
    (tmp_path / "text.h5").write_text("no HDF5")
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad-0.json").write_text(
        json.dumps({"name": "bad-0", "partition": "test", "image_ids": ["1"], "is_valid": False, "problem": "too few"})
    )
    good = f"--models={root / 'random.h5'}"
    out = f"--output_dir={tmp_path / 'out'}"
    for flags, words in (
        ([f"--models={tmp_path / 'none.h5'}"], "no such file or folder"),
        ([f"--models={tmp_path / 'empty'}"], "holds no .h5 file"),
        ([f"--models={tmp_path / 'text.h5'}"], "is not a Keras .h5 file"),
        (
            [f"--models={tmp_path / 'five.h5'}"],
            f"has 5 outputs, but --use_fine_grained_labels=false means {num_labels}",
        ),
        ([good, "--use_fine_grained_labels"], f"has {num_labels} outputs, but --use_fine_grained_labels=true"),
        ([good, "--binary_label=structure"], "--binary_label=structure means 1"),
        ([f"--models={tmp_path / 'one.h5'}"], "say by --binary_label"),
        ([f"--models={root / 'random.h5'},{tmp_path / 'five.h5'}"], "evaluate them separately"),
        ([good, "--compare=random,other"], "'other' names no models"),
        ([good, "--compare=random"], "expected two models"),
        ([good, "--partitions=tset"], "no such partition"),
        ([good, "--partitions=test,test"], "test occurs twice"),
        ([good, f"--partitions={tmp_path / 'bad-0.json'}"], "not valid (too few)"),
        ([good, f"--exclude={tmp_path / 'none.json'}"], "no such file"),
        ([good, f"--output_dir={tmp_path / 'text.h5'}"], "is a file"),
    ):
        started = time.monotonic()
        assert words in _refused(data, out, *flags), flags
        assert time.monotonic() - started < 60
    assert "models" in _refused(data, code=2)


def test_a_model_that_diverged_is_refused_in_one_line_not_a_traceback(tfrecords, num_labels, tmp_path):
    model, path = networks.build_model("cnn", (*SIZE, 3), num_labels), tmp_path / "diverged.h5"
    kernel = model.get_layer("classifier").kernel
    kernel.assign(tf.fill(kernel.shape, np.nan))
    loading.save_model(model, path)
    flags = (f"--tfrecords_dir={tfrecords}", f"--models={path}", "--partitions=val", f"--output_dir={tmp_path / 'out'}")
    done = _evaluate(*flags, code=1)
    assert "its training has diverged" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_a_saved_model_says_its_size_network_and_outputs(tmp_path, evaluated):
    path = _save(tmp_path / "a.h5", 3, size=(48, 64))
    saved = saved_model.describe(path)
    assert (saved.network, saved.image_size, saved.num_outputs, saved.is_size_known) == ("cnn", (48, 64), 3, True)
    with h5py.File(path, "r+") as file:
        del file.attrs[weights.FACTS_ATTRIBUTE]
    assert saved_model.describe(path).image_size == (48, 64)  # Keras's own description tells
    with h5py.File(path, "r+") as file:
        del file.attrs["model_config"]
    assert saved_model.describe(path).image_size == saved_model.PUBLISHED_SIZE
    assert not saved_model.describe(path).is_size_known
    whole = networks.build_model("cnn", (40, 24, 3), 3)
    whole.save(tmp_path / "whole.h5")
    assert saved_model.describe(tmp_path / "whole.h5").image_size == (40, 24)
    again = saved_model.load(saved_model.describe(tmp_path / "whole.h5"))
    photos = tf.random.stateless_uniform([2, 40, 24, 3], [1, 2], 0, 255)
    np.testing.assert_allclose(again(photos), whole(photos), atol=1e-6)
    # Without the attribute, the flags of the run tell.
    (run,) = (path.parent for path in (evaluated[0] / "trained").glob("*/flags.txt"))
    (tmp_path / "run").mkdir()
    shutil.copy(run / "flags.txt", tmp_path / "run")
    with h5py.File(_save(tmp_path / "run" / "best.h5", 3), "r+") as file:
        del file.attrs[weights.FACTS_ATTRIBUTE], file.attrs["model_config"]
    assert saved_model.describe(tmp_path / "run" / "best.h5").image_size == SIZE


def test_what_is_no_network_of_ours_is_refused(tmp_path):
    model = tf.keras.Sequential([tf.keras.layers.Dense(3, input_shape=(4,))])
    model.save_weights(tmp_path / "dense.h5", save_format="h5")
    with pytest.raises(FlairError, match="is no network of this toolkit"):
        saved_model.describe(tmp_path / "dense.h5")


@pytest.mark.parametrize("facts", ["[]", "3", '{"input_shape": [null, null, 3]}', '{"input_shape": [1000000, 9, 3]}'])
def test_a_damaged_description_in_a_model_is_refused_not_a_traceback(tmp_path, facts):
    path = _save(tmp_path / "a.h5", 3)
    with h5py.File(path, "r+") as file:
        file.attrs[weights.FACTS_ATTRIBUTE] = facts
    with pytest.raises(FlairError, match=r"a\.h5: (is not a Keras \.h5 file|the model cannot have an input of)"):
        saved_model.describe(path)


def test_a_model_beside_its_run_folder_has_a_name_of_its_own_below_the_output(evaluated, tmp_path):
    (run,) = (path.parent for path in (evaluated[0] / "trained").glob("*/flags.txt"))
    twin = run.with_name(f"{run.name}.h5")  # the network has a dot in its name
    found = saved_model.find_models([str(twin), str(run), str(run / ".." / twin.name)], TINY)
    assert [model.name for model in found] == [twin.name, run.name]


def test_a_folder_of_run_folders_names_the_best_model_of_each(tmp_path):
    for name in ("seed=0", "seed=1", "begun"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "flags.txt").write_text("--model=cnn\n")
    for name in ("seed=0", "seed=1"):
        _save(tmp_path / name / "best.h5", 3)
    assert [model.name for model in saved_model.find_models([str(tmp_path)])] == ["seed=0", "seed=1"]


def test_folders_of_a_sweep_with_commas_in_their_names_can_be_named_and_compared(tmp_path):
    runs = [tmp_path / f"learning_rate=0.1,seed={seed}" for seed in (0, 1)]
    for path in runs:
        path.mkdir()
        (path / "flags.txt").write_text("--model=cnn\n")
        _save(path / "best.h5", 3)
    names = ",".join(map(str, runs)).split(",")
    assert [model.path.parent for model in saved_model.find_models(names)] == runs
    flags = (f"--models={runs[0]},{runs[1]}", f"--compare={runs[0].name},{runs[1].name}", "--tfrecords_dir=/nowhere")
    assert "/nowhere" in _refused(*flags)  # which is looked at after the models
    with pytest.raises(FlairError, match="no such file"):
        saved_model.find_models([*names, "none.h5"])


def test_predictions_are_continued_where_they_stopped(tmp_path):
    scores, losses = np.random.default_rng(0).random((10, 3), np.float32), np.arange(10, dtype=np.float32)
    writer = PredictionWriter(tmp_path / "p", (10, 3), {"model": "a"})
    writer.add(scores[:4], losses[:4])
    writer.save()
    del writer
    assert open_predictions(tmp_path / "p") is None
    assert PredictionWriter(tmp_path / "p", (10, 3), {"model": "a"}).num_done == 4
    writer = PredictionWriter(tmp_path / "p", (10, 3), {"model": "a"})
    writer.add(scores[4:], losses[4:])
    done = writer.publish()
    np.testing.assert_array_equal(done.scores, scores)
    np.testing.assert_array_equal(done.losses, losses)
    other = PredictionWriter(tmp_path / "p", (10, 3), {"model": "b"})
    assert other.num_done == 0
    other.add(scores + np.eye(10, 3, dtype=np.float32) / 8, losses)
    line = compare(done, other.publish())
    assert line == (
        "old predictions != new predictions: 3 of 10 photos differ, by at most 0.125; the model file changed since"
    )


def test_damaged_predictions_are_named(tmp_path):
    writer = PredictionWriter(tmp_path / "p", (2, 1), {})
    writer.add(np.zeros((2, 1), np.float32), np.zeros(2, np.float32))
    writer.publish()
    (tmp_path / "p" / "predictions.npy").write_bytes(b"x")
    with pytest.raises(FlairError, match="predictions are damaged"):
        open_predictions(tmp_path / "p")


def test_no_changed_byte_of_predictions_is_believed(tmp_path):
    tfrecords, scores, losses = _predicted(tmp_path, finish=True)
    lines = []
    for name in ("predictions.npy", "losses.npy", "made_from.json"):
        data = (tfrecords / name).read_bytes()
        for place in range(len(data)):
            (tfrecords / name).write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
            try:
                found = open_predictions(tfrecords)
            except FlairError as error:
                lines.append(str(error))
                continue
            # Of a NumPy header, the padding means nothing.
            assert name != "made_from.json" and place < 128 and found.facts == {"model": "a"}
            np.testing.assert_array_equal(found.scores, scores)
            np.testing.assert_array_equal(found.losses, losses)
        (tfrecords / name).write_bytes(data)
    assert all(line.startswith(f"{tfrecords}: its predictions are damaged") and line.isprintable() for line in lines)


def test_damaged_unfinished_predictions_are_made_anew(tmp_path, capsys):
    tfrecords, scores, losses = _predicted(tmp_path, finish=False)
    kept = {path.name: path.read_bytes() for path in (tfrecords / "unfinished").iterdir()}
    for name, data in kept.items():
        for damaged in (b"", data[: len(data) // 2], data[:-1] + b"\x01", b"[" * 100_000, None):
            for other, whole in kept.items():
                (tfrecords / "unfinished" / other).write_bytes(whole)
            (tfrecords / "unfinished" / name).unlink()
            if damaged is None:
                (tfrecords / "unfinished" / name).mkdir()
            else:
                (tfrecords / "unfinished" / name).write_bytes(damaged)
            writer = PredictionWriter(tfrecords, (6, 2), {"model": "a"})
            assert writer.num_done == 0
            line = capsys.readouterr().err
            assert line.startswith(f"{tfrecords / 'unfinished'}: is damaged (") and line.count("\n") == 1
            writer.add(scores, losses)
            np.testing.assert_array_equal(writer.publish().scores, scores)
            (tfrecords / "unfinished").mkdir()


def _predicted(tmp_path, finish):
    scores, losses = np.random.default_rng(0).random((6, 2), np.float32), np.arange(6, dtype=np.float32)
    writer = PredictionWriter(tmp_path / "p", (6, 2), {"model": "a"})
    writer.add(scores, losses)
    if finish:
        writer.publish()
    else:
        writer.save()
    return tmp_path / "p", scores, losses


@pytest.mark.slow
def test_an_interrupted_evaluation_is_continued_with_the_same_numbers(evaluated, tfrecords):
    root = evaluated[0]
    flags = [*_flags(root, tfrecords, "broken"), "--eval_batch_size=4"]
    whole = _evaluate(*_flags(root, tfrecords, "unbroken"), "--eval_batch_size=4")
    assert whole.returncode == 0
    process = start(EVALUATE, *flags)
    while not (root / "broken" / "test" / "trained" / "made_from.json").is_file():
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130 and "continues where it stopped" in errors
    done = _evaluate(*flags)
    assert "continuing the evaluation that was interrupted" in done.stdout
    broken, unbroken = (json.loads((root / n / "evaluation.json").read_text()) for n in ("broken", "unbroken"))
    for one, other in zip(broken["results"], unbroken["results"], strict=True):
        assert one["metrics"] == other["metrics"]
    assert broken["results"][0]["rerun"] == "made before the interruption"
    # The evaluation is complete now: the next one predicts anew.
    assert "old predictions == new predictions" in _evaluate(*flags).stdout


@pytest.mark.slow
def test_a_binary_model_has_accuracy_with_both_intervals(tfrecords, tmp_path):
    _save(tmp_path / "structure.h5", 1, seed=2)
    done = _evaluate(
        f"--tfrecords_dir={tfrecords}", f"--models={tmp_path}", "--binary_label=structure", "--partitions=train",
        f"--output_dir={tmp_path / 'out'}",
    )  # fmt: skip
    result = json.loads((tmp_path / "out" / "evaluation.json").read_text())["results"][0]
    scores = np.load(tmp_path / "out" / "train" / "structure" / "predictions.npy")
    labels = np.load(tmp_path / "out" / "train" / "labels.npy")
    right = int(((scores > 0.5) == labels).sum())
    exact = result["clopper_pearson"]
    assert exact["right"] == right and exact["low"] < right / len(labels) < exact["high"]
    assert result["metrics"]["accuracy"]["value"] == pytest.approx(right / len(labels))
    assert "Clopper-Pearson" in done.stdout and "macro_precision" not in result["metrics"]


@pytest.mark.slow
def test_fine_grained_models_are_known_by_their_outputs(tfrecords, tmp_path):
    count = len(json.loads((tfrecords / "label_index.json").read_text())["fine_grained_labels"])
    _save(tmp_path / "fine.h5", count)
    done = _evaluate(
        f"--tfrecords_dir={tfrecords}", f"--models={tmp_path / 'fine.h5'}", "--partitions=test", "--num_resamples=100",
        f"--output_dir={tmp_path / 'out'}",
    )  # fmt: skip
    content = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert content["task"]["feature"] == "fine_grained_labels"
    assert len(content["results"][0]["per_label"]) == count
    assert f"the 40 most frequent of {count}" in done.stdout
