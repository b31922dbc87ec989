"""Training a head on cached features: the same weights as on photos, shared, resumed, refused when they do not fit."""

from __future__ import annotations

import concurrent.futures
import errno
import json
import os
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from benchmark.data import pipeline
from benchmark.data.opening import open_records
from benchmark.features import cache as cache_module
from benchmark.features import extraction
from benchmark.features.cache import FeatureCache, Network
from benchmark.model import loading, networks
from benchmark.model.identity import network_digest
from benchmark.model.trainable import body_and_head
from flair.errors import FlairError
from flair.files.growing import GrowingArrays
from flair.records.tfrecord import example, frames
from tests.support.commands import assert_equal_weights, read_csv, refused, run
from tests.support.tiny_network import TINY

SMALL = (f"--model={TINY}", "--image_height=32", "--image_width=32")
ROUNDS = (*SMALL, "--trainable=head", "--total_rounds=3", "--rounds_per_eval=1", "--clients_per_round=4")
EPOCHS = (*SMALL, "--trainable=head", "--num_epochs=2", "--train_batch_size=16")
FEDERATED, CENTRAL = "benchmark.federated_main", "benchmark.central_main"
_refused = partial(refused, FEDERATED)


@pytest.fixture(scope="module")
def start(task, tmp_path_factory):
    """Weights to start from."""
    path = tmp_path_factory.mktemp("start") / "start.h5"
    loading.save_model(networks.build_model(TINY, (32, 32, 3), task.num_outputs, seed=9), path)
    return path


@pytest.fixture
def places(tfrecords, start, tmp_path):
    """Flags of a run whose features are in a folder of the test's own; gives them a name."""

    def flags(name: str) -> list[str]:
        return [
            f"--tfrecords_dir={tfrecords}",
            f"--restore_model_path={start}",
            f"--save_model_dir={tmp_path / name}",
            f"--run_dir={tmp_path / name / 'run'}",
        ]

    return flags


@pytest.fixture(scope="module")
def trained(tfrecords, start, tmp_path_factory):
    """A federated training on cached features, which lie beside its run folder; and what it printed."""
    root = tmp_path_factory.mktemp("trained")
    flags = (f"--tfrecords_dir={tfrecords}", f"--restore_model_path={start}", f"--save_model_dir={root}")
    done = run(FEDERATED, *flags, f"--run_dir={root / 'run'}", *ROUNDS, f"--feature_dir={root / 'features'}")
    return root, done


def _classifier(path: Path, task) -> np.ndarray:
    model = networks.build_model(TINY, (32, 32, 3), task.num_outputs)
    loading.load_by_name(model, path)
    return np.concatenate([np.ravel(variable) for variable in model.get_layer("classifier").variables])


@pytest.mark.parametrize(
    ("door", "flags"), [(FEDERATED, ROUNDS), pytest.param(CENTRAL, EPOCHS, marks=pytest.mark.slow)]
)
def test_cached_features_give_the_weights_that_photos_give(places, request, task, tmp_path, door, flags):
    if door == FEDERATED:
        root, done = request.getfixturevalue("trained")
    else:
        root = tmp_path / "cached"
        done = run(door, *places("cached"), *flags, f"--feature_dir={root / 'features'}")
    cached, photos, cache = root / "run", tmp_path / "photos" / "run", root / "features"
    assert "features: 64 per photo in" in done.stdout
    run(door, *places("photos"), *flags, "--nocache_features", "--noaugment")
    found, expected = (_classifier(folder / "last.h5", task) for folder in (cached, photos))
    np.testing.assert_allclose(found, expected, atol=1e-5)
    rows, others = (read_csv(folder / "metrics.csv") for folder in (cached, photos))
    for row, other in zip(rows, others, strict=True):
        assert {k: float(v) for k, v in row.items() if v} == pytest.approx(
            {k: float(v) for k, v in other.items() if v}, abs=1e-4
        )
    (folder,) = cache.iterdir()
    assert sorted(path.name for path in folder.iterdir() if path.suffix == ".npy") == sorted(
        f"{partition}{kind}.npy" for partition in ("train", "val", "test") for kind in ("", ".labels")
    )
    # A second run computes nothing and gives the same.
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    again = run(door, *places("again"), *flags, f"--feature_dir={cache}")
    assert "features of" not in again.stderr
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    assert_equal_weights(tmp_path / "again" / "run" / "last.h5", cached / "last.h5")


