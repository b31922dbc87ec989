"""How adaptive clipping shares the noise between the two things it releases: the updates' sum and the unclipped count.

TFF's `DifferentiallyPrivateFactory.gaussian_adaptive` takes the effective total noise multiplier z and splits it itself
(Andrew et al., theorem 1 of https://arxiv.org/abs/1905.03871): the count, of values -1/2 and 1/2, gets standard
deviation b, and the sum gets z_sum with z^-2 = z_sum^-2 + (2 b)^-2. Never adjust twice.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from flair.errors import FlairError

DEFAULT_COUNT_FRACTION = 0.05
EVENT_TOLERANCE = 1e-4


class AdaptiveNoise(NamedTuple):
    """What each of the two queries of adaptive clipping adds."""

    sum_noise_multiplier: float
    clipped_count_stddev: float

    @property
    def inflation(self) -> float:
        """The sum's noise over what fixed clipping would add at the same privacy (1.0: no more)."""
        total = effective_noise_multiplier([self.sum_noise_multiplier, 2 * self.clipped_count_stddev])
        return self.sum_noise_multiplier / total


def clipped_count_stddev(cohort: int, noise_multiplier: float, published: bool = False) -> float:
    """Standard deviation for the noise on the count of unclipped clients, in clients: max(0.05 * cohort, sigma).

    TFF's default is 0.05 * cohort, which it refuses when sigma >= 0.1 * cohort and which doubles the sum's noise a
    little below that. With sigma as the floor the sum's noise grows by at most 15.5% and no cohort is too small.
    `noise_multiplier` is what TFF is given (`PrivacyPlan.run_noise_multiplier`). `published` is TFF's default, as
    ml-flair leaves it, wherever TFF takes that.

    >>> clipped_count_stddev(200, 1.025), clipped_count_stddev(10, 1.2)
    (10.0, 1.2)
    >>> clipped_count_stddev(200, 10.72, published=True)
    10.0
    """
    default = DEFAULT_COUNT_FRACTION * cohort
    return default if published and noise_multiplier < 2 * default else max(default, noise_multiplier)


def adaptive_noise(noise_multiplier: float, count_stddev: float) -> AdaptiveNoise:
    """TFF's split of the effective total `noise_multiplier`; FlairError where TFF refuses (sigma >= 2 * count_stddev).

    >>> round(adaptive_noise(1.0, 10.0).sum_noise_multiplier, 5)
    1.00125
    """
    if noise_multiplier >= 2 * count_stddev:
        raise FlairError(
            f"--clipped_count_stddev={count_stddev:g} is too small for a noise multiplier of {noise_multiplier:.4g}: "
            f"adaptive clipping needs more than {noise_multiplier / 2:.4g}; leave it out to get a working one"
        )
    sum_noise = (noise_multiplier**-2 - (2 * count_stddev) ** -2) ** -0.5
    return AdaptiveNoise(sum_noise, count_stddev)


def clip_collapses(cohort: int, count_stddev: float, target_quantile: float, is_poisson: bool = True) -> bool:
    """Whether the count's noise drives the adaptive clip to zero whatever the updates are.

    The noisy unclipped fraction is cut to [0, 1], so that even with every update clipped its mean is above zero; where
    that mean exceeds the target quantile, the clip shrinks for ever. A client counts -1/2 or 1/2, and the sum is
    divided by the expected `cohort` B: with every update clipped, the fraction is 1/2 - size / (2 B). The size of a
    Poisson cohort, of variance B, gives it the variance 1 / (4 B), and the count's noise b^2 / B^2 more.

    >>> clip_collapses(200, 10.0, 0.1), clip_collapses(5, 1.0, 0.1), clip_collapses(5, 1.0, 0.1, is_poisson=False)
    (False, True, False)
    """
    spread = math.sqrt((count_stddev / cohort) ** 2 + (0.25 / cohort if is_poisson else 0.0))
    if spread == 0:
        return False
    density_drop = (1 - math.exp(-0.5 / spread**2)) / math.sqrt(2 * math.pi)
    beyond_one = 0.5 * math.erfc(1 / (spread * math.sqrt(2)))
    return spread * density_drop + beyond_one > target_quantile


def effective_noise_multiplier(noise_multipliers: list[float]) -> float:
    """The one Gaussian that releases as much as several about the same cohort (https://arxiv.org/abs/1812.06210, 3).

    >>> round(effective_noise_multiplier([1.00125234, 20.0]), 6)
    1.0
    """
    return sum(noise**-2 for noise in noise_multipliers) ** -0.5


def noise_multiplier_of_event(event: Any) -> float:
    """The effective noise multiplier of one round's DpEvent, from TFF's `extract_dp_event_from_state`.

    `event` is a GaussianDpEvent, or a ComposedDpEvent or SelfComposedDpEvent of such; anything else is a TypeError
    (tree aggregation reports an UnsupportedDpEvent).
    """
    if hasattr(event, "noise_multiplier") and type(event).__name__ == "GaussianDpEvent":
        return float(event.noise_multiplier)
    if hasattr(event, "events"):
        return effective_noise_multiplier([noise_multiplier_of_event(part) for part in event.events])
    if hasattr(event, "count"):
        return effective_noise_multiplier([noise_multiplier_of_event(event.event)] * int(event.count))
    raise TypeError(f"no Gaussian mechanism: {event!r}")


def check_event(event: Any, run_noise_multiplier: float) -> None:
    """`check_noise` for one round's DpEvent."""
    check_noise([noise_multiplier_of_event(event)], run_noise_multiplier)


def check_noise(noise_multipliers: list[float], run_noise_multiplier: float) -> None:
    """Raises FlairError unless the queries of a round had the noise that is accounted for (to 1e-4: float32).

    An empty list, no record of any noise, is not what is accounted for.
    """
    happened = effective_noise_multiplier(noise_multipliers) if noise_multipliers else 0.0
    if not math.isclose(happened, run_noise_multiplier, rel_tol=EVENT_TOLERANCE):
        raise FlairError(
            f"the aggregator added noise of multiplier {happened:.6g} where {run_noise_multiplier:.6g} is accounted "
            "for; the privacy statement would be wrong, so the run stops: please report this"
        )
