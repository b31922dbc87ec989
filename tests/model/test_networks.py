"""Networks of tf.keras.applications and of anybody's function: numbers, names, seeds, dtypes, refusals."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from benchmark.model import applications, loading, networks, saved, specs
from benchmark.model.trainable import body_and_head
from flair.errors import FlairError
from tests.conftest import SHARED_DATA

SHAPE = (32, 32, 3)
SMALL = "keras:MobileNetV3Small"
_rng = np.random.default_rng(0)
PHOTOS = _rng.integers(0, 256, (2, 96, 96, 3)).astype(np.uint8)


def test_the_table_names_the_networks_that_keras_has():
    assert specs.KERAS_NETWORKS.keys() == {name for name in dir(tf.keras.applications) if name[0].isupper()}


# One of each kind of preprocessing and of each way in which Keras builds: Sequential inside, layers without names.
@pytest.mark.parametrize(
    "name",
    [
        "MobileNetV3Small",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("ConvNeXtTiny", "ResNet50", "EfficientNetB0", "EfficientNetV2B0", "EfficientNetV2S")
        ),
        *(
            pytest.param(name, marks=pytest.mark.long)
            for name in ("InceptionV3", "RegNetX002", "ResNetRS50", "NASNetMobile", "DenseNet121", "Xception")
        ),
    ],
)
def test_features_are_those_of_keras_with_its_own_preprocessing(name):
    ours = applications.build(f"keras:{name}", PHOTOS.shape[1:], 3, "float32")
    function = getattr(tf.keras.applications, name)
    keras = function(include_top=False, weights=None, pooling="avg", input_shape=PHOTOS.shape[1:])
    assert not any(isinstance(layer, tf.keras.Model) for layer in ours.layers)
    sources = [
        layer for layer in applications._leaves(keras) if layer.weights and type(layer).__name__ != "Normalization"
    ]
    for source, layer in zip(sources, [layer for layer in ours.layers if layer.weights], strict=True):
        values = [np.abs(weight + _rng.normal(0, 0.02, weight.shape)) for weight in source.get_weights()]
        source.set_weights(values)
        layer.set_weights(values)
    pixels = PHOTOS.astype(np.float32)
    if name.startswith("EfficientNetB"):  # whose normalization comes with the weights for ImageNet
        scaled = (pixels / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225] * 255
    elif specs.KERAS_NETWORKS[name].is_inside:
        scaled = pixels
    else:
        scaled = sys.modules[function.__module__].preprocess_input(pixels.copy())
    expected = keras(scaled.astype(np.float32), training=False).numpy()
    found = ours(PHOTOS, training=False).numpy()
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())


@pytest.fixture(scope="module")
def exact():
    return networks.build_model(SMALL, SHAPE, 3, seed=1)


@pytest.fixture(scope="module")
def rounded():
    return networks.build_model(SMALL, SHAPE, 3, seed=1, compute_dtype="bfloat16")


def test_weights_names_and_numbers_follow_from_the_seed_and_not_from_the_arithmetic(exact, rounded):
    one, same, other = exact, rounded, networks.build_model(SMALL, SHAPE, 3, seed=2)
    assert [v.name for v in one.variables] == [v.name for v in same.variables]
    for a, b in zip(one.get_weights(), same.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    for name in ("Conv", "classifier"):
        assert not np.array_equal(one.get_layer(name).get_weights()[0], other.get_layer(name).get_weights()[0])
    assert one.get_layer("classifier").output.name and one.output_shape == (None, 3)
    assert one.network == SMALL and one.name == "keras_MobileNetV3Small"


def test_bfloat16_computes_nearly_the_same_and_keeps_float32_variables(exact, rounded):
    photos = PHOTOS[:, :32, :32]
    assert {v.dtype for v in rounded.variables} == {tf.float32}
    assert rounded(photos).dtype == tf.float32
    assert body_and_head(rounded)[0](photos).dtype == tf.bfloat16
    error = np.max(np.abs(exact(photos) - rounded(photos))) / np.std(exact(photos))
    assert 0 < error < 0.2


def test_a_model_in_inference_mode_does_not_hear_training(exact):
    model, wrapped = exact, networks.in_inference_mode(exact)
    before = [variable.numpy() for variable in model.non_trainable_variables]
    with tf.GradientTape() as tape:
        logits = wrapped(PHOTOS[:, :32, :32], training=True)
    np.testing.assert_allclose(logits, model(PHOTOS[:, :32, :32], training=False), atol=1e-6)
    gradients = tape.gradient(logits, model.get_layer("Conv/BatchNorm").trainable_variables)
    assert len(gradients) == 2 and all(gradient is not None for gradient in gradients)
    for variable, value in zip(model.non_trainable_variables, before, strict=True):
        np.testing.assert_array_equal(variable, value)
    assert [v.shape for v in wrapped.trainable_variables] == [v.shape for v in model.trainable_variables]


def test_a_saved_network_is_built_again_from_its_file(tmp_path, rounded):
    loading.save_model(rounded, tmp_path / "a.h5")
    found = saved.describe(tmp_path / "a.h5")
    assert (found.network, found.image_size, found.compute_dtype) == (SMALL, (32, 32), "bfloat16")
    np.testing.assert_array_equal(saved.load(found)(PHOTOS[:, :32, :32]), rounded(PHOTOS[:, :32, :32]))
    with pytest.raises(FlairError, match=r"--network=a:b: .*a\.h5 is of the network keras:MobileNetV3Small; leave it"):
        saved.describe(tmp_path / "a.h5", "a:b")


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("keras:ConvNextTiny", "no such network; close ones are keras:ConvNeXtTiny"),
        ("keras:", "no such network; close ones are keras:"),
        ("keras:imagenet_utils", "no such network"),
        ("MobileNet", "for that of Keras give keras:MobileNet"),
        ("my networks:tiny", "expected MODULE:FUNCTION"),
        ("../networks:tiny", "expected MODULE:FUNCTION"),
    ],
)
def test_unknown_networks_are_refused_in_one_line(spec, words):
    with pytest.raises(FlairError, match=words) as caught:
        networks.build_model(spec, SHAPE, 3)
    assert "\n" not in str(caught.value)


def test_a_size_that_a_network_cannot_take_is_refused():
    with pytest.raises(FlairError, match=r"takes no input of 32 x 32 pixels; give .* at least 75"):
        networks.build_model("keras:InceptionV3", SHAPE, 3)


GOOD = """
import tensorflow as tf
L = tf.keras.layers
def tiny(input_shape):
    pixels = tf.keras.Input(input_shape)
    x = L.Conv2D(4, 3, 2, name="conv")(L.Rescaling(1 / 255, name="scale")(pixels))
    x = L.BatchNormalization(name="norm")(L.SeparableConv2D(4, 3, name="separable")(x))
    return tf.keras.Model(pixels, L.GlobalAveragePooling2D(name="pool")(L.Dropout(0.5)(x)))
