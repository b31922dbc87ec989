"""The flags that central and federated training share, as published, and what they mean."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from benchmark.data.opening import make_task, open_records
from benchmark.data.records import Records, Task
from benchmark.metrics.histogram import metric_names
from benchmark.model import specs
from benchmark.model.saved import COMPUTE_DTYPES, MOST_PIXELS
from benchmark.model.trainable import ALL, HEAD, TRAINABLE
from benchmark.run import loggers
from benchmark.run.flags import Flags, Role, Table, boolean, choice, integer, one_of, path, text
from benchmark.training import plan as training_plan
from benchmark.training import start
from benchmark.training.loss import LOSS_FLAGS, check_loss_flags
from flair.errors import FlairError

if TYPE_CHECKING:
    import tensorflow as tf

NORMALIZATIONS = ("auto", "group", "frozen_batch")
FEATURE_DTYPES = ("float32", "float16")

DATA_FLAGS: Table = one_of(
    path("tfrecords_dir", None, "Folder that prepare_tfrecords.py wrote, or an HDF5 file of photos.", Role.DATA),
    path(
        "tfds_data_dir",
        None,
        "Instead of --tfrecords_dir: folder in which benchmark.tfds_main, or TFDS, built FLAIR.",
        Role.DATA,
    ),
)
MODEL_FLAGS: Table = (
    *DATA_FLAGS,
    integer("image_height", 224, "Height of the model's input, in pixels.", Role.RESULT, least=16, most=MOST_PIXELS),
    integer("image_width", 224, "Width of the model's input, in pixels.", Role.RESULT, least=16, most=MOST_PIXELS),
    boolean("use_fine_grained_labels", "Predict the fine-grained labels, not the 17 coarse ones.", Role.RESULT),
    text("binary_label", None, "Predict this one label only, as a yes or no; none: all labels.", Role.RESULT),
    path(
        "restore_model_path",
        None,
        "Start from the weights of this .h5 or .keras file (layers are matched by name); none: random.",
        Role.START,
    ),
    path(
        "backbone_weights",
        None,
        "Start all layers but the classifier from this .h5, .keras or .safetensors file, from imagenet (Keras fetches "
        "it) or from none; not given: imagenet for --model=keras:NAME without --restore_model_path, else none.",
        Role.START,
    ),
    path("save_model_dir", "./", "Folder for the trained model.", Role.PLACE),
    integer(
        "eval_batch_size", 512, "Photos a batch in evaluation; changes speed, never a number.", Role.SPEED, least=1
    ),
    text(
        "model",
        "resnet18",
        "Network: resnet18, cnn (a small one for laptops and tests), keras:NAME of tf.keras.applications, or "
        "MODULE:FUNCTION (docs/networks.md).",
        Role.RESULT,
    ),
    choice(
        "trainable",
        ALL,
        TRAINABLE,
        "Which weights train: all; film, which is scale and shift of the normalization layers and the classifier; or "
        "head, the classifier alone. The others stay as they are restored.",
        Role.RESULT,
    ),
    boolean(
        "cache_features",
        "With --trainable=head: run the frozen network once per photo and train on its features; none: yes, but for "
        "--runtime=tff.",
        Role.RESULT,
        default=None,
    ),
    path(
        "feature_dir",
        None,
        "Folder of the features, which runs share; none: the records' path with .features added.",
        Role.PLACE,
    ),
    integer(
        "feature_views",
        0,
        "Randomly cropped and flipped views per training photo to keep features of; 0: each photo as it is.",
        Role.RESULT,
        least=0,
    ),
    choice("feature_dtype", FEATURE_DTYPES[0], FEATURE_DTYPES, "Numbers that features are kept as.", Role.RESULT),
    boolean(
        "augment",
        "Crop and flip training photos at random; none: yes, but for cached features, which --feature_views augments.",
        Role.RESULT,
        default=None,
    ),
    choice(
        "normalization",
        "auto",
        NORMALIZATIONS,
        "Normalization layers; auto: frozen_batch if the restored file has batch statistics, else group.",
        Role.RESULT,
    ),
    choice(
        "compute_dtype",
        "float32",
        COMPUTE_DTYPES,
        "Arithmetic of the layers; weights, loss and metrics stay float32.",
        Role.RESULT,
    ),
    *LOSS_FLAGS,
    integer(
        "seed",
        0,
        "Seed of what is random and not secret: initial weights, order of photos, augmentation.",
        Role.RESULT,
        least=0,
        most=2**48,
    ),
    boolean(
        "dry_run",
        "Build everything, print the plan with an estimate of time and memory, train and write nothing.",
        Role.CALL,
    ),
    integer(
        "num_users",
        None,
        "With --dry_run: plan for a data set of so many training users, its photos scaled alike; 41131 is FLAIR "
        "itself.",
        Role.CALL,
        least=1,
    ),
)
# Each command has these in a place of its own, which its --help shows.
BEST_METRIC = text(
    "best_metric",
    "loss",
    "Validation metric that chooses the best model; loss is minimized, any other maximized.",
    Role.RESULT,
)
EARLY_STOPPING = integer(
    "early_stopping",
    0,
    "Epochs or rounds without a better model after which training stops; 0 never stops early.",
    Role.RESULT,
    least=0,
)
LOGGERS = text(
    "loggers",
    ",".join(loggers.DEFAULT),
    "Where the rows of metrics.csv go, separated by commas: csv (always), tensorboard, wandb (offline unless "
    "WANDB_MODE says otherwise), mlflow (into the run folder unless MLFLOW_TRACKING_URI does).",
    Role.PLACE,
)
RUN_DIR = path("run_dir", None, "Folder of this run; none: the saved model's path without .h5.", Role.PLACE)
OVERWRITE = boolean("overwrite", "Start over, forgetting the run that --run_dir holds.", Role.CALL)


def image_size(flags: Flags) -> tuple[int, int]:
    """(height, width) of the model's input."""
    return flags.image_height, flags.image_width


