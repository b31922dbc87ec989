"""The planner on the command line and its answers."""

from __future__ import annotations

import json
import re
from functools import partial

import pytest

from benchmark.privacy import planner
from benchmark.privacy.request import Mechanism, Sampling
from flair.errors import FlairError
from tests.support.commands import only_line, run
from tests.support.privacy import answer_to, plan_of

_run = partial(run, "benchmark.privacy_main")
SMALL = {"num_users": 500, "cohort": 20, "total_rounds": 40}


def test_noise_for_an_epsilon_as_the_readme_asks():
    done = _run("--epsilon=2", "--num_users=41131", "--clients_per_round=200", "--total_rounds=5000")
    assert done.stderr == ""
    pld, rdp = re.search(r"^noise multiplier \(sigma\)\s+(\S+)\s+(\S+)$", done.stdout, re.MULTILINE).groups()
    assert float(pld) == pytest.approx(0.975, rel=2e-3)
    assert float(rdp) == pytest.approx(1.025, rel=2e-3)
    assert "delta 8.403e-06" in done.stdout
    assert done.stdout.splitlines()[-1].startswith("next: python -m benchmark.federated_main --tfrecords_dir=DIR --eps")


def test_json_on_the_command_line_is_the_planners_answer():
    done = _run("--noise_multiplier=1.5", "--num_users=500", "--clients_per_round=20", "--total_rounds=40", "--json")
    assert json.loads(done.stdout) == answer_to(**SMALL, noise_multiplier=1.5)


def test_table_on_the_command_line_has_a_line_for_each_cohort():
    done = _run("--noise_multiplier=2", "--num_users=500", "--clients_per_round=30", "--total_rounds=10", "--table")
    lines = [line.split() for line in done.stdout.splitlines()[1:]]
    assert [int(line[0]) for line in lines] == [1, 2, 5, 10, 20, 30, 50, 100, 200, 500]
    epsilons = [float(line[2]) for line in lines]
    assert epsilons == sorted(epsilons)
    assert epsilons[-1] == pytest.approx(
        plan_of(num_users=500, cohort=500, total_rounds=10, noise_multiplier=2.0).epsilon, rel=1e-3
    )


def test_help_exits_0_and_names_the_flags():
    done = _run("--help")
    for flag in ("--epsilon", "--noise_multiplier", "--total_rounds", "--[no]table", "--[no]json", "--delta"):
        assert flag in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--epsilon=2", "--num_users=10", "--clients_per_round=11"],
            "--clients_per_round=11: there are only 10 users",
        ),
        (["--epsilon=2", "--mechanism=tree"], "--client_sampling=cyclic"),
        (["--epsilon=2", "--simulated_clients_per_round=900", "--table"], "--table varies the cohort"),
        ([], "needs --epsilon"),
        (["--compare", "--mechanism=tree"], "--mechanism has no effect with --compare"),
        (["--compare", "--noise_multiplier=1"], "--noise_multiplier has no effect with --compare"),
        (["--compare", "--table", "--num_users=100"], "--clients_per_round=200: there are only 100 users"),
        (["--epsilon=2", "--mechanism=banded", "--bands=1_0"], "--bands=1_0: expected a whole number, or auto"),
        (["--compare", "--epsilon=8", "--published_noise"], "--published_noise has no effect with --compare"),
        (
            ["--compare", "--output_file=results.json"],
            "--output_file=results.json: expected the name of a file that ends in .png",
        ),
        (["--epsilon=2", "--output_file=noise.png"], "--output_file=noise.png has no effect without --compare"),
    ],
)
def test_refusals_are_one_line_and_exit_1(arguments, message):
    done = _run(*arguments, code=1)
    assert done.stdout == ""
    assert message in only_line(done)


@pytest.mark.parametrize(
    "flag",
    [
        *("--epsilon=0", "--delta=1", "--total_rounds=0", "--clients_per_round=0", "--noise_multiplier=-1"),
        *(f"--noise_multiplier={value}" for value in ("nan", "inf", "-inf")),
    ],
)
def test_a_number_out_of_bounds_is_wrong_usage(flag):
    done = _run(flag, code=2)
    assert done.stdout == ""
    assert re.search(f"{flag}: expected a (whole )?number (of at least|above) ", only_line(done))


def test_a_flagfile_that_is_no_text_is_one_line(tmp_path):
    (tmp_path / "flags").write_bytes(b"\xd0\xff\x00")
    assert "is not UTF-8 text" in only_line(_run(f"--flagfile={tmp_path / 'flags'}", code=2))


