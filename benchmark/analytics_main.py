"""Private federated analytics: labels and photos of the training users, with differential privacy for each of them.

Counts the users who have each coarse label, finds the fine-grained labels that many users have, and gives quantiles of
photos per user, with 95% intervals. One --epsilon and --delta hold for all answers together. A user counts once for a
label and once for a number of photos, however many photos they have. Writes JSON, whose spending a training adds to its
own by --also_spent. The same command again is another release, and spends again.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from benchmark.analytics import questions as asked
from benchmark.analytics.questions import FINE_LABELS, LABELS, PHOTOS, QUESTIONS, Question
from benchmark.data.records import Records
from benchmark.privacy.accounting import ACCOUNTANTS
from benchmark.privacy.request import PrivacyRequest
from benchmark.run import command
from benchmark.run.flags import Flags, Role, Table, boolean, choice, integer, number, path, text
from benchmark.training.flags import DATA_FLAGS, data_place, open_data
from flair.dataset.catalog import COARSE_LABELS, IMAGES_PER_USER_MAX
from flair.errors import FlairError
from flair.files import atomic
from flair.terminal.paths import command_line
from flair.terminal.progress import duration

if TYPE_CHECKING:
    from benchmark.privacy.plan import PrivacyPlan

LEAST_EPSILON = 0.01
FLAGS: Table = (
    *DATA_FLAGS,
    path("output_file", None, "JSON file to write.", Role.PLACE, required=True),
    number("epsilon", None, "Epsilon of all answers together; has to be given.", Role.RESULT, least=LEAST_EPSILON),
    number("delta", None, "Delta of all answers together; none: users^-1.1.", Role.RESULT, above=0, below=1),
    choice("accountant", "pld", ACCOUNTANTS, "Accountant that turns --epsilon into noise.", Role.RESULT),
    text(
        "questions",
        ",".join(QUESTIONS),
        "What is asked, separated by commas: labels, fine_labels, photos. Each has the same part of the privacy.",
        Role.RESULT,
    ),
    integer(
        "max_labels",
        len(COARSE_LABELS),
        "Coarse labels of a user that count in full; a user with m more of them counts sqrt(max / m) for each.",
        Role.RESULT,
        least=1,
    ),
    integer(
        "max_fine_labels", 100, "The same of fine-grained labels: fewer mean less noise on all.", Role.RESULT, least=1
    ),
    integer(
        "max_photos",
        IMAGES_PER_USER_MAX,
        "Photos per user, at most, as is publicly known; a user with more counts as one with so many.",
        Role.RESULT,
        least=2,
        most=10**9,
    ),
    text(
        "quantiles",
        "0.1,0.25,0.5,0.75,0.9,0.99",
        "Quantiles of photos per user, by commas (above 0 and below 1).",
        Role.RESULT,
    ),
    boolean("compare_exact", "Show the exact values, too. The result is NOT private then.", Role.RESULT),
    boolean("overwrite", "Replace --output_file. What it spent is spent all the same.", Role.CALL),
)


def main(flags: Flags) -> None:
    """Checks the flags, reads the labels, draws the noise, writes one file."""
    start = time.monotonic()
    names, quantiles = _questions(flags), _quantiles(flags)
    _check(flags, names)
    from benchmark.analytics import release
    from benchmark.analytics.text import result_text
    from benchmark.privacy.noise_key import NoiseKey
    from benchmark.privacy.plan import make_plan

    records = open_data(flags)
    num_users = len(records.users("train"))
    plan: PrivacyPlan = make_plan(num_users, _request(flags, num_users))
    answers = _answers(flags, records, names)
    # The key is in no file, and gone with this process: nothing here goes on after an interruption.
    result = release.answer(answers, plan, NoiseKey.draw(), quantiles, flags.compare_exact)
    atomic.write_json(flags.output_file, result)
    print(result_text(result))
    print(f"{flags.output_file}: {num_users:,} users, in {duration(time.monotonic() - start)}")
    spent = None if flags.compare_exact else flags.output_file
    train = command_line("python -m benchmark.federated_main", **data_place(flags), also_spent=spent)
    print(f"next: {train} --epsilon=2")


def _check(flags: Flags, names: Sequence[str]) -> None:
    atomic.destination(flags.output_file)
    if os.path.exists(flags.output_file) and not flags.overwrite:
        raise FlairError(
            f"--output_file={flags.output_file}: exists; another release spends epsilon once more: give another name, "
            "or --overwrite"
        )
    if flags.epsilon is None:
        raise FlairError(f"--epsilon: is missing; expected a number, {LEAST_EPSILON:g} or above (say 1.0)")
    _request(flags, 2).check()
    effects = {"max_labels": LABELS, "max_fine_labels": FINE_LABELS, "max_photos": PHOTOS, "quantiles": PHOTOS}
    for name, question in effects.items():
        if flags.is_changed(name) and question not in names:
            raise FlairError(f"--{name}={flags[name]} has no effect without {question} in --questions; leave it out")


def _request(flags: Flags, num_users: int) -> PrivacyRequest:
    """One round in which everybody takes part."""
    return PrivacyRequest(
        cohort=num_users, total_rounds=1, epsilon=flags.epsilon, delta=flags.delta, accountant=flags.accountant
    )


def _questions(flags: Flags) -> list[str]:
    names: list[str] = flags.questions.split(",")
    for name in names:
        if name not in QUESTIONS:
            raise FlairError(f"--questions={flags.questions}: {name!r} is none; expected some of {','.join(QUESTIONS)}")
    if len(set(names)) < len(names):
        raise FlairError(f"--questions={flags.questions}: asks twice, which would cost twice; name each once")
    return names


def _quantiles(flags: Flags) -> list[float]:
    try:
        quantiles = [float(one) for one in flags.quantiles.split(",")]
    except ValueError:
        quantiles = [math.nan]
    if not all(0 < one < 1 for one in quantiles):
        raise FlairError(f"--quantiles={flags.quantiles}: expected numbers above 0 and below 1, by commas")
    return quantiles


def _answers(flags: Flags, records: Records, names: Sequence[str]) -> list[Question]:
    """The questions with their sums; photos are read for their labels, and never decoded."""
    from benchmark.data.labels import read_photo_table

    if names == [PHOTOS]:
        users = records.users("train")
        num_photos = np.array([records.num_photos_of("train", user_id) for user_id in users], np.int64)
        return [asked.photo_question(num_photos, flags.max_photos)]
    table = read_photo_table(records, "train")

    def question(name: str) -> Question:
        if name == PHOTOS:
            return asked.photo_question(np.bincount(table.owner), flags.max_photos)
        if name == LABELS:
            columns, labels, most = records.labels, table.labels, flags.max_labels
        else:
            columns, labels, most = records.fine_grained_labels, table.fine_grained_labels, flags.max_fine_labels
        return asked.label_question(name, sorted(columns, key=columns.__getitem__), table.owner, labels, most)

    return [question(name) for name in names]


if __name__ == "__main__":
    command.run(main, FLAGS)
