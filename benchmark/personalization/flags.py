"""The flags of `personalize_main`, and which of them fit together."""

from __future__ import annotations

from pathlib import Path

from benchmark.model.saved import MOST_PIXELS, NETWORK_HELP
from benchmark.model.trainable import HEAD, TRAINABLE
from benchmark.personalization.labels import LABEL_SETS
from benchmark.personalization.sources import taxonomy_folder
from benchmark.personalization.users import DUPLICATE_AWARE, RANDOM, SPLITS
from benchmark.run.flags import Flags, Role, Table, boolean, choice, integer, number, path, text
from flair.dataset.catalog import PARTITIONS, TAXONOMY_FILE
from flair.errors import FlairError

USERS, LABELS = EPISODES = ("users", "labels")
_DEFAULT_SGD = {USERS: (10, 0.05), LABELS: (100, 1.0)}  # steps, learning rate
_FOR_USERS = (
    *("split", "duplicates", "num_support", "trainable", "batch_size", "clipnorm"),
    *("use_fine_grained_labels", "binary_label"),
)
_FOR_LABELS = ("ways", "shots", "label_set", "taxonomy", "training_episodes", "training_learning_rate")

FLAGS: Table = (
    path(
        "tfrecords_dir",
        None,
        "Folder that prepare_tfrecords.py wrote, or an HDF5 file of photos.",
        Role.DATA,
        required=True,
    ),
    path("model", None, "Saved model (.h5 or .keras) to start every episode from.", Role.DATA, required=True),
    text("network", None, NETWORK_HELP, Role.RESULT),
    choice("partition", "test", PARTITIONS, "Partition whose users or photos make the episodes.", Role.RESULT),
    choice(
        "episodes",
        USERS,
        EPISODES,
        "What an episode is: a user, or a few-shot task over fine-grained labels.",
        Role.RESULT,
    ),
    integer(
        "num_episodes",
        600,
        "Episodes; with more than there are users, users come again with other splits.",
        Role.LENGTH,
        least=1,
    ),
    choice(
        "split",
        RANDOM,
        SPLITS,
        "How a user's photos are divided: at random; the newest to test on, by Flickr's photo id; or at random with "
        "near duplicates on one side.",
        Role.RESULT,
    ),
    path(
        "duplicates", None, "near_duplicates.json of flair.near_duplicates, for --split=duplicate_aware.", Role.RESULT
    ),
    choice(
        "trainable",
        HEAD,
        TRAINABLE,
        "Which weights adapt: all; film, which is scale and shift of the normalization layers and the classifier; or "
        "head, the classifier alone.",
        Role.RESULT,
    ),
    integer(
        "steps",
        None,
        "SGD steps of the adaptation; none: 10 for users, 100 for labels; 0: no adaptation.",
        Role.RESULT,
        least=0,
    ),
    number(
        "learning_rate",
        None,
        "Learning rate of the adaptation; none: 0.05 for users, 1 for labels.",
        Role.RESULT,
        least=0,
    ),
    integer("batch_size", 16, "Support photos a step; label episodes always use all.", Role.RESULT, least=1),
    number(
        "proximal_strength",
        0.0,
        "Strength of the pull back towards the global weights (mu of FedProx).",
        Role.RESULT,
        least=0,
    ),
    number(
        "clipnorm", 10.0, "Bound on the L2 norm of each weight's gradient; 0 turns clipping off.", Role.RESULT, least=0
    ),
    integer("num_support", None, "Support photos of a user; none: drawn as Meta-Dataset does.", Role.RESULT, least=1),
    integer(
        "num_query",
        None,
        "Query photos of a user, or of a class; none: 10, or half of the photos.",
        Role.RESULT,
        least=1,
    ),
    integer(
        "query_size_limit", 500, "Query photos in memory at once; changes speed, never a number.", Role.SPEED, least=1
    ),
    integer("ways", None, "Classes of a label episode; none: uniform in 5 to 50.", Role.RESULT, least=2),
    integer(
        "shots",
        None,
        "Support photos of each class of a label episode; none: drawn as Meta-Dataset does.",
        Role.RESULT,
        least=1,
    ),
    choice(
        "label_set", "test", LABEL_SETS, "Which of the disjoint sets of fine-grained labels to draw from.", Role.RESULT
    ),
    path(
        "taxonomy",
        None,
        f"{TAXONOMY_FILE} of the dataset: classes of one label episode share a coarse label; none: they are drawn from "
        "all labels.",
        Role.RESULT,
    ),
    integer(
        "training_episodes",
        0,
        "With --episodes=labels: also train prototypical networks on so many episodes of the train labels and the "
        "train partition; 0: none.",
        Role.RESULT,
        least=0,
    ),
    number(
        "training_learning_rate",
        0.001,
        "Learning rate of Adam in that training, one step per episode.",
        Role.RESULT,
        least=0,
    ),
    path(
        "feature_dir",
        None,
        "With --trainable=head: folder of features that a training of this model left; none: photos are decoded.",
        Role.DATA,
    ),
    path(
        "dump_dir",
        None,
        "Also write the episodes as TFRecords to this folder, for other frameworks; none: do not.",
        Role.PLACE,
    ),
    boolean("use_fine_grained_labels", "The model predicts the fine-grained labels.", Role.RESULT),
    text("binary_label", None, "The model predicts this one label; none: the one its run folder names.", Role.RESULT),
    integer(
        "image_height",
        None,
        "Height of the model's input; none: as it was trained.",
        Role.RESULT,
        least=16,
        most=MOST_PIXELS,
    ),
    integer(
        "image_width",
        None,
        "Width of the model's input; none: as it was trained.",
        Role.RESULT,
        least=16,
        most=MOST_PIXELS,
    ),
    integer("seed", 0, "Seed of users, splits, sizes and batches.", Role.RESULT, least=0, most=2**48),
    path("run_dir", None, "Folder for the results; none: <model>_personalization beside the model.", Role.PLACE),
    boolean("overwrite", "Forget what an earlier run left in the folder.", Role.CALL),
)