@pytest.fixture(scope="module")
def body(task):
    """A network up to its classifier."""
    return body_and_head(networks.build_model(TINY, (32, 32, 3), task.num_outputs, seed=9))[0]


def _cache(folder, records, body, dtype="float32"):
    return FeatureCache(folder, records, Network(TINY, network_digest(body), (32, 32), 64, "float32", dtype), body)


def test_views_are_augmented_and_shared_by_runs_with_more_of_them(records, task, body, tmp_path):
    cache = _cache(tmp_path, records, body)
    inputs = cache.inputs(task, views=2)
    views = [np.load(cache.folder / f"train.view{number}.npy") for number in (0, 1)]
    assert not np.allclose(*views, atol=1e-3)
    assert np.corrcoef(views[0].ravel(), views[1].ravel())[0, 1] > 0.5
    assert not (cache.folder / "train.npy").exists()
    written = (cache.folder / "train.view0.npy").stat().st_mtime_ns
    cache.inputs(task, views=3)
    assert (cache.folder / "train.view0.npy").stat().st_mtime_ns == written
    # Every view comes, in other places in another epoch.
    batches = [np.concatenate([x for x, _ in inputs.training(16, 0).batches(epoch)]) for epoch in (0, 0, 1)]
    np.testing.assert_array_equal(batches[0], batches[1])
    assert not np.array_equal(batches[0], batches[2])
    for view in views:
        assert any((view == row).all(1).any() for row in batches[0][:20])


def test_half_precision_is_near_and_half_as_large(records, task, body, tmp_path):
    half, full = (_cache(tmp_path, records, body, dtype) for dtype in ("float16", "float32"))
    assert half.folder != full.folder
    pairs = zip(half.inputs(task).evaluation("val"), full.inputs(task).evaluation("val"), strict=True)
    for (mine, labels), (theirs, same) in pairs:
        assert mine.dtype == np.float32
        np.testing.assert_allclose(mine, theirs, rtol=1e-3, atol=1e-4)
        np.testing.assert_array_equal(labels, same)
    sizes = [(cache.folder / "train.npy").stat().st_size - 128 for cache in (half, full)]
    assert 2 * sizes[0] == sizes[1]


