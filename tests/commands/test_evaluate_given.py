"""Evaluation of what other tools predict: files of scores, functions, and everything that is wrong with them."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sklearn_metrics

from benchmark.evaluation.given import GivenPredictions, find_models
from benchmark.model import loading, networks
from flair.errors import FlairError
from tests.support.commands import ROOT, read_csv, refused, run
from tests.support.given_functions import GIVEN
from tests.support.markdown import blocks

EVALUATE = "benchmark.evaluate_main"
_evaluate, _refused = partial(run, EVALUATE), partial(refused, EVALUATE)
SIZE = ("--image_height=32", "--image_width=32")


@pytest.fixture(scope="module")
def made(tfrecords: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Predictions of a network of ours on val and test, and the same in one file, shuffled, as others have them."""
    root = tmp_path_factory.mktemp("given")
    num_labels = len(json.loads((tfrecords / "label_index.json").read_text())["labels"])
    loading.save_model(networks.build_model("cnn", (32, 32, 3), num_labels, seed=3), root / "ours.h5")
    _evaluate(f"--tfrecords_dir={tfrecords}", f"--models={root / 'ours.h5'}", f"--output_dir={root / 'out'}")
    (root / "theirs").mkdir()
    parts = [np.load(root / "out" / name / "ours" / "predictions.npy") for name in ("val", "test")]
    ids = [row["image_id"] for name in ("val", "test") for row in read_csv(root / "out" / name / "ids.csv")]
    order = np.random.default_rng(0).permutation(len(ids))
    _write(root / "theirs", np.concatenate(parts)[order], [ids[row] for row in order])
    return root


def _write(folder: Path, scores: np.ndarray, ids: list[str], name: str = "torch.npy") -> Path:
    folder.mkdir(exist_ok=True)
    np.save(folder / name, scores, allow_pickle=scores.dtype == object)
    (folder / "ids.csv").write_text("\n".join(["image_id", *ids]) + "\n")
    return folder / name


def _result(out: Path, model: str, partition: str) -> dict:
    content = json.loads((out / "evaluation.json").read_text())
    return next(r for r in content["results"] if (r["model"], r["partition"]) == (model, partition))


def test_predictions_in_a_file_count_as_those_of_the_model_that_made_them(made: Path, tfrecords: Path) -> None:
    theirs, out = made / "theirs" / "torch.npy", made / "again"
    flags = (f"--models={made / 'ours.h5'},{theirs}", "--compare=torch,ours", "--num_resamples=100")
    _evaluate(f"--tfrecords_dir={tfrecords}", *flags, f"--output_dir={out}")
    for partition in ("val", "test"):
        ours, torch = (out / partition / name for name in ("ours", "torch"))
        np.testing.assert_array_equal(np.load(ours / "predictions.npy"), np.load(torch / "predictions.npy"))
        np.testing.assert_allclose(np.load(ours / "losses.npy"), np.load(torch / "losses.npy"), atol=1e-6)
        labels = np.load(out / partition / "labels.npy")
        found = _result(out, "torch", partition)["metrics"]["micro_exact_average_precision"]
        wanted = sklearn_metrics.average_precision_score(labels, np.load(torch / "predictions.npy"), average="micro")
        assert found["value"] == pytest.approx(wanted, abs=1e-6)
        assert found["low"] < found["value"] < found["high"]
    for comparison in json.loads((out / "evaluation.json").read_text())["comparisons"]:
        for name, one in comparison["metrics"].items():
            assert one["value"] == pytest.approx(0, abs=1e-6) and one["high"] == pytest.approx(0, abs=1e-6), name
    assert "thresholds" in _result(out, "torch", "test")
    again = (f"--models={theirs}", "--reuse_predictions", "--num_resamples=100", f"--output_dir={out}")
    _evaluate(f"--tfrecords_dir={tfrecords}", *again)
    assert _result(out, "torch", "test")["rerun"] == "old predictions are reused"
    ids = theirs.with_name("ids.csv").read_text().split()
    shuffled = _write(made / "swapped", np.load(theirs), [ids[2], ids[1], *ids[3:]])
    done = _evaluate(f"--tfrecords_dir={tfrecords}", *again, f"--models={shuffled}")
    assert "torch: old predictions != new predictions" in done.stdout  # other ids are other predictions


