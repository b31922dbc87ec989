"""The networks of `benchmark.flair_model` against the toolkit's own, torchvision's sizes and plain TensorFlow."""

from __future__ import annotations

import functools

import h5py
import numpy as np
import pytest
import tensorflow as tf

from benchmark import flair_model
from benchmark.data.augmentation import resize
from benchmark.model import loading, networks, normalization
from tests.support.commands import assert_equal_weights

PHOTOS = np.random.default_rng(0).integers(0, 256, (1, 256, 256, 3)).astype(np.uint8)


def _input(channels: int = 64) -> tf.Tensor:
    return tf.keras.Input((16, 16, channels))


@functools.cache
def _ours(use_batch_norm):
    """The toolkit's network, into which tests load what they like."""
    return networks.build_model("resnet18", (224, 224, 3), 17, pretrained_norm=use_batch_norm)


@functools.cache
def _of_a_script(use_batch_norm):
    """A small network of the published functions. Read only."""
    return flair_model.create_resnet((256, 256, 3), 5, use_batch_norm, [1, 1, 1, 1], initial_filters=32)


@pytest.mark.parametrize("pretrained", [pytest.param(False, marks=pytest.mark.slow), True])
def test_resnet18_is_the_toolkits_network_behind_the_published_layers(tmp_path, pretrained):
    ours = _ours(pretrained)
    rng = np.random.default_rng(1)
    ours.set_weights([rng.uniform(0.5, 1, w.shape) * w + 0.01 for w in ours.get_weights()])
    loading.save_model(ours, tmp_path / "ours.h5")
    model = flair_model.resnet18(input_shape=(256, 256, 3), num_classes=17, pretrained=pretrained)
    model.load_weights(str(tmp_path / "ours.h5"), by_name=True)
    expected = ours(resize(PHOTOS, (224, 224)))
    np.testing.assert_allclose(model(PHOTOS, training=False), expected, atol=1e-4)
    assert np.abs(model(PHOTOS, training=True) - expected).max() > 1e-3  # a random window, flipped at random
    # And back: what a script saves as the published one does is a file of weights for the commands.
    model.save_weights(str(tmp_path / "theirs.h5"))
    ours.set_weights([np.zeros_like(w) for w in ours.get_weights()])
    assert not loading.load_by_name(ours, tmp_path / "theirs.h5").skipped
    loading.save_model(ours, tmp_path / "again.h5")
    assert_equal_weights(tmp_path / "ours.h5", tmp_path / "again.h5")


@pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file")
@pytest.mark.parametrize("use_batch_norm", [False, True])
def test_a_whole_model_that_a_script_saves_is_read_by_keras_and_by_the_commands(tmp_path, use_batch_norm):
    path = tmp_path / "script.h5"
    model = _of_a_script(use_batch_norm)
    model.save(path)
    again = tf.keras.models.load_model(path)
    np.testing.assert_array_equal(again(PHOTOS, training=False), model(PHOTOS, training=False))
    assert [type(layer) for layer in again.layers] == [type(layer) for layer in model.layers]
    with h5py.File(path, "r+") as file:  # ml-flair's models name the layer of TensorFlow Addons
        file.attrs["model_config"] = file.attrs["model_config"].replace("flair>GroupN", "Addons>GroupN")
    assert "layer4_block1_norm2" in loading.load_by_name(_ours(use_batch_norm), path).loaded


def test_layers_have_the_published_names_and_kinds():
    model = _of_a_script(True)
    kinds = {type(layer) for layer in model.layers if "norm" in layer.name}
    assert kinds == {flair_model.FrozenBatchNormalization}
    assert [type(layer).__name__ for layer in model.layers[:3]] == ["InputLayer", "RandomCrop", "RandomFlip"]
    # 32 channels become 64 in a stage without a stride.
    assert model.get_layer("layer1_downsample_conv_1x1").kernel.shape == (1, 1, 32, 64)
    assert model.get_layer("classifier").units == 5


@pytest.mark.parametrize(("repetitions", "parameters"), [(None, 11_689_512), ((3, 4, 6, 3), 21_797_672)])
def test_other_resnets_have_the_sizes_that_torchvision_states(repetitions, parameters):
    """https://pytorch.org/vision/stable/models/resnet.html, num_params of resnet18 and resnet34."""
    model = flair_model.create_resnet((256, 256, 3), 1000, use_batch_norm=True, repetitions=repetitions)
    assert sum(int(np.prod(weight.shape)) for weight in model.trainable_weights) == parameters


