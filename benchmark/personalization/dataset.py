"""Episodes as a `tf.data.Dataset`, in the form of Meta-Dataset's: support photos, their labels and ids, then the query.

Meta-Dataset's own is `episode_dataset` of meta_dataset/data/tfds/api.py in google-research/meta-dataset.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import tensorflow as tf

from benchmark.data.augmentation import decode_batch
from benchmark.data.records import Task
from benchmark.personalization.dump import DumpedEpisodes
from benchmark.personalization.sources import LabelEpisodeSource, UserEpisodeSource
from flair.errors import FlairError
from flair.records.tfrecord import example

_EPISODES_AHEAD = 1  # decoded; the largest has a thousand photos


class Episode(NamedTuple):
    """Tensors of one episode; see `episode_dataset`."""

    support_photos: tf.Tensor
    support_labels: tf.Tensor
    support_ids: tf.Tensor
    query_photos: tf.Tensor
    query_labels: tf.Tensor
    query_ids: tf.Tensor


def episode_dataset(
    episodes: UserEpisodeSource | LabelEpisodeSource | DumpedEpisodes,
    image_size: tuple[int, int] = (224, 224),
    first: int = 0,
    use_fine_grained_labels: bool = False,
) -> tf.data.Dataset:
    """The episodes `first`, `first` + 1, ... without an end, or to that of a dump; read and decoded one ahead.

    Args:
      first: number of the first episode, from 0; none before it is computed.
      image_size: (height, width) of the photos. An episode of labels has up to 1,000, 0.6 GB at 224 x 224.
      use_fine_grained_labels: of users' photos; of label episodes every label is one.

    Returns:
      A dataset of `Episode`. Photos are float32 [n, height, width, 3], whole, 0 to 255. For labels as in Meta-Dataset:
      `labels` int64 [n] are the places of the photos' classes in the episode, `ids` int64 [n] the columns of these
      classes among all fine-grained labels. A user's photos have no one class: `labels` are float32 [n, columns], 0 or
      1, and `ids` string [n], the photos' ids (empty where the records have none).
    """
    if first < 0:
        raise FlairError(f"first={first}: episodes are numbered from 0")
    feature = "fine_grained_labels" if use_fine_grained_labels else "labels"
    names = tuple(getattr(episodes, feature))
    task = Task(feature, names, len(names), image_format=episodes.image_format)
    side = (
        tf.TensorSpec([None], tf.string),
        tf.TensorSpec([None], tf.int64),
        tf.TensorSpec([None], tf.int64 if episodes.has_classes else tf.string),
    )

    def read() -> Iterator[tuple[Any, ...]]:
        numbers = itertools.count(first) if episodes.num_episodes is None else range(first, episodes.num_episodes)
        for number in numbers:
            one = episodes.serialized(number)
            columns = [episodes.fine_grained_labels[name] for name in one.classes]
            sides = (one.support, one.support_class), (one.query, one.query_class)
            yield tuple(
                (photos, places, [columns[place] for place in places] if columns else _image_ids(photos))
                for photos, places in sides
            )

    def decode(photos: tf.Tensor, places: tf.Tensor, ids: tf.Tensor) -> tuple[tf.Tensor, ...]:
        no_seeds = tf.zeros([tf.size(photos), 2], tf.int64)
        pixels, labels = decode_batch(photos, no_seeds, task, image_size, augment=False)
        return pixels, places if episodes.has_classes else labels, ids

    serialized = tf.data.Dataset.from_generator(read, output_signature=(side, side))
    return serialized.map(lambda support, query: Episode(*decode(*support), *decode(*query))).prefetch(_EPISODES_AHEAD)


def _image_ids(serialized: Sequence[bytes]) -> list[str]:
    return [example.decode(photo).image_id or "" for photo in serialized]
