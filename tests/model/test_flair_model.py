"""The models: names, sizes, determinism, and weights that load by layer name."""

from __future__ import annotations

import h5py
import numpy as np
import pytest
import tensorflow as tf

from benchmark.model import loading, networks
from flair.errors import FlairError

SHAPE = (64, 64, 3)


def published_layer_names(stages=4):
    """Weighted layers of the published resnet18.h5, written out from its description."""
    names = ["initial_conv", "initial_norm"]
    for stage in range(1, stages + 1):
        for block in (1, 2):
            for part in (1, 2):
                names += [f"layer{stage}_block{block}_conv{part}_3x3", f"layer{stage}_block{block}_norm{part}"]
        if stage > 1:
            names += [f"layer{stage}_downsample_conv_1x1", f"layer{stage}_downsample_norm"]
    return {*names, "classifier"}


@pytest.fixture(scope="module")
def exact():
    """Both networks. Read only."""
    return {name: networks.build_model(name, SHAPE, 17) for name in ("cnn", "resnet18")}


def test_resnet18_has_the_published_size_and_names(exact):
    resnet = exact["resnet18"]
    assert resnet.count_params() == 11_185_233
    assert {layer.name for layer in resnet.layers if layer.weights} == published_layer_names()
    names = {layer.name for layer in resnet.layers}
    assert {"initial_padding", "initial_relu", "pooling_padding", "initial_pooling", "global_pooling"} <= names
    assert {"layer3_block1_conv1_padding", "layer4_block2_relu2", "layer1_block1_relu1"} <= names
    assert not any(layer.use_bias for layer in resnet.layers if isinstance(layer, tf.keras.layers.Conv2D))
    assert resnet.get_layer("layer2_block1_conv1_3x3").kernel.shape == (3, 3, 64, 128)


def test_resnet18_equals_the_same_network_of_plain_keras_layers():
    model = networks.build_model("resnet18", SHAPE, 5, seed=3)
    rng = np.random.default_rng(0)
    model.set_weights([w + rng.normal(0, 0.05, w.shape).astype(np.float32) for w in model.get_weights()])
    pixels = rng.integers(0, 256, (2, *SHAPE)).astype(np.uint8)
    kernels = [layer.kernel for layer in model.layers if hasattr(layer, "kernel")]
    results = []
    for function in (model, lambda pixels: _plain_resnet18(model, pixels)):
        with tf.GradientTape() as tape:
            logits = function(pixels)
            loss = tf.reduce_sum(logits**2)
        results.append([logits, *tape.gradient(loss, kernels)])
    for found, wanted in zip(*results, strict=True):
        assert np.linalg.norm(found - wanted) < 1e-3 * np.linalg.norm(wanted)


def _plain_resnet18(model, pixels):
    def conv(x, name, stride, padding):
        kernel = model.get_layer(name).kernel
        return tf.nn.conv2d(tf.pad(x, [[0, 0], [padding] * 2, [padding] * 2, [0, 0]]), kernel, stride, "VALID")

    def norm(x, name):
        layer = tf.keras.layers.GroupNormalization(32, epsilon=1e-5)
        layer.build(x.shape)
        layer.set_weights(model.get_layer(name).get_weights())
        return layer(x)

    x = (pixels / 255.0 - np.array([0.485, 0.456, 0.406])) / np.array([0.229, 0.224, 0.225])
    x = tf.nn.relu(norm(conv(tf.constant(x, tf.float32), "initial_conv", 2, 3), "initial_norm"))
    x = tf.nn.max_pool2d(tf.pad(x, [[0, 0], [1, 1], [1, 1], [0, 0]]), 3, 2, "VALID")
    for stage in (1, 2, 3, 4):
        for block in (1, 2):
            stride = 2 if stage > 1 and block == 1 else 1
            name = f"layer{stage}_block{block}"
            out = tf.nn.relu(norm(conv(x, f"{name}_conv1_3x3", stride, 1), f"{name}_norm1"))
            out = norm(conv(out, f"{name}_conv2_3x3", 1, 1), f"{name}_norm2")
            if stride == 2:
                x = norm(conv(x, f"layer{stage}_downsample_conv_1x1", 2, 0), f"layer{stage}_downsample_norm")
            x = tf.nn.relu(out + x)
    dense = model.get_layer("classifier")
    return tf.reduce_mean(x, [1, 2]) @ dense.kernel + dense.bias


