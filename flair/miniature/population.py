"""Users, sizes, labels and ids of the miniature: FLAIR's published statistics, drawn from a seed."""

from __future__ import annotations

import bisect
import functools
import itertools
from typing import Final

import numpy as np
import numpy.typing as npt

from flair.dataset import catalog
from flair.dataset.metadata import Record, User
from flair.errors import FlairError
from flair.miniature.taxonomy import FineLabel

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]

# P(a user has at least k photos) = (1 + (k-1)/b)^-a exp(-(k-1)/c), fitted by least squares to the published quartiles
# 1/2/5, mean 8.35, sd 51.3 and maximum 4,151 (catalog.py); it gives 1/2/5, 8.34, 51.4.
_SIZE_A, _SIZE_B, _SIZE_C = 1.1138, 1.7539, 1693.4

MIN_USERS: Final = len(catalog.PARTITIONS)
MAX_LABELS: Final = 9  # [counted] coarse labels of a photo
_MAX_FINE_LABELS: Final = 36  # [counted]
_FINE_TASTE_SD = 1.5  # of a user's log preference for a fine label among its siblings
_PARTITION_TRIES = 32
_ENOUGH_LABELS = 6  # coarse labels that a partition should hold

# What is photographed: share of photos, and how likely a coarse label is there. Labels not named are as unlikely as
# `_ELSEWHERE` times their overall share. `_calibrated_scenes` shifts these until the overall shares are FLAIR's.
_ELSEWHERE = 0.15
_SCENES: Final = (
    (0.190, {"food": 0.95, "equipment": 0.75, "material": 0.45, "liquid": 0.30, "structure": 0.30, "plant": 0.15}),
    (0.100, {"animal": 0.95, "material": 0.35, "structure": 0.35, "equipment": 0.35, "interior_room": 0.15}),
    (0.055, {"animal": 0.90, "outdoor": 0.60, "plant": 0.60, "liquid": 0.30}),
    (0.170, {"structure": 0.95, "equipment": 0.60, "outdoor": 0.45, "plant": 0.30, "material": 0.30, "light": 0.04}),
    (0.130, {"outdoor": 0.95, "plant": 0.75, "structure": 0.40, "liquid": 0.30, "material": 0.20}),
    (0.065, {"liquid": 0.90, "outdoor": 0.85, "structure": 0.40, "equipment": 0.35, "material": 0.20}),
    (0.070, {"plant": 0.95, "outdoor": 0.40, "structure": 0.35, "material": 0.30, "food": 0.10}),
    (
        0.080,
        {"interior_room": 0.65, "structure": 0.85, "equipment": 0.75, "material": 0.60, "light": 0.12, "art": 0.15},
    ),
    (0.055, {"art": 0.90, "structure": 0.50, "material": 0.50, "equipment": 0.30}),
    (0.040, {"equipment": 0.95, "material": 0.70, "structure": 0.30}),
    (0.016, {"celebration": 0.35, "food": 0.60, "equipment": 0.60, "fire": 0.12, "light": 0.15, "liquid": 0.30}),
    (0.008, {"music": 0.50, "equipment": 0.85, "light": 0.30, "structure": 0.50}),
    (0.015, {"recreation": 0.60, "outdoor": 0.60, "equipment": 0.70, "structure": 0.40}),
    (0.008, {"fire": 0.45, "outdoor": 0.50, "plant": 0.40, "material": 0.40, "light": 0.20}),
    (0.004, {"games": 0.40, "equipment": 0.70, "interior_room": 0.30, "material": 0.50}),
    (0.004, {"religion": 0.35, "structure": 0.90, "art": 0.45, "material": 0.40}),
)


def user_sizes(num_users: int | None, num_images: int | None) -> Integers:
    """Photos of each user, ascending, int64 [users]: FLAIR's size distribution at evenly spaced quantiles.

    Either number follows from the other; given both, sizes above 1 are scaled to add up. Few users means that the long
    tail is not reached: the largest size, and with it the mean, grow with their number, to FLAIR's at FLAIR's size.

    Raises:
      FlairError: fewer than 3 users or photos, or fewer photos than users.

    >>> user_sizes(8, None).tolist()
    [1, 1, 1, 2, 2, 4, 7, 20]
    >>> int(user_sizes(None, catalog.IMAGES_PER_USER_MAX).sum())
    4151
    """
    for name, number in (("--num_users", num_users), ("--num_images", num_images)):
        if number is not None and number < MIN_USERS:
            raise FlairError(f"{name}={number}: expected at least {MIN_USERS}, so that no partition is empty")
    if num_users is None:
        if num_images is None:
            raise FlairError("expected --num_users or --num_images, to know how large the dataset shall be")
        num_users = _users_for(num_images)
    sizes = _natural_sizes(num_users)
    if num_images is None:
        return sizes
    if num_images < num_users:
        raise FlairError(f"--num_images={num_images}: fewer than --num_users={num_users}; every user has a photo")
    return _scaled(sizes, num_images)


