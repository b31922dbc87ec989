"""Run folders and checkpoints: what is written, what is refused, what survives a kill."""

from __future__ import annotations

import json
import os
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from benchmark.report.runs import open_runs
from benchmark.run.checkpoint import Checkpoints
from benchmark.run.folder import RunFolder
from flair.errors import FlairError
from tests.support.damage import time_limit

FLAGS = ["--learning_rate=0.1", "--num_epochs=3", "--seed=0"]


def _open(path, flags=FLAGS, **kwargs):
    return RunFolder(path, list(flags), "epoch", **kwargs)


def _read_again(path):
    with _open(path) as run:
        run.describe(data={"digest": "abc"})
        return run.rows, run.summary


def _scalars(path):
    events = EventAccumulator(str(path / "tensorboard"))
    events.Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_rows_are_csv_and_tensorboard_events(tmp_path):
    with _open(tmp_path / "run") as run:
        run.start_at(0)
        run.add_row(1, {"loss": 0.5, "ap": 0.25}, 1.5)
        run.add_row(2, {"loss": 1 / 3, "ap": 0.5, "late": 7.0}, 3.0)
        run.add_row(3, {"loss": 0.25}, 4.0)
        assert run.seconds == 4.0
    assert (tmp_path / "run" / "metrics.csv").read_text() == (
        "epoch,loss,ap,late\n1,0.5,0.25,\n2,0.3333333333333333,0.5,7.0\n3,0.25,,\n"
    )
    assert (tmp_path / "run" / "times.csv").read_text() == "epoch,seconds\n1,1.500\n2,3.000\n3,4.000\n"
    assert _scalars(tmp_path / "run") == {
        "loss": [(1, 0.5), (2, pytest.approx(1 / 3)), (3, 0.25)],
        "ap": [(1, 0.25), (2, 0.5)],
        "late": [(2, 7.0)],
    }


def test_a_continued_run_forgets_the_rows_after_its_checkpoint(tmp_path):
    with _open(tmp_path) as run:
        run.start_at(0)
        for step in (1, 2, 3):
            run.add_row(step, {"loss": step / 10}, float(step))
    with open(tmp_path / "metrics.csv", "a") as file:
        file.write("4")  # a killed process
    with _open(tmp_path) as run:
        run.start_at(2)
        run.add_row(3, {"loss": 0.7}, 3.5)
    assert (tmp_path / "metrics.csv").read_text() == "epoch,loss\n1,0.1\n2,0.2\n3,0.7\n"
    assert [step for step, _ in _scalars(tmp_path)["loss"]] == [1, 2, 3]


def test_other_flags_are_refused_by_name_unless_changeable(tmp_path):
    with _open(tmp_path):
        pass
    assert (tmp_path / "flags.txt").read_text().splitlines() == FLAGS
    changed = ["--learning_rate=0.2", "--num_epochs=9", "--seed=0"]
    with pytest.raises(FlairError, match=r"--learning_rate was 0.1 and is 0.2, --num_epochs was 3 and is 9"):
        _open(tmp_path, changed).__enter__()
    with pytest.raises(FlairError, match=r"\(--learning_rate was 0.1 and is 0.2\)"):
        _open(tmp_path, changed, changeable=["num_epochs"]).__enter__()
    with _open(tmp_path, ["--learning_rate=0.1", "--num_epochs=9", "--seed=0"], changeable=["num_epochs"]):
        pass
    with _open(tmp_path, changed, overwrite=True) as run:
        assert run.rows == {}


