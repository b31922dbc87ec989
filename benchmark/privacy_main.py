"""Plans differential privacy before training: how much noise, what epsilon, how many rounds.

Give --epsilon for the noise it needs, --noise_multiplier for the epsilon it costs, or both for the rounds they allow;
--table repeats the answer for other cohort sizes. Trains nothing and needs no data.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

from benchmark.privacy import comparison, planner
from benchmark.privacy.accounting import MAX_ROUNDS
from benchmark.privacy.request import (
    AUTO,
    LEAST_NOISE,
    MOST_BANDED_ROUNDS,
    MOST_BANDS,
    MOST_NOISE,
    MOST_USERS,
    Mechanism,
    PrivacyRequest,
    Sampling,
    bands_from,
)
from benchmark.privacy.spending import read_spending
from benchmark.run import command
from benchmark.run.flags import Flags, Role, Table, boolean, choice, integer, number, path, paths, text
from flair.dataset.catalog import NUM_USERS
from flair.errors import FlairError
from flair.files import atomic
from flair.terminal.progress import Progress

FLAGS: Table = (
    integer("num_users", NUM_USERS["train"], "users of the training split", Role.RESULT, least=2, most=MOST_USERS),
    integer("clients_per_round", 200, "clients of a round (expected, with Poisson sampling)", Role.RESULT, least=1),
    integer(
        "total_rounds",
        5000,
        f"rounds of training; with banded noise at most {MOST_BANDED_ROUNDS:,}",
        Role.RESULT,
        least=1,
        most=MAX_ROUNDS,
    ),
    number("epsilon", None, "epsilon to spend", Role.RESULT, above=0),
    number(
        "noise_multiplier",
        None,
        "standard deviation of the noise on the sum of updates, in clip norms",
        Role.RESULT,
        least=LEAST_NOISE,
        most=MOST_NOISE,
    ),
    number("delta", None, "delta; none means users^-1.1", Role.RESULT, above=0, below=1),
    integer(
        "simulated_clients_per_round",
        None,
        "clients of the cohort whose noise is simulated, --clients_per_round or more",
        Role.RESULT,
        least=1,
    ),
    choice("client_sampling", Sampling.POISSON, Sampling, "how cohorts are drawn", Role.RESULT),
    choice(
        "mechanism",
        Mechanism.GAUSSIAN,
        Mechanism,
        "gaussian: fresh noise in every round; banded: noise that later rounds take back in part; tree: DP-FTRL, which "
        "needs cyclic cohorts",
        Role.RESULT,
    ),
    text(
        "bands",
        AUTO,
        f"bands of --mechanism=banded (at least 1 and at most {MOST_BANDS:,}); auto: those with the least noise",
        Role.RESULT,
    ),
    boolean("published_noise", "the noise ml-flair would use for --epsilon: far too much", Role.RESULT),
    integer(
        "num_weights", None, "weights that train: prints how long the noise on all of them is", Role.RESULT, least=1
    ),
    paths(
        "also_spent",
        None,
        "results about the same users, of benchmark.analytics_main or privacy.json of runs, whose spending is added",
        Role.RESULT,
    ),
    boolean("table", "one line for each of several cohort sizes", Role.RESULT),
    boolean(
        "compare",
        "all mechanisms side by side at --epsilon, or 1, 2, 4 and 8; with --table for several cohorts from "
        "--clients_per_round on",
        Role.RESULT,
    ),
    path("output_file", None, "with --compare: also draw it, as a PNG file", Role.PLACE, was="figure"),
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
        bands=bands_from(flags.bands),
    )
    if flags.also_spent is not None and (flags.table or flags.compare):
        raise FlairError("--also_spent: --table and --compare have no column for a total; leave them or it out")
    if flags.compare:
        _compare(flags, request)
        return
    if flags.output_file is not None:
        raise FlairError(f"--output_file={flags.output_file} has no effect without --compare; add that or leave it out")
    planner.check(flags.num_users, request)
    if flags.table:
        if request.simulated_cohort is not None:
            raise FlairError("--table varies the cohort itself: leave out --simulated_clients_per_round")
        _print_table(flags.num_users, request, flags.num_weights, flags.json)
        return
    spent_before = read_spending(flags.also_spent or (), flags.num_users)
    found = planner.answer(flags.num_users, request, flags.num_weights, spent_before)
    print(json.dumps(found, indent=2) if flags.json else planner.answer_text(found))


def _compare(flags: Flags, request: PrivacyRequest) -> None:
    varied = ("noise_multiplier", "simulated_clients_per_round", "client_sampling", "mechanism", "bands")
    for name in (*varied, "published_noise"):
        if flags.is_changed(name):
            raise FlairError(f"--{name} has no effect with --compare, which sets it itself; leave it out")
    if flags.output_file is not None:
        if not flags.output_file.endswith(".png"):
            raise FlairError(f"--output_file={flags.output_file}: expected the name of a file that ends in .png")
        atomic.destination(flags.output_file)
    epsilons = comparison.EPSILONS if request.epsilon is None else (request.epsilon,)
    planner.check(flags.num_users, dataclasses.replace(request, epsilon=epsilons[0]))
    cohorts = comparison.cohorts_from(request.cohort, flags.num_users) if flags.table else [request.cohort]
    found = []
    with Progress(None, "comparing", "plan") as progress:
        for entry in comparison.side_by_side(flags.num_users, request, cohorts, epsilons, flags.num_weights):
            found.append(entry)
            progress.add(1)
    if not found:
        raise FlairError("--compare: no noise reaches the epsilon by any mechanism; ask for more, or a larger --delta")
    if flags.json:
        print(json.dumps([one._asdict() for one in found], indent=2))
    else:
        print(comparison.comparison_text(flags.num_users, request, found, flags.num_weights))
    if flags.output_file is not None:
        print(f"figure: {comparison.draw(found, Path(flags.output_file))}", file=sys.stderr)


def _print_table(num_users: int, request: PrivacyRequest, num_weights: int | None, as_json: bool) -> None:
    asked = [dataclasses.replace(request, cohort=one) for one in planner.table_cohorts(num_users, request.cohort)]
    if request.bands is not None:
        asked = [one for one in asked if one.cohort == request.cohort or one.most_bands(num_users) >= request.bands]
    answers = (planner.answer(num_users, one, num_weights) for one in asked)
    if as_json:
        print(json.dumps(list(answers), indent=2))
        return
    for place, found in enumerate(answers):
        if place == 0:
            print(planner.table_header(found))
        print(planner.table_row(found), flush=True)


if __name__ == "__main__":
    command.run(main, FLAGS)
