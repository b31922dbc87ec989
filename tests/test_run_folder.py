"""Run folders and checkpoints: what is written, what is refused, what survives a kill."""

from __future__ import annotations

import json

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from benchmark.checkpoint import Checkpoints
from benchmark.run_folder import RunFolder
from flair.errors import FlairError

FLAGS = ["--learning_rate=0.1", "--num_epochs=3", "--seed=0"]


def _open(path, flags=FLAGS, **kwargs):
    return RunFolder(path, list(flags), "epoch", **kwargs)


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
    assert json.loads((tmp_path / "summary.json").read_text()) == {"metric": 2}
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
    checkpoints = Checkpoints(tmp_path, keep=2)
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


def test_a_checkpoint_is_never_unpickled(tmp_path):
    path = tmp_path / "checkpoint-0000000001.npz"
    with open(path, "wb") as file:
        np.savez(file, **{"state.json": np.array([{"a": 1}], dtype=object)}, allow_pickle=True)
    with pytest.raises(FlairError, match="no checkpoint can be read"):
        Checkpoints(tmp_path).latest()
