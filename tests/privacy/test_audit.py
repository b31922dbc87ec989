"""The statistics of an audit, against exact sums, closed forms and mechanisms whose epsilon is known."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from scipy import optimize, stats

from benchmark.privacy import accounting, audit, audit_file, audit_text
from benchmark.privacy.audit import CanaryScores, Claim, Influence, Noise
from benchmark.privacy.rounding import rounded_down
from flair.errors import FlairError
from flair.files import checked_json

ROUNDS, SIGMA = 50, 1.5
CLAIM = Claim(accounting.epsilon("pld", SIGMA, 0.1, ROUNDS, 1e-5), 1e-5, "pld", SIGMA, None, 0.1, ROUNDS, 5.0)
HONEST = Influence(200, 200.0, 200 * (1 + SIGMA**2))


def _noise(deviation: float = SIGMA, numbers: int = 400, seed: int = 0, name: str = "kernel") -> Noise:
    drawn = np.random.default_rng(seed).normal(scale=deviation, size=(ROUNDS, numbers))
    return Noise(name, numbers, float(np.square(drawn).sum()))


def _scores(gap: float, count: int = 100, seed: int = 0, **more: object) -> CanaryScores:
    """Scores of deviation 1, those of the canaries that are in higher by `gap`."""
    generator = np.random.default_rng(seed)
    included = generator.random(count) < 0.5
    scores = generator.normal(size=(2, count)) + gap * included
    return CanaryScores(included, *scores, (_noise(),), HONEST)._replace(**more)


@pytest.mark.parametrize(("canaries", "guesses", "correct"), [(30, 30, 25), (40, 10, 10), (50, 20, 4), (20, 20, 0)])
@pytest.mark.parametrize("delta", [0.0, 1e-5, 1e-2])
@pytest.mark.parametrize("epsilon", [0.0, 0.7, 3.0])
def test_a_p_value_is_that_of_the_theorem(canaries, guesses, correct, delta, epsilon):
    p = math.exp(epsilon) / (1 + math.exp(epsilon))
    mass = [math.comb(guesses, k) * p**k * (1 - p) ** (guesses - k) for k in range(guesses + 1)]
    beta = sum(mass[correct:])
    alpha = max((sum(mass[max(correct - i, 0) : correct]) / i for i in range(1, canaries + 1)), default=0.0)
    expected = min(1.0, beta + 2 * canaries * delta * alpha)
    assert audit.one_run_p_value(canaries, guesses, correct, epsilon, delta) == pytest.approx(expected, rel=1e-9)


def test_a_bound_is_where_its_p_value_is_the_doubt():
    bound = audit.one_run_bound(200, 100, 90, 1e-6, 0.01)
    assert audit.one_run_p_value(200, 100, 90, bound, 1e-6) == pytest.approx(0.01, rel=1e-3)
    assert audit.one_run_bound(200, 100, 50, 1e-6, 0.01) == 0.0
    assert audit.one_run_bound(200, 0, 0, 1e-6, 0.01) == 0.0
    assert audit.one_run_bound(200, 100, 100, 0.01, 0.01) == 0.0  # 2 N delta is 4: nothing can be proved


@pytest.mark.parametrize("epsilon", [0.5, 2.0])
def test_the_bound_of_randomized_response_is_below_its_epsilon(epsilon):
    """The mechanism that the bound is tight for: each coin is told, and told wrongly with odds of 1 to e^epsilon."""
    right = np.random.default_rng(0).binomial(400, 1 / (1 + math.exp(-epsilon)), 200)
    bound_of = {correct: audit.one_run_bound(400, 400, int(correct), 1e-6, 0.05) for correct in set(right)}
    bounds = [bound_of[correct] for correct in right]
    assert 1 <= sum(bound > epsilon for bound in bounds) <= 18  # ten are expected
    assert np.mean(bounds) > 0.5 * epsilon


def test_a_gaussian_mechanism_is_estimated_and_never_bounded_above_its_epsilon():
    mu, delta = 1.2, 1e-4

    def excess(epsilon: float) -> float:  # Balle and Wang 2018, theorem 8
        upper = stats.norm.cdf(mu / 2 - epsilon / mu) - math.exp(epsilon) * stats.norm.cdf(-mu / 2 - epsilon / mu)
        return float(upper) - delta

    truth = optimize.brentq(excess, 0, 50)
    many = _scores(mu, count=200_000)
    assert audit.gaussian_estimate(many.included, many.released, delta) == pytest.approx(truth, rel=0.03)
    claim = CLAIM._replace(epsilon=truth, delta=delta)
    found = [audit.audit(claim, _scores(mu, count=300, seed=seed))["bound"] for seed in range(5)]
    assert max(found) < truth
    assert np.mean(found) > 0.1


def test_what_cannot_be_fitted_is_not():
    one = np.array([True, False, False, False])
    assert audit.gaussian_estimate(one, np.arange(4.0), 1e-5) is None
    two = np.array([True, False, True, False])
    assert audit.gaussian_estimate(two, np.array([0.0, 1.0, 0.0, 1.0]), 1e-5) == 0.0
    assert audit.gaussian_estimate(two, np.array([1.0, 0.0, 1.0, 0.0]), 1e-5) is None  # no spread: all is known


def test_guesses_follow_from_the_scores_alone_and_all_are_right_where_scores_are_apart():
    apart = _scores(10.0, count=50, seed=1)
    (released, _) = audit.audit(CLAIM, apart)["attacks"]
    assert (released["guesses"], released["correct"]) == (50, 50)
    # With the coins turned round, exactly the same guesses are all wrong.
    (released, _) = audit.audit(CLAIM, apart._replace(included=~apart.included))["attacks"]
    assert released["correct"] == 0 and released["bound"] == 0.0


def test_noise_of_the_claimed_size_is_not_called_smaller():
    for numbers in (3, 400):
        bounds = [audit.noise_at_most(_noise(numbers=numbers, seed=seed), ROUNDS, 0.05) for seed in range(400)]
        assert 10 <= sum(bound < SIGMA for bound in bounds) <= 30
    found = audit.audit(CLAIM, _scores(0.0, noise=(_noise(), _noise(seed=1))))
    assert found["contradicted_by"] == []
    assert 0.9 * CLAIM.epsilon < found["noise"]["epsilon"] <= CLAIM.epsilon


@pytest.mark.parametrize("part", [0.5, 0.9])
def test_smaller_noise_on_one_tensor_is_named_with_the_epsilon_that_it_has(part):
    noise = (_noise(numbers=2000), _noise(part * SIGMA, numbers=300, name="bias"))
    found = audit.audit(CLAIM, _scores(0.0, noise=noise))
    assert found["contradicted_by"] == ["noise"]
    assert found["noise"]["weights"] == "bias"
    assert part * SIGMA <= found["noise"]["at_most"] <= 1.05 * part * SIGMA
    truth = accounting.epsilon("pld", part * SIGMA, 0.1, ROUNDS, 1e-5)
    assert 0.9 * truth < found["noise"]["epsilon"] <= truth


def test_noise_that_users_updates_cover_is_not_called_smaller():
    covered = Noise("kernel", 400, _noise(0.1).squares + 400 * ROUNDS * SIGMA**2)
    assert audit.audit(CLAIM, _scores(0.0, noise=(covered,)))["contradicted_by"] == []


def test_an_adaptive_clip_norm_shares_its_noise_in_the_check_too():
    total, stddev = 1.2, 1.0
    on_sum = (total**-2 - (2 * stddev) ** -2) ** -0.5
    epsilon = accounting.epsilon("pld", total, 0.1, ROUNDS, 1e-5)
    claim = CLAIM._replace(epsilon=epsilon, noise_multiplier=on_sum, clipped_count_stddev=stddev)
    found = audit.audit(claim, _scores(0.0, noise=(_noise(on_sum, numbers=100_000),)))
    assert found["noise"]["epsilon"] == pytest.approx(epsilon, rel=0.01)
    assert found["contradicted_by"] == []


def test_a_canary_that_moves_the_sum_by_more_than_the_clip_norm_shows():
    far = Influence(60, 600.0, 60 * (100 + SIGMA**2))
    found = audit.audit(CLAIM, _scores(0.0, influence=far))
    assert found["contradicted_by"] == ["influence"]
    assert found["influence"]["mean"] == 10.0 and 9 < found["influence"]["at_least"] < 10
    assert audit.audit(CLAIM, _scores(0.0, influence=Influence(1, 10.0, 100.0)))["influence"]["at_least"] is None


def test_no_noise_at_all_is_an_infinite_epsilon_and_more_than_any_claim_but_that():
    silent = _scores(0.0, noise=(Noise("kernel", 400, 0.0),))
    found = audit.audit(CLAIM, silent)
    assert found["noise"]["epsilon"] is None and found["contradicted_by"] == ["noise"]
    assert "infinite" in audit_text.verdict(found)
    assert audit.audit(CLAIM._replace(epsilon=math.inf), silent)["contradicted_by"] == []


def test_what_noise_and_influence_prove_is_no_looser_number_of_another_accountant():
    """By RDP the same noise costs more: that was once printed as "at least"."""
    scores = _scores(0.0, noise=(_noise(numbers=100_000),))
    by = [audit.audit(CLAIM._replace(accountant=name), scores)["noise"]["epsilon"] for name in ("pld", "rdp")]
    assert by[0] == by[1] <= CLAIM.epsilon


@pytest.mark.parametrize(("place", "value"), [("included", [1]), ("released", [0.5]), ("final", []), ("noise", [])])
def test_scores_that_do_not_fit_together_are_refused_in_one_line(tmp_path, place, value):
    path = tmp_path / "audit.json"
    audit_file.write(path, CLAIM, _scores(0.0))
    content = checked_json.read(path)
    (content["scores"] if place in content["scores"] else content)[place] = value
    checked_json.write(path, content)
    with pytest.raises(FlairError, match=r"audit.json: expected 10 canaries or more, each with two scores"):
        audit_file.read(path)


@pytest.mark.parametrize(
    ("place", "name", "values"),
    [
        ("claim", "delta", [0, -1, 2, math.nan]),
        ("claim", "sampling_probability", [0, 2, math.inf]),
        ("claim", "noise_multiplier", [-1, math.nan]),
        ("claim", "clipped_count_stddev", [1e-300]),
        ("claim", "rounds", [0]),
        ("claim", "clients_per_round", [0]),
        ("claim", "epsilon", [-1, math.nan]),
        ("scores", "final", [[1e308] * 100]),
        ("influence", "total", [1e308]),
        ("influence", "canaries", [-1]),
    ],
)
def test_numbers_that_no_run_has_are_refused_in_one_line(tmp_path, place, name, values):
    path = tmp_path / "audit.json"
    audit_file.write(path, CLAIM, _scores(0.0))
    content = {key: value for key, value in checked_json.read(path).items() if key != "crc32c"}
    for value in values:
        content[place][name] = value
        path.write_text(json.dumps(content))
        with pytest.raises(FlairError, match="numbers that a run can have"):
            audit_file.read(path)


def test_another_file_with_a_checksum_is_no_audit(tmp_path):
    checked_json.write(tmp_path / "audit.json", {"setting": "federated"})
    with pytest.raises(FlairError, match=r"audit.json: is no audit"):
        audit_file.read(tmp_path / "audit.json")


@pytest.mark.parametrize(("canaries", "delta"), [(10, 1e-6), (100, 1e-4), (100, 1e-3)])
def test_the_most_that_can_be_proved_is_what_perfect_guesses_prove(canaries, delta):
    included = np.arange(canaries) % 2 == 0
    perfect = _scores(0.0)._replace(included=included, released=1.0 * included, final=1.0 * included)
    found = audit.audit(CLAIM._replace(delta=delta), perfect)
    assert found["bound"] == audit.most_provable(canaries, delta)


def test_more_confidence_proves_less():
    scores = _scores(3.0)
    bounds = [audit.audit(CLAIM, scores, confidence)["bound"] for confidence in (0.6, 0.95, 0.999)]
    assert bounds[0] > bounds[1] > bounds[2] > 0


def test_the_text_has_the_numbers_and_rounds_bounds_down():
    found = audit.audit(CLAIM, _scores(3.0))
    text = "\n".join(value for _, value in audit_text.rows(found))
    for attack in found["attacks"]:
        assert f"{attack['correct']} of {attack['guesses']} guesses right" in text
        assert f"{attack['estimate']:.4g}" in text
        assert rounded_down(attack["bound"]) in text
    assert float(rounded_down(found["bound"])) <= found["bound"]
    assert audit_text.verdict(found).startswith("the audit does not contradict epsilon")
    loud = audit_text.verdict(audit.audit(CLAIM._replace(epsilon=0.1), _scores(3.0)))
    assert loud.startswith("THE AUDIT CONTRADICTS EPSILON 0.1: ") and "by guesses about its canaries" in loud


def test_what_was_written_is_read_and_damage_is_refused(tmp_path):
    path, scores = tmp_path / "audit.json", _scores(1.0)
    assert audit_file.read(path) is None
    for claim in (CLAIM, CLAIM._replace(epsilon=math.inf)):
        audit_file.write(path, claim, scores)
        read_claim, read_scores = audit_file.read(path)
        assert read_claim == claim
        assert audit.audit(read_claim, read_scores) == audit.audit(claim, scores)
    json.dumps(audit.audit(claim, scores), allow_nan=False)
    data = path.read_bytes()
    path.write_bytes(data.replace(b'"canaries":200', b'"canaries":201'))
    assert path.read_bytes() != data
    with pytest.raises(FlairError, match="checksum"):
        audit_file.read(path)
    path.write_text('{"format": 1}')
    with pytest.raises(FlairError, match="claim: is missing"):
        audit_file.read(path)
