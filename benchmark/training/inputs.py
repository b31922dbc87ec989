"""What a training's model is given: photos, or with a frozen network the features of them."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NamedTuple

from benchmark.features.cache import FeatureCache, FeatureSource, Network, zeros
from benchmark.training.flags import augments, caches_features, image_size

if TYPE_CHECKING:
    import tensorflow as tf

    from benchmark.data.inputs import Inputs
    from benchmark.data.records import Records, Task
    from benchmark.run.flags import Flags


class Prepared(NamedTuple):
    """What to train on and with.

    Attributes:
      inputs: photos or features.
      model: takes them.
      source: where another process finds the features; None: it reads the photos.
      body: with features, the network that gives them.
    """

    inputs: Inputs
    model: tf.keras.Model
    source: FeatureSource | None = None
    body: tf.keras.Model | None = None


def prepare(flags: Flags, records: Records, task: Task, model: tf.keras.Model, can_cache: bool = True) -> Prepared:
    """The inputs of the flags; features that are missing are computed, but for a dry run, which takes zeros.

    Args:
      model: the whole network, with its starting weights. With cached features only its head is trained.
      can_cache: whether the runtime can train on features.
    """
    from benchmark.data.inputs import PixelInputs

    if not caches_features(flags, can_cache):
        pixels = PixelInputs(records, task, image_size(flags), flags.eval_batch_size, augments(flags))
        return Prepared(pixels, model)
    from benchmark.model.identity import network_digest
    from benchmark.model.trainable import body_and_head

    body, head = body_and_head(model)
    size = int(body.output_shape[-1])
    network = Network(
        flags.model, network_digest(body), image_size(flags), size, flags.compute_dtype, flags.feature_dtype
    )
    if flags.dry_run:
        return Prepared(zeros(records, task, size), head, body=body)
    parent = flags.feature_dir and os.path.abspath(flags.feature_dir)
    cache = FeatureCache(parent, records, network, body)
    inputs = cache.inputs(task, flags.feature_views)
    print(f"features: {size:,} per photo in {cache.folder}", flush=True)
    return Prepared(inputs, head, FeatureSource(parent, network, flags.feature_views), body)
