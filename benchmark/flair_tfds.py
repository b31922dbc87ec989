"""FLAIR as a data set of TensorFlow Datasets (TFDS), built from the folder that download_dataset.py wrote.

    tfds build benchmark/flair_tfds.py --manual_dir=/path/to/data --data_dir=/path/to/tfds

`benchmark.data.tfds_builder` says what is in it.
"""

from __future__ import annotations

from benchmark.data.tfds_builder import COMMAND, FlairBuilder

__all__ = ["COMMAND", "Flair"]


class Flair(FlairBuilder):  # TFDS looks for it in the module that its command names
    """Apple's FLAIR, sorted by user."""
