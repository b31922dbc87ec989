"""The rules by which photos are drawn from the eligible ones: uniformly, by label, by stratum, by score.

Everything is drawn with `random.Random(seed)` from candidates in sorted order, so that the same seed gives the same
photos. Photos of the previous revision come first where the rule leaves a choice: a set changes no more than it must.
"""

from __future__ import annotations

import itertools
import random
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple, TypeVar

from flair.dataset.metadata import Record
from flair.testsets.strata import NUM_BINS, Histogram, LabelOrder, Stratum

_CHOICES = 16  # photos that `LabelBalance` compares for each place
_Kind = TypeVar("_Kind", Stratum, str)


class Draw(NamedTuple):
    """Photos drawn, and what is wrong with them: None, or why the rule could not be fulfilled."""

    image_ids: frozenset[str]
    problem: str | None


def draw_uniform(eligible: Collection[str], num_images: int, seed: int, previous: Collection[str]) -> Draw:
    """`num_images` of the eligible photos: those of the previous set first, the others uniformly."""
    ranked = _ranked(eligible, random.Random(seed), previous)
    problem = None if len(ranked) >= num_images else f"{num_images:,} photos wanted, {len(ranked):,} eligible"
    return Draw(frozenset(ranked[:num_images]), problem)


def draw_with_positives(
    eligible: Mapping[str, Record],
    labels: Sequence[str],
    order: LabelOrder,
    min_positives: int,
    num_images: int,
    seed: int,
    previous: Collection[str],
) -> Draw:
    """`num_images` photos in which each of `labels`, the rarest first, occurs `min_positives` times at least.

    Photos of the previous set come first; then, from the rarest label on, those that the label still lacks (of them the
    ones that help the most labels); the rest uniformly.
    """
    rng = random.Random(seed)
    chosen = set(_ranked(eligible.keys() & set(previous), rng, ())[:num_images])
    have = Counter(label for image_id in chosen for label in order.labels(eligible[image_id]))
    ranked = _ranked(eligible, rng, ())
    problems = []
    for label in labels:
        short = frozenset(name for name in labels if have[name] < min_positives)
        free = [eligible[name] for name in ranked if name not in chosen and label in order.labels(eligible[name])]
        free.sort(key=lambda record: -len(short.intersection(order.labels(record))))
        for record in free[: max(0, min_positives - have[label])]:
            chosen.add(record.image_id)
            have.update(order.labels(record))
        if have[label] < min_positives:
            problems.append(f"label {label}: {min_positives} photos wanted, {have[label]} eligible")
    if len(chosen) > num_images:
        problems.append(f"{num_images:,} photos wanted, but {min_positives} of each label take {len(chosen):,}")
    for image_id in ranked:
        if len(chosen) >= num_images:
            break
        chosen.add(image_id)
    if len(chosen) < num_images:
        problems.append(f"{num_images:,} photos wanted, {len(chosen):,} eligible")
    return Draw(frozenset(chosen), "; ".join(problems) or None)


class LabelBalance:
    """How far the labels of the photos chosen so far are from the reference's mix.

    A photo counts for its rarest label, but carries others. Of photos that would do equally well, the one is taken
    that brings the frequencies of all labels closest to those of the reference.
    """

    def __init__(self, labels: Mapping[str, Sequence[str]], reference: Mapping[Stratum, Sequence[str]]) -> None:
        self._labels = labels
        self._shares: dict[Stratum, dict[str, float]] = {}
        for stratum, image_ids in reference.items():
            counts = Counter(label for image_id in image_ids for label in labels[image_id])
            self._shares[stratum] = {label: count / len(image_ids) for label, count in counts.items()}
        self._excess: defaultdict[str, float] = defaultdict(float)

    def take(self, image_ids: Iterable[str], stratum: Stratum, num: int, num_before: int) -> list[str]:
        """`num` of the photos of a stratum: the first `num_before`, then the best of a few in their order."""
        rest = iter(image_ids)
        chosen = []
        for _, image_id in zip(range(min(num, num_before)), rest, strict=False):
            self._expect(stratum)
            chosen.append(self._add(image_id))
        few = list(itertools.islice(rest, _CHOICES))
        while few and len(chosen) < num:
            self._expect(stratum)
            best = min(few, key=self._cost)
            chosen.append(self._add(best))
            few.remove(best)
            few.extend(itertools.islice(rest, 1))
        return chosen

    def _expect(self, stratum: Stratum) -> None:
        for label, share in self._shares.get(stratum, {}).items():
            self._excess[label] -= share

    def _add(self, image_id: str) -> str:
        for label in self._labels[image_id]:
            self._excess[label] += 1
        return image_id

    def _cost(self, image_id: str) -> float:
        # By how much the sum of the squared excesses would grow.
        return sum(2 * self._excess[label] + 1 for label in self._labels[image_id])


def draw_matched(
    strata: Mapping[str, Stratum],
    wanted: Histogram,
    balance: LabelBalance,
    seed: int,
    previous: Collection[str],
    borrow: bool,
) -> Draw:
    """As many photos of each class and bin as are wanted, classes in the order of `wanted`, bins from the lowest.

    With `borrow`, what a bin lacks is taken from the next higher one, beside that one's own share.
    """
    rng = random.Random(seed)
    by_stratum = grouped(strata)
    chosen: set[str] = set()
    problems = []
    for label, counts in wanted.items():
        lacking = 0
        for number in range(NUM_BINS):
            want = counts[number] + lacking
            stratum = Stratum(label, number)
            ranked = _ranked(by_stratum.get(stratum, ()), rng, previous)
            chosen.update(balance.take(ranked, stratum, want, sum(name in previous for name in ranked)))
            lacking = max(0, want - len(ranked))
            if lacking and not (borrow and number < NUM_BINS - 1):
                problems.append(f"{label}, bin {number}: {want:,} photos wanted, {len(ranked):,} eligible")
                lacking = 0
    return Draw(frozenset(chosen), "; ".join(problems) or None)


def draw_top(
    labels: Mapping[str, str],
    scores: Mapping[str, float],
    wanted: Mapping[str, int],
    seed: int,
    previous: Collection[str],
) -> Draw:
    """The highest scores of each label, as many as are wanted; of equals those of the previous set, then any.

    `labels` says for which label each eligible photo counts.
    """
    rng = random.Random(seed)
    by_label = grouped(labels)
    chosen: set[str] = set()
    problems = []
    for label, want in wanted.items():
        ranked = sorted(_ranked(by_label.get(label, ()), rng, previous), key=scores.__getitem__, reverse=True)
        chosen.update(ranked[:want])
        if len(ranked) < want:
            problems.append(f"label {label}: {want:,} photos wanted, {len(ranked):,} eligible")
    return Draw(frozenset(chosen), "; ".join(problems) or None)


def _ranked(image_ids: Iterable[str], rng: random.Random, previous: Collection[str]) -> list[str]:
    """The photos in the order in which they are taken."""
    ranked = sorted(image_ids)
    rng.shuffle(ranked)
    ranked.sort(key=lambda image_id: image_id not in previous)
    return ranked


def grouped(kinds: Mapping[str, _Kind]) -> Mapping[_Kind, Sequence[str]]:
    """The photos of each kind, which is a stratum or a label."""
    groups: dict[_Kind, list[str]] = {}
    for image_id, kind in kinds.items():
        groups.setdefault(kind, []).append(image_id)
    return groups