def check_model_flags(flags: Flags) -> None:
    """Refuses what cannot work by a FlairError that names the flag, what was given and what is possible."""
    specs.check(flags.model)
    specs.check_size(flags.model, *image_size(flags))
    if specs.is_function(flags.model):
        specs.check_module(flags.model)
    start.check(flags)
    check_loss_flags(flags)
    if flags.num_users is not None and not flags.dry_run:
        raise FlairError(f"--num_users={flags.num_users}: only a --dry_run plans for other data than it reads")
    save_dir = Path(flags.save_model_dir)
    if save_dir.exists() and not save_dir.is_dir():
        raise FlairError(f"--save_model_dir={save_dir}: is a file; expected a folder")


def check_feature_flags(flags: Flags, can_cache: bool = True) -> None:
    """Refuses flags about features that would change nothing, or that `can_cache`, the runtime, does not have."""
    cached = caches_features(flags, can_cache)
    if flags.cache_features and flags.trainable != HEAD:
        raise FlairError(
            f"--cache_features: features stay what they are only with --trainable=head, and it is {flags.trainable}"
        )
    if flags.cache_features and not can_cache:
        raise FlairError("--cache_features: TFF's own runtime trains on photos; use --runtime=inprocess or ray")
    for name in ("feature_dir", "feature_views", "feature_dtype"):
        if flags.is_changed(name) and not cached:
            raise FlairError(
                f"--{name}={flags[name]} has no effect without cached features (--trainable=head); leave it out"
            )
    if cached and flags.augment is not None and flags.augment != bool(flags.feature_views):
        views = f"--feature_views={flags.feature_views}"
        raise FlairError(
            f"--augment contradicts {views}, since features are cached; give one above 0"
            if flags.augment
            else f"--noaugment contradicts {views}, since features are cached; leave one of them out"
        )


def augments(flags: Flags) -> bool:
    """Whether photos that are decoded to train on are cropped and flipped."""
    return flags.augment is not False


def caches_features(flags: Flags, can_cache: bool = True) -> bool:
    """Whether the run trains on cached features; `can_cache`: whether its runtime does."""
    wanted = flags.trainable == HEAD and can_cache
    return wanted if flags.cache_features is None else bool(flags.cache_features)


