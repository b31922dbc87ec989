"""The statement says everything it must, warns where it must, and its text and JSON say the same."""

import json
import math
import re

import pytest

from benchmark.privacy.accounting import replace_one_epsilon
from benchmark.privacy.adaptive import clipped_count_stddev
from benchmark.privacy.caveats import SMALL_USERS_TIMES_DELTA, KeyState, RunRecord, caveats
from benchmark.privacy.request import Mechanism, Sampling
from benchmark.privacy.rounding import rounded_up, small_delta
from benchmark.privacy.statement import headline, make_statement, statement_text, write_statement
from tests.support.privacy import plan_of

SMALL = {"num_users": 500, "cohort": 20, "total_rounds": 40}
CLIPS = [0.1 * 1.01**i for i in range(30)]


def _adaptive(plan, **change):
    stddev = clipped_count_stddev(plan.request.cohort, plan.run_noise_multiplier)
    return RunRecord(
        **{
            "rounds_completed": 30,
            "clip_norms": CLIPS,
            "target_unclipped_quantile": 0.4,
            "clipped_count_stddev": stddev,
            **change,
        }
    )


@pytest.fixture(scope="module")
def plans():
    return {
        "poisson": plan_of(**SMALL, epsilon=4.0),
        "uniform": plan_of(**SMALL, epsilon=4.0, sampling=Sampling.UNIFORM),
        "simulated": plan_of(**SMALL, epsilon=4.0, simulated_cohort=100),
        "published": plan_of(**SMALL, epsilon=4.0, published_noise=True),
        "fixed cohort": plan_of(**SMALL, noise_multiplier=9.0, sampling=Sampling.FIXED),
        "tree": plan_of(**SMALL, epsilon=4.0, sampling=Sampling.CYCLIC, mechanism=Mechanism.TREE),
        "banded": plan_of(**SMALL, noise_multiplier=2.0, mechanism=Mechanism.BANDED, bands=4),
        "banded cyclic": plan_of(
            **SMALL, noise_multiplier=4.0, mechanism=Mechanism.BANDED, bands=4, sampling=Sampling.CYCLIC
        ),
        "simulated uniform": plan_of(**SMALL, epsilon=4.0, simulated_cohort=100, sampling=Sampling.UNIFORM),
        "weak": plan_of(**SMALL, noise_multiplier=0.4),
        "large delta": plan_of(**SMALL, noise_multiplier=1.0, delta=0.01),
        "small delta": plan_of(**SMALL, noise_multiplier=1.0, delta=1e-6),
    }


def _numbers(value, place=()):
    if isinstance(value, dict):
        for key, inner in value.items():
            if key not in ("caveats", "clip_norms", "format"):
                yield from _numbers(inner, (*place, key))
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield place, value


def _shown(place, number):
    """As the text has it: four significant digits, a claim never below its value."""
    if isinstance(number, int):
        return f"{number:,}"
    is_claim = {"epsilon", "own_epsilon", "replace_one_epsilon", "delta", "users_times_delta"} & set(place)
    shown = f"{number:.4g}"
    if is_claim and float(shown) < number:
        exponent = math.floor(math.log10(number))
        shown = f"{float(shown) + 10.0 ** (exponent - 3):.4g}"
    return shown


def _names(plan, run):
    return {caveat.name for caveat in caveats(plan, run)}


