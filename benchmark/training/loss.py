"""The flags of the loss, and the label frequencies that shift its logits.

Where frequencies are used they belong into training and not into prediction. A shift at prediction moves all scores of
a label together: its ranking, and so its average precision, stays what it is, and for decisions the thresholds that
`benchmark.evaluate_main` chooses on val do the same, better. A shift in the loss changes what is learned: the network
need not spend its bias and features on saying that a rare label is rare. So sigmoid of the saved model's logits is a
score at even odds for every label, and whoever evaluates the model needs no frequencies.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmark.data.labels import read_photo_table
from benchmark.data.records import Records, Task
from benchmark.metrics.loss import LossConfig
from benchmark.run.files import read_json
from benchmark.run.flags import Flags, Role, Table, choice, number, path
from benchmark.run.shapes import NUMBER, misfit
from flair.errors import FlairError
from flair.files.regular_file import file_sha256

BCE, FOCAL, ASL = LOSSES = ("bce", "focal", "asl")
TRAIN = "train"
# Of Lin et al. 2017 (section 4.1) and Ridnik et al. 2021 (section 3.1), whose gamma of positives is 0.
_GAMMA = {BCE: 0.0, FOCAL: 2.0, ASL: 4.0}

LOSS_FLAGS: Table = (
    choice(
        "loss",
        BCE,
        LOSSES,
        "What training minimizes: binary cross-entropy, the focal or the asymmetric loss. Metrics called loss are the "
        "first, whatever it is.",
        Role.RESULT,
    ),
    number(
        "loss_gamma",
        None,
        "How little nearly right decisions count: of focal, all; of asl, those on labels that a photo does not have. "
        "None: 2 for focal, 4 for asl.",
        Role.RESULT,
        least=0,
    ),
    number("loss_gamma_positive", 0.0, "With --loss=asl: the same for labels that a photo has.", Role.RESULT, least=0),
    number(
        "loss_margin",
        0.05,
        "With --loss=asl: probability up to which a label that a photo does not have costs nothing.",
        Role.RESULT,
        least=0,
        most=0.9,
    ),
    path(
        "logit_adjustment",
        None,
        "Add the log odds of each label to its logits in the loss, so that rare labels need not be learned to be rare: "
        "train, as the training photos have them, or a JSON file of frequencies or of benchmark.analytics_main.",
        Role.RESULT,
    ),
)
_ANSWER = {"labels?": [{"label": str, "users": NUMBER}], "of?": int, "threshold?": NUMBER}
_OF_ANALYTICS = {"users": int, "questions": {"*": _ANSWER}}
_EXPECTED = "expected {label: share of photos} for every label, or the result of benchmark.analytics_main"


def check_loss_flags(flags: Flags) -> None:
    """Refuses flags of the loss that would change nothing, or that contradict each other."""
    only_of = {"loss_gamma": (FOCAL, ASL), "loss_gamma_positive": (ASL,), "loss_margin": (ASL,)}
    for name, losses in only_of.items():
        if flags.is_changed(name) and flags.loss not in losses:
            raise FlairError(
                f"--{name}={flags[name]:g} has no effect with --loss={flags.loss}; leave it out, or give "
                f"--loss={' or '.join(losses)}"
            )
    if flags.loss != BCE and loss_config(flags, ()).is_cross_entropy:
        zeros = "a gamma of 0" if flags.loss == FOCAL else "gammas and a margin of 0"
        raise FlairError(f"--loss={flags.loss} with {zeros} is --loss=bce; give that, or larger ones")
    if flags.logit_adjustment not in (None, TRAIN):
        _read(flags.logit_adjustment)


def check_frequencies_are_free(path: str, also_spent: Sequence[str] | None) -> None:
    """Refuses frequencies that a private run would give away without counting what they cost.

    Args:
      path: what --logit_adjustment says.
      also_spent: files whose spending the run's statement adds up; None: it adds up nothing.
    """
    given = f"--logit_adjustment={path}"
    if path == TRAIN:
        raise FlairError(
            f"{given}: counts the labels of the training users without noise, which no epsilon covers; give a file: "
            "public frequencies, or the result of benchmark.analytics_main"
        )
    found = _read(path)
    if not _is_of_analytics(found):
        return
    if found.get("private") is not True:
        raise FlairError(f"{given}: holds exact counts (--compare_exact), which are not private; ask again without")
    if Path(path).absolute() not in [Path(one).absolute() for one in also_spent or ()]:
        raise FlairError(
            f"{given}: its counts have cost privacy of the same users; give --also_spent={path} too, so that the "
            "statement adds it up (which local privacy, and banded or tree noise, cannot)"
        )


def loss_config(flags: Flags, offsets: tuple[float, ...] = ()) -> LossConfig:
    """The loss of the flags, with the offsets of `logit_offsets`."""
    gamma = _GAMMA[flags.loss] if flags.loss_gamma is None else flags.loss_gamma
    if flags.loss == FOCAL:
        return LossConfig(gamma, gamma, 0.0, offsets)
    if flags.loss == ASL:
        return LossConfig(gamma, flags.loss_gamma_positive, flags.loss_margin, offsets)
    return LossConfig(offsets=offsets)


def logit_offsets(flags: Flags, records: Records, task: Task) -> tuple[float, ...]:
    """log(f / (1 - f)) for the frequency f of each output's label; empty without --logit_adjustment."""
    if flags.logit_adjustment is None:
        return ()
    is_counted = flags.logit_adjustment == TRAIN
    found = training_frequencies(records, task) if is_counted else read_frequencies(flags.logit_adjustment, task)
    return tuple(np.log(found / (1 - found)).astype(np.float32).tolist())


