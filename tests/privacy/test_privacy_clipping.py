"""The split of noise in adaptive clipping, against TFF itself and against simulation."""

import math

import dp_accounting
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmark.privacy import adaptive
from flair.errors import FlairError


@given(noise_multiplier=st.floats(0.01, 200), cohort=st.integers(1, 5000))
def test_default_stddev_works_for_every_cohort_and_costs_little(noise_multiplier, cohort):
    stddev = adaptive.clipped_count_stddev(cohort, noise_multiplier)
    on_sum = adaptive.sum_noise_multiplier(noise_multiplier, stddev)
    assert stddev >= 0.05 * cohort
    # A client moves the sum by one clip and the centred count by one half.
    total = adaptive.effective_noise_multiplier([on_sum, stddev / 0.5])
    assert 1 <= on_sum / total <= 1.1548
    assert total == pytest.approx(noise_multiplier, rel=1e-9)


@pytest.mark.parametrize("noise_multiplier", [2.0, 3.0])
def test_too_small_a_stddev_is_refused_naming_the_flag(noise_multiplier):
    with pytest.raises(FlairError, match="--clipped_count_stddev=1 is too small"):
        adaptive.sum_noise_multiplier(noise_multiplier, 1.0)


@pytest.mark.parametrize("spread", [0.01, 0.1, 0.2, 0.24, 0.27, 0.5, 1.0, 3.0])
@pytest.mark.parametrize("quantile", [0.1, 0.3, 0.45])
def test_clip_collapses_where_the_mean_of_the_cut_noise_exceeds_the_target(spread, quantile):
    noise = spread * np.random.default_rng(1).standard_normal(400_000)
    assert adaptive.clip_collapses(100, 100 * spread, quantile) == (np.clip(noise, 0, 1).mean() > quantile)


def test_no_noise_on_the_count_collapses_nothing():
    assert not adaptive.clip_collapses(100, 0.0, 0.1)


def test_effective_noise_of_several_mechanisms_is_dp_accountings():
    gaussian = dp_accounting.GaussianDpEvent
    event = dp_accounting.ComposedDpEvent(
        [gaussian(np.float32(3.0)), dp_accounting.SelfComposedDpEvent(gaussian(4.0), 5), gaussian(7.0)]
    )
    orders = dp_accounting.rdp.RdpAccountant().orders
    composed = dp_accounting.rdp.RdpAccountant(orders).compose(event).rdp
    total = adaptive.effective_noise_multiplier([3.0, *[4.0] * 5, 7.0])
    single = dp_accounting.rdp.RdpAccountant(orders).compose(gaussian(total))
    np.testing.assert_allclose(composed, single.rdp, rtol=1e-6)


def test_a_round_with_other_noise_than_accounted_stops_the_run():
    adaptive.check_noise([0.99], 0.99)
    with pytest.raises(FlairError, match=r"noise of multiplier 0\.99 where 1 is accounted"):
        adaptive.check_noise([0.99], 1.0)
    with pytest.raises(FlairError, match=r"noise of multiplier 0 where 1 is accounted"):
        adaptive.check_noise([], 1.0)


@pytest.fixture
def tffs_worker():
    """TFF's worker ends with the test, and another test's end does not take it away."""
    runtime_tff = pytest.importorskip("benchmark.rounds.tff")
    runtime_tff.guard_worker()
    yield
    runtime_tff.stop_workers()


@pytest.mark.slow
@pytest.mark.usefixtures("tffs_worker")
@pytest.mark.parametrize(("cohort", "noise_multiplier"), [(200, 1.025), (200, 19.0), (10, 1.2), (3, 0.5), (3, 4.0)])
def test_tffs_aggregator_adds_the_noise_that_is_accounted_for(cohort, noise_multiplier):
    tff = pytest.importorskip("tensorflow_federated")
    stddev = adaptive.clipped_count_stddev(cohort, noise_multiplier)
    split = tff.aggregators.differential_privacy.adaptive_clip_noise_params(noise_multiplier, float(cohort), stddev)
    on_sum = adaptive.sum_noise_multiplier(noise_multiplier, stddev)
    assert split == pytest.approx((on_sum, stddev), rel=1e-9)
    process = tff.aggregators.DifferentiallyPrivateFactory.gaussian_adaptive(
        noise_multiplier, float(cohort), clipped_count_stddev=stddev
    ).create(tff.TensorType(np.float32, [2]))
    state = process.next(process.initialize(), [np.ones(2, np.float32)] * 2).state
    event = tff.aggregators.differential_privacy.extract_dp_event_from_state(state)
    added = [float(one.noise_multiplier) for one in event.events]
    adaptive.check_noise(added, noise_multiplier)
    with pytest.raises(FlairError):
        adaptive.check_noise(added, 1.001 * noise_multiplier)


@pytest.mark.parametrize(("cohort", "sigma"), [(4, 1.0), (5, 1.0), (10, 2.2)])
def test_a_clip_that_collapses_under_poisson_cohorts_is_foreseen(cohort, sigma):
    """Simulated: all updates are above the clip, which has to grow, but noise and the cohort's size shrink it."""
    deviation = adaptive.clipped_count_stddev(cohort, sigma)
    random, clip, rounds = np.random.default_rng(0), 1.0, 4000
    for _ in range(rounds):
        size = random.poisson(cohort)
        fraction = 0.5 + (-0.5 * size + deviation * random.normal()) / cohort
        clip *= math.exp(-0.2 * (np.clip(fraction, 0, 1) - 0.1))
    assert clip < 1e-3
    assert adaptive.clip_collapses(cohort, deviation, 0.1)


def test_published_noise_has_the_published_deviation_of_the_count():
    """ml-flair leaves TFF's default, 0.05 * 200; with our larger one the sum's noise was 12.38."""
    sigma = 10.72
    deviation = adaptive.clipped_count_stddev(200, sigma, published=True)
    assert deviation == 10
    assert adaptive.sum_noise_multiplier(sigma, deviation) == pytest.approx(12.70, abs=0.005)
    assert adaptive.clipped_count_stddev(10, sigma, published=True) == sigma  # TFF refuses 0.5
