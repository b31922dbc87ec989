"""Plans differential privacy before training: how much noise, what epsilon, how many rounds.

Give --epsilon for the noise it needs, --noise_multiplier for the epsilon it costs, or both for the rounds they allow;
--table repeats the answer for other cohort sizes. Trains nothing and needs no data.
"""

from __future__ import annotations

import dataclasses
import json

from benchmark.privacy import planner
from benchmark.privacy.request import Mechanism, PrivacyRequest, Sampling
from benchmark.run import command
from benchmark.run.flags import Flags, Role, Table, boolean, choice, integer, number
from flair.dataset.catalog import NUM_USERS
from flair.errors import FlairError

FLAGS: Table = (
    integer("num_users", NUM_USERS["train"], "users of the training split", Role.RESULT),
    integer("clients_per_round", 200, "clients of a round (expected, with Poisson sampling)", Role.RESULT),
    integer("total_rounds", 5000, "rounds of training", Role.RESULT),
    number("epsilon", None, "epsilon to spend", Role.RESULT),
    number(
        "noise_multiplier", None, "standard deviation of the noise on the sum of updates, in clip norms", Role.RESULT
    ),
    number("delta", None, "delta, a probability; none means users^-1.1", Role.RESULT),
    integer("simulated_clients_per_round", None, "clients of the larger cohort whose noise is simulated", Role.RESULT),
    choice("client_sampling", Sampling.POISSON, Sampling, "how cohorts are drawn", Role.RESULT),
    choice(
        "mechanism",
        Mechanism.GAUSSIAN,
        Mechanism,
        "gaussian: fresh noise in every round; banded: noise that later rounds take back in part; tree: DP-FTRL, which "
        "needs cyclic cohorts",
        Role.RESULT,
    ),
    integer("bands", None, "bands of --mechanism=banded; none: those with the least noise", Role.RESULT),
    boolean("published_noise", "the noise ml-flair would use for --epsilon: far too much", Role.RESULT),
    integer(
        "num_weights", None, "weights that train: prints how long the noise on all of them is", Role.RESULT, least=1
    ),
    boolean("table", "one line for each of several cohort sizes", Role.RESULT),
    boolean("json", "print JSON", Role.RESULT),
)


def main(flags: Flags) -> None:
    """Answers on stdout."""
    request = PrivacyRequest(
        cohort=flags.clients_per_round,
        total_rounds=flags.total_rounds,
        epsilon=flags.epsilon,
        noise_multiplier=flags.noise_multiplier,
        delta=flags.delta,
        simulated_cohort=flags.simulated_clients_per_round,
        sampling=Sampling(flags.client_sampling),
        mechanism=Mechanism(flags.mechanism),
        published_noise=flags.published_noise,
        bands=flags.bands,
    )
    planner.check(flags.num_users, request)
    if flags.table:
        if request.simulated_cohort is not None:
            raise FlairError("--table varies the cohort itself: leave out --simulated_clients_per_round")
        _print_table(flags.num_users, request, flags.num_weights, flags.json)
        return
    found = planner.answer(flags.num_users, request, flags.num_weights)
    print(json.dumps(found, indent=2) if flags.json else planner.answer_text(found))


def _print_table(num_users: int, request: PrivacyRequest, num_weights: int | None, as_json: bool) -> None:
    cohorts = planner.table_cohorts(num_users, request.cohort)
    answers = (planner.answer(num_users, dataclasses.replace(request, cohort=one), num_weights) for one in cohorts)
    if as_json:
        print(json.dumps(list(answers), indent=2))
        return
    for place, found in enumerate(answers):
        if place == 0:
            print(planner.table_header(found))
        print(planner.table_row(found), flush=True)


if __name__ == "__main__":
    command.run(main, FLAGS)