def facts(flags: Flags, offsets: tuple[float, ...]) -> dict[str, Any]:
    """What run.json says of the offsets: nothing where there are none."""
    if not offsets:
        return {}
    file = flags.logit_adjustment
    found = {"from": file, "offsets": list(offsets)}
    return {"logit_adjustment": found if file == TRAIN else {**found, "sha256": file_sha256(Path(file))}}


def training_frequencies(records: Records, task: Task) -> np.ndarray:
    """Share of the training photos with each output's label, float64 [outputs], half a photo added either way."""
    table = read_photo_table(records, "train")
    columns = [column for labels in getattr(table, task.feature) for column in set(labels)]
    counts = np.bincount(columns, minlength=task.num_columns)
    return _smoothed(counts if task.binary_index is None else counts[[task.binary_index]], len(table.owner))


def read_frequencies(path: str, task: Task) -> np.ndarray:
    """Frequency of each output's label in a file for --logit_adjustment, float64 [outputs], above 0 and below 1.

    Of analytics it is the share of users who have the label. Fine-grained labels that analytics does not list, because
    noise alone could make as many of them, count as half of its threshold.

    Raises:
      FlairError: there is no such file, or something else in it; one line naming it.
    """
    given, content = f"--logit_adjustment={path}", _read(path)
    other = None
    if _is_of_analytics(content):
        by_name, other = _of_analytics(given, content, task)
    else:
        by_name = content
        reason = misfit(content, {"*": NUMBER})
        if reason is not None:
            raise FlairError(f"{given}: has no frequencies ({reason}); {_EXPECTED}")
    found = [by_name.get(name, other) for name in task.label_names]
    for name, value in zip(task.label_names, found, strict=True):
        if value is None:
            raise FlairError(f"{given}: has no frequency of the label {name}; {_EXPECTED}")
        if not 0 < value < 1:
            raise FlairError(f"{given}: the frequency of {name} is {value}; expected one above 0 and below 1")
    return np.array(found, np.float64)


def _read(path: str) -> dict[str, Any]:
    found = read_json(Path(path), {})
    if found is None:
        raise FlairError(f"--logit_adjustment={path}: no such file; {_EXPECTED}, or {TRAIN}")
    return found


def _is_of_analytics(content: Mapping[str, Any]) -> bool:
    return isinstance(content.get("questions"), dict)


def _of_analytics(given: str, content: dict[str, Any], task: Task) -> tuple[dict[str, float], float | None]:
    """Frequencies of the labels that are listed, and of any other."""
    reason = misfit(content, _OF_ANALYTICS)
    if reason is not None:
        raise FlairError(f"{given}: is damaged ({reason}); {_EXPECTED}")
    question = "labels" if task.feature == "labels" else "fine_labels"
    answer = content["questions"].get(question)
    if answer is None or "labels" not in answer:
        raise FlairError(f"{given}: has no answer about {question}; ask benchmark.analytics_main for it")
    if answer.get("of", task.num_columns) != task.num_columns:
        raise FlairError(f"{given}: is about {answer['of']:,} labels, and the records have {task.num_columns:,}")
    users, total = np.array([row["users"] for row in answer["labels"]], np.float64), content["users"]
    shares = dict(zip((row["label"] for row in answer["labels"]), _smoothed(users, total).tolist(), strict=True))
    return shares, float(_smoothed(np.array(answer["threshold"] / 2), total)) if "threshold" in answer else None


def _smoothed(counts: np.ndarray, total: int) -> np.ndarray:
    """Shares above 0 and below 1: half an event is added either way (Krichevsky and Trofimov 1981).

    >>> _smoothed(np.array([0, 1, 4]), 4).tolist()
    [0.1, 0.3, 0.9]
    """
    return np.asarray((np.clip(counts, 0, total) + 0.5) / (total + 1))
