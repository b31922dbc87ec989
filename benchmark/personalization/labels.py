"""Draws episodes that are few-shot tasks over fine-grained labels, as Meta-Dataset does.

A fine-grained label is a class, and its coarse label is the class's alphabet, in the words of Omniglot: an episode
draws an alphabet uniformly, then classes of it. FLAIR's photos carry several labels, but a class needs photos of its
own: a photo belongs to a class if it carries no other class of the same alphabet and label set. The coarse names, which
occur as fine-grained labels too, are not classes. Pure NumPy.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from benchmark.personalization.sizes import (
    MAX_SUPPORT,
    MIN_WAYS,
    Integers,
    draw_shots,
    draw_support_size,
    draw_ways,
    query_size,
)
from benchmark.run.seeds import derive_generator
from flair.errors import FlairError

LABEL_SETS = ("train", "val", "test")
_TRAIN_SHARE, _VAL_SHARE = 0.70, 0.15  # of the labels of an alphabet
ONE_ALPHABET = "all labels"
_MIN_CLASS_PHOTOS = 2  # one to learn from and one to query


class LabelClass(NamedTuple):
    """A class: its fine-grained label and the rows int64 of its photos."""

    name: str
    photos: Integers


class Alphabet(NamedTuple):
    """Classes that can meet in an episode: the fine labels of one coarse label, by name; their photos are disjoint."""

    name: str
    classes: Sequence[LabelClass]


class LabelEpisode(NamedTuple):
    """One few-shot task: rows of photos int64, and the place of each one's class in `classes`."""

    alphabet: str
    classes: tuple[str, ...]
    support: Integers
    support_class: Integers
    query: Integers
    query_class: Integers


def label_sets(alphabets: Mapping[str, Iterable[str]]) -> dict[str, str]:
    """Fine-grained label -> `train`, `val` or `test`: disjoint, 70, 15 and 15% of each alphabet.

    The labels are cut in the order of a hash of their names, not of a seed: a model meta-trained on the training labels
    must be tested on the same test labels by everyone. A label of two alphabets goes where its first one puts it.

    `alphabets` are the fine-grained labels of each coarse label.

    >>> sets = label_sets({"animal": [f"animal_{i}" for i in range(20)]})
    >>> [list(sets.values()).count(name) for name in LABEL_SETS]
    [14, 3, 3]
    """
    found: dict[str, str] = {}
    for _, names in sorted(alphabets.items()):
        ranked = sorted(set(names), key=lambda name: (hashlib.blake2b(name.encode(), digest_size=8).digest(), name))
        first_val, first_test = round(len(ranked) * _TRAIN_SHARE), round(len(ranked) * (_TRAIN_SHARE + _VAL_SHARE))
        for rank, name in enumerate(ranked):
            found.setdefault(name, LABEL_SETS[(rank >= first_val) + (rank >= first_test)])
    return found


def one_alphabet(names: Iterable[str], coarse: Collection[str]) -> dict[str, list[str]]:
    """A taxonomy for `make_alphabets` where none is known: one alphabet of all fine-grained labels but the coarse ones.

    `names` are those of the whole records and not of the photos at hand, so that every partition divides them into the
    same label sets.
    """
    return {name: [ONE_ALPHABET] for name in names if name not in coarse}


def make_alphabets(
    photo_labels: Sequence[Iterable[str]], taxonomy: Mapping[str, Iterable[str]], label_set: str
) -> list[Alphabet]:
    """The alphabets of one label set, each class with the photos that are its own.

    Args:
      photo_labels: fine-grained labels of each photo.
      taxonomy: fine-grained label -> its coarse labels, as `load_taxonomy` and `one_alphabet` return them.
    """
    members: dict[str, set[str]] = {}
    coarse = {parent for parents in taxonomy.values() for parent in parents}
    for name, parents in taxonomy.items():
        for parent in parents:
            if name not in coarse:
                members.setdefault(parent, set()).add(name)
    sets = label_sets(members)
    chosen = {parent: {n for n in names if sets[n] == label_set} for parent, names in members.items()}
    photos: dict[str, dict[str, list[int]]] = {parent: {} for parent in chosen}
    for row, names in enumerate(photo_labels):
        carried = set(names)
        for parent, classes in chosen.items():
            here = carried & classes
            if len(here) == 1:
                photos[parent].setdefault(here.pop(), []).append(row)
    return [
        Alphabet(parent, [LabelClass(name, np.array(rows, np.int64)) for name, rows in sorted(photos[parent].items())])
        for parent in sorted(photos)
    ]


class LabelEpisodes:
    """The episodes of a set of alphabets; an episode is a function of (seed, number).

    Ways are uniform in 5 .. min(50, classes of the alphabet), queries balanced, support up to 500 photos, shots in
    loose proportion to the sizes of the classes: see `sizes`.

    Args:
      ways, shots, num_query: fixed numbers instead, the last two of each class.

    Attributes:
      alphabets: those with enough classes of enough photos; the classes that are too small are gone.

    Raises:
      FlairError: no alphabet has enough of them.
    """

    def __init__(
        self,
        alphabets: Sequence[Alphabet],
        seed: int,
        ways: int | None = None,
        shots: int | None = None,
        num_query: int | None = None,
    ) -> None:
        self._seed, self._ways, self._shots, self._num_query = seed, ways, shots, num_query
        if shots is None and (ways or 0) > MAX_SUPPORT:
            raise FlairError(
                f"--ways={ways}: a support set of at most {MAX_SUPPORT} photos is drawn, and a class needs one; give "
                "fewer, or --shots"
            )
        # Half of a class may be queried where neither number is fixed.
        least = _MIN_CLASS_PHOTOS if shots is None and num_query is None else (shots or 1) + (num_query or 1)
        enough = [Alphabet(name, [one for one in classes if len(one.photos) >= least]) for name, classes in alphabets]
        self.alphabets = [alphabet for alphabet in enough if len(alphabet.classes) >= (ways or MIN_WAYS)]
        if not self.alphabets:
            most = max((len(alphabet.classes) for alphabet in enough), default=0)
            raise FlairError(
                f"no coarse label has {ways or MIN_WAYS} fine-grained ones with {least} photos of their own each in "
                f"this label set and partition (the richest has {most}); give another --partition or --label_set, or "
                "smaller --ways, --shots or --num_query"
            )

    def episode(self, number: int) -> LabelEpisode:
        """The episode of this number, from 0."""
        rng = derive_generator(self._seed, "label episode", number)
        alphabet = self.alphabets[rng.integers(len(self.alphabets))]
        ways = self._ways if self._ways is not None else draw_ways(len(alphabet.classes), rng)
        classes = [alphabet.classes[index] for index in rng.choice(len(alphabet.classes), ways, replace=False)]
        sizes = np.array([len(one.photos) for one in classes])
        num_query = self._num_query if self._num_query is not None else query_size(sizes, self._shots)
        if self._shots is not None:
            shots = np.full(ways, self._shots)
        else:
            remaining = sizes - num_query
            shots = draw_shots(sizes, remaining, draw_support_size(remaining, rng), rng)
        drawn = [rng.permutation(one.photos)[: num_query + k] for one, k in zip(classes, shots.tolist(), strict=True)]
        return LabelEpisode(
            alphabet.name,
            tuple(one.name for one in classes),
            np.concatenate([rows[num_query:] for rows in drawn]),
            np.repeat(np.arange(ways), shots),
            np.concatenate([rows[:num_query] for rows in drawn]),
            np.repeat(np.arange(ways), num_query),
        )
