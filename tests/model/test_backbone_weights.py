"""Weights to start from: PyTorch's and Keras's names in .safetensors, and Keras's cache for ImageNet."""

from __future__ import annotations

import hashlib
import sys
import urllib.error
from pathlib import Path
from urllib import request

import numpy as np
import pytest
import tensorflow as tf

from benchmark.model import applications, loading, networks, specs
from flair.errors import FlairError
from tests.support.tensor_files import write_safetensors

SHAPE = (32, 32, 3)
TEXT = """
import tensorflow as tf
L = tf.keras.layers
def tiny(input_shape):
    pixels = tf.keras.Input(input_shape)
    x = L.BatchNormalization(name="a._norm")(L.Conv2D(4, 3, 2, name="conv")(pixels))
    x = L.GlobalAveragePooling2D()(L.DepthwiseConv2D(3, depth_multiplier=2, name="a._deep")(x))
    return tf.keras.Model(pixels, L.LayerNormalization(name="scale")(L.Dense(5, name="linear")(x)))
"""


@pytest.fixture
def model(tmp_path, monkeypatch):
    """A network with a layer of each kind that has PyTorch weights."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    Path("network_with_all_kinds.py").write_text(TEXT)
    yield networks.build_model("network_with_all_kinds:tiny", SHAPE, 3)
    sys.modules.pop("network_with_all_kinds", None)


def _tensors():
    rng = np.random.default_rng(0)
    shapes = {
        "_conv.weight": (4, 3, 3, 3),
        "_conv.bias": (4,),
        "a._norm.weight": (4,),
        "a._norm.bias": (4,),
        "a._norm.running_mean": (4,),
        "a._norm.running_var": (4,),
        "a._deep.weight": (8, 1, 3, 3),
        "a._deep.bias": (8,),
        "linear.weight": (5, 8),
        "linear.bias": (5,),
        "scale/gamma": (5,),
        "scale.beta": (5,),
        "classifier.weight": (7, 5),
        "classifier.bias": (7,),
    }
    values = {name: rng.uniform(0.5, 1, shape).astype(np.float32) for name, shape in shapes.items()}
    return {**values, "a._norm.num_batches_tracked": np.array(3)}


def test_tensors_of_pytorch_load_into_the_layers_of_their_names(model, tmp_path):
    tensors = _tensors()
    before = model.get_layer("classifier").get_weights()
    report = loading.load_backbone(model, write_safetensors(tmp_path / "a.safetensors", tensors))
    assert report.loaded == ["conv", "a._norm", "a._deep", "linear", "scale"]
    assert report.skipped == {"classifier": "not of the backbone"}
    x = tf.constant(np.random.default_rng(1).normal(size=(1, 8, 8, 3)), tf.float32)
    out = _correlated(x[0].numpy(), tensors["_conv.weight"], tensors["_conv.bias"], stride=2)
    np.testing.assert_allclose(model.get_layer("conv")(x)[0], out, atol=1e-4)
    scale = tensors["a._norm.weight"] / np.sqrt(tensors["a._norm.running_var"] + 1e-3)
    out = (out - tensors["a._norm.running_mean"]) * scale + tensors["a._norm.bias"]
    np.testing.assert_allclose(
        model.get_layer("a._norm")(model.get_layer("conv")(x), training=False)[0], out, atol=1e-4
    )
    # Each channel of PyTorch's grouped convolution has two filters behind each other.
    deep = [_correlated(out[..., [c // 2]], tensors["a._deep.weight"][[c]], 0) for c in range(8)]
    out_of_keras = model.get_layer("a._deep")(out[np.newaxis])[0]
    np.testing.assert_allclose(out_of_keras, np.concatenate(deep, -1) + tensors["a._deep.bias"], atol=1e-4)
    np.testing.assert_array_equal(model.get_layer("linear").kernel, tensors["linear.weight"].T)
    np.testing.assert_array_equal(model.get_layer("scale").gamma, tensors["scale/gamma"])
    for value, kept in zip(model.get_layer("classifier").get_weights(), before, strict=True):
        np.testing.assert_array_equal(value, kept)


def _correlated(x, weight, bias, stride=1):
    """PyTorch's convolution without padding, [h, w, in] and [out, in, kh, kw], by its definition."""
    rows, columns = ((x.shape[axis] - weight.shape[2 + axis]) // stride + 1 for axis in (0, 1))
    out = np.zeros((rows, columns, len(weight)), np.float32)
    for i in range(rows):
        for j in range(columns):
            patch = x[i * stride : i * stride + weight.shape[2], j * stride : j * stride + weight.shape[3]]
            out[i, j] = np.einsum("hwc,ochw->o", patch, weight)
    return out + bias


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("_conv.weight", np.full((4, 3, 3, 3), np.nan, np.float32), "_conv.weight holds numbers that are not finite"),
        ("a._norm.running_var", np.full(4, -1, np.float32), "a._norm.running_var holds a variance below 0"),
        (
            "linear.weight",
            np.zeros((8, 5), np.float32),
            r"layer linear has linear.weight of shape .8, 5., needs .5, 8.",
        ),
        ("linear.bias", np.zeros(5, np.int64), "linear.bias holds int64, expected floating-point"),
        ("conv.bias", np.zeros(4, np.float32), "_conv.bias and conv.bias are the same weight"),
        ("linear.running_var", np.zeros(5, np.float32), "its layer linear has weight, bias, running_var, needs kernel"),
    ],
)
def test_tensors_that_do_not_fit_are_refused_and_the_model_stays(model, tmp_path, name, value, words):
    before = model.get_weights()
    with pytest.raises(FlairError, match=words) as caught:
        loading.load_backbone(model, write_safetensors(tmp_path / "a.safetensors", {**_tensors(), name: value}))
    assert "\n" not in str(caught.value) and str(tmp_path / "a.safetensors") in str(caught.value)
    for now, then in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(now, then)


