"""The published module name of the networks and their weights; the code is in the rooms that this imports from."""

from __future__ import annotations

from benchmark.model.loading import LoadReport, load_by_name, save_weights, wants_batch_normalization
from benchmark.model.networks import build_model

__all__ = ["LoadReport", "build_model", "load_by_name", "save_weights", "wants_batch_normalization"]
