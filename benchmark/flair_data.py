"""The functions of ml-flair's module of this name: a folder of prepare_tfrecords.py, a file a user, for TFF and Keras.

Nothing is shuffled, batched, cropped or flipped: a script does the first two, the model (`benchmark.flair_model`) the
others.
"""

from __future__ import annotations

import functools

import tensorflow as tf
import tensorflow_federated as tff

from benchmark.data import augmentation
from benchmark.data.records import Task
from flair.errors import FlairError
from flair.files import json_text
from flair.records.tfrecord.example import FINE_LABELS_KEY, IMAGE_KEY, LABELS_KEY
from flair.records.tfrecord.reader import TFRecords

KEY_IMAGE_BYTES = IMAGE_KEY
KEY_IMAGE_DECODED = "image/decoded"  # of no file
KEY_LABELS = LABELS_KEY
KEY_FINE_GRAINED_LABELS = FINE_LABELS_KEY


def load_tfrecords(
    filename: str,
    image_shape: tuple[int, int, int],
    num_labels: int,
    use_fine_grained_labels: bool,
    binary_label_index: int | None,
) -> tf.data.Dataset:
    """The photos of one file, in its order.

    Args:
      filename: path, or a string tensor, as TFF's graphs have it.
      image_shape: (height, width, 3) of every photo.
      num_labels: how many labels the label file lists.
      binary_label_index: the only label to give, or None.

    Returns:
      A dataset of pairs: the photo uint8 `image_shape`, and its labels int32 `[num_labels]`, 0 or 1; with
      `binary_label_index` the label int32 scalar.

    Iterating fails at a damaged record, a photo of another size and a label of `num_labels` or more, which ml-flair
    leaves out without a word. Grayscale photos, at which ml-flair fails, become RGB.
    """
    feature = KEY_FINE_GRAINED_LABELS if use_fine_grained_labels else KEY_LABELS
    task = Task(feature, (), num_labels, binary_label_index)  # names are not asked for

    def parse(serialized: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        photo, labels = augmentation.parse(serialized, task)
        labels = tf.cast(labels if binary_label_index is None else labels[0], tf.int32)
        return tf.reshape(augmentation.decode(photo), image_shape), labels

    return tf.data.TFRecordDataset([filename]).map(parse, tf.data.AUTOTUNE)


def load_label_to_index(label_to_index_file: str, use_fine_grained_labels: bool) -> dict[str, int]:
    """Label -> column, from `label_to_index.json` of a folder of TFRecords, or `label_index.json` as it is also called.

    Raises:
      FlairError: the file lists no labels of that kind.
    """
    kind = "fine_grained_labels" if use_fine_grained_labels else "labels"
    try:
        columns: dict[str, int] = json_text.read(label_to_index_file)[kind]
    except (json_text.BadJson, KeyError, TypeError) as error:
        raise FlairError(f"{label_to_index_file}: lists no {kind} ({error}); prepare the records again") from None
    return columns


def load_tfrecords_data(
    tfrecords_dir: str,
    image_shape: tuple[int, int, int],
    num_labels: int,
    use_fine_grained_labels: bool,
    binary_label_index: int | None = None,
) -> tuple[tff.simulation.datasets.FilePerUserClientData, ...]:
    """The users of train, val and test, each partition as TFF's client data, of which a client's is `load_tfrecords`.

    Raises:
      FlairError: the folder is missing or damaged, or was prepared with `--layout=sharded`, which TFF cannot read.
    """
    dataset_fn = functools.partial(
        load_tfrecords,
        image_shape=image_shape,
        num_labels=num_labels,
        use_fine_grained_labels=use_fine_grained_labels,
        binary_label_index=binary_label_index,
    )
    records = TFRecords(tfrecords_dir)
    partitions = []
    for partition in ("train", "val", "test"):
        spans = records.users(partition)
        if not spans:
            raise FlairError(f"{tfrecords_dir}: partition {partition!r} is empty; prepare it again")
        if any(span.location is not None for span in spans.values()):
            raise FlairError(
                f"{tfrecords_dir}: has files of many users, which TFF's client data cannot read; prepare it with "
                "--layout=per_user, or open it with benchmark.data.opening.open_records"
            )
        files = {user_id: str(span.path) for user_id, span in spans.items()}
        partitions.append(tff.simulation.datasets.FilePerUserClientData(files, dataset_fn))
    return tuple(partitions)
