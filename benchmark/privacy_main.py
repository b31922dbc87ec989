"""Plans differential privacy before training: how much noise, what epsilon, how many rounds.

Give --epsilon for the noise it needs, --noise_multiplier for the epsilon it costs, or both for the rounds they allow;
--table repeats the answer for other cohort sizes. Trains nothing and needs no data.
"""

from __future__ import annotations

import dataclasses
import json

from absl import flags

from benchmark.privacy import planner
from benchmark.privacy.plan import Mechanism, Sampling
from benchmark.run import command
from flair.dataset.catalog import NUM_USERS
from flair.errors import FlairError

_NUM_USERS = flags.DEFINE_integer("num_users", NUM_USERS["train"], "users of the training split")
_CLIENTS_PER_ROUND = flags.DEFINE_integer(
    "clients_per_round", 200, "clients of a round (expected, with Poisson sampling)"
)
_TOTAL_ROUNDS = flags.DEFINE_integer("total_rounds", 5000, "rounds of training")
_EPSILON = flags.DEFINE_float("epsilon", None, "epsilon to spend")
_NOISE_MULTIPLIER = flags.DEFINE_float(
    "noise_multiplier", None, "standard deviation of the noise on the sum of updates, in clip norms"
)
_DELTA = flags.DEFINE_float("delta", None, "delta, a probability; none means users^-1.1")
_SIMULATED = flags.DEFINE_integer(
    "simulated_clients_per_round", None, "clients of the larger cohort whose noise is simulated"
)
_SAMPLING = flags.DEFINE_enum(
    "client_sampling", Sampling.POISSON.value, [each.value for each in Sampling], "how cohorts are drawn"
)
_MECHANISM = flags.DEFINE_enum(
    "mechanism",
    Mechanism.GAUSSIAN.value,
    [each.value for each in Mechanism],
    "gaussian: fresh noise in every round; tree: DP-FTRL, which needs cyclic cohorts",
)
_PUBLISHED_NOISE = flags.DEFINE_bool(
    "published_noise", False, "the noise ml-flair would use for --epsilon: far too much"
)
_TABLE = flags.DEFINE_bool("table", False, "one line for each of several cohort sizes")
_JSON = flags.DEFINE_bool("json", False, "print JSON")


def main() -> None:
    """Answers on stdout."""
    question = planner.Question(
        num_users=_NUM_USERS.value,
        cohort=_CLIENTS_PER_ROUND.value,
        total_rounds=_TOTAL_ROUNDS.value,
        epsilon=_EPSILON.value,
        noise_multiplier=_NOISE_MULTIPLIER.value,
        delta=_DELTA.value,
        simulated_cohort=_SIMULATED.value,
        sampling=Sampling(_SAMPLING.value),
        mechanism=Mechanism(_MECHANISM.value),
        published_noise=_PUBLISHED_NOISE.value,
    )
    planner.check_question(question)
    if _TABLE.value:
        if question.simulated_cohort is not None:
            raise FlairError("--table varies the cohort itself: leave out --simulated_clients_per_round")
        _print_table(question)
        return
    found = planner.answer(question)
    print(json.dumps(found, indent=2) if _JSON.value else planner.answer_text(found))


def _print_table(question: planner.Question) -> None:
    cohorts = planner.table_cohorts(question.num_users, question.cohort)
    questions = [dataclasses.replace(question, cohort=cohort) for cohort in cohorts]
    if _JSON.value:
        print(json.dumps([planner.answer(each) for each in questions], indent=2))
        return
    for number, each in enumerate(questions):
        found = planner.answer(each)
        if number == 0:
            print(planner.table_header(found))
        print(planner.table_row(found), flush=True)


if __name__ == "__main__":
    command.run(main)