def check_flags(flags: Flags) -> None:
    """Refuses what cannot work.

    Raises:
      FlairError: names the flag, what was given and what is possible.
    """
    if not Path(flags.model).is_file():
        raise FlairError(f"--model={flags.model}: no such file; expected a saved model (.h5 or .keras)")
    if flags.taxonomy is not None and not (taxonomy_folder(flags.taxonomy) / TAXONOMY_FILE).is_file():
        raise FlairError(f"--taxonomy={flags.taxonomy}: expected the dataset's {TAXONOMY_FILE}, or the folder it is in")
    for name in _FOR_USERS if flags.episodes == LABELS else _FOR_LABELS:
        if flags.is_changed(name):
            raise FlairError(f"--{name}={flags[name]} has no effect on --episodes={flags.episodes}; leave it out")
    if flags.training_episodes and flags.label_set == "train":
        raise FlairError(
            f"--training_episodes={flags.training_episodes}: trains on the train labels, on which a test shows nothing "
            "about new ones; give --label_set=test or val"
        )
    if flags.is_changed("training_learning_rate") and not flags.training_episodes:
        raise FlairError("--training_learning_rate has no effect without --training_episodes; leave it out")
    if flags.feature_dir is not None and flags.trainable != HEAD:
        raise FlairError(
            f"--feature_dir={flags.feature_dir}: features do not change with the head alone; leave it out, or give "
            "--trainable=head"
        )
    if (flags.split == DUPLICATE_AWARE) != (flags.duplicates is not None):
        raise FlairError(
            f"--split={DUPLICATE_AWARE} and --duplicates=near_duplicates.json belong together; give both or neither"
        )


def steps_and_learning_rate(flags: Flags) -> tuple[int, float]:
    """Of the adaptation, as given or as the kind of episode has them."""
    steps, learning_rate = _DEFAULT_SGD[flags.episodes]
    return (
        steps if flags.steps is None else flags.steps,
        learning_rate if flags.learning_rate is None else flags.learning_rate,
    )


def run_dir(flags: Flags) -> Path:
    """Folder for the results."""
    model = Path(flags.model)
    return Path(flags.run_dir) if flags.run_dir else model.with_name(f"{model.stem}_personalization")
