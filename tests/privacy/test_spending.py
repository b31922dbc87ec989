"""What was spent before adds up as dp_accounting adds it up by hand, and only where it may be added."""

from __future__ import annotations

import json

import dp_accounting
import pytest

from benchmark.privacy import planner
from benchmark.privacy.accounting import composed_epsilon, epsilon
from benchmark.privacy.caveats import KeyState, RunRecord
from benchmark.privacy.request import Mechanism, Sampling
from benchmark.privacy.rounding import rounded_up
from benchmark.privacy.spending import Release, as_json, check_can_add, read_spending, total_epsilon
from benchmark.privacy.statement import announcement, headline, make_statement, statement_text
from flair.errors import FlairError
from tests.support.commands import refused, run
from tests.support.privacy import answer_to, plan_of

SMALL = {"num_users": 500, "cohort": 20, "total_rounds": 40}
DELTA = 500**-1.1
BEFORE = Release(3.0, 1.0, 1, DELTA)
TRAINING = (0.9, 0.04, 40)
RELEASES = [(TRAINING, BEFORE[:3]), (TRAINING, (1.3, 0.02, 25), (5.0, 1.0, 3)), ((40.0, 0.5, 2000), (2.0, 1.0, 1))]


def _by_hand(accountant, releases):
    for noise, q, rounds in releases:
        event = dp_accounting.PoissonSampledDpEvent(q, dp_accounting.GaussianDpEvent(noise))
        accountant.compose(event, rounds)
    return accountant.get_epsilon(DELTA)


@pytest.mark.parametrize("releases", RELEASES)
def test_the_total_is_that_of_dp_accounting_by_hand(releases):
    pld = _by_hand(dp_accounting.pld.PLDAccountant(value_discretization_interval=5e-4), releases)
    rdp = _by_hand(dp_accounting.rdp.RdpAccountant(), releases)
    assert composed_epsilon("pld", releases, DELTA) == pytest.approx(pld, rel=2e-3)
    assert composed_epsilon("rdp", releases, DELTA) == pytest.approx(rdp, rel=1e-9)
    most = max(epsilon("pld", *one, DELTA) for one in releases)
    assert most < composed_epsilon("pld", releases, DELTA) < composed_epsilon("rdp", releases, DELTA)


def test_gaussian_mechanisms_add_up_as_one_with_less_noise():
    halves = ((4.0, 1.0, 1), (4.0, 1.0, 1))
    for name in ("pld", "rdp"):
        assert composed_epsilon(name, halves, DELTA) == pytest.approx(
            epsilon(name, 4.0 / 2**0.5, 1.0, 1, DELTA), rel=1e-5
        )


@pytest.mark.parametrize("name", ["pld", "rdp"])
def test_one_mechanism_alone_costs_what_it_costs_alone_and_none_costs_nothing(name):
    assert composed_epsilon(name, (TRAINING, (3.0, 1.0, 0)), DELTA) == epsilon(name, *TRAINING, DELTA)
    assert composed_epsilon(name, (), DELTA) == 0


def test_too_little_noise_for_pld_is_bounded_by_rdp():
    releases = ((0.004, 1.0, 1), (3.0, 1.0, 1))
    assert composed_epsilon("pld", releases, DELTA) == composed_epsilon("rdp", releases, DELTA) > 1e4


def test_of_a_simulated_cohort_the_run_itself_is_added():
    plan = plan_of(**SMALL, noise_multiplier=5.0, simulated_cohort=100)
    own = plan.run_noise_multiplier, 20 / 500, 40
    assert total_epsilon(plan, 40, [BEFORE], "rdp") == composed_epsilon("rdp", (own, BEFORE[:3]), plan.delta)
    assert total_epsilon(plan, 40, [BEFORE], "rdp") > plan.own_epsilon_at(40, "rdp") > plan.epsilon_at(40, "rdp")


def _write(path, **content):
    path.write_text(json.dumps(content), encoding="utf-8")
    return str(path)


def test_files_are_read_in_order(tmp_path):
    other = Release(1.5, 0.1, 7, 1e-5)
    one = _write(tmp_path / "one.json", users=500, spending=as_json([BEFORE]), answers=[1])
    two = _write(tmp_path / "two.json", users=500, spending=as_json([other, BEFORE]))
    assert read_spending([one, two], 500) == (BEFORE._replace(compositions=2), other)
    assert read_spending([one]) == (BEFORE,)
    assert read_spending([], 500) == ()


def test_many_different_mechanisms_are_refused_and_many_equal_ones_are_one(tmp_path):
    equal = _write(tmp_path / "equal.json", users=500, spending=as_json([BEFORE] * 5000))
    assert read_spending([equal], 500) == (BEFORE._replace(compositions=5000),)
    different = [BEFORE._replace(noise_multiplier=3.0 + place) for place in range(51)]
    path = _write(tmp_path / "different.json", users=500, spending=as_json(different))
    with pytest.raises(FlairError, match="51 different mechanisms were spent; expected at most 50"):
        read_spending([path], 500)


