"""Which weights of a network train: all, or few on top of a frozen network.

Few weights take little noise: its norm grows with the square root of their number, that of an update does not.
FiLM is scale and shift of every channel (Perez et al. 2018, https://arxiv.org/abs/1709.07871), which a network has in
its normalization layers already (Tobaben et al. 2023, https://arxiv.org/abs/2302.01190, train them on FLAIR).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from flair.errors import FlairError

if TYPE_CHECKING:
    import tensorflow as tf

ALL, FILM, HEAD = TRAINABLE = ("all", "film", "head")
CLASSIFIER = "classifier"
_OF_NORMS = {"gamma", "beta", "moving_mean", "moving_variance"}


def choose(model: tf.keras.Model, which: str) -> tf.keras.Model:
    """Makes only the chosen weights `model.trainable_variables`; returns the model.

    Args:
      model: a flat functional model with a layer `classifier`.
      which: `all`; `film`, scale and shift of every layer whose class is called ...Normalization, and the classifier;
        or `head`, the classifier.
    """
    from benchmark.model.weights import weight_name

    for layer in model.layers:
        # By name and weights: a wrapper such as SpectralNormalization has the kernel of another layer.
        names = {weight_name(variable.name) for variable in layer.weights}
        is_norm = type(layer).__name__.endswith("Normalization") and names <= _OF_NORMS
        layer.trainable = which == ALL or layer.name == CLASSIFIER or (which == FILM and is_norm)
    if which == FILM and len(model.trainable_variables) == len(model.get_layer(CLASSIFIER).trainable_variables):
        raise FlairError(f"--trainable=film: the network {model.name} has no normalization layers; give head or all")
    return model


def num_weights(model: tf.keras.Model) -> int:
    """How many numbers train."""
    return int(sum(variable.shape.num_elements() for variable in model.trainable_variables))


def body_and_head(model: tf.keras.Model) -> tuple[tf.keras.Model, tf.keras.Model]:
    """The network up to the input of its classifier, pixels to features [b, d], and features float32 to logits.

    Both share the model's variables.
    """
    import tensorflow as tf

    classifier = model.get_layer(CLASSIFIER)
    return tf.keras.Model(model.input, classifier.input), _on_features(classifier, classifier.input.shape[-1])


def new_head(num_features: int, num_outputs: int) -> tf.keras.Model:
    """A head by itself, features float32 [b, num_features] to logits, with random weights."""
    import tensorflow as tf

    return _on_features(tf.keras.layers.Dense(num_outputs, name=CLASSIFIER, dtype="float32"), num_features)


def _on_features(classifier: tf.keras.layers.Layer, num_features: int) -> tf.keras.Model:
    import tensorflow as tf

    features = tf.keras.Input((num_features,), name="features")
    return tf.keras.Model(features, classifier(features), name="head")
