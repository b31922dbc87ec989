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

_APPLICATIONS = "keras.src.applications"
for _module, _names in (
    ("convnext", ("LayerScale", "StochasticDepth")),
    ("inception_resnet_v2", ("CustomScaleLayer",)),
):
    for _name in _names:
        _layer = getattr(importlib.import_module(f"{_APPLICATIONS}.{_module}"), _name)
        tf.keras.utils.get_custom_objects()[_name] = _layer