def test_equal_seeds_give_equal_weights_and_layers_of_equal_shape_differ():
    def kernels(seed):
        x = _input()
        model = tf.keras.Model(x, flair_model.block_layers(x, "stage", 64, 64, 1, use_batch_norm=False, seed=seed))
        return [model.get_layer(f"stage_block1_conv{part}_3x3").kernel.numpy() for part in (1, 2)]

    first, second = kernels(1)
    np.testing.assert_array_equal(kernels(1), [first, second])
    assert np.abs(first - second).max() > 0.01
    assert np.abs(kernels(2)[0] - first).max() > 0.01


@pytest.mark.parametrize(("stride", "groups", "dilation"), [(1, 1, 1), (2, 1, 1), (1, 1, 3), (1, 4, 1)])
def test_convolutions_are_padded_by_their_dilation(stride, groups, dilation):
    x = _input(8)
    model = tf.keras.Model(x, flair_model.conv3x3(x, "scope", 12, stride, groups, dilation, seed=3))
    values = np.random.default_rng(0).normal(size=(1, 16, 16, 8)).astype(np.float32)
    kernel = model.get_layer("scope_3x3").kernel
    padded = np.pad(values, [(0, 0), (dilation, dilation), (dilation, dilation), (0, 0)])
    parts = zip(np.split(padded, groups, -1), np.split(kernel, groups, -1), strict=True)
    expected = [tf.nn.conv2d(part, of_part, stride, "VALID", dilations=dilation) for part, of_part in parts]
    np.testing.assert_allclose(model(values), tf.concat(expected, -1), atol=1e-5)


def test_the_parts_of_a_resnet_fit_together():
    x = _input()

    def downsample(x):
        return flair_model.norm(flair_model.conv1x1(x, "short", 96, 2), "short_norm", False)

    out = flair_model.basic_block(x, "one", 96, False, stride=2, downsample=downsample)
    out = flair_model.block_layers(out, "two", 96, 64, blocks=2, use_batch_norm=False)
    model = tf.keras.Model(x, flair_model.relu(out, "last"))
    assert model.output_shape == (None, 16 // 2, 16 // 2, 64)
    names = {layer.name for layer in model.layers}
    assert {"short_1x1", "short_norm", "one_conv1_3x3", "one_relu2", "two_downsample_conv_1x1", "last"} <= names
    assert {"two_block1_norm1", "two_block2_conv2_3x3"} <= names
    assert float(tf.reduce_min(model(np.random.default_rng(0).normal(size=(1, 16, 16, 64))))) == 0


def test_statistics_of_frozen_batch_normalization_normalize_in_training_and_never_change():
    rng = np.random.default_rng(0)
    values = rng.normal(3, 2, (4, 5, 5, 6)).astype(np.float32)
    gamma, beta, mean, variance = weights = [rng.uniform(0.5, 2, 6).astype(np.float32) for _ in range(4)]
    layer = flair_model.FrozenBatchNormalization(axis=3, epsilon=1e-5, name="norm")
    model = tf.keras.Sequential([tf.keras.Input((5, 5, 6)), layer])
    layer.set_weights(weights)
    expected = gamma * (values - mean) / np.sqrt(variance + 1e-5) + beta
    for training in (False, True, None):
        np.testing.assert_allclose(model(values, training=training), expected, rtol=1e-4, atol=1e-4)
    own = normalization.FrozenBatchNormalization(1e-5)
    own.build(values.shape)
    own.set_weights(weights)
    np.testing.assert_allclose(layer(values), own(values), rtol=1e-5, atol=1e-5)
    model.compile("sgd", "mse")
    model.fit(values, np.zeros_like(values), verbose=0)
    after = layer.get_weights()
    assert all(np.abs(a - b).max() > 1e-4 for a, b in zip(after[:2], weights[:2], strict=True))
    np.testing.assert_array_equal(after[2:], weights[2:])


def test_the_statistics_of_imagenet_are_those_of_torchvision():
    """https://pytorch.org/vision/stable/models.html"""
    assert flair_model.IMAGENET_MEAN == [0.485, 0.456, 0.406]
    np.testing.assert_allclose(np.sqrt(flair_model.IMAGENET_VARIANCE), [0.229, 0.224, 0.225])