def test_more_noise_is_no_advice_where_the_past_alone_is_too_much():
    asked = {"num_users": 500, "cohort": 20, "total_rounds": 1, "epsilon": 0.1, "noise_multiplier": 2.0}
    found = answer_to(**asked, spent_before=[BEFORE])
    assert found["by"]["rdp"]["spent_epsilon"] == composed_epsilon("rdp", (BEFORE[:3],), DELTA)
    advice = "More was spent before.\nnext: the same question with a larger --epsilon"
    assert planner.answer_text(found).endswith(advice)


def test_affordable_rounds_are_those_that_what_was_spent_before_leaves():
    asked = {"num_users": 500, "cohort": 20, "total_rounds": 1, "epsilon": 4.0, "noise_multiplier": 2.0}
    for name in ("pld", "rdp"):
        rounds = answer_to(**asked, spent_before=[BEFORE])["by"][name]["rounds"]
        assert 0 < rounds < answer_to(**asked)["by"][name]["rounds"]
        plan = plan_of(**{**asked, "epsilon": None})
        assert total_epsilon(plan, rounds, [BEFORE], name) <= 4.0 < total_epsilon(plan, rounds + 1, [BEFORE], name)


_GOOD = {"noise_multiplier": 3.0, "sampling_probability": 1.0, "compositions": 1, "delta": 1e-5}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "no such file; expected the result of benchmark.analytics_main"),
        ("{", "is not JSON"),
        ("[]", "expected dict"),
        ('{"users": 500}', "has no spending that could be added"),
        ('{"users": 500, "spending": null}', "has no spending that could be added"),
        (json.dumps({"users": 500, "spending": [{**_GOOD, "delta": None}]}), "expected int or float, found NoneType"),
        (json.dumps({"users": True, "spending": [_GOOD]}), "expected int, found bool"),
        (json.dumps({"users": 499, "spending": [_GOOD]}), "is about 499 users, and here are 500"),
        (json.dumps({"users": 500, "spending": [{**_GOOD, "noise_multiplier": float("nan")}]}), "cannot have happened"),
        (json.dumps({"users": 500, "spending": [{**_GOOD, "noise_multiplier": -1.0}]}), "cannot have happened"),
        (json.dumps({"users": 500, "spending": [{**_GOOD, "sampling_probability": 1.1}]}), "cannot have happened"),
        (json.dumps({"users": 500, "spending": [{**_GOOD, "compositions": -1}]}), "cannot have happened"),
        (json.dumps({"users": 500, "spending": [{**_GOOD, "delta": float("inf")}]}), "cannot have happened"),
    ],
)
def test_a_file_that_says_no_spending_is_refused_in_one_line(tmp_path, text, message):
    path = tmp_path / "result.json"
    if text is not None:
        path.write_text(text, encoding="utf-8")
    with pytest.raises(FlairError) as error:
        read_spending([str(path)], 500)
    assert message in str(error.value)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "change",
    [
        {"sampling": Sampling.UNIFORM},
        {"sampling": Sampling.FIXED},
        {"sampling": Sampling.CYCLIC, "mechanism": Mechanism.TREE},
        {"mechanism": Mechanism.BANDED, "bands": 2},
    ],
)
def test_another_adjacency_is_refused_and_leaves_no_spending(change):
    plan = plan_of(**SMALL, noise_multiplier=3.0, **change)
    with pytest.raises(FlairError, match="--also_spent: epsilons add up for one user added or removed"):
        check_can_add(plan.request)
    with pytest.raises(FlairError, match="--also_spent"):
        answer_to(**SMALL, noise_multiplier=3.0, spent_before=[BEFORE], **change)
    if plan.request.mechanism is Mechanism.GAUSSIAN:  # what a tree costs beside others takes seconds
        assert make_statement(plan, RunRecord(40, [], noise_key=KeyState.DELETED))["spending"] is None


def test_the_statement_adds_up_and_says_so():
    plan = plan_of(**SMALL, noise_multiplier=1.0)
    statement = make_statement(plan, RunRecord(30, [0.1], noise_key=KeyState.DELETED, spent_before=[BEFORE]))
    own = plan.noise_multiplier, 20 / 500, 30
    total = {name: composed_epsilon(name, (own, BEFORE[:3]), plan.delta) for name in ("pld", "rdp")}
    assert statement["total_epsilon"]["completed"] == total
    assert statement["total_epsilon"]["planned"]["pld"] == total_epsilon(plan, 40, [BEFORE], "pld") > total["pld"]
    assert statement["epsilon"]["completed"]["pld"] == plan.epsilon_at(30, "pld") < total["pld"]
    assert "Together with what was spent on these users before (--also_spent)" in headline(statement)
    assert any(caveat["name"] == "spent before" for caveat in statement["caveats"])
    text = statement_text(json.loads(json.dumps(statement)))
    assert "spent before (--also_spent):        1 mechanism" in text
    assert "spent on these users before" in announcement(plan, 10, None, [BEFORE])[-1]
    plain = make_statement(plan, RunRecord(30, [0.1], noise_key=KeyState.DELETED))
    assert plain["total_epsilon"] is None and plain["spent_before"] is None
    assert "spent" not in headline(plain) and "spent before (--also_spent):        -" in statement_text(plain)