"""
# What a function does -> the line.
BREACHES = {
    "return None": "it returned NoneType, expected a tf.keras.Model",
    "1 / 0": "it raised ZeroDivisionError: division by zero",
    "return tf.keras.Sequential([L.Flatten()])": "a model that is not functional",
    "m = tiny(input_shape); return tf.keras.Model(m.input, m.layers[1].output)": "output has the shape .None, 32, 32,",
    "return tiny((16, 16, 3))": "input is float32 of shape .16, 16, 3., expected float32 of .32, 32, 3.",
    "i = tf.keras.Input(input_shape); return tf.keras.Model(i, tiny(input_shape)(i))": "is a model itself",
    "m = tiny(input_shape); return tf.keras.Model(m.input, L.Dense(3, name='classifier')(m.output))": "a layer cla",
    "m = tiny(input_shape); return tf.keras.Model(m.input, L.Dense(3)(m.output))": "has weights and no name of its own",
    "m = tiny(input_shape); x = L.Reshape((1, -1))(m.output); x = L.MultiHeadAttention(1, 2, name='mha')(x, x); "
    "return tf.keras.Model(m.input, L.Flatten()(x))": "its layer mha has layers with weights inside",
    "m = tiny(input_shape); return tf.keras.Model(m.input, [m.output, m.output])": "1 inputs and 2 outputs",
    "i = tf.keras.Input(input_shape, dtype='uint8'); return tf.keras.Model(i, L.Flatten()(i))": "its input is uint8",
    "i = tf.keras.Input(input_shape); x = L.Flatten(name='a')(i); "
    "return tf.keras.Model(i, L.Dense(2, name='a')(x))": "it raised ValueError: .*used 2 times",
}


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Writes a module into the current folder, `name` anew each time; gives its name."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    made = []

    def write(text: str) -> str:
        name = f"network_of_test_{len(made)}"
        sys.modules.pop(name, None)
        made.append(name)
        Path(f"{name}.py").write_text(text)
        return name

    yield write
    for name in made:
        sys.modules.pop(name, None)


def test_anybodys_network_is_seeded_saved_and_built_again_when_it_is_named(module, tmp_path):
    spec = f"{module(GOOD)}:tiny"
    one, same, other = (networks.build_model(spec, SHAPE, 3, seed=seed) for seed in (1, 1, 2))
    for layer in ("conv", "separable", "classifier"):
        weights = [model.get_layer(layer).get_weights()[0] for model in (one, same, other)]
        np.testing.assert_array_equal(weights[0], weights[1])
        assert not np.array_equal(weights[0], weights[2])
    assert one.name == spec.replace(":", "_")
    rounded = networks.build_model(spec, SHAPE, 3, compute_dtype="bfloat16")
    assert body_and_head(rounded)[0](PHOTOS[:, :32, :32]).dtype == tf.bfloat16
    assert tf.keras.mixed_precision.global_policy().name == "float32"

    path = tmp_path / "a.h5"
    loading.save_model(one, path)
    sys.modules.pop(spec.partition(":")[0])
    with pytest.raises(FlairError, match=rf"if you trust that module, add --network={spec}$"):
        saved.describe(path)
    with pytest.raises(FlairError, match=rf"add --network={spec} in place of --network=other:one"):
        saved.find_models([str(path)], "other:one")
    assert spec.partition(":")[0] not in sys.modules
    (found,) = saved.find_models([str(path)], spec)
    np.testing.assert_array_equal(saved.load(found)(PHOTOS[:, :32, :32]), one(PHOTOS[:, :32, :32]))


@pytest.mark.parametrize("body", BREACHES)
def test_a_network_that_breaks_the_contract_is_refused_in_one_line(module, body):
    spec = f"{module(GOOD + f'def wrong(input_shape):{chr(10)}    ' + body)}:wrong"
    with pytest.raises(FlairError, match=BREACHES[body]) as caught:
        networks.build_model(spec, SHAPE, 3)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(f"--model={spec}: ")


def test_a_module_or_function_that_is_not_there_is_refused(module):
    name = module("value = 3\n")
    broken = module("import no_such_module_at_all\n")
    for spec, words in (
        (
            "no_such_module_at_all:f",
            "there is no module no_such_module_at_all; expected a file no_such_module_at_all.py",
        ),
        ("no_such_package.module:f", "cannot import no_such_package.module"),
        (f"{name}:f", "f is not there in"),
        (f"{name}:value", "value is no function in"),
        (f"{broken}:f", f"cannot import {broken}: ModuleNotFoundError"),
    ):
        with pytest.raises(FlairError, match=words):
            networks.build_model(spec, SHAPE, 3)


@pytest.mark.parametrize("said", ["keras:Nothing", "resnet18", "os:system", 3, "keras:imagenet_utils"])
def test_a_file_that_says_another_network_imports_nothing(tmp_path, said):
    model = networks.build_model("cnn", SHAPE, 3)
    model.network = said
    loading.save_model(model, tmp_path / "a.h5")
    with pytest.raises(FlairError, match="the network"):
        saved.describe(tmp_path / "a.h5")


def test_efficientnet_lite0_gives_the_features_of_the_original():
    folder = SHARED_DATA / "backbones"
    if not folder.is_dir():
        pytest.skip(f"{folder} is not on this machine")
    model = networks.build_model("benchmark.model.efficientnet_lite:efficientnet_lite0", (224, 224, 3), 17)
    report = loading.load_backbone(model, str(folder / "efficientnet_lite0.safetensors"))
    assert set(report.skipped) == {"classifier", "fc"}
    assert len(report.loaded) == sum(1 for layer in model.layers if layer.weights) - 1
    reference = np.load(folder / "efficientnet_lite0_reference.npz")
    features = body_and_head(model)[0](reference["input"], training=False)
    np.testing.assert_allclose(features, reference["features"], atol=1e-3)