def make_users(sizes: Integers, taxonomy: list[FineLabel], seed: int, taste_concentration: float = 3.0) -> list[User]:
    """One user for every size, in random order, with labels, partition and ids.

    Coarse labels come from a mixture of 16 scenes (a meal, a street, a pet, a concert ...). A scene proposes every
    label independently; the shares over all photos are FLAIR's published ones. How often *pairs* of labels occur
    together is not published as numbers: here it follows from the scenes, which are common sense (food with equipment
    and liquid, plant with outdoor and structure). Each user has a taste, a Dirichlet draw over the scenes (at the
    default concentration two or three kinds of scene make up most of a user's photos), tilted so that all tastes
    weighted by photos still average to the published shares; and a preference for some of the fine labels below each
    coarse one (log-normal, sd 1.5; this one does not depend on the concentration). Partitions are 8:1:1 by user,
    stratified by size.

    The same arguments give the same users; nothing else is read.
    """

    def stream(name: str) -> np.random.Generator:
        """An independent random stream, so that a change in one draw leaves the others as they were."""
        return np.random.default_rng([seed, int.from_bytes(name.encode(), "big")])

    sizes = stream("order").permutation(sizes)
    owner = np.repeat(np.arange(len(sizes)), sizes)
    weights, probabilities = _calibrated_scenes()
    tastes = _tastes(sizes, weights, taste_concentration, stream("taste"))
    coarse = _coarse_labels(tastes, owner, probabilities, stream("coarse"))
    fine = _fine_labels(coarse, owner, taxonomy, stream("fine"))
    partitions = _partitions(sizes, coarse, owner, stream("partition"))
    user_ids = _user_ids(len(sizes), stream("user_id"))
    image_ids = _image_ids(owner, sizes, stream("image_id"))

    photo, label = np.nonzero(coarse)
    coarse_names = _names_of(photo, label, list(catalog.COARSE_LABELS), len(owner))
    fine_names = _names_of(*fine, [label.name for label in taxonomy], len(owner))
    users = []
    start = 0
    for user_id, partition, size in zip(user_ids, partitions, sizes.tolist(), strict=True):
        rows = range(start, start + size)
        records = tuple(Record(user_id, image_ids[i], coarse_names[i], fine_names[i], partition) for i in rows)
        users.append(User(user_id, partition, records))
        start += size
    return users


def _natural_sizes(num_users: int) -> Integers:
    counts = np.arange(1, catalog.IMAGES_PER_USER_MAX, dtype=np.float64)
    survival = (1 + counts / _SIZE_B) ** -_SIZE_A * np.exp(-counts / _SIZE_C)
    quantiles = (np.arange(num_users) + 0.5) / num_users
    return 1 + np.searchsorted(-survival, quantiles - 1).astype(np.int64)


def _users_for(num_images: int) -> int:
    """The least number of users who have that many photos, at most a user for every photo."""
    numbers = range(MIN_USERS, num_images)
    return MIN_USERS + bisect.bisect_left(numbers, num_images, key=lambda users: int(_natural_sizes(users).sum()))


def _scaled(sizes: Integers, total: int) -> Integers:
    """`sizes` with what lies above one photo per user scaled to `total`, by largest remainders."""
    extra = np.maximum(sizes - 1, 1e-3)  # so that users of one photo can grow when all others are as small
    exact = extra * ((total - len(sizes)) / extra.sum())
    scaled = np.floor(exact).astype(np.int64)
    missing = total - len(sizes) - int(scaled.sum())
    scaled[np.argsort(scaled - exact, kind="stable")[:missing]] += 1
    return np.sort(scaled + 1)