def test_overwrite_forgets_the_run_but_no_other_file(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with _open(tmp_path) as run:
        run.start_at(0)
        run.add_row(1, {"loss": 1.0}, 1.0)
        run.checkpoints.save(1, {"x": np.zeros(2)}, {})
        run.finish({"done": True})
        assert run.summary == {"done": True}
    with _open(tmp_path, overwrite=True) as run:
        assert run.summary is None
        assert run.checkpoints.latest() is None
        assert run.rows == {}
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_overwrite_does_not_take_the_folder_of_another_command(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["benchmark/federated_main.py"])
    with RunFolder(tmp_path, ["--a=1"], "round") as run:
        run.describe()
        run.finish({"metric": 1})
    with RunFolder(tmp_path, ["--a=2"], "round", overwrite=True) as run:
        run.describe()
        run.finish({"metric": 2})
    monkeypatch.setattr("sys.argv", ["benchmark/personalize_main.py"])
    with pytest.raises(FlairError, match=r"holds a run of benchmark\.federated_main; choose another --run_dir"):
        RunFolder(tmp_path, ["--b=1"], "episode", overwrite=True).__enter__()
    assert json.loads((tmp_path / "summary.json").read_text())["metric"] == 2
    (tmp_path / "run.json").write_text("{")
    with RunFolder(tmp_path, ["--b=1"], "episode", overwrite=True) as run:
        assert run.summary is None


def test_a_folder_of_records_is_no_run_folder(tmp_path):
    (tmp_path / "label_index.json").write_text("{}")
    with pytest.raises(FlairError, match=r"holds data \(label_index\.json\)"), _open(tmp_path):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["label_index.json"]


def test_two_processes_may_not_share_a_folder(tmp_path):
    with _open(tmp_path), pytest.raises(FlairError, match="another run is writing to this folder"):
        _open(tmp_path).__enter__()
    with _open(tmp_path):
        pass


def test_run_json_says_what_ran(tmp_path):
    with _open(tmp_path) as run:
        run.describe(data={"digest": "abc"}, seed=5)
        first = json.loads((tmp_path / "run.json").read_text())
        run.start_at(0)
        run.add_row(1, {"loss": 1.0}, 1.0)
    with _open(tmp_path) as run:
        run.describe(data={"digest": "abc"}, seed=5)
    second = json.loads((tmp_path / "run.json").read_text())
    assert first["versions"]["tensorflow"] == "2.14.1"
    assert first["data"] == {"digest": "abc"}
    assert first["continued"] == []
    assert second["started"] == first["started"]
    assert len(second["continued"]) == 1


def test_a_run_does_not_go_on_with_other_data(tmp_path):
    with _open(tmp_path) as run:
        run.describe(data={"digest": "abc", "tfrecords_dir": "records"})
        run.start_at(0)
        run.add_row(1, {"loss": 1.0}, 1.0)
    with _open(tmp_path) as run, pytest.raises(FlairError, match="made with other data than records holds now"):
        run.describe(data={"digest": "def", "tfrecords_dir": "records"})
    with _open(tmp_path, overwrite=True) as run:
        run.describe(data={"digest": "def", "tfrecords_dir": "records"})


def test_a_run_killed_in_its_first_epoch_does_not_go_on_with_other_data(tmp_path):
    with _open(tmp_path) as run:
        run.describe(data={"digest": "abc", "tfrecords_dir": "records"})
        run.start_at(0)
        run.checkpoints.save(7, {"weight": np.zeros(3)}, {"epoch": 0, "step": 7})
    with _open(tmp_path) as run, pytest.raises(FlairError, match="made with other data than records holds now"):
        run.describe(data={"digest": "def", "tfrecords_dir": "records"})


def test_checkpoints_round_trip_and_only_the_newest_are_kept(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.latest() is None
    arrays = {"a/b:0": np.float32([1, 2]), "scalar": np.int64(3), "empty": np.zeros((0, 4))}
    for step in (1, 20, 3):
        checkpoints.save(step, arrays, {"epoch": step, "best": None})
    newest = checkpoints.latest()
    assert (newest.step, newest.state) == (20, {"epoch": 20, "best": None})
    for name, value in arrays.items():
        np.testing.assert_array_equal(newest.arrays[name], value)
        assert newest.arrays[name].dtype == value.dtype
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize(
    "damage", [lambda data: data[:-40], lambda data: b"", lambda data: data[:300] + b"?" + data[301:]]
)
def test_a_damaged_checkpoint_gives_way_to_the_one_before(tmp_path, capsys, damage):
    checkpoints = Checkpoints(tmp_path)
    first, second = (checkpoints.save(step, {"x": np.arange(50.0) + step}, {}) for step in (1, 2))
    second.write_bytes(damage(second.read_bytes()))
    assert checkpoints.latest().step == 1
    assert second.name in capsys.readouterr().err
    first.write_bytes(b"nothing")
    with pytest.raises(FlairError, match="no checkpoint can be read"):
        checkpoints.latest()


def test_no_changed_bit_of_a_checkpoint_is_trusted_and_none_hides_the_one_before(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    arrays = {"first": np.arange(3.0), "second": np.arange(3.0) + 1}
    _, second = (checkpoints.save(step, arrays, {"epoch": step}) for step in (1, 2))
    data = second.read_bytes()
    assert np.load(second)["array/first"].tolist() == [0, 1, 2]
    for place in range(len(data)):
        second.write_bytes(data[:place] + bytes([data[place] ^ 1 << place % 8]) + data[place + 1 :])
        found = checkpoints.latest()
        assert (found.step, found.state) == (1, {"epoch": 1}), place


def test_a_checkpoint_of_an_older_version_is_read_and_asks_for_no_more_memory_than_it_has_bytes(tmp_path):
    def older(step, **arrays):
        path = tmp_path / f"checkpoint-{step:010d}.npz"
        np.savez(path, **{"state.json": np.frombuffer(b'{"epoch": 1}', np.uint8)}, **arrays)
        return path

    older(1, **{"array/x": np.arange(4.0)})
    newer = older(2, **{"array/x": np.arange(4.0)})
    assert Checkpoints(tmp_path).latest().arrays["x"].tolist() == [0, 1, 2, 3]
    with zipfile.ZipFile(newer) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(newer, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data.replace(b"(4,), }           ", b"(4000000000000,), }"[:19]))
    tracemalloc.start()
    assert Checkpoints(tmp_path).latest().step == 1
    assert tracemalloc.get_traced_memory()[1] < 10_000_000
    tracemalloc.stop()


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("flags.txt", b"\xff", "not UTF-8 text, at byte 0"),
        ("flags.txt", b"--seed=0\nlearning_rate=0.1\n", "line 2, 'learning_rate=0.1', is not --flag=value"),
        ("metrics.csv", b"epoch,loss\n1," + b"9" * 140_000 + b"\n", "field larger than field limit"),
        ("metrics.csv", b"epoch,loss\n1,0.5\x00\n", "line 2"),
        ("metrics.csv", b"epoch,loss\n1,0.5\n\n", "line 3 is empty"),
        ("metrics.csv", b"epoch,loss\n1,1e999\n", "'1e999' is no number"),
        ("metrics.csv", b"epoch,loss\n1,1_0\n", "'1_0' is no number"),
        ("metrics.csv", b"epoch,loss\n2,0.5\n1,0.5\n", "line 3, '1,0.5', is no row after epoch 2"),
        ("metrics.csv", b"epoch,loss\n-1,0.5\n", "line 2, '-1,0.5'"),
        ("metrics.csv", b"epoch,loss\nepoch,loss\n", "line 2, 'epoch,loss'"),
        ("metrics.csv", b"epoch,loss,loss\n", "does not name the columns"),
        ("times.csv", b"epoch,seconds\n1,2.0\n2,1.0\n", "1.0 seconds at 2 are not a time after 2.0"),
        ("times.csv", b"epoch,seconds\n1,nan\n", "nan seconds"),
        ("run.json", b"[" * 100_000, "nested too deep"),
        ("run.json", b'{"started": 5}', "expected str, found int"),
        ("summary.json", b"[]", "expected dict, found list"),
        ("summary.json", b'{"val": {"loss": "low"}, "test": {}, "training_seconds": 1}', "expected int or float"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_run_and_a_report_refuse_a_damaged_file_in_one_line(tmp_path, name, content, reason):
    with _open(tmp_path) as run:
        run.describe(data={"digest": "abc"})
        run.start_at(0)
        run.add_row(1, {"loss": 0.5}, 1.0)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(FlairError) as refused:
        _read_again(tmp_path)
    assert str(refused.value).startswith(f"{tmp_path / name}: ") and reason in str(refused.value)
    assert str(refused.value).isprintable() and len(str(refused.value)) < 500
    with pytest.raises(FlairError) as reported:
        open_runs([str(tmp_path)])
    assert str(reported.value).startswith(f"{tmp_path / name}: ") and reason in str(reported.value)
    with _open(tmp_path, overwrite=True) as run:
        assert run.rows == {}


@pytest.mark.parametrize("name", ["flags.txt", "metrics.csv", "times.csv", "run.json", "summary.json"])
def test_what_is_no_file_is_refused_and_not_waited_for(tmp_path, name):
    with _open(tmp_path) as run:
        run.start_at(0)
        run.add_row(1, {"loss": 0.5}, 1.0)
    for make, kind in ((Path.mkdir, "directory"), (os.mkfifo, "pipe")):
        path = tmp_path / name
        path.unlink(missing_ok=True)
        make(path)
        with time_limit(20), pytest.raises(FlairError, match=f"{name}: is a {kind}; expected a file"):
            _read_again(tmp_path)
        path.rmdir() if path.is_dir() else path.unlink()


def test_rows_that_are_gone_are_told_and_half_a_line_is_no_row(tmp_path, capsys):
    with _open(tmp_path) as run:
        run.start_at(0)
        for step in (1, 2, 3):
            run.add_row(step, {"loss": step / 10}, float(step))
        run.checkpoints.save(3, {"x": np.zeros(2)}, {})
    (tmp_path / "metrics.csv").write_text("epoch,loss\n1,0.1\n2,0.")
    with _open(tmp_path) as run:
        run.start_at(3)
        assert run.rows == {1: {"loss": 0.1}}
    line = capsys.readouterr().err
    assert line.endswith("has lost 2 of the rows up to epoch 3, the first of epoch 2; the run goes on without them\n")
    (tmp_path / "flags.txt").unlink()
    with pytest.raises(FlairError, match=r"flags\.txt: is missing, beside checkpoints of a run"):
        _open(tmp_path).__enter__()


def test_a_changed_number_of_a_result_is_not_believed_but_a_file_written_anew_is(tmp_path):
    metrics = {"loss": 0.5}
    known = {"num_epochs": 3, "epochs": 3, "best_epoch": 1, "know_nothing": {"val": 0.1, "test": 0.1}}
    with _open(tmp_path) as run:
        run.finish({**known, "training_seconds": 1.5, "val": metrics, "test": metrics})
        path = tmp_path / "summary.json"
        text = path.read_text()
        path.write_text(text.replace("0.5", "0.6", 1))
        with pytest.raises(FlairError, match=r"summary\.json: .*its checksum does not fit its content"):
            assert run.summary is not None
        path.write_text(json.dumps(json.loads(text) | {"val": {"loss": 0.6}}))
        assert run.summary["val"] == {"loss": 0.6}


def test_a_checkpoint_is_never_unpickled(tmp_path):
    path = tmp_path / "checkpoint-0000000001.npz"
    with open(path, "wb") as file:
        np.savez(file, **{"state.json": np.array([{"a": 1}], dtype=object)}, allow_pickle=True)
    with pytest.raises(FlairError, match="no checkpoint can be read"):
        Checkpoints(tmp_path).latest()


def test_restored_weights_are_compared_by_content_not_by_path(tmp_path):
    """A run that went on from other weights under the same name was continued as if they were the same."""
    flags = [*FLAGS, "--restore_model_path=a.h5"]
    with _open(tmp_path, flags, changeable=("restore_model_path",)) as run:
        run.describe(restored_model={"path": "a.h5", "sha256": "1"})
        run.start_at(0)
        run.add_row(1, {"loss": 0.5}, 1.0)
    moved = [*FLAGS, "--restore_model_path=b.h5"]
    with _open(tmp_path, moved, changeable=("restore_model_path",)) as run:
        run.describe(restored_model={"path": "b.h5", "sha256": "1"})
        with pytest.raises(FlairError, match="other restored weights"):
            run.describe(restored_model={"path": "b.h5", "sha256": "2"})
        with pytest.raises(FlairError, match="other restored weights"):
            run.describe(restored_model=None)
