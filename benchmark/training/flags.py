"""The flags that central and federated training share, with their names and defaults of the published benchmark."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags

from benchmark.data.opening import make_task, open_records
from benchmark.data.records import Records, Task
from benchmark.model.saved import COMPUTE_DTYPES
from benchmark.run import command, path_flags
from benchmark.training import plan as training_plan
from flair.dataset.catalog import IMAGE_SIZE
from flair.errors import FlairError
from flair.files.digest import file_sha256

if TYPE_CHECKING:
    import tensorflow as tf

    from benchmark.model.loading import LoadReport

MODELS = ("resnet18", "cnn")
NORMALIZATIONS = ("auto", "group", "frozen_batch")

path_flags.DEFINE_path("tfrecords_dir", None, "Folder that prepare_tfrecords.py wrote, or an HDF5 file of photos.")
path_flags.DEFINE_path(
    "tfds_data_dir", None, "Instead of --tfrecords_dir: folder in which benchmark.tfds_main, or TFDS, built FLAIR."
)
flags.DEFINE_integer("image_height", 224, "Height of the model's input, in pixels.", lower_bound=16)
flags.DEFINE_integer("image_width", 224, "Width of the model's input, in pixels.", lower_bound=16)
flags.DEFINE_boolean("use_fine_grained_labels", False, "Predict the fine-grained labels, not the 17 coarse ones.")
flags.DEFINE_string("binary_label", None, "Predict this one label only, as a yes or no; none: all labels.")
path_flags.DEFINE_path(
    "restore_model_path", None, "Start from the weights of this .h5 file (layers are matched by name); none: random."
)
path_flags.DEFINE_path("save_model_dir", "./", "Folder for the trained model.")
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
    "seed", 0, "Seed of what is random and not secret: initial weights, order of photos, augmentation.", 0, 2**48
)
flags.DEFINE_boolean(
    "dry_run", False, "Build everything, print the plan with an estimate of time and memory, train and write nothing."
)
flags.DEFINE_integer(
    "num_users",
    None,
    "With --dry_run: plan for a data set of so many training users, its photos scaled alike; 41131 is FLAIR itself.",
    lower_bound=1,
)

FLAGS = flags.FLAGS
flags.register_multi_flags_validator(
    ["tfrecords_dir", "tfds_data_dir"],
    lambda places: list(places.values()).count(None) == 1,
    "give either --tfrecords_dir or --tfds_data_dir",
)
# What a run of training says nothing about in its flags.txt.
NOT_RECORDED = ("overwrite", "dry_run", "num_users")


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
    if FLAGS.num_users is not None and not FLAGS.dry_run:
        raise FlairError(f"--num_users={FLAGS.num_users}: only a --dry_run plans for other data than it reads")
    if restore is None and FLAGS.normalization == "frozen_batch" and not FLAGS.dry_run:
        raise FlairError(
            "--normalization=frozen_batch keeps the statistics of pretrained weights; give --restore_model_path "
            "(Apple's resnet18.h5 is at models/resnet18.h5 below the base address of download_dataset.py)"
        )
    save_dir = Path(FLAGS.save_model_dir)
    if save_dir.exists() and not save_dir.is_dir():
        raise FlairError(f"--save_model_dir={save_dir}: is a file; expected a folder")


def run_folder(saved_model: Path) -> Path:
    """Where the run writes: --run_dir, or beside the saved model.

    A --save_model_dir on the command line comes before the --run_dir of a --flagfile: a run repeated from its
    flags.txt elsewhere must not find itself complete.
    """
    moved = command.is_typed("save_model_dir") and not command.is_typed("run_dir")
    return saved_model.with_suffix("") if moved or not FLAGS.run_dir else Path(FLAGS.run_dir)


def open_task() -> tuple[Records, Task]:
    """Opens `--tfrecords_dir` or `--tfds_data_dir` and looks up the labels to predict; imports no TensorFlow."""
    if FLAGS.tfds_data_dir is None:
        records = open_records(FLAGS.tfrecords_dir)
    else:
        from benchmark.data.tfds import TFDSRecords

        records = TFDSRecords(FLAGS.tfds_data_dir)
    return records, make_task(records, FLAGS.use_fine_grained_labels, FLAGS.binary_label)


def data_place() -> dict[str, str]:
    """The flag that says where the records are, and its value, for run.json."""
    return {name: FLAGS[name].value for name in ("tfrecords_dir", "tfds_data_dir") if FLAGS[name].value is not None}


def data_facts(records: Records) -> dict[str, str]:
    """Where the records are and what they are known by, for run.json."""
    return {**data_place(), "digest": records.digest()}


def build_model(num_outputs: int) -> tf.keras.Model:
    """The model of the flags, with random weights."""
    from benchmark.model import networks

    return networks.build_model(*model_arguments(num_outputs))


def model_arguments(num_outputs: int) -> tuple[str, tuple[int, int, int], int, bool, int, str]:
    """Those of `networks.build_model` for the model of the flags."""
    from benchmark.model import loading

    restore = FLAGS.restore_model_path
    frozen = FLAGS.normalization == "frozen_batch" or (
        FLAGS.normalization == "auto" and restore is not None and loading.wants_batch_normalization(restore)
    )
    return FLAGS.model, (*image_size(), 3), num_outputs, frozen, FLAGS.seed, FLAGS.compute_dtype


def restore_model(model: tf.keras.Model) -> LoadReport | None:
    """Loads `--restore_model_path`, if given; what was loaded and what was not."""
    from benchmark.model import loading

    return None if FLAGS.restore_model_path is None else loading.load_by_name(model, FLAGS.restore_model_path)


def restored_model() -> dict[str, str] | None:
    """Path and SHA-256 of the file that training starts from, for run.json; None for random weights."""
    restore = FLAGS.restore_model_path
    if restore is None:
        return None
    return {"path": str(restore), "sha256": file_sha256(restore)}


def build_model_from_flags(num_outputs: int) -> tuple[tf.keras.Model, LoadReport | None]:
    """`build_model` and `restore_model`."""
    model = build_model(num_outputs)
    return model, restore_model(model)


def model_lines(task: Task, model: tf.keras.Model) -> list[str]:
    """What is predicted and by which model, for the plan of a dry run."""
    from benchmark.model.normalization import FrozenBatchNormalization

    kind = "fine-grained" if FLAGS.use_fine_grained_labels else "coarse"
    labels = f"the {kind} label {task.label_names[0]}" if task.is_binary else f"{task.num_outputs:,} {kind} labels"
    norms = "frozen batch" if any(isinstance(x, FrozenBatchNormalization) for x in model.layers) else "group"
    height, width = image_size()
    weights = f"weights of {FLAGS.restore_model_path}" if FLAGS.restore_model_path else "random weights"
    if FLAGS.normalization == "frozen_batch" and not FLAGS.restore_model_path:
        weights = "pretrained weights MISSING: give --restore_model_path, training is refused without"
    return [
        *training_plan.entry("task", labels),
        *training_plan.entry(
            "model",
            f"{FLAGS.model}, {model.count_params():,} parameters, {height} x {width} pixels, {norms} normalization, "
            f"{FLAGS.compute_dtype}",
            weights,
        ),
    ]


def model_file_name(setting: str, num_outputs: int) -> str:
    """Name of the saved model, as published: `resnet18_central_17labels.h5`."""
    return f"{FLAGS.model}_{setting}_{num_outputs}labels.h5"
