"""The command as a user types it: results, dumps, kills, refusals."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import time

import numpy as np
import pytest

from benchmark.personalization import few_shot
from benchmark.personalization.dump import DumpedEpisodes
from flair.dataset.metadata import load_users
from flair.records.tfrecord import example
from flair.records.tfrecord.frames import read_payloads
from tests.support.commands import newest_checkpoint, read_csv, refused, run, start

PERSONALIZE = "benchmark.personalize_main"


@pytest.fixture(scope="module")
def model(tfrecords, tmp_path_factory):
    from benchmark.model import loading, networks

    outputs = len(json.loads((tfrecords / "label_index.json").read_text())["labels"])
    path = tmp_path_factory.mktemp("model") / "model.h5"
    loading.save_model(networks.build_model("cnn", (32, 32, 3), outputs, seed=1), path)
    return path


def _flags(tfrecords, model, *flags):
    return (f"--tfrecords_dir={tfrecords}", f"--model={model}", "--image_height=32", "--image_width=32", *flags)


def _run(*flags):
    return run(PERSONALIZE, *_flags(*flags))


def _refused(*flags):
    return refused(PERSONALIZE, *_flags(*flags))


@pytest.fixture(scope="module")
def finished(tfrecords, model, tmp_path_factory):
    """A run over users of train, with its dump."""
    place = tmp_path_factory.mktemp("finished")
    done = _run(
        *(tfrecords, model, "--partition=train", "--num_episodes=30", f"--run_dir={place / 'run'}"),
        *(f"--dump_dir={place / 'dump'}", "--steps=3", "--seed=5"),
    )
    return place / "run", place / "dump", done.stdout


def test_the_report_is_that_of_the_rows(miniature, finished):
    run, _, printed = finished
    sizes = {user.user_id: len(user.records) for user in load_users(miniature) if user.partition == "train"}
    eligible = {user_id for user_id, photos in sizes.items() if photos >= 4}
    episodes, users = read_csv(run / "episodes.csv"), read_csv(run / "users.csv")
    assert [int(row["episode"]) for row in episodes] == list(range(30))
    assert {row["user_id"] for row in episodes} == {row["user_id"] for row in users} == eligible
    for row in episodes:
        photos = sizes[row["user_id"]]
        assert int(row["photos"]) == photos
        assert int(row["query"]) == min(10, photos // 2)
        assert 1 <= int(row["support"]) <= photos - int(row["query"])
    summary = json.loads((run / "summary.json").read_text())
    assert summary["users"] == {"partition": len(sizes), "eligible": len(eligible), "used": len(eligible)}
    by_user = {}
    for row in episodes:
        by_user.setdefault(row["user_id"], []).append(float(row["baseline_loss"]) - float(row["adapted_loss"]))
    differences = np.array([np.mean(values) for values in by_user.values()])
    found = summary["loss"]["difference"]
    assert found["mean"] == pytest.approx(differences.mean(), rel=1e-9)
    half = 1.96 * differences.std(ddof=1) / np.sqrt(len(differences))
    assert found["high"] - found["mean"] == pytest.approx(half, rel=1e-9)
    assert found["p90"] == pytest.approx(np.percentile(differences, 90))
    assert summary["loss"]["share_improved"] == pytest.approx(np.mean(differences > 0))
    assert f"{len(eligible)} users used of {len(eligible)} eligible and {len(sizes)} in train" in printed
    assert f"{found['mean']:.4f}" in printed
    captions = json.loads((run / "figures" / "captions.json").read_text())
    assert sorted(captions) == sorted(path.name for path in (run / "figures").glob("*.png"))
    assert all((run / "figures" / name).read_bytes().startswith(b"\x89PNG") for name in captions)


def test_the_dump_has_the_episodes_of_the_rows(finished, tfrecords):
    run, dump, _ = finished
    episodes, rows = DumpedEpisodes(dump), read_csv(run / "episodes.csv")
    assert episodes.num_episodes == len(rows) == 30
    for number, row in enumerate(rows):
        one = episodes.serialized(number)
        stored = set(read_payloads(tfrecords / "train" / f"{row['user_id']}.tfrecords"))
        assert (one.user_id, len(one.support), len(one.query)) == (
            row["user_id"],
            int(row["support"]),
            int(row["query"]),
        )
        assert len({*one.support, *one.query}) == len(one.support) + len(one.query)
        assert {*one.support, *one.query} <= stored


@pytest.mark.slow
def test_a_killed_run_continues_with_the_numbers_of_an_unbroken_one(tfrecords, model, finished, tmp_path):
    unbroken, dump, _ = finished
    broken = tmp_path / "run"
    flags = ("--partition=train", f"--run_dir={broken}", "--steps=3", "--seed=5")
    process = start(PERSONALIZE, *_flags(tfrecords, model, *flags, "--num_episodes=100000"))
    rows = broken / "episodes.csv"
    while process.poll() is None and (not rows.exists() or rows.read_bytes().count(b"\n") < 6):
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    text = rows.read_text()
    assert text.count("\n") >= 6
    rows.write_text(text[: len("".join(text.splitlines(keepends=True)[:6])) + 9])  # half a line
    done = _run(tfrecords, model, *flags, "--num_episodes=30", "--query_size_limit=2")
    assert "continued after 5 episodes" in done.stdout
    for name in ("episodes.csv", "users.csv"):
        assert (broken / name).read_text() == (unbroken / name).read_text()
    one, other = (json.loads((run / "summary.json").read_text()) for run in (broken, unbroken))
    changing = {"seconds": 0, "crc32c": ""}  # the checksum covers the seconds
    assert {**one, **changing} == {**other, **changing}
    again = _run(tfrecords, model, *flags, "--num_episodes=30", f"--dump_dir={dump}")
    assert _refused(tfrecords, model, *flags[:3], "--seed=6").endswith("or --overwrite")
    assert again.stdout.splitlines()[-3] == f"{broken}: episodes.csv, users.csv, summary.json, figures/"
    elsewhere = (f"--run_dir={tmp_path / 'other'}", f"--dump_dir={dump}", "--num_episodes=30")
    assert "other settings" in _refused(tfrecords, model, "--partition=train", "--seed=6", *elsewhere)
    # Data that changed under a run are noticed.
    moved = tmp_path / "records"
    shutil.copytree(tfrecords, moved, symlinks=True)
    victim = next((moved / "train").iterdir())
    victim.write_bytes(victim.read_bytes() * 2)
    refused = _refused(tfrecords, model, *flags, "--num_episodes=40", f"--tfrecords_dir={moved}")
    assert "other flags" in refused


def test_labels(tfrecords, model, miniature, tmp_path):
    flags = (
        *("--partition=train", "--episodes=labels", "--num_episodes=20", "--ways=3", "--shots=1", "--num_query=1"),
        *(f"--run_dir={tmp_path / 'run'}", f"--dump_dir={tmp_path / 'dump'}", f"--taxonomy={miniature}"),
    )
    done = _run(tfrecords, model, *flags)
    assert "nearest centroid" in done.stdout
    rows = read_csv(tmp_path / "run" / "episodes.csv")
    assert [(row["ways"], row["support"], row["query"]) for row in rows] == [("3", "3", "3")] * 20
    episodes = DumpedEpisodes(tmp_path / "dump")
    index = episodes.fine_grained_labels
    for number in range(20):
        one = episodes.serialized(number)
        for side, classes in ((one.support, one.support_class), (one.query, one.query_class)):
            for photo, place in zip(map(example.decode, side), classes, strict=True):
                assert index[one.classes[place]] in photo.fine_grained_labels
                assert len({index[name] for name in one.classes} & set(photo.fine_grained_labels)) == 1
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    accuracy = [float(row["fine_tuning_accuracy"]) for row in rows]
    assert summary["fine_tuning"]["mean"] == pytest.approx(np.mean(accuracy))
    assert "prototypical_networks" not in summary and "prototypical" not in done.stdout


def _training_flags(miniature, run_dir):
    return (
        *("--partition=train", "--episodes=labels", "--ways=3", "--shots=1", "--num_query=1", "--num_episodes=20"),
        *(f"--taxonomy={miniature}", "--training_episodes=40", f"--run_dir={run_dir}"),
    )


@pytest.fixture(scope="module")
def trained(tfrecords, model, miniature, tmp_path_factory):
    """A run that has trained prototypical networks, and what it printed."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    return folder, _run(tfrecords, model, *_training_flags(miniature, folder)).stdout


