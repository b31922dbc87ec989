"""The flags that central and federated training share, with their names and defaults of the published benchmark."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags

from benchmark.records import Records, Task, make_task, open_records
from flair.catalog import IMAGE_SIZE
from flair.errors import FlairError

if TYPE_CHECKING:
    import tensorflow as tf

    from benchmark.flair_model import LoadReport

MODELS = ("resnet18", "cnn")
NORMALIZATIONS = ("auto", "group", "frozen_batch")
COMPUTE_DTYPES = ("float32", "bfloat16")

flags.DEFINE_string("tfrecords_dir", None, "Folder that prepare_tfrecords.py wrote.")
flags.DEFINE_integer("image_height", 224, "Height of the model's input, in pixels.", lower_bound=16)
flags.DEFINE_integer("image_width", 224, "Width of the model's input, in pixels.", lower_bound=16)
flags.DEFINE_boolean("use_fine_grained_labels", False, "Predict the fine-grained labels, not the 17 coarse ones.")
flags.DEFINE_string("binary_label", None, "Predict this one label only, as a yes or no; none: all labels.")
flags.DEFINE_string(
    "restore_model_path", None, "Start from the weights of this .h5 file (layers are matched by name); none: random."
)
flags.DEFINE_string("save_model_dir", "./", "Folder for the trained model.")
flags.DEFINE_integer(
    "eval_batch_size", 512, "Photos a batch in evaluation; changes speed, never a number.", lower_bound=1
)
flags.DEFINE_enum("model", "resnet18", MODELS, "Network; cnn is a small one for laptops and tests.")
flags.DEFINE_enum(
    "normalization",
    "auto",
    NORMALIZATIONS,
    "Normalization layers; auto: frozen_batch if the restored file has batch statistics, else group.",
)
flags.DEFINE_enum(
    "compute_dtype", "float32", COMPUTE_DTYPES, "Arithmetic of the layers; weights, loss and metrics stay float32."
)
flags.DEFINE_integer(
    "seed", 0, "Seed of everything random: initial weights, order of photos, augmentation, noise.", 0, 2**48
)

FLAGS = flags.FLAGS
flags.mark_flag_as_required("tfrecords_dir")


def image_size() -> tuple[int, int]:
    """(height, width) of the model's input."""
    return FLAGS.image_height, FLAGS.image_width


def check_model_flags() -> None:
    """Refuses what cannot work, before anything heavy is imported.

    Raises:
      FlairError: names the flag, what was given and what is possible.
    """
    for name in ("image_height", "image_width"):
        if FLAGS[name].value > 4 * IMAGE_SIZE:
            raise FlairError(
                f"--{name}={FLAGS[name].value}: FLAIR's photos are {IMAGE_SIZE} pixels wide and high; "
                f"give at most {4 * IMAGE_SIZE}"
            )
    restore = FLAGS.restore_model_path
    if restore is not None and not Path(restore).is_file():
        raise FlairError(f"--restore_model_path={restore}: no such file; expected a .h5 file of Keras weights")
    save_dir = Path(FLAGS.save_model_dir)
    if save_dir.exists() and not save_dir.is_dir():
        raise FlairError(f"--save_model_dir={save_dir}: is a file; expected a folder")


def open_task() -> tuple[Records, Task]:
    """Opens `--tfrecords_dir` and looks up the labels to predict; imports no TensorFlow."""
    records = open_records(FLAGS.tfrecords_dir)
    return records, make_task(records, FLAGS.use_fine_grained_labels, FLAGS.binary_label)


def build_model(num_outputs: int) -> tf.keras.Model:
    """The model of the flags, with random weights."""
    from benchmark import flair_model

    restore = FLAGS.restore_model_path
    frozen = FLAGS.normalization == "frozen_batch" or (
        FLAGS.normalization == "auto" and restore is not None and flair_model.wants_batch_normalization(restore)
    )
    return flair_model.build_model(
        FLAGS.model, (*image_size(), 3), num_outputs, frozen, FLAGS.seed, FLAGS.compute_dtype
    )


def restore_model(model: tf.keras.Model) -> LoadReport | None:
    """Loads `--restore_model_path`, if given; what was loaded and what was not."""
    from benchmark import flair_model

    return None if FLAGS.restore_model_path is None else flair_model.load_by_name(model, FLAGS.restore_model_path)


def build_model_from_flags(num_outputs: int) -> tuple[tf.keras.Model, LoadReport | None]:
    """`build_model` and `restore_model`."""
    model = build_model(num_outputs)
    return model, restore_model(model)


def model_file_name(setting: str, num_outputs: int) -> str:
    """Name of the saved model, as published: `resnet18_central_17labels.h5`."""
    return f"{FLAGS.model}_{setting}_{num_outputs}labels.h5"