@functools.lru_cache(maxsize=1)
def _calibrated_scenes() -> tuple[Floats, Floats]:
    """Scene shares [scenes] and label probabilities [scenes, 17] that give photos of 1 to 9 labels FLAIR's shares."""
    shares = np.array([catalog.COARSE_LABEL_COUNTS[label] for label in catalog.COARSE_LABELS], dtype=np.float64)
    shares /= sum(catalog.NUM_IMAGES.values())
    weights = np.array([weight for weight, _ in _SCENES])
    weights /= weights.sum()
    proposed = np.tile(_ELSEWHERE * shares, (len(_SCENES), 1))
    for row, (_, likely) in enumerate(_SCENES):
        for label, probability in likely.items():
            proposed[row, catalog.COARSE_LABELS.index(label)] = probability
    logits = np.log(proposed / (1 - proposed))
    for _ in range(500):
        probabilities = 1 / (1 + np.exp(-logits))
        ratio = shares / (weights @ _label_shares(probabilities))
        if np.abs(ratio - 1).max() < 1e-6:
            break
        logits += np.log(ratio)
    return weights, probabilities


def _label_shares(probabilities: Floats) -> Floats:
    """P(label | 1 to 9 labels) in each scene, when labels are proposed independently: [scenes, 17]."""
    scenes, labels = probabilities.shape
    others = np.empty((scenes, labels))
    for label in range(labels):
        others[:, label] = _count_distribution(np.delete(probabilities, label, axis=1))[:, :MAX_LABELS].sum(axis=1)
    accepted = _count_distribution(probabilities)[:, 1 : MAX_LABELS + 1].sum(axis=1, keepdims=True)
    return probabilities * others / accepted


def _count_distribution(probabilities: Floats) -> Floats:
    """P(k of the independent events happen), k = 0.. : [rows, events + 1]."""
    counts = np.zeros((probabilities.shape[0], probabilities.shape[1] + 1))
    counts[:, 0] = 1
    for column in probabilities.T:
        counts[:, 1:] = counts[:, 1:] * (1 - column[:, None]) + counts[:, :-1] * column[:, None]
        counts[:, 0] *= 1 - column
    return counts


def _tastes(sizes: Integers, weights: Floats, concentration: float, rng: np.random.Generator) -> Floats:
    """Each user's scene shares [users, scenes], Dirichlet, raked so that their mean over photos is `weights`."""
    tastes = rng.gamma(concentration * weights, size=(len(sizes), len(weights))) + 1e-9
    for _ in range(100):
        tastes /= tastes.sum(axis=1, keepdims=True)
        tastes *= weights * sizes.sum() / (sizes @ tastes)
    return tastes / tastes.sum(axis=1, keepdims=True)


def _coarse_labels(
    tastes: Floats, owner: Integers, probabilities: Floats, rng: np.random.Generator
) -> npt.NDArray[np.bool_]:
    """Which photo carries which coarse label: bool [photos, 17], 1 to 9 per photo."""
    edges = np.cumsum(tastes, axis=1)
    edges[:, -1] = 1.0
    scene = (rng.random((len(owner), 1)) >= edges[owner]).sum(axis=1)
    labels = np.zeros((len(owner), probabilities.shape[1]), dtype=bool)
    todo = np.arange(len(owner))
    while len(todo):
        labels[todo] = rng.random((len(todo), labels.shape[1])) < probabilities[scene[todo]]
        counts = labels[todo].sum(axis=1)
        todo = todo[(counts == 0) | (counts > MAX_LABELS)]
    return labels