def test_a_billion_rounds_are_answered_and_more_are_refused():
    given = {"num_users": 41131, "cohort": 200, "noise_multiplier": 325.0}
    assert answer_to(**given, total_rounds=10**9)["by"]["pld"]["epsilon"] < 2
    with pytest.raises(FlairError, match="--total_rounds=1000000001: expected at most 1,000,000,000"):
        answer_to(**given, total_rounds=10**9 + 1)


def test_wrong_usage_exits_2():
    _run("--epsilon=plenty", code=2)
    _run("--client_sampling=lottery", code=2)


def test_rounds_affordable_are_the_last_that_fit():
    found = answer_to(**SMALL, epsilon=3.0, noise_multiplier=1.2)
    for name in ("pld", "rdp"):
        rounds = found["by"][name]["rounds"]
        plan = plan_of(**{**SMALL, "total_rounds": rounds}, noise_multiplier=1.2)
        assert plan.epsilon_at(rounds, name) <= 3.0 < plan.epsilon_at(rounds + 1, name)
    assert found["by"]["pld"]["rounds"] > found["by"]["rdp"]["rounds"]


def test_not_one_round_affordable_is_said():
    found = answer_to(**SMALL, epsilon=0.01, noise_multiplier=0.5)
    assert found["by"]["pld"]["rounds"] == 0
    text = planner.answer_text(found)
    assert "Not even one round is affordable" in text
    assert text.splitlines()[-1].startswith("next: the same question with a larger")


def test_the_next_command_takes_the_flags_of_federated_main():
    fixed = planner.answer_text(answer_to(**SMALL, epsilon=8.0, sampling=Sampling.FIXED)).splitlines()[-1]
    assert "--reuse_clients" in fixed
    assert "--client_sampling" not in fixed


def test_almost_no_noise_has_an_epsilon_too():
    answers = [answer_to(**SMALL, noise_multiplier=noise)["by"]["pld"]["epsilon"] for noise in (1e-3, 4e-3, 6e-3)]
    assert answers == sorted(answers, reverse=True)


def test_simulated_cohorts_and_fixed_sizes_carry_their_warnings():
    simulated = answer_to(**SMALL, epsilon=4.0, simulated_cohort=100)
    assert simulated["by"]["pld"]["own_epsilon"] > 4.0 >= simulated["by"]["pld"]["epsilon"]
    assert "does NOT have the stated epsilon" in planner.answer_text(simulated)
    uniform = answer_to(**SMALL, epsilon=4.0, sampling=Sampling.UNIFORM)
    assert uniform["by"]["rdp"]["replace_one_epsilon"] > 4.0
    assert "assumes Poisson sampling, which fixed-size cohorts are not" in planner.answer_text(uniform)


def test_tree_planning_answers_all_three_questions():
    tree = {**SMALL, "sampling": Sampling.CYCLIC, "mechanism": Mechanism.TREE}
    noise = answer_to(**tree, epsilon=4.0)["by"]["pld"]["noise_multiplier"]
    assert answer_to(**tree, noise_multiplier=noise)["by"]["pld"]["epsilon"] <= 4.0
    both = answer_to(**tree, epsilon=4.0, noise_multiplier=noise)
    assert both["by"]["pld"]["rounds"] >= 40
    assert "--client_sampling=cyclic --aggregator=tree" in planner.answer_text(both)
    assert min(both["price"].values()) > 1
    for times, other in zip(both["price"].values(), ("fresh noise with Poisson", "banded noise with"), strict=True):
        assert f"{times:.3g} times that of {other}" in planner.answer_text(both)
    assert answer_to(**SMALL, epsilon=4.0)["price"] == {}


def test_banded_planning_chooses_bands_and_says_when_they_do_not_pay():
    banded = {"num_users": 2_000, "total_rounds": 100, "mechanism": Mechanism.BANDED}
    found = answer_to(**banded, cohort=20, epsilon=8.0)
    assert found["bands"] > 1 > found["price"]["fresh"]
    assert f"--aggregator=banded --bands={found['bands']}" in planner.answer_text(found)
    assert "does not pay" not in planner.answer_text(found)
    given = answer_to(
        **banded, cohort=20, bands=found["bands"], noise_multiplier=found["by"]["pld"]["noise_multiplier"]
    )
    assert 0.998 * 8 < given["by"]["pld"]["epsilon"] <= 8.0
    large = answer_to(**banded, cohort=800, epsilon=1.0)
    assert (large["bands"], large["price"]["fresh"]) == (1, pytest.approx(1.0, rel=1e-3))
    assert "Banded noise does not pay here" in planner.answer_text(large)


