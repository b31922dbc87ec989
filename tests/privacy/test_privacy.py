"""Plans: which noise, which epsilon after each round, and the refusals."""

import math
import subprocess
import sys

import dp_accounting
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmark.privacy import accounting
from benchmark.privacy.request import Mechanism, Sampling, squared_sensitivity
from flair.errors import FlairError
from tests.support.privacy import answer_to, plan_of

PUBLISHED = {"num_users": 41_131, "cohort": 200, "total_rounds": 5000}
SMALL = {"num_users": 500, "cohort": 20, "total_rounds": 40}


def _composed(noise_multiplier, q, rounds, delta):
    event = dp_accounting.PoissonSampledDpEvent(q, dp_accounting.GaussianDpEvent(noise_multiplier))
    accountant = dp_accounting.rdp.RdpAccountant().compose(dp_accounting.SelfComposedDpEvent(event, rounds))
    return accountant.get_epsilon(delta)


def test_default_delta_is_the_published_one():
    assert plan_of(**PUBLISHED, noise_multiplier=1.0).delta == 41_131**-1.1 == pytest.approx(8.40e-6, rel=1e-3)


@pytest.mark.parametrize(("accountant", "expected"), [("rdp", 1.025), ("pld", 0.975)])
def test_plan_for_the_published_setting(accountant, expected):
    plan = plan_of(**PUBLISHED, epsilon=2.0, accountant=accountant)
    assert plan.noise_multiplier == pytest.approx(expected, rel=2e-3)
    assert plan.run_noise_multiplier == plan.noise_multiplier
    assert plan.sampling_probability == 200 / 41_131
    assert 0.999 * 2.0 < plan.epsilon <= 2.0
    assert plan.epsilon_at(5000, "pld") < plan.epsilon_at(5000, "rdp")


def test_given_noise_is_kept_and_its_epsilon_found():
    plan = plan_of(**PUBLISHED, noise_multiplier=1.3, delta=1e-6)
    assert plan.noise_multiplier == 1.3
    assert plan.request.epsilon is None
    assert plan.epsilon_at(5000, "rdp") == pytest.approx(_composed(1.3, 200 / 41_131, 5000, 1e-6), rel=1e-6)