def test_prototypical_networks_are_tested_on_the_same_episodes(trained):
    folder, printed = trained
    rows = read_csv(folder / "episodes.csv")
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["training_episodes"] == 40
    gains = [float(row["prototypical_networks_accuracy"]) - float(row["fine_tuning_accuracy"]) for row in rows]
    assert summary["networks_tuning_difference"]["mean"] == pytest.approx(np.mean(gains))
    assert f"{np.mean(gains):.4f}" in next(line for line in printed.splitlines() if "networks - fine tuning" in line)
    assert "classes of the train labels in train" in printed and "classes of the test labels in train" in printed
    embedding = np.load(folder / "embedding.npy", allow_pickle=False)
    assert embedding.shape == embedding.T.shape and embedding.dtype == np.float64
    assert np.abs(embedding - np.eye(len(embedding))).max() > 1e-3


def test_a_training_stopped_by_ctrl_c_goes_on_to_the_result_of_an_unbroken_one(
    tfrecords, model, miniature, trained, tmp_path, monkeypatch
):
    unbroken, broken = trained[0], tmp_path / "run"
    episode_loss, calls = few_shot.episode_loss, []

    def interrupted(*arguments):
        calls.append(1)
        if len(calls) == 11:
            os.kill(os.getpid(), signal.SIGINT)
        return episode_loss(*arguments)

    monkeypatch.setattr(few_shot, "episode_loss", interrupted)
    flags = _flags(tfrecords, model, *_training_flags(miniature, broken))
    stopped = run(PERSONALIZE, *flags, code=130)
    assert stopped.stderr.endswith("interrupted; the same command continues where it stopped\n")
    assert newest_checkpoint(broken) == 11
    run(PERSONALIZE, *flags)
    assert len(calls) == 40
    for name in ("episodes.csv", "embedding.npy"):
        assert (broken / name).read_bytes() == (unbroken / name).read_bytes()
    assert "other flags" in _refused(tfrecords, model, *_training_flags(miniature, broken), "--training_episodes=41")


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (("--split=duplicate_aware",), "--split=duplicate_aware and --duplicates"),
        (("--duplicates=x.json",), "--split=duplicate_aware and --duplicates"),
        (("--split=duplicate_aware", "--duplicates=x.json"), "x.json: no such file"),
        (("--ways=5",), "--ways=5 has no effect on --episodes=users"),
        (("--episodes=labels", "--num_support=5"), "--num_support=5 has no effect on --episodes=labels"),
        (("--episodes=labels", "--taxonomy=nowhere"), "label_relationship.txt"),
        (("--training_episodes=5",), "--training_episodes=5 has no effect on --episodes=users"),
        (("--episodes=labels", "--training_learning_rate=1"), "has no effect without --training_episodes"),
        (("--episodes=labels", "--training_episodes=5", "--label_set=train"), "give --label_set=test or val"),
        (("--num_support=4000",), "none of 4 users"),
        (("--model=nothing.h5",), "--model=nothing.h5: no such file"),
        (("--use_fine_grained_labels",), "outputs, the records have"),
    ],
)
def test_refusals(tfrecords, model, tmp_path, flags, expected):
    assert expected in _refused(tfrecords, model, f"--run_dir={tmp_path / 'run'}", *flags)


