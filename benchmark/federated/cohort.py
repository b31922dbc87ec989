"""Which clients take part in a round: a function of the round and of a seed or the noise key."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from benchmark.privacy.noise_key import KeyStream, NoiseKey
from benchmark.privacy.request import Sampling
from benchmark.run.seeds import derive_generator


def sample_cohort(
    client_ids: Sequence[str],
    *,
    seed: int | NoiseKey,
    round_number: int,
    clients_per_round: int,
    sampling: Sampling = Sampling.UNIFORM,
    groups: int = 1,
) -> list[str]:
    """The clients of one round.

    Guarantee: the cohort is a function of (seed or key, sampling, round, ids, clients_per_round) alone. With
    `Sampling.POISSON` every client takes part with probability q = clients_per_round / len(client_ids), independently
    of all other clients and rounds, which is what the accountants of a private run assume (Mironov, Talwar, Zhang 2019,
    https://arxiv.org/abs/1908.10530); with a noise key nobody who lacks the key can tell who took part.
    Edge cases: a Poisson cohort may be empty or larger than expected; noise is added all the same, and the sum is
    divided by `clients_per_round`, because the number of clients that took part would give them away. q is a float64:
    a client takes part where a uniform number with 53 bits is below it. With `groups`, q is `groups` times as large,
    and 0 outside of the round's group.

    Args:
      client_ids: all clients, in an order that does not change between runs.
      seed: of the run, or the noise key of a private run, whose cohorts nobody may know.
      round_number: counted from 0.
      clients_per_round: size of the cohort; under `poisson` its expectation.
      sampling: `uniform` draws without replacement; `poisson` as above; `cyclic` shuffles the clients once and visits
        them in that order, pass after pass, the last cohort of a pass maybe smaller; `fixed` takes the same clients in
        every round.
      groups: under `poisson`, groups of nearly equal size into which clients are dealt once, and of which rounds take
        one after the other; at most len(client_ids) / clients_per_round.

    Returns:
      Distinct client ids in training order.

    >>> users = [f"user{i}" for i in range(1000)]
    >>> sample_cohort(users, seed=0, round_number=3, clients_per_round=4)
    ['user124', 'user928', 'user735', 'user217']
    >>> len(sample_cohort(users, seed=0, round_number=3, clients_per_round=4, sampling=Sampling.POISSON))
    2
    """
    if not 1 <= clients_per_round <= len(client_ids):
        raise ValueError(f"clients_per_round={clients_per_round} must be between 1 and {len(client_ids)} clients")
    generator = _generator(seed, "cohort", sampling, round_number)
    if sampling is Sampling.UNIFORM:
        chosen = generator.choice(len(client_ids), size=clients_per_round, replace=False)
    elif sampling is Sampling.POISSON:
        dealt = _generator(seed, "groups", groups).permutation(len(client_ids)) % groups
        members = (dealt == round_number % groups).nonzero()[0]
        chosen = members[generator.random(len(members)) < groups * clients_per_round / len(client_ids)]
        generator.shuffle(chosen)
    elif sampling is Sampling.CYCLIC:
        order = _generator(seed, "cohort", sampling).permutation(len(client_ids))
        start = round_number % -(-len(client_ids) // clients_per_round) * clients_per_round
        chosen = order[start : start + clients_per_round]
    else:
        chosen = _generator(seed, "cohort", sampling).choice(len(client_ids), clients_per_round, replace=False)
    return [client_ids[index] for index in chosen]


def _generator(seed: int | NoiseKey, *names: str | int) -> np.random.Generator | KeyStream:
    return seed.stream(*names) if isinstance(seed, NoiseKey) else derive_generator(seed, *names)