def test_a_file_may_hold_more_of_a_partition_than_a_test_set_takes(made: Path, tfrecords: Path, tmp_path: Path) -> None:
    ids = [row["image_id"] for row in read_csv(made / "out" / "test" / "ids.csv")]
    scores = np.load(made / "out" / "test" / "ours" / "predictions.npy")
    (tmp_path / "half-0.json").write_text(json.dumps({"name": "half-0", "partition": "test", "image_ids": ids[::2]}))
    flags = (f"--tfrecords_dir={tfrecords}", "--partitions=half-0", f"--testsets_dir={tmp_path}")
    own = made / "out" / "test" / "ours" / "predictions.npy"  # whose ids lie in the folder above
    _evaluate(*flags, f"--models={own}", f"--output_dir={tmp_path / 'out'}", "--num_resamples=100")
    np.testing.assert_array_equal(np.load(tmp_path / "out" / "half-0" / "ours" / "predictions.npy"), scores[::2])


def test_functions_are_called_with_photos_and_what_they_return_is_evaluated(tfrecords: Path, tmp_path: Path) -> None:
    names = [f"{GIVEN}:by_color", f"{GIVEN}:in_keras", f"{GIVEN}:in_place"]
    flags = (f"--tfrecords_dir={tfrecords}", f"--models={','.join(names)}", "--partitions=test", *SIZE)
    _evaluate(*flags, f"--output_dir={tmp_path / 'out'}", "--num_resamples=100", "--eval_batch_size=5")
    one, *others = (np.load(tmp_path / "out" / "test" / name / "predictions.npy") for name in names)
    for other in others:
        np.testing.assert_allclose(one, other, atol=1e-5)
    assert np.ptp(one[:, 0]) > 0


def test_predictions_that_do_not_fit_are_refused_in_one_line(made: Path, tfrecords: Path, tmp_path: Path) -> None:
    theirs = np.load(made / "theirs" / "torch.npy")
    ids = (made / "theirs" / "ids.csv").read_text().split()[1:]
    of_test = {row["image_id"] for row in read_csv(made / "out" / "test" / "ids.csv")}
    first = next(row["image_id"] for row in read_csv(made / "out" / "val" / "ids.csv"))
    here = {name: position for position, name in enumerate(ids)}
    bad, logits = theirs.copy(), theirs.copy()
    bad[here[first], 2] = np.nan
    logits[here[first], 1] = 4.5
    without = [position for position, name in enumerate(ids) if name != first]
    rows = [position for position, name in enumerate(ids) if name in of_test]
    cases: dict[str, tuple[np.ndarray, list[str], str]] = {
        "missing": (theirs[without], [ids[p] for p in without], f"lacks 1 of the {len(ids) - len(rows)} photos of val"),
        "surplus": (
            np.vstack([theirs, theirs[:2]]),
            [*ids, "\x1b[31m", "x2"],
            r"photos, such as '\x1b[31m', are not of val, test",
        ),
        "twice": (np.vstack([theirs, theirs[:1]]), [*ids, ids[4]], f"names 1 photo twice, such as {ids[4]!r}"),
        "nan": (bad, ids, f"photo {first} has the number nan for output 2"),
        "logits": (logits, ids, f"photo {first} has the number 4.5 for output 1; expected scores, the sigmoid"),
        "rows": (theirs[:-1], ids, "rows, but"),
        "doubles": (theirs.astype(np.float64), ids, "it holds something else than it should, "),
        "columns": (np.asfortranarray(theirs), ids, "in the order of Fortran); expected float32"),
        "pickle": (np.array([{"a": 1}], object), ids, "is no file of predictions"),
        "outputs": (theirs[:, :-1].copy(), ids, f"has {theirs.shape[1] - 1} outputs, but"),
        "flat": (theirs[:, 0].copy(), ids, "is no file of predictions"),
    }
    for name, (scores, names, words) in cases.items():
        path = _write(tmp_path / f"{{{name}}}", scores, names)  # braces mean nothing in a path
        flags = (f"--models={path}", f"--output_dir={tmp_path / 'out'}")
        assert words in _refused(f"--tfrecords_dir={tfrecords}", *flags), name
        assert not list((tmp_path / "out").glob("*/*")), name
    surplus = _refused(
        f"--tfrecords_dir={tfrecords}", f"--models={made / 'theirs' / 'torch.npy'}", "--partitions=test",
        f"--output_dir={tmp_path / 'out'}",
    )  # fmt: skip
    assert f"{len(ids) - len(rows)} of its {len(ids)} photos, such as" in surplus and "are not of test" in surplus


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "has no ids.csv beside it"),
        (b"id,user\n1,2\n", "has not one column image_id"),
        (b"", "has not one column image_id"),
        (b"image_id,image_id\n1,2\n", "has not one column image_id"),
        (b"\xff\xfei\0", "UTF-16"),
        (b'image_id\n"1\n', "unexpected end of data"),
        (b"image_id\n1\n2\n3\n", "has 2 rows, but"),
    ],
)
def test_ids_that_name_no_photos_are_refused(tmp_path: Path, text: bytes | None, words: str) -> None:
    folder = tmp_path / "deep" / "er"
    folder.mkdir(parents=True)
    np.save(folder / "a.npy", np.zeros((2, 3), np.float32))
    if text is not None:
        (folder / "ids.csv").write_bytes(text)
    assert words in _refused("--tfrecords_dir=/nowhere", f"--models={folder / 'a.npy'}")


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=300) | st.text(max_size=100).map(str.encode), st.binary(max_size=200), st.integers(0, 200))
def test_whatever_the_files_hold_they_are_read_or_refused_in_one_line(
    tmp_path_factory: pytest.TempPathFactory, ids: bytes, damage: bytes, place: int
) -> None:
    path = tmp_path_factory.mktemp("any") / "a.npy"
    np.save(path, np.zeros((2, 3), np.float32))
    data = path.read_bytes()
    path.write_bytes(data[:place] + damage + data[place + len(damage) :])
    path.with_name("ids.csv").write_bytes(b"image_id\n" + ids)
    refusal = ""
    try:
        (found,) = find_models([str(path)], None, None, None)
    except FlairError as error:
        refusal = str(error)
    else:
        assert isinstance(found, GivenPredictions) and len(found.row_of) == len(found.scores)
    assert refusal.isprintable()


