"""Which weights of a network train: all, or few on top of a frozen network.

Few weights take little noise: its norm grows with the square root of their number, that of an update does not.
FiLM is scale and shift of every channel (Perez et al. 2018, https://arxiv.org/abs/1709.07871), which a network has in
its normalization layers already (Tobaben et al. 2023, https://arxiv.org/abs/2302.01190, train them on FLAIR).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import tensorflow as tf

ALL, FILM, HEAD = TRAINABLE = ("all", "film", "head")
CLASSIFIER = "classifier"


def choose(model: tf.keras.Model, which: str) -> tf.keras.Model:
    """Makes only the chosen weights `model.trainable_variables`; returns the model.

    Args:
      model: a flat functional model with a layer `classifier`.
      which: `all`; `film`, scale and shift of every layer whose class is called ...Normalization, and the classifier;
        or `head`, the classifier.
    """
    for layer in model.layers:
        is_norm = type(layer).__name__.endswith("Normalization")
        layer.trainable = which == ALL or layer.name == CLASSIFIER or (which == FILM and is_norm)
    return model


def num_weights(model: tf.keras.Model) -> int:
    """How many numbers train."""
    return int(sum(variable.shape.num_elements() for variable in model.trainable_variables))