def test_statement_has_every_fact_of_the_run(plans):
    plan = plans["poisson"]
    statement = make_statement(plan, _adaptive(plan))
    assert statement["unit"] == "user"
    assert statement["adjacency"] == "one user added or removed"
    assert statement["sampling"]["assumed"] == "the same"
    assert statement["sampling"]["probability"] == 20 / 500
    assert (statement["users"], statement["clients_per_round"]) == (500, 20)
    assert statement["rounds"] == {"completed": 30, "planned": 40}
    assert statement["delta"] == 500**-1.1
    assert statement["target_epsilon"] == 4.0
    assert statement["accountant"]["name"] == "pld"
    assert re.fullmatch(r"dp-accounting \d+\.\d+(\.\d+)?", statement["accountant"]["library"])
    assert statement["epsilon"] == {
        "completed": {"pld": plan.epsilon_at(30, "pld"), "rdp": plan.epsilon_at(30, "rdp")},
        "planned": {"pld": plan.epsilon_at(40, "pld"), "rdp": plan.epsilon_at(40, "rdp")},
    }
    assert statement["epsilon"]["completed"]["pld"] < statement["epsilon"]["planned"]["pld"] <= 4.0
    assert statement["clipping"]["clip_norms"] == CLIPS
    noise = statement["noise"]
    composed = noise["sum_noise_multiplier"] ** -2 + (2 * noise["clipped_count_stddev"]) ** -2
    assert composed**-0.5 == pytest.approx(noise["run_noise_multiplier"])
    assert noise["bands"] is None
    assert make_statement(plans["banded"], RunRecord(30, CLIPS))["noise"]["bands"] == 4


@pytest.mark.parametrize(
    "name",
    [
        *("poisson", "uniform", "simulated", "simulated uniform", "published", "fixed cohort", "tree", "weak"),
        *("large delta", "banded", "banded cyclic"),
    ],
)
def test_text_has_every_number_and_every_caveat_of_the_json(plans, name):
    plan = plans[name]
    run = _adaptive(plan) if plan.request.mechanism is Mechanism.GAUSSIAN else RunRecord(30, CLIPS)
    statement = json.loads(json.dumps(make_statement(plan, run), allow_nan=False))
    text = statement_text(statement)
    shown = set(re.findall(r"(?<![\w.-])\d[\d,]*(?:\.\d+)?(?:e[+-]\d+)?(?![\w-])", text))
    missing = [one for one in _numbers(statement) if _shown(*one) not in shown]
    assert missing == []
    squeezed = " ".join(text.split())
    for caveat in statement["caveats"]:
        assert f"[{caveat['severity']}] {caveat['name']}: {caveat['text']}" in squeezed
    rows = dict(re.findall(r"^(\S.*?):\s{2,}(.*)$", text, re.MULTILINE))
    assert rows["epsilon, rounds completed, PLD"] == _shown(("epsilon",), statement["epsilon"]["completed"]["pld"])
    assert rows["cohorts drawn"] == statement["sampling"]["used"]
    assert rows["adjacency"] == statement["adjacency"]
    assert rows["delta"] == _shown(("delta",), statement["delta"])
    assert rows["accountant"] == "pld (" + statement["accountant"]["library"] + ")"


def test_simulated_cohort_denies_the_epsilon_first_of_all(plans):
    plan = plans["simulated"]
    statement = make_statement(plan, _adaptive(plan))
    assert statement["own_epsilon"] == plan.own_epsilon_at(30) > statement["epsilon"]["completed"]["pld"]
    assert statement["caveats"][0]["severity"] == "critical"
    assert statement["caveats"][0]["name"] == "simulated cohort"
    headline = " ".join(statement_text(statement).split("\n\n")[1].split())
    assert "THIS RUN DOES NOT" in headline
    assert f"its own epsilon is {_shown(('own_epsilon',), statement['own_epsilon'])}" in headline


def test_fixed_size_sampling_says_what_is_assumed_and_what_is_proved(plans):
    plan = plans["uniform"]
    statement = make_statement(plan, _adaptive(plan))
    assert "NOT what was done" in statement["sampling"]["assumed"]
    assert statement["replace_one_epsilon"] == plan.replace_one_epsilon_at(30) > plan.epsilon_at(30)
    assert "fixed-size sampling" in _names(plan, _adaptive(plan))
    headline = " ".join(statement_text(statement).split("\n\n")[1].split())
    assert "HAD cohorts been drawn by Poisson" in headline


def test_a_plain_run_carries_what_no_run_covers_and_nothing_else(plans):
    assert _names(plans["poisson"], _adaptive(plans["poisson"], noise_key=KeyState.DELETED)) == {
        "un-noised measurements",
        "tuning",
        "evaluation users",
        "unit",
        "trusted server",
        "floating point",
        "large delta",
    }


