"""Turns serialized examples into pixels: random windows and flips to train on, whole photos to evaluate.

The published model crops a random 224x224 window out of the 256x256 photo and flips it at random along both axes in
training, and scales the whole photo to 224x224 in evaluation. Here a training window is 7/8 of the photo (224 of 256
pixels) in the model's aspect ratio, and is scaled where it has not the input size already. Only the window is decoded.
All randomness is stateless: a photo's window and flips depend on its two-number seed only.
"""

from __future__ import annotations

import tensorflow as tf

from benchmark.data.records import Task
from flair.dataset.catalog import IMAGE_SIZE

WINDOW_NUMERATOR, WINDOW_DENOMINATOR = 7, 8
# The toolkit's and ml-flair's names, then the names of tff.simulation.datasets.flair.
_IMAGE_KEYS = ("image/encoded_jpeg", "image")
_LABEL_KEYS = {"labels": ("labels", "label"), "fine_grained_labels": ("fine_grained_labels", "fine_grained_label")}


def parse(serialized: tf.Tensor, task: Task) -> tuple[tf.Tensor, tf.Tensor]:
    """One serialized example to its photo (string scalar) and its labels (float32 `[num_outputs]`, 0 or 1)."""
    label_keys = _LABEL_KEYS[task.feature]
    features = {key: tf.io.FixedLenFeature([], tf.string, "") for key in _IMAGE_KEYS}
    features.update({key: tf.io.VarLenFeature(tf.int64) for key in label_keys})
    example = tf.io.parse_single_example(serialized, features)
    photo = tf.strings.join([example[key] for key in _IMAGE_KEYS])
    columns = tf.concat([example[key].values for key in label_keys], 0)
    if task.binary_index is not None:
        return photo, tf.cast(tf.reduce_any(tf.equal(columns, task.binary_index), keepdims=True), tf.float32)
    hits = tf.scatter_nd(columns[:, tf.newaxis], tf.ones_like(columns, tf.float32), [task.num_columns])
    return photo, tf.minimum(hits, 1.0)


def parse_and_decode(
    serialized: tf.Tensor, seed: tf.Tensor, task: Task, image_size: tuple[int, int], augment: bool
) -> tuple[tf.Tensor, tf.Tensor]:
    """One serialized example to its photo, by `decode_training` if `augment`, else `decode_evaluation`, and labels."""
    photo, labels = parse(serialized, task)
    if augment:
        return decode_training(photo, seed, image_size, task.image_format), labels
    return decode_evaluation(photo, image_size, task.image_format), labels


def decode_training(
    photo: tf.Tensor, seed: tf.Tensor, image_size: tuple[int, int], image_format: str = "jpeg"
) -> tf.Tensor:
    """One stored photo (string scalar) to a random window, flipped at random: uint8 `[height, width, 3]`."""
    draws = tf.random.stateless_uniform([4], seed)
    image = _random_window(photo, draws[0], draws[1], image_size, image_format)
    axes = tf.boolean_mask(tf.constant([0, 1]), draws[2:] < 0.5)  # each axis is flipped with probability 1/2
    return tf.ensure_shape(tf.reverse(image, axes), (*image_size, 3))


def decode_evaluation(photo: tf.Tensor, image_size: tuple[int, int], image_format: str = "jpeg") -> tf.Tensor:
    """One stored photo, whole, scaled to the input size: float32 `[height, width, 3]`, 0 to 255."""
    return resize(decode(photo, image_format)[tf.newaxis], image_size)[0]


def decode(photo: tf.Tensor, image_format: str = "jpeg") -> tf.Tensor:
    """All pixels of one stored photo, uint8 `[h, w, 3]`; gray JPEGs become RGB."""
    if image_format == "raw":
        return tf.reshape(tf.io.decode_raw(photo, tf.uint8), [IMAGE_SIZE, IMAGE_SIZE, 3])
    return tf.io.decode_jpeg(photo, channels=3)


def resize(images: tf.Tensor, image_size: tuple[int, int]) -> tf.Tensor:
    """Whole photos `[b, h, w, 3]` to float32 `[b, height, width, 3]` as Keras's RandomCrop does at inference.

    The largest central window of the target's aspect ratio, scaled bilinearly (`keras.utils.image_utils.smart_resize`).
    """
    height, width = tf.shape(images)[1], tf.shape(images)[2]
    crop_height, crop_width = _largest_window(height, width, image_size)
    top, left = (height - crop_height) // 2, (width - crop_width) // 2
    window = images[:, top : top + crop_height, left : left + crop_width]
    return tf.ensure_shape(tf.image.resize(window, image_size), (None, *image_size, 3))


def decode_batch(
    serialized: tf.Tensor, seeds: tf.Tensor, task: Task, image_size: tuple[int, int], augment: bool
) -> tuple[tf.Tensor, tf.Tensor]:
    """A batch of serialized examples to photos and labels, for use inside a `tf.function`.

    Args:
      serialized: string [batch].
      seeds: int64 [batch, 2], one per photo.
      augment: as of `parse_and_decode`.

    Returns:
      [batch, height, width, 3], uint8 with `augment`, else float32; and labels float32 [batch, num_outputs].
    """
    images = tf.TensorSpec((*image_size, 3), tf.uint8 if augment else tf.float32)
    labels = tf.TensorSpec((task.num_outputs,), tf.float32)
    with tf.device("CPU:0"):
        return tf.map_fn(
            lambda element: parse_and_decode(element[0], element[1], task, image_size, augment),
            (serialized, seeds),
            fn_output_signature=(images, labels),
            parallel_iterations=16,
        )


def _random_window(
    photo: tf.Tensor, down: tf.Tensor, right: tf.Tensor, image_size: tuple[int, int], image_format: str
) -> tf.Tensor:
    raw = image_format == "raw"
    shape = tf.constant([IMAGE_SIZE, IMAGE_SIZE, 3]) if raw else tf.io.extract_jpeg_shape(photo)
    whole_height, whole_width = _largest_window(shape[0], shape[1], image_size)
    height = tf.maximum(whole_height * WINDOW_NUMERATOR // WINDOW_DENOMINATOR, 1)
    width = tf.maximum(whole_width * WINDOW_NUMERATOR // WINDOW_DENOMINATOR, 1)
    top = tf.cast(down * tf.cast(shape[0] - height + 1, tf.float32), tf.int32)
    left = tf.cast(right * tf.cast(shape[1] - width + 1, tf.float32), tf.int32)
    if raw:
        image = decode(photo, image_format)[top : top + height, left : left + width]
    else:
        image = tf.io.decode_and_crop_jpeg(photo, tf.stack([top, left, height, width]), channels=3)

    def scaled() -> tf.Tensor:
        return tf.cast(tf.round(tf.image.resize(image, image_size)), tf.uint8)

    if image_size == (IMAGE_SIZE * WINDOW_NUMERATOR // WINDOW_DENOMINATOR,) * 2:
        has_size = tf.logical_and(tf.equal(height, image_size[0]), tf.equal(width, image_size[1]))
        return tf.cond(has_size, lambda: image, scaled)
    return scaled()


def _largest_window(height: tf.Tensor, width: tf.Tensor, image_size: tuple[int, int]) -> tuple[tf.Tensor, tf.Tensor]:
    return (
        tf.minimum(width * image_size[0] // image_size[1], height),
        tf.minimum(height * image_size[1] // image_size[0], width),
    )
