"""The commands around a TFDS data set: building one, and training on it with the results of TFRecords."""

from __future__ import annotations

import fcntl
import importlib.util
import json
import os
import shutil
import signal
import time

import numpy as np
import pytest

from tests.support.commands import only_line, read_csv, run, run_process, run_program, start
from tests.support.tiny_network import TINY

pytest.importorskip("tensorflow_datasets", reason="the extra 'tfds' is not installed")

from benchmark.data.opening import open_records
from flair.errors import FlairError
from flair.miniature.dataset import make_dataset

needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="the extra 'ray' is not installed")
SMALL = (
    *(f"--model={TINY}", "--image_height=32", "--image_width=32", "--clients_per_round=4", "--client_batch_size=8"),
    *("--total_rounds=2", "--rounds_per_eval=1"),
)


def done(module, *flags):
    # Ray's processes and those of TFF's runtime stay with the process that started them.
    return (run_process if "--runtime" in str(flags) else run)(f"benchmark.{module}", *flags).stdout


def refused(module, *flags, code=1):
    return only_line(run(f"benchmark.{module}", *flags, code=code))


@pytest.fixture(scope="module")
def printed_and_data_dir(miniature, tmp_path_factory):
    data_dir = tmp_path_factory.mktemp("tfds") / "new"
    return done("tfds_main", f"--dataset_dir={miniature}", f"--tfds_data_dir={data_dir}", "--num_shards=3"), data_dir


@pytest.fixture(scope="module")
def data_dir(printed_and_data_dir):
    return printed_and_data_dir[1]


def test_building_says_what_was_made_and_what_comes_next(printed_and_data_dir, miniature):
    printed, data_dir = printed_and_data_dir
    first, second, third = printed.splitlines()
    assert first.startswith(f"{data_dir / 'flair' / '1.0.0'}: 160 photos of 40 users, 1.7 MB in 9 files")
    assert second.startswith("ready in ")
    assert third == f"next: python -m benchmark.federated_main --tfds_data_dir={data_dir}"
    assert [path.name for path in data_dir.iterdir()] == ["flair"]
    again = done("tfds_main", f"--dataset_dir={miniature}", f"--tfds_data_dir={data_dir}")
    assert "is built already. To build it again, add --overwrite." in again


def test_photos_put_aside_are_those_of_prepare_tfrecords(miniature, tmp_path):
    flags = (f"--dataset_dir={miniature}", f"--tfds_data_dir={tmp_path / 'tfds'}")
    assert "no train user has enough photos" in refused("tfds_main", *flags, "--heldout_fraction=0.001")
    aside = ("--heldout_fraction=0.2", "--seed=3")
    assert ": 160 photos of 40 users, " in done("tfds_main", *flags, *aside)  # nobody counts twice
    run("prepare_tfrecords.py", flags[0], f"--tfrecords_dir={tmp_path / 'records'}", *aside)
    built, prepared = open_records(tmp_path / "tfds"), open_records(tmp_path / "records")
    for partition in ("train", "val", "test", "heldout"):
        assert built.users(partition) == prepared.users(partition)
        for user in built.users(partition):
            assert built.read_user(partition, user) == prepared.read_user(partition, user)
    assert built.builder.info.splits["heldout"].num_examples == built.num_photos("heldout") > 0
    assert "is built with another --heldout_fraction or --seed" in refused("tfds_main", *flags)
    assert "is built already" in done("tfds_main", *flags, *aside)


def test_without_photos_put_aside_there_is_no_such_split(data_dir):
    with pytest.raises(FlairError, match="expected one of train, val, test; build it again with --heldout_fraction"):
        open_records(data_dir).users("heldout")


@pytest.mark.slow
def test_a_failed_build_leaves_the_old_one_and_nothing_else(data_dir, miniature, tmp_path):
    copy, dataset = tmp_path / "tfds", tmp_path / "dataset"
    shutil.copytree(data_dir, copy)
    shutil.copytree(miniature, dataset)
    before = {path.name: path.read_bytes() for path in (copy / "flair/1.0.0").iterdir()}
    (copy / ".flair.unfinished" / "flair").mkdir(parents=True)  # of a build that was killed
    photo = min((dataset / "small_images").iterdir())
    photo.write_bytes(photo.read_bytes()[:1000])
    line = refused("tfds_main", f"--dataset_dir={dataset}", f"--tfds_data_dir={copy}", "--overwrite")
    assert photo.name in line and "is truncated" in line
    assert {path.name: path.read_bytes() for path in (copy / "flair/1.0.0").iterdir()} == before
    assert [path.name for path in copy.iterdir()] == ["flair"]