def test_equal_seeds_give_equal_weights_and_layers_differ():
    one, same, other = (networks.build_model("cnn", SHAPE, 3, seed=seed) for seed in (1, 1, 2))
    for a, b in zip(one.get_weights(), same.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    kernels = [layer.kernel.numpy() for layer in one.layers if isinstance(layer, tf.keras.layers.Conv2D)]
    assert not np.array_equal(kernels[0], other.get_layer("conv1").kernel)
    assert not np.array_equal(kernels[-1][..., :8, :8], kernels[-2][..., :8, :8])


@pytest.mark.parametrize("name", ["cnn", "resnet18"])
def test_bfloat16_computes_nearly_the_same_and_keeps_float32_variables(name, exact):
    pixels = np.random.default_rng(0).integers(0, 256, (2, *SHAPE)).astype(np.uint8)
    rounded = networks.build_model(name, SHAPE, 17, compute_dtype="bfloat16")
    assert {v.dtype for v in rounded.variables} == {tf.float32}
    assert rounded(pixels).dtype == tf.float32
    assert rounded.get_layer("global_pooling").compute_dtype == "bfloat16"
    wanted = exact[name](pixels)
    error = np.max(np.abs(wanted - rounded(pixels))) / np.std(wanted)
    assert 0 < error < 0.2
    assert tf.keras.mixed_precision.global_policy().name == "float32"


def test_uint8_and_float_pixels_are_the_same(exact):
    model = exact["cnn"]
    pixels = np.random.default_rng(0).integers(0, 256, (2, *SHAPE)).astype(np.uint8)
    np.testing.assert_array_equal(model(pixels), model(pixels.astype(np.float32)))


def test_unknown_model_is_refused():
    with pytest.raises(FlairError, match="--model=vgg: no such model; the models are resnet18, cnn"):
        networks.build_model("vgg", SHAPE, 3)


def _pretrained_file(path, classes=1000):
    """A file as the published one: Keras layers under the published names, batch norm, 1,000 classes."""
    inputs = tf.keras.Input((None, None, 3))
    outputs = [tf.keras.layers.Conv2D(64, 7, use_bias=False, name="initial_conv")(inputs)]
    outputs.append(tf.keras.layers.BatchNormalization(name="initial_norm")(outputs[0]))
    outputs.append(tf.keras.layers.Dense(classes, name="classifier")(tf.keras.Input((512,))))
    layers = [tf.keras.layers.Conv2D(64, 7, use_bias=False, name="initial_conv")]
    layers += [tf.keras.layers.BatchNormalization(name="initial_norm")]
    layers += [tf.keras.layers.GlobalAveragePooling2D(), tf.keras.layers.Dense(classes, name="classifier")]
    model = tf.keras.Sequential([tf.keras.Input((32, 32, 3)), *layers])
    rng = np.random.default_rng(0)
    model.set_weights([rng.uniform(0.5, 1.5, w.shape).astype(np.float32) for w in model.get_weights()])
    model.save_weights(path, save_format="h5")
    return model


def test_a_published_file_loads_by_name_and_reports_what_it_skipped(tmp_path):
    source = _pretrained_file(tmp_path / "resnet18.h5")
    assert loading.wants_batch_normalization(tmp_path / "resnet18.h5")
    model = networks.build_model("resnet18", SHAPE, 17, pretrained_norm=True)
    before = model.get_layer("classifier").kernel.numpy()
    report = loading.load_by_name(model, tmp_path / "resnet18.h5")
    assert report.loaded == ["initial_conv", "initial_norm"]
    assert "has shapes [(64, 1000), (1000,)], needs [(512, 17), (17,)]" in report.skipped["classifier"]
    assert report.skipped["layer1_block1_conv1_3x3"] == "not in the file"
    assert "loaded 2 layers; skipped" in str(report)
    for name in report.loaded:
        for found, wanted in zip(
            model.get_layer(name).get_weights(), source.get_layer(name).get_weights(), strict=True
        ):
            np.testing.assert_array_equal(found, wanted)
    np.testing.assert_array_equal(model.get_layer("classifier").kernel, before)
    assert not any("moving" in v.name for v in model.trainable_variables)


def test_a_file_of_which_nothing_fits_is_an_error(exact, tmp_path):
    _pretrained_file(tmp_path / "resnet18.h5")
    with pytest.raises(FlairError, match=r"none of its layers .initial_conv, .* fits the model cnn"):
        loading.load_by_name(exact["cnn"], tmp_path / "resnet18.h5")


@pytest.mark.parametrize("content", [b"", b"no HDF5 at all", None])
def test_a_file_that_is_no_weights_file_is_an_error(exact, tmp_path, content):
    path = tmp_path / "weights.h5"
    if content is None:
        with h5py.File(path, "w") as file:
            file["data"] = [1, 2, 3]
    else:
        path.write_bytes(content)
    with pytest.raises(FlairError, match=r"weights\.h5"):
        loading.load_by_name(exact["cnn"], path)


@pytest.mark.parametrize("pretrained_norm", [False, True])
def test_saved_weights_restore_exactly(tmp_path, pretrained_norm):
    source = networks.build_model("cnn", SHAPE, 3, pretrained_norm, seed=1)
    rng = np.random.default_rng(0)
    source.set_weights([rng.uniform(0.5, 1, w.shape).astype(np.float32) for w in source.get_weights()])
    loading.save_model(source, tmp_path / "model.h5")
    assert loading.wants_batch_normalization(tmp_path / "model.h5") is pretrained_norm
    model = networks.build_model("cnn", SHAPE, 3, pretrained_norm, seed=2)
    report = loading.load_by_name(model, tmp_path / "model.h5")
    assert not report.skipped
    for found, wanted in zip(model.get_weights(), source.get_weights(), strict=True):
        np.testing.assert_array_equal(found, wanted)
    assert [path.name for path in tmp_path.iterdir()] == ["model.h5"]


def test_a_whole_saved_model_loads_too(tmp_path):
    inputs = tf.keras.Input((8, 8, 3))
    outputs = tf.keras.layers.Conv2D(32, 3, use_bias=False, name="conv1")(inputs)
    source = tf.keras.Model(inputs, outputs)
    source.save(tmp_path / "model.h5", include_optimizer=False)
    model = networks.build_model("cnn", SHAPE, 3)
    assert loading.load_by_name(model, tmp_path / "model.h5").loaded == ["conv1"]
    np.testing.assert_array_equal(model.get_layer("conv1").kernel, source.get_weights()[0])