@pytest.mark.parametrize(
    ("plan", "change", "name"),
    [
        ("published", {}, "published noise"),
        ("fixed cohort", {}, "fixed cohort"),
        ("weak", {}, "weak guarantee"),
        ("large delta", {}, "large delta"),
        ("poisson", {"artificial_users": True}, "artificial users"),
        ("poisson", {"restored_model": True}, "restored weights"),
        ("poisson", {"noise_key": KeyState.PRESENT}, "noise key"),
        ("poisson", {"noise_key": KeyState.GIVEN}, "noise key file"),
        ("poisson", {"drawn_by_tff": True}, "noise of TFF's runtime"),
        ("poisson", {"target_unclipped_quantile": 0.01}, "collapsing clip"),
        ("poisson", {"clients_looked_at": True}, "clients looked at"),
    ],
)
def test_caveats_come_where_they_belong(plans, plan, change, name):
    assert name in _names(plans[plan], _adaptive(plans[plan], **change))
    plain = _adaptive(plans["small delta"], noise_key=KeyState.DELETED)
    assert name not in _names(plans["small delta"], plain)


@pytest.mark.parametrize(
    ("key", "first"),
    [
        (KeyState.PRESENT, "WHAT FOLLOWS HOLDS ONLY WHILE noise.key in the run's folder IS SECRET"),
        (KeyState.GIVEN, "WHAT FOLLOWS HOLDS ONLY WHILE the file given as --noise_key_file IS SECRET"),
        (KeyState.DELETED, "After 30 of 40 rounds"),
    ],
)
@pytest.mark.parametrize("name", ["poisson", "uniform", "simulated"])
def test_the_headline_begins_with_who_could_take_the_noise_away(plans, name, key, first):
    statement = make_statement(plans[name], _adaptive(plans[name], noise_key=key))
    assert statement["noise_key"] == key.value
    assert headline(statement).startswith(first)
    assert "provided that only the models and clip norms of this run are released" in headline(statement)


def test_an_older_statement_says_that_its_noise_followed_from_the_seed(plans):
    statement = make_statement(plans["poisson"], _adaptive(plans["poisson"]))
    older = {name: value for name, value in statement.items() if name not in ("noise_key", "users_times_delta")}
    assert headline(older).startswith("WHAT FOLLOWS HOLDS ONLY WHILE the --seed")
    assert statement_text({**older, "format": 1})


def test_users_times_delta_is_said_where_it_is_not_small(plans):
    for name, shown in (("poisson", True), ("small delta", False)):
        statement = make_statement(plans[name], _adaptive(plans[name]))
        assert statement["users_times_delta"] == 500 * statement["delta"]
        assert ("Users * delta = 0.5372 is not small" in headline(statement)) == shown


def test_a_claim_is_rounded_up():
    """An epsilon of 2.0003 was printed as 2."""
    plan = plan_of(num_users=41_131, cohort=200, total_rounds=5000, noise_multiplier=0.9736)
    assert 2.0 < plan.epsilon < 2.0005
    text = statement_text(make_statement(plan, RunRecord(5000, [0.1])))
    assert "(2.001, 8.403e-06)-differential privacy" in " ".join(text.split())


@pytest.mark.parametrize("name", ["poisson", "uniform", "simulated", "simulated uniform"])
def test_what_makes_the_claim_false_is_said_in_the_claim_itself(plans, name):
    said = headline(make_statement(plans[name], _adaptive(plans[name], artificial_users=True, restored_model=True)))
    assert "for one artificial user, who is NOT A PERSON (--iid)" in said
    assert "and that the weights it started from were made without these users' photos" in said
    plain = headline(make_statement(plans[name], _adaptive(plans[name])))
    assert "for one user" in plain and "PERSON" not in plain and "weights" not in plain


def test_noise_of_tff_is_said_to_be_guessable_before_anything_else(plans):
    """TensorFlow seeds its generator with 32 bits, for all rounds of a process; the claim had no condition."""
    for key in KeyState:
        record = _adaptive(plans["poisson"], noise_key=key, drawn_by_tff=True)
        statement = make_statement(plans["poisson"], record)
        assert headline(statement).startswith("WHAT FOLLOWS DOES NOT HOLD AGAINST SOMEBODY WHO LOOKS FOR THE NOISE")
        assert statement["noise_drawn_by"] == "TFF"
        assert statement["caveats"][0]["severity"] == "critical"


