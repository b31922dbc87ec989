"""Local privacy: its epsilon against closed forms, what its statement says, and where its noise comes from."""

from __future__ import annotations

import math

import dp_accounting
import numpy as np
import pytest
from scipy import optimize, stats

from benchmark.privacy.caveats import KeyState
from benchmark.privacy.local import LocalPlan, make_local_plan, make_local_statement
from benchmark.privacy.noise import client_normals
from benchmark.privacy.noise_key import NoiseKey
from benchmark.privacy.request import PrivacyRequest, Sampling
from benchmark.privacy.statement import statement_rows, statement_text

DELTA = 1e-5


def _plan(noise_multiplier, rounds=40, sampling=Sampling.UNIFORM) -> LocalPlan:
    request = PrivacyRequest(cohort=20, total_rounds=rounds, delta=DELTA, sampling=sampling)
    return make_local_plan(500, noise_multiplier, request)


def _gaussian_epsilon(sensitivity, deviation):
    """Of the Gaussian mechanism, exactly (theorem 8 of Balle and Wang 2018, https://arxiv.org/abs/1805.06530)."""
    ratio = sensitivity / deviation

    def excess(epsilon):
        tail = stats.norm.logcdf(-ratio / 2 - epsilon / ratio)
        return stats.norm.cdf(ratio / 2 - epsilon / ratio) - math.exp(epsilon + tail) - DELTA

    return optimize.brentq(excess, 0, 500)


@pytest.mark.parametrize("noise", [1.0, 3.0, 20.0])
def test_a_round_is_the_gaussian_mechanism_whose_sensitivity_is_two_clips(noise):
    clip = 0.3
    exact = _gaussian_epsilon(2 * clip, noise * clip)
    assert exact <= _plan(noise).of_round("pld") <= 1.02 * exact


@pytest.mark.parametrize(
    ("sampling", "participations"), [(Sampling.UNIFORM, 40), (Sampling.POISSON, 40), (Sampling.CYCLIC, 2)]
)
def test_rounds_compose_over_a_clients_participations(sampling, participations):
    plan = _plan(5.0, sampling=sampling)
    assert plan.participations(40) == participations
    event = dp_accounting.SelfComposedDpEvent(dp_accounting.GaussianDpEvent(5.0 / 2), participations)
    composed = dp_accounting.rdp.RdpAccountant().compose(event).get_epsilon(DELTA)
    assert plan.epsilon_at(40, "rdp") == pytest.approx(composed, rel=1e-3)
    exact = _gaussian_epsilon(2 * math.sqrt(participations), 5.0)
    assert exact <= plan.epsilon_at(40, "pld") <= 1.02 * exact
    assert plan.epsilon_at(0) == 0


def test_the_statement_says_both_epsilons_and_claims_no_central_one():
    plan = _plan(5.0)
    statement = make_local_statement(plan, 30, 0.1, KeyState.DELETED)
    text = statement_text(statement)
    assert statement["epsilon"]["of_a_round"]["pld"] == plan.of_round()
    assert statement["epsilon"]["completed"]["rdp"] == plan.epsilon_at(30, "rdp")
    assert statement["participations"] == {"completed": 30, "planned": 40}
    assert "LOCAL PRIVACY, SIMULATED" in text and "no central epsilon is claimed" in text.replace("\n", " ")
    assert dict(statement_rows(statement))["noise multiplier of a client"] == "5"
    names = [caveat["name"] for caveat in statement["caveats"]]
    assert "simulation" in names and "noise key" not in names


@pytest.mark.parametrize("key", [KeyState.PRESENT, KeyState.GIVEN])
def test_while_the_key_exists_the_statement_begins_with_it(key):
    statement = make_local_statement(_plan(5.0), 30, 0.1, key)
    assert statement_text(statement).startswith("PRIVACY STATEMENT\n\nWHAT FOLLOWS HOLDS ONLY WHILE THE NOISE KEY IS")
    assert "noise key" in [caveat["name"] for caveat in statement["caveats"]]


def test_a_weak_guarantee_and_artificial_clients_are_named():
    strong, weak = (make_local_statement(_plan(noise), 30, 0.1, KeyState.DELETED) for noise in (20.0, 0.5))
    names = [[caveat["name"] for caveat in statement["caveats"]] for statement in (strong, weak)]
    assert ["weak guarantee" in one for one in names] == [False, True]
    stopped, complete = (
        make_local_statement(_plan(20.0), rounds, 0.1, KeyState.DELETED, may_stop_early=True) for rounds in (30, 40)
    )
    names = [[caveat["name"] for caveat in statement["caveats"]] for statement in (stopped, complete)]
    assert "early stopping" in names[0] and "early stopping" not in names[1]
    artificial = make_local_statement(_plan(20.0), 30, 0.1, KeyState.DELETED, artificial_users=True)
    assert artificial["unit"] == "what an artificial client sends"
    assert [caveat["name"] for caveat in artificial["caveats"]][:2] == ["simulation", "artificial users"]


def test_the_gravest_caveat_comes_first_also_where_the_guarantee_is_strong():
    looked_at = {"clients_looked_at": True, "artificial_users": True, "may_stop_early": True}
    statement = make_local_statement(_plan(20.0), 30, 0.1, KeyState.PRESENT, **looked_at)
    found = [caveat["severity"] for caveat in statement["caveats"]]
    assert found == sorted(found, key=["critical", "high", "medium", "note"].index)
    assert set(found) == {"critical", "high", "medium", "note"}


def test_that_clients_were_looked_at_is_said_where_they_were():
    for looked_at in (False, True):
        statement = make_local_statement(_plan(20.0), 30, 0.1, KeyState.DELETED, clients_looked_at=looked_at)
        assert ("clients looked at" in [caveat["name"] for caveat in statement["caveats"]]) == looked_at


def test_noise_of_clients_and_rounds_is_unrelated_and_can_be_drawn_again():
    key, size = NoiseKey(bytes(32)), 20_000
    drawn = [
        client_normals(key, round_number, client, size) for round_number in (0, 1) for client in ("ann", "bo", "1")
    ]
    assert np.abs(np.corrcoef(drawn)[np.triu_indices(6, 1)]).max() < 5 / math.sqrt(size)
    assert np.std(drawn) == pytest.approx(1, abs=4 * math.sqrt(0.5 / (6 * size)))
    np.testing.assert_array_equal(client_normals(key, 1, "bo", size), drawn[4])
