"""Our normalization layers against Keras's, in values and gradients."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmark.model.normalization import FrozenBatchNormalization, GroupNormalization, PixelStandardization


def _values_and_gradients(layer, x, cotangent):
    x = tf.constant(x)
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = layer(x)
        loss = tf.reduce_sum(y * tf.cast(cotangent, y.dtype))
    gradients = tape.gradient(loss, [x, *layer.trainable_weights])
    return [tf.cast(value, tf.float32).numpy() for value in (y, *gradients)]


def _relative_error(found, wanted):
    return np.max(np.abs(found - wanted)) / (np.max(np.abs(wanted)) + 1e-12)


def _random_case(seed, shape):
    rng = np.random.default_rng(seed)
    x = rng.normal(1.0, 2.0, shape).astype(np.float32)
    affine = [rng.normal(1, 0.5, shape[-1]).astype(np.float32), rng.normal(0, 1, shape[-1]).astype(np.float32)]
    return x, affine, rng.normal(size=shape).astype(np.float32)


# From some size on, the passes over a map are compiled; the last has a prime number of pixels.
LARGE_MAP = (3, 60, 60, 64)
CASES = [
    (LARGE_MAP, 32),
    ((2, 56, 57, 32), 4),
    ((2, 1, 1999, 32), 8),
    ((2, 5, 7, 4), 1),
    ((2, 5, 7, 4), 4),
    ((3, 1, 1, 6), 3),
    ((1, 8, 8, 32), 32),
    ((4, 9, 3, 64), 32),
    ((2, 14, 14, 48), 8),
    ((5, 1, 6, 12), 2),
]


@pytest.mark.parametrize(("shape", "groups"), CASES)
def test_group_normalization_equals_keras(shape, groups):
    _check_equal_to_keras(shape, groups)


@settings(max_examples=25, deadline=None)
@given(
    batch=st.integers(1, 4),
    size=st.tuples(st.integers(2, 9), st.integers(2, 9)),
    groups=st.integers(1, 8),
    channels_of_group=st.integers(1, 6),
)
def test_group_normalization_of_any_shape_equals_keras(batch, size, groups, channels_of_group):
    _check_equal_to_keras((batch, *size, groups * channels_of_group), groups)


def _check_equal_to_keras(shape, groups):
    x, affine, cotangent = _random_case(hash((shape, groups)) % 1000, shape)
    ours, keras = GroupNormalization(groups, 1e-3), tf.keras.layers.GroupNormalization(groups, epsilon=1e-3)
    results = []
    for layer in (ours, keras):
        layer.build(tf.TensorShape(shape))
        layer.set_weights(affine)
        results.append(_values_and_gradients(layer, x, cotangent))
    y, to_inputs, *_ = results[1]
    normalized = _exact(x, groups, 1e-3)
    # A gradient of gamma or beta is a sum whose terms may cancel, so it is measured against their absolute values.
    terms = [np.abs(cotangent * normalized), np.abs(cotangent)]
    scales = [np.max(np.abs(y)), np.max(np.abs(to_inputs)), *(np.max(np.sum(one, (0, 1, 2))) for one in terms)]
    for found, wanted, scale in zip(*results, scales, strict=True):
        assert np.max(np.abs(found - wanted)) < 1e-5 * scale


def test_sums_that_cancel_are_as_exact_as_their_terms():
    _check_equal_to_keras((2, 2, 8, 1), 1)


def test_group_normalization_compiled_with_unknown_shape_equals_eager():
    shape = (3, 6, 5, 16)
    x, affine, cotangent = _random_case(1, shape)
    layer = GroupNormalization(8)
    layer.build(tf.TensorShape([None, None, None, 16]))
    layer.set_weights(affine)
    compiled = tf.function(
        lambda x, c: _graph_values_and_gradients(layer, x, c),
        input_signature=[tf.TensorSpec([None, None, None, 16])] * 2,
    )
    for _ in range(2):
        for found, wanted in zip(compiled(x, cotangent), _values_and_gradients(layer, x, cotangent), strict=True):
            np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)


def _graph_values_and_gradients(layer, x, cotangent):
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = layer(x)
        loss = tf.reduce_sum(y * cotangent)
    return [y, *tape.gradient(loss, [x, *layer.trainable_weights])]


@pytest.mark.parametrize("shape", [(2, 12, 12, 64), LARGE_MAP])
def test_group_normalization_in_bfloat16_is_float32_rounded(shape):
    x, affine, cotangent = _random_case(2, shape)
    x = tf.cast(tf.cast(x, tf.bfloat16), tf.float32).numpy()
    layers = GroupNormalization(32, dtype="mixed_bfloat16"), GroupNormalization(32)
    results = []
    for layer, value in zip(layers, (tf.cast(x, tf.bfloat16), x), strict=True):
        layer.build(tf.TensorShape(shape))
        layer.set_weights(affine)
        results.append(_values_and_gradients(layer, value, cotangent))
    assert layers[0](tf.cast(x, tf.bfloat16)).dtype == tf.bfloat16
    assert all(weight.dtype == tf.float32 for weight in layers[0].weights)
    for found, wanted in zip(*results, strict=True):
        assert _relative_error(found, wanted) < 2**-7


@pytest.mark.parametrize("side", [16, 80])
@pytest.mark.parametrize("mean", [1e3, -1e4])
def test_group_normalization_keeps_a_small_variance_beside_a_huge_mean(mean, side):
    rng = np.random.default_rng(3)
    noise = rng.normal(size=(2, side, side, 8)).astype(np.float32)
    x = (noise + np.float32(mean)).astype(np.float32)
    # float32 holds a number near 1e4 to 1e-3, and so the mean, the scaled photo and the shift each.
    np.testing.assert_allclose(GroupNormalization(4, 1e-5)(x), _exact(x, 4, 1e-5), atol=1e-6 * abs(mean))


@pytest.mark.parametrize("side", [16, 80])
def test_group_normalization_keeps_the_variance_of_a_map_whose_first_pixel_is_unlike_all_others(side):
    x = np.random.default_rng(3).normal(size=(2, side, side, 8)).astype(np.float32)
    x[:, 0, 0] += 1e4
    # The first pixel holds nearly all of the variance; it comes out near the root of the number of pixels.
    np.testing.assert_allclose(GroupNormalization(4, 1e-5)(x), _exact(x, 4, 1e-5), atol=1e-4 * side)


def _exact(x, groups, epsilon):
    """Group normalization in float64, `[batch, height, width, channels]`."""
    grouped = x.astype(np.float64).reshape(*x.shape[:3], groups, -1)
    centered = grouped - grouped.mean((1, 2, 4), keepdims=True)
    return (centered / np.sqrt(grouped.var((1, 2, 4), keepdims=True) + epsilon)).reshape(x.shape)


@pytest.mark.parametrize("shape", [(4, 14, 14, 32), (2, 56, 56, 32)])
@pytest.mark.parametrize("mean", [1e2, 1e4])
def test_gradients_beside_a_huge_mean_are_nearly_as_good_as_kerass(mean, shape):
    x, affine, cotangent = _random_case(5, shape)
    x = tf.cast(x + mean, tf.float32)
    results = []
    for layer_type, dtype in (
        (tf.keras.layers.GroupNormalization, tf.float64),
        (tf.keras.layers.GroupNormalization, tf.float32),
        (GroupNormalization, tf.float32),
    ):
        layer = layer_type(16, epsilon=1e-5, dtype=dtype)
        layer.build(tf.TensorShape(x.shape))
        layer.set_weights(affine)
        results.append(_values_and_gradients(layer, tf.cast(x, dtype), cotangent))
    for exact, keras, ours in zip(*results, strict=True):
        assert _relative_error(ours, exact) < max(5 * _relative_error(keras, exact), 1e-6)


@pytest.mark.parametrize("value", [0.0, 5.0, -1e6])
def test_large_maps_of_one_value_are_zero(value):
    np.testing.assert_array_equal(GroupNormalization(4)(np.full((2, 80, 80, 8), value, np.float32)), 0)


def test_group_normalization_refuses_groups_that_do_not_divide():
    with pytest.raises(ValueError, match="10 channels do not divide into 4 groups"):
        GroupNormalization(4, name="n").build(tf.TensorShape([None, 2, 2, 10]))


def test_group_normalization_survives_saving(tmp_path):
    inputs = tf.keras.Input((4, 4, 16))
    model = tf.keras.Model(inputs, GroupNormalization(8, name="norm")(inputs))
    x, affine, _ = _random_case(4, (2, 4, 4, 16))
    model.set_weights(affine)
    model.save(tmp_path / "model.keras")
    loaded = tf.keras.models.load_model(
        tmp_path / "model.keras", custom_objects={"GroupNormalization": GroupNormalization}
    )
    assert loaded.get_layer("norm").groups == 8
    np.testing.assert_array_equal(loaded(x), model(x))


def test_frozen_batch_normalization_equals_keras_at_inference_and_trains_its_affine_part():
    shape = (3, 5, 5, 7)
    x, affine, cotangent = _random_case(5, shape)
    rng = np.random.default_rng(6)
    statistics = [rng.normal(size=7).astype(np.float32), rng.uniform(0.1, 3, 7).astype(np.float32)]
    ours = FrozenBatchNormalization(1e-5)
    keras = tf.keras.layers.BatchNormalization(epsilon=1e-5)
    for layer in (ours, keras):
        layer.build(tf.TensorShape(shape))
        layer.set_weights([*affine, *statistics])
    assert [w.name for w in ours.weights] == [w.name for w in keras.weights]
    assert len(ours.trainable_weights) == 2
    keras_inference = _values_and_gradients(_Inference(keras), x, cotangent)
    for found, wanted in zip(_values_and_gradients(ours, x, cotangent), keras_inference, strict=True):
        assert _relative_error(found, wanted) < 1e-5
    ours(x, training=True)
    np.testing.assert_array_equal(ours.moving_mean, statistics[0])


class _Inference:
    """Keras's layer with its moving statistics, whose gamma and beta are differentiated all the same."""

    def __init__(self, layer):
        self.layer, self.trainable_weights = layer, [layer.gamma, layer.beta]

    def __call__(self, x):
        return self.layer(x, training=False)