def test_what_is_proved_of_a_simulated_run_with_fixed_cohorts_is_about_the_run_itself(plans):
    """The number was that of the imagined cohort, 10.86 where 876 is proved at FLAIR's setting."""
    plan = plan_of(
        num_users=41_131,
        cohort=200,
        total_rounds=5000,
        epsilon=2.0,
        simulated_cohort=5000,
        sampling=Sampling.UNIFORM,
    )
    proved = replace_one_epsilon(plan.run_noise_multiplier, 41_131, 200, 5000, plan.delta)
    assert plan.replace_one_epsilon_at(5000) == proved > 800
    said = headline(make_statement(plan, RunRecord(5000, [0.1])))
    assert "THIS RUN DOES NOT" in said and f"epsilon {rounded_up(proved)} is proved" in said
    assert "its own epsilon is" not in said


@pytest.mark.parametrize("num_users", [2, 99, 300, 41_131, 1_000_003])
def test_the_delta_that_is_advised_is_small(num_users):
    text = small_delta(num_users, SMALL_USERS_TIMES_DELTA)
    assert 0.004 < float(text) * num_users <= SMALL_USERS_TIMES_DELTA


def test_tree_statement_is_about_zeroing_out(plans):
    statement = make_statement(plans["tree"], RunRecord(30, [0.1] * 30))
    assert statement["adjacency"] == "one user's contributions replaced by zeros"
    assert "tree" in statement["noise"]["where"]
    assert "tree aggregation" in _names(plans["tree"], RunRecord(30, []))


def test_caveats_are_sorted_by_severity(plans):
    order = ["critical", "high", "medium", "note"]
    found = [order.index(c.severity) for c in caveats(plans["simulated"], _adaptive(plans["simulated"]))]
    assert found == sorted(found)


def test_fixed_clip_and_no_rounds_yet(plans):
    statement = make_statement(plans["poisson"], RunRecord(0, []))
    assert statement["clipping"]["kind"] == "fixed"
    assert statement["epsilon"]["completed"] == {"pld": 0.0, "rdp": 0.0}
    assert "clip norm over the rounds:          -" in statement_text(statement)


def test_an_infinite_epsilon_is_null():
    plan = plan_of(**SMALL, noise_multiplier=1.0, delta=1e-18)
    statement = make_statement(plan, RunRecord(30, CLIPS))
    assert statement["epsilon"]["planned"]["pld"] is None
    assert statement["epsilon"]["planned"]["rdp"] > 0
    assert "the models have (infinite (NO GUARANTEE), 1e-18)-differential privacy" in headline(statement)
    json.dumps(statement, allow_nan=False)


def test_statement_is_written_as_text_and_json(plans, tmp_path):
    statement = make_statement(plans["poisson"], RunRecord(30, CLIPS))
    write_statement(tmp_path, statement)
    assert (tmp_path / "privacy.txt").read_text() == statement_text(statement)
    assert json.loads((tmp_path / "privacy.json").read_text()) == statement
    assert sorted(path.name for path in tmp_path.iterdir()) == ["privacy.json", "privacy.txt"]


@pytest.mark.parametrize("sampling", Sampling)
def test_without_noise_the_statement_claims_nothing(sampling):
    plan = plan_of(**SMALL, noise_multiplier=0.0, sampling=sampling)
    statement = make_statement(plan, RunRecord(rounds_completed=30, clip_norms=[0.1] * 30, noise_key=KeyState.NONE))
    assert set(statement["epsilon"]["completed"].values()) == {None}
    assert (statement["noise"]["where"], statement["noise_drawn_by"], statement["noise_key"]) == ("none", None, "none")
    text = statement_text(statement)
    assert text.startswith("PRIVACY STATEMENT\n\nNO PRIVACY: epsilon is infinite.")
    assert "infinite (NO GUARANTEE)" in text
    assert "differential privacy" not in text and "secret" not in text.lower()
    assert [caveat["name"] for caveat in statement["caveats"]] == ["no noise"]