def test_damaged_features_are_made_anew_and_foreign_ones_refused(records, task, body, tmp_path, capfd):
    cache = _cache(tmp_path, records, body)
    cache.inputs(task)
    good = {path.name: path.read_bytes() for path in cache.folder.iterdir() if path.is_file()}
    for name in ("train.npy", "val.json", "test.labels.npy"):
        data = bytearray(good[name])
        data[len(data) // 2] ^= 0x10
        (cache.folder / name).write_bytes(data)
        cache.inputs(task)
        assert "anew" in capfd.readouterr().err
        assert (cache.folder / name).read_bytes() == good[name]
    (cache.folder / "val.npy").write_bytes(good["val.npy"][:-5])
    cache.inputs(task)
    about = json.loads(good["train.json"])
    about["records"] = "0" * 64
    del about["crc32c"]
    (cache.folder / "train.json").write_text(json.dumps(about))
    with pytest.raises(FlairError, match="holds features of other photos or of another network"):
        cache.inputs(task)
    # Other weights have a folder of their own, and who cannot compute says what is missing.
    other = body_and_head(networks.build_model(TINY, (32, 32, 3), task.num_outputs, seed=4))[0]
    assert _cache(tmp_path, records, other).folder != cache.folder
    network = Network(TINY, network_digest(other), (32, 32), 64, "float32", "float32")
    with pytest.raises(FlairError, match="no such file; copy this folder of features"):
        FeatureCache(tmp_path, records, network, None).inputs(task)


def test_two_runs_at_once_share_the_features(records, task, body, tmp_path, monkeypatch):
    filled: list[str] = []
    original = extraction.fill
    monkeypatch.setattr(cache_module, "fill", lambda *of: (filled.append(of[-1]), original(*of)))
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        caches = [_cache(tmp_path, records, body) for _ in range(2)]
        one, other = pool.map(lambda cache: cache.inputs(task), caches)
    for mine, theirs in zip(one.evaluation("val"), other.evaluation("val"), strict=True):
        np.testing.assert_array_equal(mine[0], theirs[0])
    assert sorted(filled) == ["features of test", "features of train", "features of val"]


def test_an_interrupted_extraction_is_continued(records, task, body, tmp_path, monkeypatch):
    rows = []
    original = pipeline.EvaluationData.__iter__

    def interrupted(self):
        rows.append(self.num_photos)
        for number, batch in enumerate(original(self)):
            if len(rows) == 1 and number == 1:
                raise KeyboardInterrupt
            yield batch

    monkeypatch.setattr(pipeline.EvaluationData, "__iter__", interrupted)
    with pytest.raises(KeyboardInterrupt):
        _cache(tmp_path / "stopped", records, body).inputs(task)
    continued, whole = (_cache(tmp_path / name, records, body) for name in ("stopped", "whole"))
    continued.inputs(task)
    assert rows[1] == rows[0] - 64, "the first batch was not computed again"
    whole.inputs(task)
    for partition in ("train", "val", "test"):
        files = (cache.folder / f"{partition}.npy" for cache in (continued, whole))
        np.testing.assert_array_equal(*map(np.load, files))
    assert not list(continued.folder.glob(".*"))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--cache_features",), "--cache_features: features stay what they are only with --trainable=head"),
        (("--trainable=film", "--feature_views=2"), "--feature_views=2 has no effect without cached features"),
        (("--trainable=head", "--runtime=tff", "--cache_features"), "TFF's own runtime trains on photos"),
        (("--trainable=head", "--augment"), "--augment contradicts --feature_views=0"),
        (("--trainable=head", "--feature_views=2", "--noaugment"), "--noaugment contradicts --feature_views=2"),
    ],
)
def test_flags_that_do_not_fit(places, flags, message):
    assert message in _refused(*places("none"), *SMALL, *flags)


def test_a_folder_that_cannot_be_written(places, tmp_path):
    shutil.copy(__file__, tmp_path / "file")
    assert "file" in _refused(*places("none"), *ROUNDS, f"--feature_dir={tmp_path / 'file' / 'features'}")


@pytest.mark.parametrize("episodes", ["users", pytest.param("labels", marks=pytest.mark.slow)])
def test_personalization_reads_the_features_of_a_training(trained, tfrecords, tmp_path, episodes):
    cache, model = trained[0] / "features", trained[0] / "run" / "best.h5"
    flags = [
        f"--tfrecords_dir={tfrecords}",
        f"--model={model}",
        f"--network={TINY}",
        "--num_episodes=3",
        f"--episodes={episodes}",
    ]
    flags += ["--partition=train", *(["--ways=2", "--shots=1"] if episodes == "labels" else [])]
    for name, more in (("cached", [f"--feature_dir={cache}"]), ("photos", [])):
        run("benchmark.personalize_main", *flags, *more, f"--run_dir={tmp_path / name}")
    rows, others = (read_csv(tmp_path / name / "episodes.csv") for name in ("cached", "photos"))
    for row, other in zip(rows, others, strict=True):
        for key in row.keys() - {"crc32c"}:
            if key in ("user_id", "alphabet"):
                assert row[key] == other[key]
            else:
                assert float(row[key]) == pytest.approx(float(other[key]), abs=1e-4, nan_ok=True)
    other = tmp_path / "nothing"
    line = refused("benchmark.personalize_main", *flags, f"--feature_dir={other}", f"--run_dir={other}")
    assert f"--feature_dir={other}: has no features of" in line