def test_frozen_batch_normalization_in_bfloat16():
    shape = (2, 6, 6, 16)
    x, affine, cotangent = _random_case(7, shape)
    x = tf.cast(x, tf.bfloat16)
    layer, exact = FrozenBatchNormalization(dtype="mixed_bfloat16"), FrozenBatchNormalization()
    for one in (layer, exact):
        one.build(tf.TensorShape(shape))
        one.set_weights([*affine, np.zeros(16, np.float32), np.ones(16, np.float32)])
    found = _values_and_gradients(layer, x, cotangent)
    wanted = _values_and_gradients(exact, tf.cast(x, tf.float32), cotangent)
    for one, other in zip(found, wanted, strict=True):
        assert _relative_error(one, other) < 2**-6


def test_pixel_standardization_equals_rescaling_and_normalization():
    pixels = np.random.default_rng(8).integers(0, 256, (2, 3, 4, 3)).astype(np.uint8)
    published = (pixels / 255.0 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    np.testing.assert_allclose(PixelStandardization()(pixels), published, atol=1e-5)


@pytest.mark.slow
def test_group_normalization_inside_tff():
    """A functional model of TFF with our layer has the outputs and gradients of the Keras model it was made from."""
    import tensorflow_federated as tff

    inputs = tf.keras.Input((60, 60, 3))
    x = tf.keras.layers.Conv2D(64, 3, padding="same")(inputs)
    x = GroupNormalization(32)(x)
    outputs = tf.keras.layers.Dense(1)(tf.keras.layers.GlobalMaxPooling2D()(x))
    keras = tf.keras.Model(inputs, outputs)
    rng = np.random.default_rng(0)
    x, y = (rng.normal(size=shape).astype(np.float32) for shape in ((3, 60, 60, 3), (3, 1)))
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean((keras(x, training=True) - y) ** 2)
    wanted = [gradient.numpy() for gradient in tape.gradient(loss, keras.trainable_variables)]

    spec = (tf.TensorSpec([None, 60, 60, 3], tf.float32), tf.TensorSpec([None, 1], tf.float32))
    model = tff.learning.models.functional_model_from_keras(keras, tf.keras.losses.MeanSquaredError(), spec)

    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        weights = tf.nest.map_structure(tf.constant, model.initial_weights)
        loss = tf.reduce_mean((model.predict_on_batch(weights, tf.constant(x), training=True) - y) ** 2)
        found = session.run(tf.gradients(loss, list(weights[0])))
    for one, other in zip(found, wanted, strict=True):
        assert _relative_error(one, other) < 1e-5
    # Keras turns its base classes into their TF1 forms for a model inside a graph; a new model turns them back.
    tf.keras.Sequential([tf.keras.Input((1,)), tf.keras.layers.Dense(1)])
