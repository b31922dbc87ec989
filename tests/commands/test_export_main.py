"""A saved model in formats of other tools: the same logits, read by what others would read them with."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from benchmark.model import exporting, loading, networks
from benchmark.model import saved as saved_model
from flair.errors import FlairError
from tests.support.commands import run
from tests.support.tiny_network import TINY

SIZE = (32, 24, 3)
PHOTOS = np.random.default_rng(0).integers(0, 256, (3, *SIZE)).astype(np.float32)


@pytest.fixture(scope="module")
def model() -> tf.keras.Model:
    return networks.build_model("cnn", SIZE, 5, pretrained_norm=True, seed=3)


@pytest.fixture(scope="module")
def path(model: tf.keras.Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "cnn.h5"
    loading.save_model(model, path)
    return path


def assert_logits(found: object, model: tf.keras.Model) -> None:
    np.testing.assert_allclose(np.asarray(found), model(PHOTOS, training=False), atol=1e-5)


def test_keras_of_an_old_file_of_weights(model: tf.keras.Model, tmp_path: Path) -> None:
    model.save_weights(tmp_path / "old.h5", save_format="h5")
    out = tmp_path / "new.keras"
    # Such a file does not say its size, and a published one is taken.
    done = run("benchmark.export_main", f"--model={tmp_path / 'old.h5'}", f"--output_file={out}")
    assert "cnn with 5 outputs as keras" in done.stdout
    assert "largest difference of a logit on random photos: 0" in done.stdout
    loaded = tf.keras.models.load_model(out)
    assert loaded.layers[1].compute_output_shape(loaded.input_shape)[1:3] == saved_model.PUBLISHED_SIZE


def test_savedmodel(model: tf.keras.Model, path: Path, tmp_path: Path) -> None:
    out = tmp_path / "folder"
    done = run("benchmark.export_main", f"--model={path}", "--format=savedmodel", f"--output_dir={out}")
    assert "unfinished" not in done.stdout and len(done.stdout.splitlines()) == 3
    loaded = tf.saved_model.load(str(out))
    assert_logits(loaded.serve(PHOTOS), model)
    again = run("benchmark.export_main", f"--model={path}", "--format=savedmodel", f"--output_dir={out}", code=1)
    assert f"--output_dir={out}: is there already" in again.stderr


def test_safetensors(model: tf.keras.Model, path: Path, tmp_path: Path) -> None:
    out = tmp_path / "model.safetensors"
    run("benchmark.export_main", f"--model={path}", "--format=safetensors", f"--output_file={out}")
    data = out.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    about = header["classifier/kernel"]
    start, stop = (8 + length + offset for offset in about["data_offsets"])
    kernel = np.frombuffer(data[start:stop], "<f4").reshape(about["shape"])
    np.testing.assert_array_equal(kernel, model.get_layer("classifier").kernel)
    again = networks.build_model("cnn", SIZE, 5, pretrained_norm=True, seed=4)
    assert not loading.load_by_name(again, out).skipped
    assert_logits(again(PHOTOS), model)


@pytest.mark.skipif(importlib.util.find_spec("tf2onnx") is None, reason="the extra onnx is not installed")
def test_onnx(model: tf.keras.Model, path: Path, tmp_path: Path) -> None:
    from onnx.reference import ReferenceEvaluator

    out = tmp_path / "model.onnx"
    run("benchmark.export_main", f"--model={path}", "--format=onnx", f"--output_file={out}")
    assert_logits(ReferenceEvaluator(str(out)).run(None, {"pixels": PHOTOS})[0], model)


def test_a_network_of_ones_own(tmp_path: Path) -> None:
    loading.save_model(networks.build_model(TINY, SIZE, 5), tmp_path / "tiny.h5")
    flags = [f"--model={tmp_path / 'tiny.h5'}", f"--output_file={tmp_path / 'tiny.keras'}"]
    assert "has to be imported" in run("benchmark.export_main", *flags, code=1).stderr
    run("benchmark.export_main", *flags, f"--network={TINY}")
    assert tf.keras.models.load_model(tmp_path / "tiny.keras").output_shape == (None, 5)


def test_what_differs_is_not_left(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(_model: object, _saved: object, made: Path) -> object:
        made.write_bytes(b"")
        return lambda photos: np.zeros((len(photos), 5))

    monkeypatch.setitem(exporting._WRITERS, "keras", write)
    saved = saved_model.describe(path)
    with pytest.raises(FlairError, match="its logits differ by"):
        exporting.export(saved_model.load(saved), saved, "keras", tmp_path / "out.keras", 0)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_in_which_tensorflow_cannot_write_is_refused_in_one_line(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise tf.errors.ResourceExhaustedError(None, None, "No space left on device")

    monkeypatch.setattr(tf.keras.Model, "export", full)
    saved = saved_model.describe(path)
    with pytest.raises(FlairError, match=r"cannot write there .*No space left on device"):
        exporting.export(saved_model.load(saved), saved, "savedmodel", tmp_path / "out", 0)
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_export_left_goes_and_a_link_stays(path: Path, tmp_path: Path) -> None:
    left = tmp_path / ".out.keras.unfinished"
    left.mkdir()
    (left / "model.keras").write_bytes(b"half")
    (tmp_path / "link.keras").symlink_to("out.keras")
    saved = saved_model.describe(path)
    exporting.export(saved_model.load(saved), saved, "keras", tmp_path / "link.keras", 0)
    assert sorted(found.name for found in tmp_path.iterdir()) == ["link.keras", "out.keras"]
    assert (tmp_path / "link.keras").is_symlink()


def test_a_model_is_not_written_over_by_its_own_export(tmp_path: Path) -> None:
    model = tmp_path / "model.keras"
    model.touch()
    (line,) = run("benchmark.export_main", f"--model={model}", f"--output_file={model}", code=1).stderr.splitlines()
    assert "is the --model itself" in line and model.stat().st_size == 0


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ((), "--format=keras: give --output_file, where to write"),
        (("--output_file=a.h5",), "expected a name that ends in .keras"),
        (("--format=savedmodel", "--output_file=a"), "--format=savedmodel writes to --output_dir"),
        (("--output_dir=a",), "--format=keras writes to --output_file"),
        (("--model=/none.h5", "--output_file=a.keras"), "--model=/none.h5: no such file"),
        (("--format=onnx", "--output_file=a.onnx"), "make environment EXTRAS=onnx"),
    ],
)
def test_flags_that_cannot_be_are_refused_in_one_line(
    path: Path, flags: tuple[str, ...], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tf2onnx", None)
    (line,) = run("benchmark.export_main", f"--model={path}", *flags, code=1).stderr.splitlines()
    assert words in line