def _fine_labels(
    coarse: npt.NDArray[np.bool_], owner: Integers, taxonomy: list[FineLabel], rng: np.random.Generator
) -> tuple[Integers, Integers]:
    """Which photo carries which fine label: (photo, index into `taxonomy`) pairs in order.

    Every coarse label of a photo brings one fine label that has no other parent, and now and then a few more; one with
    a second parent only where the photo carries that too, so that the fine labels map to exactly the coarse ones.
    """
    num_coarse = coarse.sum(axis=1)
    extra_mean = catalog.FINE_LABELS_PER_IMAGE_MEAN / catalog.COARSE_LABELS_PER_IMAGE_MEAN - 1
    detail = rng.gamma(1.5, 1 / 1.5, size=len(owner)) * extra_mean
    limit = np.minimum(6, _MAX_FINE_LABELS // num_coarse - 1)
    photos, chosen = [], []
    for column, parent in enumerate(catalog.COARSE_LABELS):
        children = [i for i, label in enumerate(taxonomy) if label.parent == parent]
        likely = np.log([0.35 if not taxonomy[i].rank else 1 / (1 + taxonomy[i].rank) for i in children])
        tilt = rng.standard_normal((int(owner[-1]) + 1, len(children)), dtype=np.float32) * _FINE_TASTE_SD
        carriers = np.flatnonzero(coarse[:, column])
        extras = np.minimum(rng.poisson(detail[carriers]), limit[carriers])
        for part in np.array_split(np.arange(len(carriers)), len(carriers) // 50_000 + 1):
            rows = carriers[part]
            scores = likely + tilt[owner[rows]] + rng.gumbel(size=(len(rows), len(children)))
            first_choice = scores.copy()
            for position, child in enumerate(children):
                second = taxonomy[child].second_parent
                if second is not None:
                    first_choice[:, position] = -np.inf
                    scores[~coarse[rows, catalog.COARSE_LABELS.index(second)], position] = -np.inf
            scores[np.arange(len(rows)), first_choice.argmax(axis=1)] = np.inf
            ranking = np.argsort(-scores, axis=1)
            wanted = np.arange(len(children)) <= extras[part, None]
            wanted &= np.take_along_axis(scores, ranking, axis=1) > -np.inf
            row, place = np.nonzero(wanted)
            photos.append(rows[row])
            chosen.append(np.array(children)[ranking[row, place]])
    photo, fine = np.concatenate(photos), np.concatenate(chosen)
    order = np.lexsort((fine, photo))
    return photo[order], fine[order]


def _partitions(sizes: Integers, coarse: npt.NDArray[np.bool_], owner: Integers, rng: np.random.Generator) -> list[str]:
    """8:1:1 by user, a val and a test user out of every ten of like size.

    With few users one split in 32 is taken: every partition with several labels, then shares of photos near FLAIR's.
    """
    num_users = len(sizes)
    carried = np.zeros((num_users, coarse.shape[1]), dtype=bool)
    np.logical_or.at(carried, owner, coarse)
    heldout = {
        name: max(1, round(num_users * catalog.NUM_USERS[name] / sum(catalog.NUM_USERS.values())))
        for name in ("val", "test")
    }
    photo_share = {name: catalog.NUM_IMAGES[name] / sum(catalog.NUM_IMAGES.values()) for name in catalog.PARTITIONS}
    best: tuple[tuple[int, float], list[str]] | None = None
    for _ in range(_PARTITION_TRIES):
        split = np.full(num_users, "train", dtype=object)
        by_size = np.lexsort((rng.random(num_users), sizes))
        for name, count in heldout.items():
            for group in np.array_split(by_size[split[by_size] == "train"], count):
                split[group[rng.integers(len(group))]] = name
        labels = min(int(carried[split == name].any(axis=0).sum()) for name in catalog.PARTITIONS)
        error = max(abs(sizes[split == name].sum() / sizes.sum() - photo_share[name]) for name in catalog.PARTITIONS)
        score = (min(labels, _ENOUGH_LABELS), -float(error))
        if best is None or score > best[0]:
            best = score, split.tolist()
        if labels >= _ENOUGH_LABELS and error < 0.02:
            break
    assert best is not None
    return best[1]


def _user_ids(count: int, rng: np.random.Generator) -> list[str]:
    """Distinct Flickr user ids, such as 59769174@N00."""
    numbers: dict[int, None] = {}
    while len(numbers) < count:
        numbers.update(dict.fromkeys((10 ** rng.uniform(7, 9, size=count)).astype(np.int64).tolist()))
    return [
        f"{number}@N{suffix:02d}"
        for number, suffix in zip(numbers, rng.integers(0, 9, size=count).tolist(), strict=False)
    ]


def _image_ids(owner: Integers, sizes: Integers, rng: np.random.Generator) -> list[str]:
    """Distinct Flickr photo ids of 9 to 11 digits, ascending within a user as time passes."""
    first, last = 1e8, 5e10
    joined = np.exp(rng.uniform(np.log(first), np.log(last / 1.2), size=len(sizes)))
    left = joined + (last - joined) * rng.beta(1.0, 3.0, size=len(sizes))
    when = joined[owner] + rng.random(len(owner)) * (left - joined)[owner]
    ids = when.astype(np.int64)
    order = np.argsort(ids, kind="stable")
    steps = np.arange(len(ids))
    ids[order] = np.maximum.accumulate(ids[order] - steps) + steps
    return [str(value) for value in ids[np.lexsort((ids, owner))].tolist()]


def _names_of(rows: Integers, columns: Integers, names: list[str], num_rows: int) -> list[tuple[str, ...]]:
    """The names of each row, given (row, column) pairs in row order."""
    flat = np.array(names, dtype=object)[columns].tolist()
    ends = np.searchsorted(rows, np.arange(num_rows + 1)).tolist()
    return [tuple(flat[start:end]) for start, end in itertools.pairwise(ends)]