@pytest.mark.parametrize(
    ("models", "words"),
    [
        ("keras:MobileNetV2", "is a network without weights for these labels; train it with --model=keras:MobileNetV2"),
        ("nowhere:scores", "there is no module nowhere"),
        (f"{GIVEN}:none", "none is not there"),
        (f"{GIVEN}:raising", "it raised OSError: no weights for (224, 224, 3)"),
        (f"{GIVEN}:ending", "what it returned raised SystemExit: 3"),
        ("/predictions.npy", "no such file; expected float32"),
        (f"{GIVEN}:logits", "has the number 3.5 for output 0; expected scores"),
        (f"{GIVEN}:one_for_all", "it gives an array of shape [15] for 1 photo"),
        (f"{GIVEN}:NOTHING", "NOTHING is no function"),
        ("/nowhere/a.npy", "no such file; expected float32"),
    ],
)
def test_what_cannot_predict_is_refused_before_the_records_are_read(models: str, words: str) -> None:
    assert words in _refused("--tfrecords_dir=/nowhere", f"--models={models}")


@pytest.mark.parametrize("flag", ["--network=a:b", "--feature_dir=features"])
def test_what_only_saved_models_have_is_refused_where_none_is_one(flag: str) -> None:
    words = f"{flag}: none of the models is a saved one; leave it out"
    assert words in _refused("--tfrecords_dir=/nowhere", f"--models={GIVEN}:by_color", flag)


def test_the_python_of_the_page_reads_what_was_written(made: Path) -> None:
    page = (ROOT / "docs/evaluation.md").read_text(encoding="utf-8")
    (code,) = ("\n".join(block.lines) for block in blocks(page) if block.language == "python")
    found: dict[str, np.ndarray] = {}
    exec(
        code.replace("evaluation/test/central/", f"{made}/out/test/ours/").replace("evaluation/", f"{made}/out/"), found
    )
    assert found["scores"].shape == found["labels"].shape and len(found["labels"]) > 0


def test_predictions_named_from_their_own_folder_have_its_name_and_the_ids_above(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "test" / "ours"
    folder.mkdir(parents=True)
    np.save(folder / "predictions.npy", np.zeros((1, 3), np.float32))
    (tmp_path / "test" / "ids.csv").write_text("image_id\n7\n")
    monkeypatch.chdir(folder)
    (found,) = find_models(["predictions.npy"], None, None, None)
    assert isinstance(found, GivenPredictions) and (found.name, list(found.row_of)) == ("ours", ["7"])


def test_the_files_that_are_evaluated_are_not_written_over(made: Path, tfrecords: Path) -> None:
    own = made / "out" / "test" / "ours" / "predictions.npy"
    flags = (f"--tfrecords_dir={tfrecords}", f"--models={own}", "--partitions=test", f"--output_dir={made / 'out'}")
    assert "lies in --output_dir" in _refused(*flags)
    two = f"--models={made / 'ours.h5'},{made / 'theirs' / 'ours.npy'}"
    np.save(made / "theirs" / "ours.npy", np.load(made / "theirs" / "torch.npy"))
    assert "two are called ours" in _refused(f"--tfrecords_dir={tfrecords}", two)