def test_a_run_that_a_rule_stopped_states_its_rounds_and_hands_on_the_planned_ones():
    plan = plan_of(**SMALL, noise_multiplier=1.0)
    facts = {"clip_norms": [0.1], "noise_key": KeyState.DELETED}
    plain, stopped = (make_statement(plan, RunRecord(30, **facts, may_stop_early=rule)) for rule in (False, True))
    assert stopped["epsilon"] == plain["epsilon"] and stopped["rounds"] == {"completed": 30, "planned": 40}
    assert [statement["spending"][0]["compositions"] for statement in (plain, stopped)] == [30, 40]
    (said,) = [caveat["text"] for caveat in stopped["caveats"] if caveat["name"] == "early stopping"]
    assert rounded_up(plan.epsilon_at(40)) in said
    complete = make_statement(plan, RunRecord(40, **facts, may_stop_early=True))
    assert complete == make_statement(plan, RunRecord(40, **facts))


def test_an_older_statement_without_the_fields_still_has_a_text():
    statement = make_statement(plan_of(**SMALL, noise_multiplier=1.0), RunRecord(30, [0.1]))
    older = {key: value for key, value in statement.items() if key not in ("spending", "spent_before", "total_epsilon")}
    assert "spent before (--also_spent):        -" in statement_text(older)


def test_a_run_hands_on_what_it_and_those_before_it_spent(tmp_path):
    first = plan_of(**SMALL, noise_multiplier=1.0)
    statement = make_statement(first, RunRecord(40, [0.1], noise_key=KeyState.DELETED, spent_before=[BEFORE]))
    path = _write(tmp_path / "privacy.json", **statement)
    spent = read_spending([path], 500)
    assert spent == (Release(first.noise_multiplier, 20 / 500, 40, first.delta), BEFORE)
    assert total_epsilon(first, 40, spent, "rdp") > statement["total_epsilon"]["completed"]["rdp"]


@pytest.mark.parametrize(
    "unsafe",
    [
        {"noise_key": KeyState.PRESENT},
        {"noise_key": KeyState.GIVEN},
        {"noise_key": KeyState.DELETED, "drawn_by_tff": True},
        {"noise_key": KeyState.DELETED, "artificial_users": True},
    ],
)
def test_a_run_whose_epsilon_may_not_hold_hands_on_nothing(unsafe):
    assert make_statement(plan_of(**SMALL, noise_multiplier=1.0), RunRecord(40, [0.1], **unsafe))["spending"] is None


_PLAN = ("--num_users=500", "--clients_per_round=20", "--total_rounds=40", "--epsilon=2")


def test_the_planner_prints_the_total(tmp_path):
    path = _write(tmp_path / "result.json", users=500, spending=as_json([BEFORE]))
    found = json.loads(run("benchmark.privacy_main", *_PLAN, f"--also_spent={path}", "--json").stdout)
    for name in ("pld", "rdp"):
        plan = plan_of(**SMALL, epsilon=2.0, accountant=name)
        assert found["by"][name]["total_epsilon"] == total_epsilon(plan, 40, [BEFORE], name)
    text = run("benchmark.privacy_main", *_PLAN, f"--also_spent={path}").stdout
    assert "  with what was spent before" in text and text.splitlines()[-1].endswith("--also_spent=FILE")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--also_spent={path}", "--table"], "--also_spent: --table and --compare have no column"),
        (["--also_spent={path}", "--compare"], "--also_spent: --table and --compare have no column"),
        (["--also_spent={path}", "--num_users=501"], "is about 500 users, and here are 501"),
        (["--also_spent={path}", "--client_sampling=uniform"], "not for gaussian noise with uniform cohorts"),
        (["--also_spent={path},missing.json"], "--also_spent=missing.json: no such file"),
    ],
)
def test_the_planner_refuses_in_one_line(tmp_path, flags, message):
    path = _write(tmp_path / "result.json", users=500, spending=as_json([BEFORE]))
    assert message in refused("benchmark.privacy_main", *_PLAN, *(flag.format(path=path) for flag in flags))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "--also_spent={path} has no effect without --epsilon or --noise_multiplier"),
        (["--epsilon=2", "--iid"], "--also_spent: artificial clients (--iid)"),
        (["--epsilon=2", "--aggregator=tree"], "--also_spent: epsilons add up for one user added or removed"),
        (["--epsilon=2", "--client_sampling=uniform"], "--also_spent: epsilons add up for one user added or removed"),
        (["--epsilon=2", "--also_spent=missing.json"], "--also_spent=missing.json: no such file"),
        (["--epsilon=2", "--clients_per_round=4"], "is about 500 users, and here are 32"),
    ],
)
def test_training_refuses_in_one_line(tmp_path, tfrecords, flags, message):
    path = _write(tmp_path / "result.json", users=500, spending=as_json([BEFORE]))
    given = [f"--tfrecords_dir={tfrecords}", f"--save_model_dir={tmp_path}", f"--also_spent={path}", *flags]
    assert message.format(path=path) in refused("benchmark.federated_main", *given)