def test_refusals_are_one_line(miniature, data_dir, tmp_path):
    assert "no such directory" in refused("tfds_main", "--dataset_dir=/none", f"--tfds_data_dir={tmp_path}")
    assert "has no labels_and_metadata.json" in refused(
        "tfds_main", f"--dataset_dir={tmp_path}", f"--tfds_data_dir={tmp_path}"
    )
    (tmp_path / "file").touch()
    assert "is a file; expected a folder" in refused(
        "tfds_main", f"--dataset_dir={miniature}", f"--tfds_data_dir={tmp_path / 'file'}"
    )
    assert "dataset_dir" in refused("tfds_main", f"--tfds_data_dir={tmp_path}", code=2)
    descriptor = os.open(tmp_path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        line = refused("tfds_main", f"--dataset_dir={miniature}", f"--tfds_data_dir={tmp_path}")
        assert "another build is writing there" in line
    finally:
        os.close(descriptor)


WITHOUT_TFDS = """
import runpy, sys
sys.modules["tensorflow_datasets"] = None
runpy.run_module("benchmark.{module}", run_name="__main__", alter_sys=True)
"""


@pytest.mark.parametrize("module", ["federated_main", "central_main", "tfds_main"])
def test_without_the_extra_one_line_says_how_to_install_it(module, data_dir, miniature):
    flags = [f"--tfds_data_dir={data_dir}"] + [f"--dataset_dir={miniature}"] * (module == "tfds_main")
    line = only_line(run_program(WITHOUT_TFDS.format(module=module), *flags, code=1))
    expected = "the package tensorflow-datasets is not installed; add it with `make environment EXTRAS=tfds`"
    assert line.endswith(f"--tfds_data_dir={data_dir}: {expected}")


@pytest.mark.parametrize("module", ["federated_main", "central_main"])
def test_training_takes_exactly_one_place(module, data_dir, tmp_path):
    for flags in ([], [f"--tfds_data_dir={data_dir}", f"--tfrecords_dir={data_dir}"]):
        line = refused(module, *flags, code=2)
        assert "--tfrecords_dir" in line and "--tfds_data_dir" in line
    assert "no such folder" in refused(module, f"--tfds_data_dir={tmp_path / 'none'}")
    assert "has no flair/1.0.0; build FLAIR there" in refused(module, f"--tfds_data_dir={tmp_path}")


def test_help_names_the_flag():
    for module in ("tfds_main", "federated_main"):
        assert "--tfds_data_dir=string" in done(module, "--help")


def train(place, out, *flags):
    out.mkdir(exist_ok=True)
    printed = done("federated_main", place, f"--save_model_dir={out}", f"--run_dir={out / 'run'}", *SMALL, *flags)
    return printed, read_csv(out / "run" / "metrics.csv")


@pytest.fixture(scope="module")
def expected(tfrecords, tmp_path_factory):
    """Rows of metrics.csv, and the folder of a run on TFRecords."""
    out = tmp_path_factory.mktemp("expected")
    return train(f"--tfrecords_dir={tfrecords}", out)[1], out


@pytest.mark.slow
def test_federated_training_gives_the_metrics_of_tfrecords(data_dir, expected, tmp_path):
    printed, rows = train(f"--tfds_data_dir={data_dir}", tmp_path / "one")
    assert rows == expected[0]
    assert float(rows[0]["train_loss"]) > 0
    assert "32 clients to train on, 4 users to validate on, 4 to test on" in printed
    for name in ("best.h5", "last.h5"):
        assert (tmp_path / "one/run" / name).read_bytes() == (expected[1] / "run" / name).read_bytes()
    summaries = [json.loads((folder / "run/summary.json").read_text()) for folder in (tmp_path / "one", expected[1])]
    assert summaries[0]["test"] == summaries[1]["test"]
    facts = json.loads((tmp_path / "one/run/run.json").read_text())
    assert facts["data"]["tfds_data_dir"] == str(data_dir)
    assert "complete already" in train(f"--tfds_data_dir={data_dir}", tmp_path / "one")[0]


@pytest.mark.long
def test_iid_training_gives_the_metrics_of_tfrecords(data_dir, tfrecords, tmp_path):
    rows = [
        train(place, tmp_path / name, "--iid", "--total_rounds=1")[1]
        for name, place in (("tfds", f"--tfds_data_dir={data_dir}"), ("records", f"--tfrecords_dir={tfrecords}"))
    ]
    assert rows[0] == rows[1]


@pytest.mark.slow
def test_a_stopped_run_goes_on_and_other_data_are_refused(data_dir, expected, tmp_path, tmp_path_factory):
    out = tmp_path / "run"
    train(f"--tfds_data_dir={data_dir}", out, "--rounds_per_checkpoint=1")
    for name in ("summary.json", "best.h5", "last.h5"):
        (out / "run" / name).unlink()
    max((out / "run" / "checkpoints").iterdir()).unlink()
    other = tmp_path_factory.mktemp("other")
    make_dataset(other / "dataset", num_users=40, num_images=160, seed=2)
    copy = tmp_path / "copy"
    shutil.copytree(data_dir, copy)
    done("tfds_main", f"--dataset_dir={other / 'dataset'}", f"--tfds_data_dir={data_dir}", "--overwrite")
    try:
        flags = (f"--tfds_data_dir={data_dir}", f"--save_model_dir={out}", f"--run_dir={out / 'run'}", *SMALL)
        line = refused("federated_main", *flags, "--rounds_per_checkpoint=1")
        assert f"the run was made with other data than {data_dir} holds now" in line
    finally:
        shutil.rmtree(data_dir)
        shutil.copytree(copy, data_dir)
    printed, rows = train(f"--tfds_data_dir={data_dir}", out, "--rounds_per_checkpoint=1")
    assert "continuing after round 1" in printed
    assert rows == expected[0]


@pytest.mark.long
@needs_ray
def test_training_on_workers_gives_the_metrics_of_tfrecords(data_dir, expected, tmp_path):
    _, rows = train(f"--tfds_data_dir={data_dir}", tmp_path / "ray", "--runtime=ray", "--num_workers=2")
    for name, value in expected[0][0].items():
        np.testing.assert_allclose(float(rows[0][name]), float(value), atol=1e-4)


@pytest.mark.long
def test_training_on_tffs_runtime_gives_the_metrics_of_tfrecords(data_dir, expected, tmp_path):
    _, rows = train(f"--tfds_data_dir={data_dir}", tmp_path / "tff", "--runtime=tff", "--total_rounds=1")
    for name in ("train_loss", "val_loss"):
        np.testing.assert_allclose(float(rows[0][name]), float(expected[0][0][name]), atol=1e-4)


@pytest.mark.long
def test_a_dry_run_central_training_and_evaluation_read_it(data_dir, tfrecords, tmp_path):
    small = (f"--model={TINY}", "--image_height=32", "--image_width=32")
    plan = done("federated_main", f"--tfds_data_dir={data_dir}", *SMALL, "--dry_run")
    assert f"records:    {data_dir}" in plan and "train 32 users, 132 photos" in plan
    results = []
    for place in (f"--tfds_data_dir={data_dir}", f"--tfrecords_dir={tfrecords}"):
        out = tmp_path / place[2:6]
        done("central_main", place, *small, "--num_epochs=1", "--train_batch_size=32", f"--save_model_dir={out}")
        (model,) = out.glob("*.h5")
        results.append(json.loads((model.with_suffix("") / "summary.json").read_text())["test"])
    assert results[0] == results[1]
    printed = [
        done("evaluate_main", f"--tfrecords_dir={place}", f"--models={model}", f"--output_dir={tmp_path / name}")
        for name, place in (("one", data_dir), ("two", tfrecords))
    ]
    assert len(printed) == 2


@pytest.mark.slow
def test_a_stopped_build_is_gone_and_begins_again(tmp_path):
    make_dataset(tmp_path / "dataset", num_users=100, num_images=2000, seed=1)
    flags = (f"--dataset_dir={tmp_path / 'dataset'}", f"--tfds_data_dir={tmp_path / 'tfds'}")
    process = start("benchmark.tfds_main", *flags)
    deadline = time.monotonic() + 120
    while not list((tmp_path / "tfds").glob(".flair.unfinished/flair/*")) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "benchmark.tfds_main: interrupted; the same command starts over\n" in errors
    assert list((tmp_path / "tfds").iterdir()) == []
    assert "2,000 photos of 100 users" in done("tfds_main", *flags)
