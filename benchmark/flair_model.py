"""The published module name of the networks and their weights; the code is in the rooms that this imports from.

Importing it also makes known to Keras what layers a saved model may have beside Keras's public ones, so that
`tf.keras.models.load_model` loads every model of this toolkit.
"""

from __future__ import annotations

import tensorflow as tf
from keras.src.applications import convnext, inception_resnet_v2

from benchmark.model import vision_transformer  # noqa: F401 registers its layers
from benchmark.model.loading import LoadReport, load_by_name, save_model, wants_batch_normalization
from benchmark.model.networks import build_model

__all__ = ["LoadReport", "build_model", "load_by_name", "save_model", "wants_batch_normalization"]

for _layer in (convnext.LayerScale, convnext.StochasticDepth, inception_resnet_v2.CustomScaleLayer):
    tf.keras.utils.get_custom_objects()[_layer.__name__] = _layer
