"""Clipping by norm against tf.clip_by_norm."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from benchmark.model.clipping import clip_gradients


@pytest.mark.parametrize("clipnorm", [0.5, 3.0, 100.0])
def test_equals_tf_clip_by_norm(clipnorm):
    rng = np.random.default_rng(0)
    gradients = [tf.constant(rng.normal(size=shape) * scale, tf.float32) for shape, scale in (((3, 4), 1), ((5,), 0.1))]
    compiled = tf.function(lambda: clip_gradients(gradients, clipnorm))
    for found, gradient in zip(compiled(), gradients, strict=True):
        np.testing.assert_allclose(found, tf.clip_by_norm(gradient, clipnorm), rtol=1e-6)
        assert tf.norm(found) <= clipnorm * (1 + 1e-6)
        if tf.norm(gradient) <= clipnorm:
            np.testing.assert_array_equal(found, gradient)


def test_zero_clips_nothing_and_no_number_stays_none():
    gradient = tf.constant([3.0, 4.0])
    np.testing.assert_array_equal(clip_gradients([gradient], 0)[0], gradient)
    assert np.isnan(clip_gradients([tf.constant([np.nan, 1.0])], 1.0)[0]).any()
