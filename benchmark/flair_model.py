"""The published module name of the networks and their weights; the code is in the rooms that this imports from.

Importing it also makes known to Keras what layers a saved model may have beside Keras's public ones, so that
`tf.keras.models.load_model` loads every model of this toolkit.
"""

from __future__ import annotations

import importlib

import tensorflow as tf

from benchmark.model import vision_transformer  # noqa: F401 registers its layers
from benchmark.model.loading import LoadReport, load_by_name, save_model, wants_batch_normalization
from benchmark.model.networks import build_model

__all__ = ["LoadReport", "build_model", "load_by_name", "save_model", "wants_batch_normalization"]

_convnext = importlib.import_module("keras.src.applications.convnext")
for _name in ("LayerScale", "StochasticDepth"):
    tf.keras.utils.get_custom_objects()[_name] = getattr(_convnext, _name)
