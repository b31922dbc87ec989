"""The loss that training minimizes: cross-entropy, focal or asymmetric, on logits that label frequencies may shift.

One formula has all three. With p = sigmoid(z) for a logit z, and p_m = max(p - margin, 0), a decision costs

    -(1 - p)^gamma_positive log(p)    where the photo has the label,
    -p_m^gamma log(1 - p_m)           where it does not:

the asymmetric loss (Ridnik et al. 2021, https://arxiv.org/abs/2009.14119, eq. 4 to 6). Equal gammas without a margin
are the focal loss (Lin et al. 2017, https://arxiv.org/abs/1708.02002, without its alpha), zeros are binary
cross-entropy. The gradient goes through the factors, too, as in both papers. Losses are means over labels, so that
learning rates mean about the same with all of them.

What is called `loss` in metrics stays binary cross-entropy of the model's own logits, whatever is minimized.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import tensorflow as tf


@dataclass(frozen=True)
class LossConfig:
    """What is minimized, as plain data; the default is binary cross-entropy.

    Attributes:
      gamma: how much less decisions count that are nearly right, where the photo does not have the label.
      gamma_positive: the same where it has it.
      margin: probability up to which a label that is not there costs nothing, from 0 to below 1.
      offsets: added to the logits of each label in the loss alone (logit adjustment, Menon et al. 2021,
        https://arxiv.org/abs/2007.07314, eq. 10); empty: none.
    """

    gamma: float = 0.0
    gamma_positive: float = 0.0
    margin: float = 0.0
    offsets: tuple[float, ...] = ()

    @property
    def is_cross_entropy(self) -> bool:
        """Whether it is what metrics call `loss`."""
        return self == CROSS_ENTROPY


CROSS_ENTROPY = LossConfig()


def losses_of(config: LossConfig, labels: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """The loss of each photo, float32 `[batch]`: the mean over its labels."""
    import tensorflow as tf

    from benchmark.metrics import keras

    if config.is_cross_entropy:
        return keras.losses_of(labels, logits)
    return tf.reduce_mean(_of_decisions(config, labels, logits), axis=-1)


def gradients_of(config: LossConfig, labels: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """What the loss of each decision changes by with its logit, float32 of the shape of both, `[..., labels]`."""
    import tensorflow as tf

    if config.is_cross_entropy:
        return tf.sigmoid(logits) - labels
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(logits)
        losses = _of_decisions(config, labels, logits)
    return tape.gradient(losses, logits)


def keras_loss(config: LossConfig) -> tf.keras.losses.Loss:
    """The mean of `losses_of` over a batch, as Keras and TFF take it."""
    import tensorflow as tf

    if config.is_cross_entropy:
        return tf.keras.losses.BinaryCrossentropy(from_logits=True)

    class MeanLoss(tf.keras.losses.Loss):
        def call(self, y_true: tf.Tensor, y_pred: tf.Tensor) -> tf.Tensor:
            return losses_of(config, y_true, y_pred)

    return MeanLoss()


def _of_decisions(config: LossConfig, labels: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    import tensorflow as tf

    y, z = tf.cast(labels, tf.float32), tf.cast(logits, tf.float32)
    if config.offsets:
        z += tf.constant(config.offsets)
    # log(p) = -softplus(-z) and log(1 - p) = -softplus(z): finite, with finite gradients, for every finite logit.
    present, absent = tf.math.softplus(-z), tf.math.softplus(z)
    if config.margin > 0:
        shifted = tf.maximum(tf.sigmoid(z) - config.margin, 0.0)
        cost = -tf.math.log1p(-shifted)
        if config.gamma > 0:
            # A power of zero has no finite gradient where gamma is below 1.
            base = tf.where(shifted > 0, shifted, 1.0)
            cost *= tf.where(shifted > 0, base**config.gamma, 0.0)
    else:
        cost = tf.exp(-config.gamma * present) * absent if config.gamma > 0 else absent
    if config.gamma_positive > 0:
        present *= tf.exp(-config.gamma_positive * absent)
    return y * present + (1.0 - y) * cost