def test_a_refused_run_leaves_no_flags_that_refuse_the_mended_command(tfrecords, model, tmp_path):
    run = f"--run_dir={tmp_path / 'run'}"
    _refused(tfrecords, model, run, "--num_support=4000")
    assert "other flags" not in _refused(tfrecords, model, run, "--num_support=5000")


def test_a_complete_run_of_another_content_of_the_model_is_refused_not_reported(tfrecords, model, finished, tmp_path):
    shutil.copytree(finished[0], tmp_path / "run")
    run = json.loads((tmp_path / "run" / "run.json").read_text())
    run["model"]["digest"] = "0" * 64
    (tmp_path / "run" / "run.json").write_text(json.dumps(run))
    flags = ("--partition=train", "--num_episodes=30", "--steps=3", "--seed=5", f"--run_dir={tmp_path / 'run'}")
    assert "another content of --model" in _refused(tfrecords, model, *flags)


def test_features_of_another_content_of_the_model_are_not_taken_over(tfrecords, model, miniature, tmp_path):
    flags = (
        *("--partition=train", "--episodes=labels", "--ways=3", "--shots=1", "--num_query=1", "--num_episodes=1"),
        f"--run_dir={tmp_path / 'run'}",
    )
    _run(tfrecords, model, *flags)
    # As a run killed before its first episode leaves it.
    for name in ("episodes.csv", "summary.json"):
        (tmp_path / "run" / name).unlink()
    run = json.loads((tmp_path / "run" / "run.json").read_text())
    run["model"]["digest"] = "0" * 64
    (tmp_path / "run" / "run.json").write_text(json.dumps(run))
    assert "another content of --model" in _refused(tfrecords, model, *flags)


@pytest.mark.slow
def test_duplicates_stay_on_one_side(tfrecords, model, tmp_path):
    from benchmark.data.opening import open_records

    records = open_records(tfrecords)
    photos = {
        user: [example.decode(p).image_id for p in records.read_user("train", user)] for user in records.users("train")
    }
    largest = max(photos.values(), key=len)
    burst = largest[: len(largest) // 3]
    path = tmp_path / "near_duplicates.json"
    path.write_text(json.dumps({one: [two] for one, two in itertools.pairwise(burst)}))
    _run(
        *(tfrecords, model, "--partition=train", "--split=duplicate_aware", f"--duplicates={path}", "--steps=0"),
        *("--num_episodes=40", f"--run_dir={tmp_path / 'run'}", f"--dump_dir={tmp_path / 'dump'}"),
    )
    listed = json.loads((tmp_path / "dump" / "episodes.json").read_text())["episodes"]
    sides = [[bool(set(burst) & set(facts[side])) for side in ("train", "test")] for facts in listed]
    assert [True, True] not in sides
    assert [True, False] in sides
    assert all(row["baseline_loss"] == row["adapted_loss"] for row in read_csv(tmp_path / "run" / "episodes.csv"))