def test_an_evaluation_reads_the_features_of_a_training(trained, tfrecords, tmp_path):
    cache, model = trained[0] / "features", trained[0] / "run" / "best.h5"
    flags = [
        f"--tfrecords_dir={tfrecords}",
        f"--models={model}",
        "--partitions=val,test",
        "--num_resamples=100",
        f"--network={TINY}",
    ]
    for name, more in (("cached", [f"--feature_dir={cache}"]), ("photos", [])):
        run("benchmark.evaluate_main", *flags, *more, f"--output_dir={tmp_path / name}")
    scores, others = (
        [np.load(path) for path in sorted((tmp_path / name).rglob("predictions.npy"))] for name in ("cached", "photos")
    )
    assert len(scores) == 2
    for found, other in zip(scores, others, strict=True):
        np.testing.assert_allclose(found, other, atol=1e-5)
    line = refused("benchmark.evaluate_main", *flags, f"--feature_dir={tmp_path}", f"--output_dir={tmp_path / 'no'}")
    assert f"--feature_dir={tmp_path}: has no features of whole val photos" in line
    copy = tmp_path / "copy"
    shutil.copytree(tfrecords, copy, copy_function=shutil.copy)  # without the times
    flags[0] = f"--tfrecords_dir={copy}"
    line = refused("benchmark.evaluate_main", *flags, f"--feature_dir={cache}", f"--output_dir={tmp_path / 'no'}")
    assert "changed since, or copied without its times (cp -a); leave --feature_dir out" in line


@pytest.mark.parametrize(
    ("door", "flags"), [(CENTRAL, EPOCHS), pytest.param(FEDERATED, ROUNDS, marks=pytest.mark.slow)]
)
def test_a_dry_run_plans_the_features_and_computes_none(places, tmp_path, door, flags):
    cache = tmp_path / "features"
    done = run(door, *places("plan"), *flags, f"--feature_dir={cache}", "--dry_run")
    assert "of them train: head" in done.stdout
    assert "features of 160 photos, unless they are there already" in done.stdout
    assert not cache.exists() and not (tmp_path / "plan").exists()


def test_records_changed_in_place_make_stale_features_anew(tfrecords, task, body, tmp_path, capfd):
    copied = tmp_path / "records"
    shutil.copytree(tfrecords, copied, symlinks=True)
    _cache(None, open_records(copied), body).inputs(task)
    folder = tmp_path / "records.features"
    assert folder.is_dir(), "features lie beside the records"
    path = sorted((copied / "train").glob("*.tfrecords"))[0]
    (payload,) = list(frames.read_payloads(path, 0, None))[:1]
    photo = example.decode(payload)
    changed = photo._replace(labels=tuple((column + 1) % 15 for column in photo.labels))
    rest = list(frames.read_payloads(path, 0, None))[1:]
    path.write_bytes(b"".join(frames.frame(data) for data in (example.encode(changed), *rest)))
    records = open_records(copied)
    inputs = _cache(None, records, body).inputs(task)
    assert "was changed since" in capfd.readouterr().err
    _, labels = inputs.user("train", path.stem).whole([0])
    assert sorted(np.flatnonzero(labels[0])) == sorted(set(changed.labels))


def test_features_that_half_precision_cannot_hold_are_refused(records, task, tmp_path):
    pixels = tf.keras.Input((32, 32, 3))
    large = tf.keras.layers.Rescaling(1e4)(tf.keras.layers.GlobalAveragePooling2D()(pixels))
    network = Network("large", "0" * 64, (32, 32), 3, "float32", "float16")
    with pytest.raises(FlairError, match="which float16 cannot hold; give --feature_dtype=float32"):
        FeatureCache(tmp_path, records, network, tf.keras.Model(pixels, large)).inputs(task)


def test_a_full_disk_is_no_signal(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match="No space left"):
        GrowingArrays(tmp_path / "growing", {"a.npy": (np.dtype("<f4"), (10, 3))}, {})


def test_what_a_network_computes_is_in_its_digest():
    def network(scale, activation):
        pixels = tf.keras.Input((8, 8, 3), name="pixels")
        x = tf.keras.layers.Rescaling(scale, name="rescaling")(pixels)
        x = tf.keras.layers.Conv2D(2, 3, activation=activation, kernel_initializer="ones", name="conv")(x)
        return tf.keras.Model(pixels, tf.keras.layers.GlobalAveragePooling2D(name="pooling")(x))

    one, same, scaled, other = (
        network_digest(network(*of)) for of in ((1.0, "relu"), (1.0, "relu"), (0.5, "relu"), (1.0, "tanh"))
    )
    assert one == same
    assert len({one, scaled, other}) == 3