def test_an_epsilon_that_only_pld_reaches_leaves_the_other_column_empty():
    found = answer_to(num_users=41_131, cohort=200, total_rounds=5000, epsilon=0.002)
    assert found["by"]["pld"]["epsilon"] <= 0.002
    assert set(found["by"]["rdp"].values()) == {None}
    assert "RDP cannot state an epsilon that low" in planner.answer_text(found)


def test_published_noise_is_disclosed():
    found = answer_to(**SMALL, epsilon=4.0, published_noise=True)
    right = answer_to(**SMALL, epsilon=4.0)
    assert found["by"]["pld"]["noise_multiplier"] > 2 * right["by"]["pld"]["noise_multiplier"]
    assert "The noise is ml-flair's for epsilon 4" in planner.answer_text(found)
    with pytest.raises(FlairError, match="--published_noise sets the noise multiplier"):
        answer_to(**SMALL, epsilon=4.0, noise_multiplier=1.0, published_noise=True)


def test_the_norm_of_the_noise_over_all_weights_that_train():
    flags = ("--epsilon=2", "--num_users=41131", "--clients_per_round=200", "--total_rounds=5000")
    for weights, norm in ((11_185_233, 16.29), (18_321, 0.6592), (8_721, 0.4548)):
        found = json.loads(_run(*flags, f"--num_weights={weights}", "--json").stdout)
        assert found["by"]["pld"]["noise_norm"] == pytest.approx(norm, rel=1e-3)
    assert "its norm over all weights" in _run(*flags, "--num_weights=8721").stdout
    few = ("--noise_multiplier=1", "--num_users=5", "--clients_per_round=2", "--total_rounds=10")
    header = _run(*few, "--num_weights=8721", "--table").stdout.splitlines()[0]
    assert header.endswith("its norm")


def test_compare_has_every_mechanism_and_draws_it(tmp_path):
    small = ("--num_users=200", "--clients_per_round=40", "--total_rounds=10", "--epsilon=4")
    done = _run("--compare", "--json", f"--output_file={tmp_path / 'noise.png'}", *small)
    found = json.loads(done.stdout)
    assert (tmp_path / "noise.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert [(one["mechanism"], one["bands"]) for one in found] == [
        ("fresh, poisson", None),
        *(("banded, poisson", bands) for bands in (2, 4, 5)),
        ("banded, cyclic", 5),
        ("tree, cyclic", None),
    ]
    assert [one["is_chosen"] for one in found] == [False, False, False, True, False, False]
    asked = {"num_users": 200, "cohort": 40, "total_rounds": 10, "epsilon": 4.0, "mechanism": Mechanism.BANDED}
    for one, request in (
        (found[1], {"bands": 2}),
        (found[-2], {"bands": 5, "sampling": Sampling.CYCLIC}),
        (found[-1], {"mechanism": Mechanism.TREE, "sampling": Sampling.CYCLIC}),
    ):
        assert one["noise"] == plan_of(**{**asked, **request}).noise_on_running_sum
    text = _run("--compare", "--num_weights=100", *small).stdout
    assert "its norm over 100 weights" in text
    norm = float(re.search(r"^fresh, poisson\s+(\S+)$", text, re.MULTILINE).group(1))
    assert norm == pytest.approx(10 * found[0]["noise"], rel=1e-3)
    assert re.search(r"^epsilon 4: banded noise (pays|does not pay), \d\.\d\d times fresh noise", text, re.MULTILINE)


def test_the_published_column_is_that_of_its_own_mechanism():
    """Cyclic cohorts that have as many bands as a row of Poisson cohorts once gave that row their number."""
    text = _run("--compare", "--num_users=100", "--clients_per_round=10", "--total_rounds=4", "--epsilon=2").stdout
    sampled, cyclic = re.findall(r"^  with the published column +4 +(\S+)$", text, re.MULTILINE)
    assert float(sampled) < 0.75 * float(cyclic)


def test_a_table_leaves_out_cohorts_that_are_too_large_for_the_bands():
    small = ("--num_users=60", "--clients_per_round=4", "--total_rounds=20", "--noise_multiplier=4")
    lines = _run("--table", *small, "--mechanism=banded", "--bands=6").stdout.splitlines()[1:]
    assert [int(line.split()[0]) for line in lines] == [1, 2, 4, 5, 10]


def test_compare_says_what_cannot_be_had_and_why():
    many = _run("--compare", "--epsilon=2", "--num_users=4", "--clients_per_round=1", "--total_rounds=100001")
    assert "1 client a round" in many.stdout and "nan" not in many.stdout
    assert "epsilon 2: not every mechanism can be had" in many.stdout
    assert "banded noise is left out: it is shaped for at most 100,000 rounds" in many.stdout
