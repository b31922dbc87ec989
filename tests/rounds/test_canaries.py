"""Canaries in rounds: what they send, whom they leave alone, and that a planted fault does not pass."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from benchmark.privacy.audit import audit
from benchmark.privacy.noise import FreshNoise
from benchmark.rounds.canaries import SENT_NORM, Canaries
from benchmark.rounds.config import CanaryConfig
from benchmark.rounds.server import RoundServer
from flair.errors import FlairError
from tests.support.canaries import (
    CLIP,
    COHORT,
    FAULTS,
    PROBABILITY,
    SIZES,
    audited,
    flat,
    key,
    network,
    private_config,
    users,
)

SIGMA = 1.3
WEIGHTS = [("kernel", tf.TensorShape((30, 40))), ("bias", tf.TensorShape((17,)))]


def _server(canaries: CanaryConfig | None = None, number: int = 3) -> RoundServer:
    return RoundServer(network(), private_config(SIGMA), False, 0, key(number), canaries)


def _canaries(count: int, probability: float = 0.25, number: int = 0) -> Canaries:
    return Canaries(CanaryConfig(count, probability), key(number), WEIGHTS, COHORT)


class _Sum:
    """An aggregation that neither clips nor adds noise, and keeps what it was given."""

    def __init__(self) -> None:
        self.updates: list[np.ndarray] = []

    def accumulate(self, aggregate, result, _broadcast, _seed):
        self.updates.append(flat(result[:-1]))
        assert float(result[-1]) == 1.0
        return aggregate


def _sent(canaries: Canaries, rounds: int, clip: float = CLIP) -> list[np.ndarray]:
    total = _Sum()
    for number in range(rounds):
        canaries.add(total, [], [tf.constant(clip)], tf.constant([0, 0], tf.int64), clip, number)
    return total.updates


def test_directions_are_fixed_orthogonal_and_longer_than_the_clip_norm():
    updates = _sent(_canaries(12), rounds=40)
    distinct = np.unique(np.round(updates, 5), axis=0)
    assert 3 <= len(distinct) <= 12  # those that are in, each again and again
    inner = distinct.astype(np.float64) @ distinct.T
    np.testing.assert_allclose(np.sqrt(np.diag(inner)), SENT_NORM * CLIP, rtol=1e-4)
    np.testing.assert_allclose(inner - np.diag(np.diag(inner)), 0, atol=1e-12)
    np.testing.assert_allclose(np.linalg.norm(_sent(_canaries(12), 40, clip=2.0)[0]), 2 * SENT_NORM, rtol=1e-5)
    assert np.count_nonzero(distinct[:, -17:]) > 0  # the bias, too


def test_half_are_in_by_their_own_coins_and_those_take_part_with_the_probability_of_a_user():
    canaries, rounds = _canaries(1000), 200
    count = np.zeros(1000)
    for number in range(rounds):
        np.add.at(count, canaries.taking_part(number), 1)
    included = count > 0  # never to take part has odds of 0.75^200
    assert abs(included.sum() - 500) < 4 * np.sqrt(250)
    parts = count[included]
    assert parts.mean() == pytest.approx(rounds / 4, abs=4 * np.sqrt(rounds * 3 / 16 / len(parts)))
    assert parts.var() == pytest.approx(rounds * 3 / 16, rel=0.3)  # binomial: independent of the rounds before
    np.testing.assert_array_equal(canaries.taking_part(5), _canaries(1000).taking_part(5))
    assert not np.array_equal(canaries.taking_part(5), _canaries(1000, number=1).taking_part(5))


def test_users_cohort_noise_and_divisor_stay_what_they_are():
    """The round with canaries is the round without, plus their clipped updates over the cohort of the users."""
    with_them, without = _server(CanaryConfig(20, 0.5)), _server()
    results = [users(without, 0, seed=1)]
    for server in (with_them, without):
        server.finish(0, results)
    added = flat(without.weights()) - flat(with_them.weights())  # a step of 0.1 against the mean
    took_part = len(with_them._canaries.taking_part(0))
    assert 0 < took_part <= with_them.canary_scores().included.sum()
    np.testing.assert_allclose(np.linalg.norm(added), 0.1 * np.sqrt(took_part) * CLIP / COHORT, rtol=1e-3)


def test_scores_follow_from_what_was_released_and_a_restored_run_has_those_of_an_unbroken_one():
    config = CanaryConfig(20, PROBABILITY)
    unbroken, broken = _server(config), _server(config)
    for number in range(6):
        if number == 3:
            state = broken.state()
            broken = _server(config)
            broken.restore(state)
        for server in (unbroken, broken):
            server.finish(number, [users(server, number, seed=0)])
    for one, other in zip(unbroken.state(), broken.state(), strict=True):
        np.testing.assert_array_equal(one, other)
    for part, same in zip(unbroken.canary_scores(), broken.canary_scores(), strict=True):
        np.testing.assert_array_equal(part, same)
    with pytest.raises(FlairError, match="use --overwrite"):
        _server().restore(unbroken.state())
    # Under plain steps of 0.1 the final score is a tenth of the sum of all released means along the direction.
    scores = unbroken.canary_scores()
    assert np.corrcoef(scores.final, scores.released)[0, 1] > 0.5
    (kernel, *_) = scores.noise
    assert (kernel.weights, kernel.numbers) == ("first/kernel", SIZES[0])
    assert kernel.squares == pytest.approx(6 * SIZES[0] * SIGMA**2, rel=0.1)


def test_the_noise_that_is_measured_is_the_noise_that_was_added():
    server = _server(CanaryConfig(10, 1e-9))  # nobody takes part
    server.finish(0, [])
    noise = FreshNoise(key(3)).normals(0, sum(SIZES)) * SIGMA
    for measured, part in zip(server.canary_scores().noise, np.split(noise, np.cumsum(SIZES)[:-1]), strict=True):
        assert measured.squares == pytest.approx(np.square(part, dtype=np.float64).sum(), rel=1e-4)


def test_more_canaries_than_weights_are_refused():
    with pytest.raises(FlairError, match=r"--audit_canaries=1218: only 1,217 weights train"):
        _canaries(1218)


def test_an_honest_run_is_not_contradicted():
    found = audit(*audited(0, canaries=100))
    assert found["contradicted_by"] == []
    assert found["bound"] < found["claimed"]
    assert found["influence"]["mean"] == pytest.approx(1, abs=0.5)


def test_what_users_of_a_large_cohort_agree_on_is_no_influence_of_canaries():
    """It once was: a canary's participations all lie in the same place, and made up a sample of a wrong size."""
    alone, crowded = (audit(*audited(0, canaries=30, agreeing=number))["influence"] for number in (0, 2000))
    assert crowded["mean"] == pytest.approx(alone["mean"], abs=1e-3)
    assert crowded["at_least"] == pytest.approx(alone["at_least"], abs=1e-3)


@pytest.mark.parametrize(("fault", "by"), list(zip(FAULTS, ("noise", "noise", "influence", "noise"), strict=True)))
def test_a_planted_fault_is_caught_with_ten_canaries(fault, by):
    found = audit(*audited(0, 10, fault))
    assert by in found["contradicted_by"]
    if fault == FAULTS[1]:
        assert found["noise"]["weights"] == "second/kernel"


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS[2:])
def test_guesses_alone_catch_what_leaves_nothing_hidden(fault):
    assert "bound" in audit(*audited(0, 300, fault))["contradicted_by"]