def check_best_metric(flags: Flags, task: Task) -> None:
    """Refuses a `--best_metric` that evaluation does not give, or a loss for which logits are not trained."""
    known = metric_names(task.is_binary)
    if flags.best_metric not in known:
        raise FlairError(f"--best_metric={flags.best_metric}: no such metric; the metrics are {', '.join(known)}")
    if flags.logit_adjustment is not None and flags.best_metric == "loss":
        raise FlairError(
            f"--logit_adjustment={flags.logit_adjustment}: scores are at even odds for every label, which is a large "
            "validation loss however good the model is; give --best_metric=macro_averaged_precision"
        )


def output_paths(flags: Flags, setting: str, num_outputs: int) -> tuple[Path, Path]:
    """Path of the saved model, by its published name (`resnet18_central_17labels.h5`), and of the run folder.

    A --save_model_dir on the command line comes before the --run_dir of a --flagfile: a run repeated from its
    flags.txt elsewhere must not find itself complete.
    """
    saved_model = Path(flags.save_model_dir) / f"{specs.file_name(flags.model)}_{setting}_{num_outputs}labels.h5"
    moved = flags.is_typed("save_model_dir") and not flags.is_typed("run_dir")
    return saved_model, saved_model.with_suffix("") if moved or not flags.run_dir else Path(flags.run_dir)


def open_task(flags: Flags) -> tuple[Records, Task]:
    """Opens the records and looks up the labels to predict; imports no TensorFlow."""
    records = open_data(flags)
    return records, make_task(records, flags.use_fine_grained_labels, flags.binary_label)


def open_data(flags: Flags) -> Records:
    """Opens `--tfrecords_dir` or `--tfds_data_dir`; imports no TensorFlow."""
    if flags.tfds_data_dir is None:
        return open_records(flags.tfrecords_dir)
    from benchmark.data.tfds import TFDSRecords

    return TFDSRecords(flags.tfds_data_dir)


def data_place(flags: Flags) -> dict[str, str]:
    """The flag that says where the records are, and its value, for run.json."""
    return {name: flags[name] for name in ("tfrecords_dir", "tfds_data_dir") if flags[name] is not None}


def data_facts(flags: Flags, records: Records) -> dict[str, str]:
    """Where the records are and what they are known by, for run.json."""
    return {**data_place(flags), "digest": records.digest()}


def build_model(flags: Flags, num_outputs: int) -> tf.keras.Model:
    """The model of the flags, with random weights."""
    from benchmark.model import networks, trainable

    return trainable.choose(networks.build_model(*model_arguments(flags, num_outputs)), flags.trainable)


def model_arguments(flags: Flags, num_outputs: int) -> tuple[str, tuple[int, int, int], int, bool, int, str]:
    """Those of `networks.build_model` for the model of the flags."""
    from benchmark.model import loading

    frozen = flags.model in specs.OURS and flags.normalization == "frozen_batch"
    if flags.model in specs.OURS and flags.normalization == "auto":
        file = start.file(flags)
        frozen = file is not None and loading.wants_batch_normalization(file)
    return flags.model, (*image_size(flags), 3), num_outputs, frozen, flags.seed, flags.compute_dtype


def model_lines(flags: Flags, task: Task, model: tf.keras.Model) -> list[str]:
    """What is predicted and by which model, for the plan of a dry run."""
    from benchmark.model import trainable
    from benchmark.model.normalization import FrozenBatchNormalization

    kind = "fine-grained" if flags.use_fine_grained_labels else "coarse"
    labels = f"the {kind} label {task.label_names[0]}" if task.is_binary else f"{task.num_outputs:,} {kind} labels"
    norms = "frozen batch" if any(isinstance(x, FrozenBatchNormalization) for x in model.layers) else "group"
    norms = norms if flags.model in specs.OURS else "its own"
    height, width = image_size(flags)
    file = start.file(flags)
    weights = f"weights of {file}" if file else "random weights"
    if flags.normalization == "frozen_batch" and not file:
        weights = "pretrained weights MISSING: give --restore_model_path, training is refused without"
    trained = [] if flags.trainable == ALL else [f"{trainable.num_weights(model):,} of them train: {flags.trainable}"]
    return [
        *training_plan.entry("task", labels),
        *training_plan.entry(
            "model",
            f"{flags.model}, {model.count_params():,} parameters, {height} x {width} pixels, {norms} normalization, "
            f"{flags.compute_dtype}",
            weights,
            *trained,
        ),
    ]
