"""Photos of train users put aside, so that seen users can be told from unseen ones.

The test partition has other users than train, so its error is that of new photos *and* of new users. Photos held out
of train users, which training never sees, have only the first: their partition is called `heldout`.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from fractions import Fraction
from typing import NamedTuple

from flair.curation.exclusion import TRAINING_PARTITION, Exclusion
from flair.dataset.catalog import HELDOUT
from flair.dataset.metadata import User


class HeldOut(NamedTuple):
    """All users without the photos put aside, and the users of these photos, their partition `heldout`."""

    users: list[User]
    heldout: list[User]


def hold_out(users: Iterable[User], fraction: Fraction, seed: int, exclusion: Exclusion | None = None) -> HeldOut:
    """Puts `fraction` of the photos of each train user aside, rounded down: users with too few photos keep all.

    Which ones depends on the seed and the user alone: not on other users, so not on `--limit_users`. A photo that has
    near duplicates in `exclusion` is not put aside: its twin may be what training sees.
    """
    remaining, heldout = [], []
    for user in users:
        count = int(fraction * len(user.records)) if user.partition == TRAINING_PARTITION else 0
        chosen = _choose(user, count, seed, exclusion)
        aside = tuple(record._replace(partition=HELDOUT) for record in user.records if record.image_id in chosen)
        if not aside:
            remaining.append(user)
            continue
        remaining.append(user._replace(records=tuple(r for r in user.records if r.image_id not in chosen)))
        heldout.append(User(user.user_id, HELDOUT, aside))
    return HeldOut(remaining, heldout)


def _choose(user: User, count: int, seed: int, exclusion: Exclusion | None) -> frozenset[str]:
    if count == 0:
        return frozenset()
    ids = (record.image_id for record in user.records)
    free = sorted(name for name in ids if exclusion is None or len(exclusion.component_of(name)) == 1)
    return frozenset(random.Random(f"{seed} {user.user_id}").sample(free, min(count, len(free))))
