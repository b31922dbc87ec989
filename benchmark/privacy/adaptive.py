"""How adaptive clipping splits its noise between the sum of updates and the count of unclipped clients.

TFF's `DifferentiallyPrivateFactory.gaussian_adaptive` takes the effective total noise multiplier z and splits it itself
(Andrew et al., theorem 1 of https://arxiv.org/abs/1905.03871): the count, to which a client adds -1/2 or 1/2, gets
noise of standard deviation b, and the sum gets the noise multiplier z_sum with z^-2 = z_sum^-2 + (2 b)^-2. So TFF has
to be given z, never z_sum.

Guarantee: with this split, sum and count together release as much as one Gaussian mechanism of noise multiplier z, and
`check_noise` lets no round pass in which TFF reports other noise than is accounted for.
Edge cases: with b <= z / 2 there is no such split, and it is refused. A small cohort can make the clip norm shrink to
zero (`clip_collapses`): this is private, but nothing is learned.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from flair.errors import FlairError

DEFAULT_COUNT_FRACTION = 0.05
EVENT_TOLERANCE = 1e-4


def clipped_count_stddev(cohort: int, noise_multiplier: float, published: bool = False) -> float:
    """Standard deviation for the noise on the count of unclipped clients, in clients: max(0.05 * cohort, sigma).

    TFF's default is 0.05 * cohort. TFF refuses it when sigma >= 0.1 * cohort, and a little below that it doubles the
    noise on the sum. With sigma as the floor the noise on the sum grows by at most 15.5%, and no cohort is too small.

    Args:
      noise_multiplier: what TFF is given (`PrivacyPlan.run_noise_multiplier`).
      published: keep TFF's default, as ml-flair does, wherever TFF takes it.

    >>> clipped_count_stddev(200, 1.025), clipped_count_stddev(10, 1.2)
    (10.0, 1.2)
    >>> clipped_count_stddev(200, 10.72, published=True)
    10.0
    """
    default = DEFAULT_COUNT_FRACTION * cohort
    return default if published and noise_multiplier < 2 * default else max(default, noise_multiplier)


def sum_noise_multiplier(noise_multiplier: float, count_stddev: float | None) -> float:
    """What TFF's split of the total `noise_multiplier` leaves for the sum of updates.

    Args:
      count_stddev: None: the clip norm is fixed, and the sum has the total.

    Raises:
      FlairError: TFF refuses to split it, because noise_multiplier >= 2 * count_stddev.

    >>> round(sum_noise_multiplier(1.0, 10.0), 5)
    1.00125
    """
    if count_stddev is None:
        return noise_multiplier
    if noise_multiplier >= 2 * count_stddev:
        raise FlairError(
            f"--clipped_count_stddev={count_stddev:g} is too small for a noise multiplier of {noise_multiplier:.4g}: "
            f"adaptive clipping needs more than {noise_multiplier / 2:.4g}; leave it out to get a working one"
        )
    return float((noise_multiplier**-2 - (2 * count_stddev) ** -2) ** -0.5)


def noise_norm(sum_noise_multiplier: float, cohort: float, num_weights: int) -> float:
    """How long the noise on a round's mean update is, in clip norms, which no update exceeds: sigma / cohort * sqrt(d).

    Of 11 million weights it drowns every update, of a classifier's few thousand it does not.

    >>> [round(noise_norm(0.974, 200, count), 2) for count in (11_185_233, 18_321, 8_721)]
    [16.29, 0.66, 0.45]
    """
    return sum_noise_multiplier / cohort * math.sqrt(num_weights)


def clip_collapses(cohort: int, count_stddev: float, target_quantile: float, is_poisson: bool = True) -> bool:
    """Whether the noise on the count drives the adaptive clip norm to zero, whatever the updates are.

    The noisy unclipped fraction is cut to [0, 1], so that its mean is above zero even with every update clipped. Where
    that mean exceeds the target quantile, the clip norm shrinks for ever. A client counts -1/2 or 1/2, and the sum is
    divided by the expected cohort B: with every update clipped, the fraction is 1/2 - size / (2 B). The size of a
    Poisson cohort has variance B, which gives the fraction the variance 1 / (4 B); the noise on the count adds
    b^2 / B^2.

    >>> clip_collapses(200, 10.0, 0.1), clip_collapses(5, 1.0, 0.1), clip_collapses(5, 1.0, 0.1, is_poisson=False)
    (False, True, False)
    """
    spread = math.sqrt((count_stddev / cohort) ** 2 + (0.25 / cohort if is_poisson else 0.0))
    if spread == 0:
        return False
    density_drop = (1 - math.exp(-0.5 / spread**2)) / math.sqrt(2 * math.pi)
    beyond_one = 0.5 * math.erfc(1 / (spread * math.sqrt(2)))
    return spread * density_drop + beyond_one > target_quantile


def effective_noise_multiplier(noise_multipliers: Sequence[float]) -> float:
    """The noise multiplier of the one Gaussian mechanism that releases as much as several together.

    All of them are about one cohort (https://arxiv.org/abs/1812.06210, section 3). One without noise tells everything.

    >>> round(effective_noise_multiplier([1.00125234, 20.0]), 6)
    1.0
    """
    return sum(noise**-2 for noise in noise_multipliers) ** -0.5 if all(noise_multipliers) else 0.0


def check_noise(noise_multipliers: Sequence[float], run_noise_multiplier: float) -> None:
    """Raises FlairError unless the queries of a round had the noise that is accounted for (to 1e-4: float32).

    Without any query there was no noise, and so it raises.
    """
    happened = effective_noise_multiplier(noise_multipliers) if noise_multipliers else 0.0
    if not math.isclose(happened, run_noise_multiplier, rel_tol=EVENT_TOLERANCE):
        raise FlairError(
            f"the aggregator added noise of multiplier {happened:.6g} where {run_noise_multiplier:.6g} is accounted "
            "for; the privacy statement would be wrong, so the run stops: please report this"
        )
