"""The flags of `personalize_main`, and which of them fit together; imports nothing heavy."""

from __future__ import annotations

from pathlib import Path

from absl import flags

from benchmark.personalization.adaptation import HEAD, LAYERS
from benchmark.personalization.labels import LABEL_SETS
from benchmark.personalization.users import DUPLICATE_AWARE, RANDOM, SPLITS
from benchmark.run import path_flags
from flair.dataset.catalog import IMAGE_SIZE, PARTITIONS, TAXONOMY_FILE
from flair.errors import FlairError

USERS, LABELS = EPISODES = ("users", "labels")
_DEFAULT_STEPS = {USERS: 10, LABELS: 100}
_DEFAULT_LEARNING_RATE = {USERS: 0.05, LABELS: 1.0}
_FOR_USERS = (
    *("split", "duplicates", "num_support", "layers", "batch_size", "clipnorm"),
    *("use_fine_grained_labels", "binary_label"),
)
_FOR_LABELS = ("ways", "shots", "label_set", "taxonomy")

FLAGS = flags.FLAGS


def define_flags() -> None:
    """Defines them; not at import, because some have the names of other programs' flags."""
    path_flags.DEFINE_path("tfrecords_dir", None, "Folder that prepare_tfrecords.py wrote, or an HDF5 file of photos.")
    path_flags.DEFINE_path("model", None, "Saved model (.h5) to start every episode from.")
    flags.DEFINE_enum("partition", "test", PARTITIONS, "Partition whose users or photos make the episodes.")
    flags.DEFINE_enum(
        "episodes", USERS, EPISODES, "What an episode is: a user, or a few-shot task over fine-grained labels."
    )
    flags.DEFINE_integer(
        "num_episodes",
        600,
        "Episodes; with more than there are users, users come again with other splits.",
        lower_bound=1,
    )
    flags.DEFINE_enum(
        "split",
        RANDOM,
        SPLITS,
        "How a user's photos are divided: at random; the newest to test on, by Flickr's photo id; or at random with "
        "near duplicates on one side.",
    )
    path_flags.DEFINE_path(
        "duplicates", None, "near_duplicates.json of flair.near_duplicates, for --split=duplicate_aware."
    )
    flags.DEFINE_enum(
        "layers",
        HEAD,
        LAYERS,
        "What adapts: the classifier, all weights, or scale and shift of the normalization layers.",
    )
    flags.DEFINE_integer(
        "steps",
        None,
        "SGD steps of the adaptation; none: 10 for users, 100 for labels; 0: no adaptation.",
        lower_bound=0,
    )
    flags.DEFINE_float(
        "learning_rate", None, "Learning rate of the adaptation; none: 0.05 for users, 1 for labels.", lower_bound=0
    )
    flags.DEFINE_integer("batch_size", 16, "Support photos a step; label episodes always use all.", lower_bound=1)
    flags.DEFINE_float(
        "proximal_strength", 0.0, "Strength of the pull back towards the global weights (mu of FedProx).", lower_bound=0
    )
    flags.DEFINE_float(
        "clipnorm", 10.0, "Bound on the L2 norm of each weight's gradient; 0 turns clipping off.", lower_bound=0
    )
    flags.DEFINE_integer(
        "num_support", None, "Support photos of a user; none: drawn as Meta-Dataset does.", lower_bound=1
    )
    flags.DEFINE_integer(
        "num_query", None, "Query photos of a user, or of a class; none: 10, or half of the photos.", lower_bound=1
    )
    flags.DEFINE_integer(
        "query_size_limit", 500, "Query photos in memory at once; changes speed, never a number.", lower_bound=1
    )
    flags.DEFINE_integer("ways", None, "Classes of a label episode; none: uniform in 5 to 50.", lower_bound=2)
    flags.DEFINE_integer(
        "shots",
        None,
        "Support photos of each class of a label episode; none: drawn as Meta-Dataset does.",
        lower_bound=1,
    )
    flags.DEFINE_enum(
        "label_set", "test", LABEL_SETS, "Which of the disjoint sets of fine-grained labels to draw from."
    )
    path_flags.DEFINE_path(
        "taxonomy",
        None,
        f"{TAXONOMY_FILE} of the dataset: classes of one label episode share a coarse label; none: they are drawn from "
        "all labels.",
    )
    path_flags.DEFINE_path(
        "dump_dir", None, "Also write the episodes as TFRecords to this folder, for other frameworks; none: do not."
    )
    flags.DEFINE_boolean("use_fine_grained_labels", False, "The model predicts the fine-grained labels.")
    flags.DEFINE_string("binary_label", None, "The model predicts this one label; none: the one its run folder names.")
    flags.DEFINE_integer("image_height", None, "Height of the model's input; none: as it was trained.", lower_bound=16)
    flags.DEFINE_integer("image_width", None, "Width of the model's input; none: as it was trained.", lower_bound=16)
    flags.DEFINE_integer("seed", 0, "Seed of users, splits, sizes and batches.", 0, 2**48)
    path_flags.DEFINE_path("run_dir", None, "Folder for the results; none: <model>_personalization beside the model.")
    flags.DEFINE_boolean("overwrite", False, "Forget what an earlier run left in the folder.")
    flags.mark_flags_as_required(["tfrecords_dir", "model"])


def check_flags() -> None:
    """Refuses what cannot work.

    Raises:
      FlairError: names the flag, what was given and what is possible.
    """
    if not Path(FLAGS.model).is_file():
        raise FlairError(f"--model={FLAGS.model}: no such file; expected a saved model (.h5)")
    if FLAGS.taxonomy is not None and not (taxonomy_folder() / TAXONOMY_FILE).is_file():
        raise FlairError(f"--taxonomy={FLAGS.taxonomy}: expected the dataset's {TAXONOMY_FILE}, or the folder it is in")
    for name in ("image_height", "image_width"):
        if (FLAGS[name].value or 0) > 4 * IMAGE_SIZE:
            raise FlairError(
                f"--{name}={FLAGS[name].value}: FLAIR's photos are {IMAGE_SIZE} pixels wide and high; "
                f"give at most {4 * IMAGE_SIZE}"
            )
    if FLAGS.episodes == LABELS:
        _refuse(_FOR_USERS, "--episodes=labels")
    else:
        _refuse(_FOR_LABELS, "--episodes=users")
    if (FLAGS.split == DUPLICATE_AWARE) != (FLAGS.duplicates is not None):
        raise FlairError(
            f"--split={DUPLICATE_AWARE} and --duplicates=near_duplicates.json belong together; give both or neither"
        )


def steps() -> int:
    """SGD steps of the adaptation."""
    return int(_DEFAULT_STEPS[FLAGS.episodes] if FLAGS.steps is None else FLAGS.steps)


def learning_rate() -> float:
    """Learning rate of the adaptation."""
    return float(_DEFAULT_LEARNING_RATE[FLAGS.episodes] if FLAGS.learning_rate is None else FLAGS.learning_rate)


def taxonomy_folder() -> Path:
    """Folder of the file that `--taxonomy` names."""
    path = Path(FLAGS.taxonomy)
    return path.parent if path.name == TAXONOMY_FILE else path


def run_dir() -> Path:
    """Folder for the results."""
    model = Path(FLAGS.model)
    return Path(FLAGS.run_dir) if FLAGS.run_dir else model.with_name(f"{model.stem}_personalization")


def _refuse(names: tuple[str, ...], what: str) -> None:
    for name in names:
        if FLAGS[name].value != FLAGS[name].default:
            raise FlairError(f"--{name}={FLAGS[name].value} has no effect on {what}; leave it out")