@settings(max_examples=4, deadline=None)
@given(
    num_users=st.integers(50, 20_000),
    share=st.floats(0.01, 0.5),
    total_rounds=st.integers(1, 500),
    epsilon=st.floats(0.5, 8),
)
def test_epsilon_spent_rises_to_the_target_at_the_last_round(num_users, share, total_rounds, epsilon):
    cohort = max(1, int(share * num_users))
    plan = plan_of(num_users=num_users, cohort=cohort, total_rounds=total_rounds, epsilon=epsilon, accountant="rdp")
    path = [plan.epsilon_at(rounds) for rounds in range(0, total_rounds + 1, max(1, total_rounds // 4))]
    assert path[0] == 0.0
    assert path == sorted(path)
    assert plan.epsilon_at(total_rounds) == plan.epsilon <= epsilon
    independent = _composed(plan.noise_multiplier, cohort / num_users, total_rounds, plan.delta)
    assert plan.epsilon == pytest.approx(independent, rel=1e-5)


def test_epsilon_spent_by_either_accountant():
    plan = plan_of(**SMALL, noise_multiplier=1.0)
    assert plan.epsilon_at(40) == plan.epsilon_at(40, "pld") == plan.epsilon
    assert plan.epsilon_at(40, "rdp") == plan_of(**SMALL, noise_multiplier=1.0, accountant="rdp").epsilon
    assert plan.epsilon_at(10) < plan.epsilon_at(20) < plan.epsilon_at(40)


def test_simulated_cohort_scales_the_noise_and_has_an_epsilon_of_its_own():
    plan = plan_of(**PUBLISHED, epsilon=2.0, simulated_cohort=5000, accountant="rdp")
    assert plan.noise_multiplier == pytest.approx(18.68, rel=2e-3)
    # The mean over 200 clients then has the noise of a mean over 5,000.
    assert plan.run_noise_multiplier / 200 == pytest.approx(plan.noise_multiplier / 5000)
    assert plan.epsilon <= 2.0
    own = _composed(plan.run_noise_multiplier, 200 / 41_131, 5000, plan.delta)
    assert plan.own_epsilon_at(5000) == pytest.approx(own, rel=1e-6)
    assert own > 4


def test_without_a_simulated_cohort_the_runs_own_epsilon_is_the_plans():
    plan = plan_of(**SMALL, noise_multiplier=1.0)
    assert plan.own_epsilon_at(40) == plan.epsilon


def test_published_noise_states_what_that_noise_really_gives():
    plan = plan_of(**PUBLISHED, epsilon=2.0, published_noise=True)
    assert round(plan.noise_multiplier, 2) == 10.72
    assert plan.request.epsilon == 2.0
    really = _composed(plan.noise_multiplier, 200 / 41_131, 5000, plan.delta)
    assert plan.epsilon_at(5000, "rdp") == pytest.approx(really, rel=1e-5)
    assert plan.epsilon < 0.2


def test_fixed_size_cohorts_assume_poisson_and_know_what_is_proved():
    uniform = plan_of(**SMALL, noise_multiplier=2.0, sampling=Sampling.UNIFORM)
    poisson = plan_of(**SMALL, noise_multiplier=2.0)
    assert uniform.epsilon == poisson.epsilon
    assert uniform.replace_one_epsilon_at(40) > 2 * uniform.epsilon
    assert poisson.replace_one_epsilon_at(40) is None


def test_the_same_cohort_every_round_claims_no_amplification():
    plan = plan_of(**SMALL, noise_multiplier=5.0, sampling=Sampling.FIXED)
    assert plan.sampling_probability == 1.0
    assert plan.epsilon_at(40, "rdp") == pytest.approx(_composed(5.0, 1.0, 40, plan.delta), rel=1e-5)


def test_cyclic_cohorts_count_the_passes():
    # 500 users in cohorts of 20: a user takes part in 2 of 40 rounds.
    plan = plan_of(**SMALL, noise_multiplier=5.0, sampling=Sampling.CYCLIC)
    assert plan.separation == 25
    assert plan.epsilon_at(40, "rdp") == pytest.approx(_composed(5.0, 1.0, 2, plan.delta), rel=1e-5)
    assert plan.epsilon_at(1) == plan.epsilon_at(25) < plan.epsilon_at(26)


def test_tree_plan_reaches_its_epsilon_by_the_tree_accounting():
    plan = plan_of(**SMALL, epsilon=4.0, sampling=Sampling.CYCLIC, mechanism=Mechanism.TREE)
    assert 0.998 * 4 < plan.epsilon <= 4.0
    sensitivity = math.sqrt(squared_sensitivity(40, 25))
    one_gaussian = accounting.epsilon("pld", plan.noise_multiplier / sensitivity, 1.0, 1, plan.delta)
    assert plan.epsilon == pytest.approx(one_gaussian)
    assert plan.epsilon_at(0) == 0.0 < plan.epsilon_at(8) < plan.epsilon


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epsilon": 0.0}, r"--epsilon=0: .*above 0.*default 0\.0"),
        ({"epsilon": -1.0}, "--epsilon=-1: .*above 0"),
        ({"epsilon": math.nan}, "--epsilon=nan: .*above 0"),
        ({"epsilon": math.inf}, "--epsilon=inf: .*above 0"),
        ({"epsilon": None}, "needs --epsilon .* or --noise_multiplier"),
        ({"noise_multiplier": 1.0}, "--epsilon and --noise_multiplier are both given"),
        ({"noise_multiplier": 0.0}, "--epsilon and --noise_multiplier are both given"),
        (
            {"epsilon": None, "noise_multiplier": 0.0, "simulated_cohort": 100},
            "--simulated_clients_per_round=100 scales the noise",
        ),
        (
            {"epsilon": None, "noise_multiplier": 0.0, "mechanism": Mechanism.TREE, "sampling": Sampling.CYCLIC},
            "--noise_multiplier=0: --aggregator=tree is a way to add noise",
        ),
        ({"epsilon": None, "noise_multiplier": 1e160}, r"--noise_multiplier=1e\+160: expected 1e-06 to 1e\+06"),
        ({"epsilon": None, "noise_multiplier": 1e-300}, r"--noise_multiplier=1e-300: expected 1e-06 to 1e\+06"),
        ({"num_users": 10**26}, "--num_users=100000000000000000000000000: expected at most 1,000,000,000"),
        ({"delta": 1e-25}, "--delta=1e-25: is too small for the pld accountant"),
        ({"epsilon": None, "noise_multiplier": -2.0}, "--noise_multiplier=-2: expected a number above 0"),
        ({"delta": 0.0}, "--delta=0: expected a probability"),
        ({"delta": 1.0}, "--delta=1: expected a probability"),
        ({"delta": 1.5}, r"--delta=1\.5: expected a probability"),
        ({"cohort": 0}, "--clients_per_round=0: expected at least 1"),
        ({"cohort": 501}, "--clients_per_round=501: there are only 500 users"),
        ({"num_users": 1, "cohort": 1}, "--num_users=1: .*at least 2 users"),
        ({"total_rounds": 0}, "--total_rounds=0: expected at least 1"),
        ({"simulated_cohort": 10}, "--simulated_clients_per_round=10: expected at least --clients_per_round=20"),
        ({"simulated_cohort": 501}, "--simulated_clients_per_round=501: there are only 500 users"),
        ({"simulated_cohort": 50, "sampling": Sampling.FIXED}, "--simulated_clients_per_round=50 supposes .* random"),
        ({"accountant": "gdp"}, "--accountant=gdp: expected one of pld, rdp"),
        ({"mechanism": Mechanism.TREE}, "tree aggregation with --client_sampling=poisson.*--client_sampling=cyclic"),
        ({"published_noise": True, "epsilon": None, "noise_multiplier": 1.0}, "--published_noise repeats"),
        (
            {"epsilon": 1e-3, "delta": 1e-9, "accountant": "rdp", "cohort": 500},
            r"--epsilon=0\.001 cannot be reached.*cost epsilon 0\.01\d",
        ),
    ],
)
def test_refusals_are_one_line_naming_the_flag(change, message):
    with pytest.raises(FlairError, match=message) as refusal:
        plan_of(**{**SMALL, "epsilon": 2.0, **change})
    assert "\n" not in str(refusal.value)


def test_flags_are_checked_without_data_and_without_heavy_imports():
    script = (
        "import sys\n"
        "from benchmark.privacy.plan import make_plan\n"
        "from benchmark.privacy.request import PrivacyRequest\n"
        "from flair.errors import FlairError\n"
        "for refused in (lambda: PrivacyRequest(cohort=0, total_rounds=1, epsilon=1.0).check(),\n"
        "                lambda: make_plan(5, PrivacyRequest(cohort=6, total_rounds=1, epsilon=1.0))):\n"
        "    try: refused()\n"
        "    except FlairError: continue\n"
        "    sys.exit('accepted')\n"
        "heavy = {'numpy', 'scipy', 'dp_accounting', 'tensorflow'} & set(sys.modules)\n"
        "sys.exit(', '.join(heavy) or None)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_arithmetic_never_imports_tensorflow():
    script = (
        "import sys\n"
        "from benchmark.privacy.plan import make_plan\n"
        "from benchmark.privacy.request import PrivacyRequest\n"
        "make_plan(100, PrivacyRequest(cohort=10, total_rounds=5, epsilon=3.0))\n"
        "sys.exit('tensorflow' in sys.modules)\n"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


@pytest.mark.parametrize("sampling", list(Sampling))
@pytest.mark.parametrize("noise_multiplier", [1e-6, 0.01, 1e6])
def test_noise_at_the_ends_of_its_range_has_an_epsilon(noise_multiplier, sampling):
    """A hundred thousand rounds with a multiplier of 0.01 ended in an OverflowError."""
    plan = plan_of(**{**PUBLISHED, "total_rounds": 100_000}, noise_multiplier=noise_multiplier, sampling=sampling)
    assert plan.epsilon_at(100_000, "pld") >= 0 and plan.epsilon_at(100_000, "rdp") > 0


@pytest.mark.parametrize("sampling", Sampling)
def test_without_noise_epsilon_is_infinite_and_the_planner_has_no_answer(sampling):
    request = {"noise_multiplier": 0.0, "sampling": sampling}
    plan = plan_of(**SMALL, **request)
    assert (plan.epsilon_at(0), plan.epsilon_at(1), plan.own_epsilon_at(40, "rdp")) == (0.0, math.inf, math.inf)
    assert plan.noise_on_running_sum == 0
    with pytest.raises(FlairError, match="--noise_multiplier=0: without noise epsilon is infinite"):
        answer_to(**SMALL, **request)