def test_a_file_of_which_nothing_fits_is_refused(model, tmp_path):
    long = "_" * 10**6  # which took hours
    tensors = {"encoder.layer.weight": np.zeros(3, np.float32), long: np.zeros(0, np.float32)}
    path = write_safetensors(tmp_path / "a.safetensors", tensors)
    with pytest.raises(FlairError, match=r"none of its layers \(encoder.layer, _+..., ...\) fits"):
        loading.load_backbone(model, path)


def test_a_saved_model_is_a_backbone_but_for_its_classifier(model, tmp_path):
    loading.save_model(model, tmp_path / "a.h5")
    other = networks.build_model("network_with_all_kinds:tiny", SHAPE, 3, seed=9)
    head = other.get_layer("classifier").get_weights()[0]
    report = loading.load_backbone(other, str(tmp_path / "a.h5"))
    assert report.skipped == {"classifier": "not of the backbone"}
    np.testing.assert_array_equal(other.get_layer("conv").kernel, model.get_layer("conv").kernel)
    np.testing.assert_array_equal(other.get_layer("classifier").kernel, head)


NETWORK = "keras:MobileNetV3Small"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """Keras's cache, empty, without internet."""

    def no_internet(url, *_rest):
        raise urllib.error.URLError("no route to host")

    data_utils = sys.modules["keras.src.utils.data_utils"]
    monkeypatch.setattr(data_utils, "urlretrieve", no_internet)
    monkeypatch.setattr(request, "urlretrieve", no_internet)
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    applications.imagenet_file.cache_clear()
    yield tmp_path / "keras"
    applications.imagenet_file.cache_clear()


def test_without_internet_the_line_says_what_to_fetch_and_where_to_put_it(cache):
    with pytest.raises(FlairError, match="cannot fetch the weights") as caught:
        applications.imagenet_file(NETWORK)
    line, name = str(caught.value), "weights_mobilenet_v3_small_224_1.0_float_no_top_v2.h5"
    assert "\n" not in line and f"put it at {cache / 'models' / name}, or" in line
    assert (
        f"download https://storage.googleapis.com/tensorflow/keras-applications/mobilenet_v3/{name} elsewhere" in line
    )


@pytest.mark.slow
def test_weights_in_the_cache_are_taken_and_compared_with_keras_digest(cache, monkeypatch):
    source = tf.keras.applications.MobileNetV3Small(include_top=False, weights=None, include_preprocessing=False)
    rng = np.random.default_rng(0)
    source.set_weights([rng.uniform(0.5, 1, w.shape) for w in source.get_weights()])
    path = cache / "models" / "weights_mobilenet_v3_small_224_1.0_float_no_top_v2.h5"
    path.parent.mkdir(parents=True)
    source.save_weights(path)
    with pytest.raises(FlairError, match="cannot fetch the weights"):
        applications.imagenet_file(NETWORK)  # it has not the digest that Keras knows

    source.save_weights(path)
    module = sys.modules[tf.keras.applications.MobileNetV3Small.__module__]
    digest = hashlib.md5(path.read_bytes()).hexdigest()
    monkeypatch.setattr(module, "WEIGHTS_HASHES", dict.fromkeys(module.WEIGHTS_HASHES, (digest, digest)))
    model = networks.build_model(NETWORK, SHAPE, 3)
    report = loading.load_backbone(model, specs.IMAGENET)
    assert applications.imagenet_file(NETWORK) == path
    weights = [array for layer in model.layers if layer.name in report.loaded for array in layer.get_weights()]
    assert model.count_params() == sum(array.size for array in weights) + model.get_layer("classifier").count_params()
    expected = [array for layer in source.layers for array in layer.get_weights()]
    for found, wanted in zip(weights, expected, strict=True):
        np.testing.assert_array_equal(found, wanted)
