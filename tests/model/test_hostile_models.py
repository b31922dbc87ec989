"""Model files that somebody made to run code, or to fill memory: refused in one line, and nothing of them runs."""

from __future__ import annotations

import errno
import json
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmark import flair_metrics
from benchmark.model import loading, networks
from benchmark.model import saved as saved_model
from benchmark.model.archive import open_model
from flair.errors import FlairError
from tests.support.bounded_memory import bounded_memory
from tests.support.commands import run

SIZE = (16, 16, 3)
CONFIG, WEIGHTS = "config.json", "model.weights.h5"
Config = dict[str, Any]


@pytest.fixture(scope="module")
def model() -> tf.keras.Model:
    """A model of ours. Read only."""
    return networks.build_model("cnn", SIZE, 3)


@pytest.fixture(scope="module")
def good(model: tf.keras.Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`good.h5` and `good.keras`, the model saved."""
    folder = tmp_path_factory.mktemp("good")
    loading.save_model(model, folder / "good.h5")
    loading.save_archive(model, folder / "good.keras")
    return folder


def tampered(good: Path, path: Path, change: Callable[[Config], None]) -> Path:
    """The good model of `path`'s format, with another description, and otherwise whole."""
    if path.suffix == ".keras":
        with zipfile.ZipFile(good / "good.keras") as old, zipfile.ZipFile(path, "w") as new:
            for name in old.namelist():
                data = old.read(name)
                new.writestr(name, json.dumps(_changed(json.loads(data), change)) if name == CONFIG else data)
        return path
    path.write_bytes((good / "good.h5").read_bytes())
    with h5py.File(path, "r+") as file:
        file.attrs["model_config"] = json.dumps(_changed(json.loads(file.attrs["model_config"]), change))
        del file.attrs["flair_model"]  # with its checksum, which anybody can make anew
    return path


def _changed(config: Config, change: Callable[[Config], None]) -> Config:
    change(config)
    return config


def relu1(config: Config) -> Config:
    """A layer of the description."""
    (layer,) = (layer for layer in config["config"]["layers"] if layer["name"] == "relu1")
    return layer


def _lambda(config: Config) -> None:
    made = tf.keras.saving.serialize_keras_object(tf.keras.layers.Lambda(lambda x: x, name="relu1"))
    relu1(config).update({key: made[key] for key in ("class_name", "config")})


def _unknown(config: Config) -> None:
    relu1(config)["class_name"] = "Surprise"


def _module(config: Config) -> None:
    relu1(config).update({"module": "planted_module", "class_name": "ReLU", "registered_name": "ReLU"})


def _module_of_a_model(config: Config) -> None:
    config.update({"module": "planted_module", "class_name": "Surprise", "registered_name": "Surprise"})


def _function(config: Config) -> None:
    function = {"module": "planted_module", "class_name": "function", "config": "relu", "registered_name": "function"}
    relu1(config).update({"class_name": "Activation", "config": {"name": "relu1", "activation": function}})


def _module_of_an_initializer(config: Config) -> None:
    relu1(config)["config"]["kernel_initializer"] = {"module": "planted_module", "class_name": "Zeros", "config": {}}


def _file_operation(config: Config) -> None:
    relu1(config).update({"class_name": "TFOpLambda", "config": {"name": "relu1", "function": "io.write_file"}})


def _hidden_operation(config: Config) -> None:
    """Where a class of the first name is registered and its module lacks it, Keras takes the second one there."""
    names = {"class_name": "LayerScale", "registered_name": "TFOpLambda", "module": "keras.src.layers.core.tf_op_layer"}
    relu1(config).update({**names, "config": {"name": "relu1", "function": "io.write_file"}})


def _module_that_is_a_list(config: Config) -> None:
    relu1(config)["module"] = ["planted_module"]


def _loss(config: Config) -> None:
    config["compile_config"] = {"loss": {"module": "planted_module", "class_name": "Surprise", "config": {}}}


def _lookup(config: Config) -> None:
    relu1(config).update({"class_name": "StringLookup", "config": {"name": "relu1", "vocabulary": "/etc/passwd"}})


def _registered(config: Config) -> None:
    relu1(config).update({"class_name": "ReLU", "registered_name": "Package>Surprise", "module": "keras.layers"})


ATTACKS = {
    _lambda: "Lambda",
    _unknown: "Surprise",
    _module: "planted_module",
    _module_of_a_model: "Surprise",
    _function: "function",
    _module_of_an_initializer: "planted_module",
    _file_operation: "io.write_file",
    _hidden_operation: "io.write_file",
    _module_that_is_a_list: "['planted_module']",
    _loss: "planted_module",
    _lookup: "StringLookup",
    _registered: "Package>Surprise",
}


@pytest.fixture
def canary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What appears as soon as somebody imports `planted_module`."""
    (tmp_path / "planted_module.py").write_text(f"open({str(tmp_path / 'canary')!r}, 'w').close()\n")
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path / "canary"


@pytest.mark.parametrize("suffix", [".h5", ".keras"])
@pytest.mark.parametrize("attack", ATTACKS)
def test_a_description_that_could_run_code_is_refused(
    good: Path, model: tf.keras.Model, tmp_path: Path, canary: Path, attack: Callable[[Config], None], suffix: str
) -> None:
    path = tampered(good, tmp_path / f"sent{suffix}", attack)
    before = [array.copy() for array in model.get_weights()]
    for read in (lambda: saved_model.describe(path), lambda: loading.load_by_name(model, path)):
        with pytest.raises(FlairError) as caught:
            read()
        assert str(caught.value).startswith(f"{path}: it has an ")
        assert ATTACKS[attack] in str(caught.value) and str(caught.value).isprintable()
    assert all(np.array_equal(*pair) for pair in zip(before, model.get_weights(), strict=True))
    assert not canary.exists()


def test_keras_itself_imports_what_a_file_names(good: Path, tmp_path: Path, canary: Path) -> None:
    """Also in its safe mode: what is refused here is no theory."""
    path = tampered(good, tmp_path / "sent.keras", _module_of_a_model)
    with pytest.raises(TypeError):  # once it has been imported
        tf.keras.models.load_model(path, safe_mode=True)
    assert canary.exists()


def test_a_loss_of_an_h5_file_is_looked_at_too_and_keras_own_are_not_refused(good: Path, tmp_path: Path) -> None:
    model = networks.build_model("cnn", SIZE, 3)
    optimizer = tf.keras.mixed_precision.LossScaleOptimizer(tf.keras.optimizers.Adam())
    model.compile(optimizer, tf.keras.losses.BinaryCrossentropy(), flair_metrics.metrics_builder(3), run_eagerly=True)
    model.fit(np.zeros((1, *SIZE)), np.zeros((1, 3)), verbose=0)
    for suffix in (".h5", ".keras"):
        model.save(tmp_path / f"trained{suffix}")
        loading.load_by_name(model, tmp_path / f"trained{suffix}")
    path = tampered(good, tmp_path / "sent.h5", lambda _config: None)
    with h5py.File(path, "r+") as file:
        file.attrs["training_config"] = json.dumps({"loss": {"module": "planted_module", "class_name": "Surprise"}})
    with pytest.raises(FlairError, match="an object of the module planted_module, which is refused"):
        saved_model.describe(path)


@pytest.mark.parametrize("suffix", [".h5", ".keras"])
def test_a_command_refuses_it_in_one_line(good: Path, tmp_path: Path, canary: Path, suffix: str) -> None:
    path = tampered(good, tmp_path / f"sent{suffix}", _module)
    out = tmp_path / "out.keras"
    done = run("benchmark.export_main", f"--model={path}", f"--output_file={out}", code=1)
    (line,) = done.stderr.splitlines()
    assert "an object of the module planted_module, which is refused" in line
    assert not out.exists() and not canary.exists()


def test_the_same_model_untampered_is_read(good: Path, tmp_path: Path) -> None:
    for suffix in (".h5", ".keras"):
        path = tampered(good, tmp_path / f"same{suffix}", lambda _config: None)
        saved_model.load(saved_model.describe(path))


def _deflated(good: Path, path: Path) -> None:
    with zipfile.ZipFile(good / "good.keras") as old, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, bytes(300_000_000) if name == WEIGHTS else old.read(name))


def _without(name: str) -> Callable[[Path, Path], None]:
    def make(good: Path, path: Path) -> None:
        with zipfile.ZipFile(good / "good.keras") as old, zipfile.ZipFile(path, "w") as new:
            for other in set(old.namelist()) - {name}:
                new.writestr(other, old.read(other))

    return make


def _large_text(good: Path, path: Path) -> None:
    with zipfile.ZipFile(good / "good.keras") as old, zipfile.ZipFile(path, "w") as new:
        for name in old.namelist():
            new.writestr(name, b" " * 20_000_000 if name == CONFIG else old.read(name))


def _cut(good: Path, path: Path) -> None:
    path.write_bytes((good / "good.keras").read_bytes()[:-5000])


def _flipped(good: Path, path: Path) -> None:
    data = bytearray((good / "good.keras").read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def _pickle(_good: Path, path: Path) -> None:
    path.write_bytes(pickle.dumps({"model": 1}))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (_deflated, "is packed or encrypted"),
        (_without(CONFIG), "it has no config.json"),
        (_without(WEIGHTS), "it has no model.weights.h5"),
        (_large_text, "its config.json has more than"),
        (_cut, "is not a Keras .keras file, or is damaged"),
        (_flipped, "Bad CRC-32"),
        (_pickle, "is not a Keras .keras file, or is damaged"),
    ],
)
def test_an_archive_that_is_damaged_or_a_bomb_is_refused(
    good: Path, tmp_path: Path, make: Callable[[Path, Path], None], words: str
) -> None:
    path = tmp_path / "sent.keras"
    make(good, path)
    with bounded_memory(400_000_000), pytest.raises(FlairError, match=words) as caught:
        saved_model.describe(path)
    assert str(caught.value).startswith(f"{path}: ") and str(caught.value).isprintable()


def test_a_full_disk_is_not_damage(good: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(FlairError, match=r"is unpacked to be read, and the disk of .* is full") as caught:
        open_model(good / "good.keras")
    assert "damaged" not in str(caught.value)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_damaged_archive_is_refused_or_loads_what_was_saved(
    good: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    whole = (good / "good.keras").read_bytes()
    damaged = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(
            st.integers(0, len(whole) - 1) | st.integers(0, 200) | st.integers(len(whole) - 400, len(whole) - 1)
        )
        damaged[at] ^= data.draw(st.integers(1, 255))
    path = tmp_path_factory.getbasetemp() / "damaged.keras"
    path.write_bytes(damaged)
    found = []
    for one in (path, good / "good.keras"):
        try:
            with bounded_memory(), open_model(one) as file:
                assert file.keras_config() is not None and isinstance(file.facts(), dict)
                fit = file.fit("conv1", {"kernel": (3, 3, 3, 32)})
                found.append(fit if isinstance(fit, str) else fit.values["kernel"].tobytes())
        except FlairError as error:
            assert one == path and str(error).startswith(f"{path}: ") and str(error).isprintable()  # noqa: PT017
            return
    assert found[0] == found[1]


def test_a_savedmodel_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "saved_model.pb").write_bytes(b"")
    with pytest.raises(FlairError, match="is a SavedModel, a program"):
        saved_model.find_models([str(tmp_path / "model")])
