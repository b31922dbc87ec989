"""Episodes of the photos of a partition: drawn by their number, and read as serialized examples."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmark.data.labels import read_photo_table
from benchmark.data.records import Records
from benchmark.personalization.labels import LABEL_SETS, LabelEpisodes, make_alphabets, one_alphabet
from benchmark.personalization.users import DUPLICATE_AWARE, RANDOM, SPLITS, UserEpisodes, UserPhotos
from flair.curation.exclusion import Exclusion, read_exclusion
from flair.dataset.catalog import TAXONOMY_FILE
from flair.dataset.metadata import load_taxonomy
from flair.errors import FlairError


class SerializedEpisode(NamedTuple):
    """The photos of an episode, as examples of the prepared records, and whose they are.

    An episode of labels has `classes`, the names of its fine-grained labels, and the place in them of each photo's
    class; one of a user has `user_id`.
    """

    support: Sequence[bytes]
    query: Sequence[bytes]
    user_id: str | None = None
    alphabet: str | None = None
    classes: tuple[str, ...] = ()
    support_class: Sequence[int] = ()
    query_class: Sequence[int] = ()


class _OfRecords:
    """What episodes of users and of labels have in common."""

    num_episodes = None  # as many as one likes

    def __init__(self, records: Records, partition: str, seed: int) -> None:
        self.records, self.partition, self._seed = records, partition, seed
        self.labels, self.fine_grained_labels = records.labels, records.fine_grained_labels
        self.image_format = records.image_format
        self.table = read_photo_table(records, partition)

    def settings(self) -> dict[str, Any]:
        """All that decides which episodes they are."""
        return {"partition": self.partition, "seed": self._seed, "data": self.records.digest()}


class UserEpisodeSource(_OfRecords):
    """The users of a partition as episodes, without an end; an episode is a function of (seed, number).

    Args:
      split, num_support, num_query: see `UserEpisodes`.
      duplicates: near_duplicates.json of flair.near_duplicates, for the split `duplicate_aware`.

    Attributes:
      drawn: which photos they are.
      split: as given.
      duplicates: what that file says.

    Raises:
      FlairError: no user can be one.
    """

    has_classes = False

    def __init__(
        self,
        records: Records,
        partition: str,
        seed: int = 0,
        split: str = RANDOM,
        num_support: int | None = None,
        num_query: int | None = None,
        duplicates: str | None = None,
    ) -> None:
        _check("split", split, SPLITS)
        if (split == DUPLICATE_AWARE) != (duplicates is not None):
            raise FlairError(
                f"split={split!r}, duplicates={duplicates!r}: {DUPLICATE_AWARE} and a file belong together"
            )
        self.duplicates = _read_duplicates(duplicates)
        super().__init__(records, partition, seed)
        self.split = split
        self._drawing = {"split": split, "num_support": num_support, "num_query": num_query}
        users = [
            UserPhotos(user_id, [self.table.image_ids[row] for row in rows])
            for user_id, rows in zip(self.table.users, self.table.rows_by_user(), strict=True)
        ]
        component_of = None if self.duplicates is None else self.duplicates.component_of
        self.drawn = UserEpisodes(users, split, seed, num_support, num_query, component_of)

    def settings(self) -> dict[str, Any]:
        digest = None if self.duplicates is None else self.duplicates.digest
        return {"episodes": "users", **super().settings(), **self._drawing, "duplicates": digest}

    def serialized(self, number: int) -> SerializedEpisode:
        """The episode of this number, from 0; none before it is computed."""
        episode = self.drawn.episode(number)
        photos = self.records.read_user(self.partition, episode.user_id)
        support, query = ([photos[row] for row in side] for side in (episode.support, episode.query))
        return SerializedEpisode(support, query, episode.user_id)


class LabelEpisodeSource(_OfRecords):
    """Few-shot tasks over fine-grained labels of a partition, without an end; a function of (seed, number), too.

    Args:
      label_set, ways, shots, num_query: see `LabelEpisodes`; `label_set` is `train`, `val` or `test`.
      taxonomy: label_relationship.txt of the dataset, or its folder; None: all labels are one alphabet.

    Attributes:
      drawn: which photos they are.
      label_set, taxonomy: as given.

    Raises:
      FlairError: there are not enough labels with enough photos, or the taxonomy is of other labels.
    """

    has_classes = True

    def __init__(
        self,
        records: Records,
        partition: str,
        seed: int = 0,
        label_set: str = "test",
        ways: int | None = None,
        shots: int | None = None,
        num_query: int | None = None,
        taxonomy: str | None = None,
    ) -> None:
        _check("label_set", label_set, LABEL_SETS)
        super().__init__(records, partition, seed)
        self.label_set, self.taxonomy = label_set, taxonomy
        self._drawing = {"label_set": label_set, "ways": ways, "shots": shots, "num_query": num_query}
        names = sorted(records.fine_grained_labels, key=records.fine_grained_labels.__getitem__)
        parents: Mapping[str, Iterable[str]] = one_alphabet(names, records.labels)
        if taxonomy is not None:
            parents = load_taxonomy(taxonomy_folder(taxonomy))
            if not set(names) & set(parents):
                raise FlairError(f"--taxonomy={taxonomy}: knows none of the {len(names):,} labels of {records.root}")
        photo_labels = [[names[column] for column in columns] for columns in self.table.fine_grained_labels]
        self.drawn = LabelEpisodes(make_alphabets(photo_labels, parents, label_set), seed, ways, shots, num_query)

    def settings(self) -> dict[str, Any]:
        alphabets = {one.name: [c.name for c in one.classes] for one in self.drawn.alphabets}
        return {"episodes": "labels", **super().settings(), **self._drawing, "alphabets": alphabets}

    def serialized(self, number: int) -> SerializedEpisode:
        """The episode of this number, from 0; none before it is computed."""
        episode = self.drawn.episode(number)
        sides = episode.support.tolist(), episode.query.tolist()
        support, query = (self.records.read_photos(self.partition, rows) for rows in sides)
        classes = episode.classes, episode.support_class.tolist(), episode.query_class.tolist()
        return SerializedEpisode(support, query, None, episode.alphabet, *classes)


def taxonomy_folder(given: str | os.PathLike[str]) -> Path:
    """The folder of the file that `given` names, or that it is."""
    path = Path(given)
    return path.parent if path.name == TAXONOMY_FILE else path


def _check(name: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise FlairError(f"{name}={value!r}: expected one of {', '.join(choices)}")


def _read_duplicates(path: str | None) -> Exclusion | None:
    if path is None:
        return None
    duplicates = read_exclusion(path)
    if duplicates.listed:
        raise FlairError(
            f"--duplicates={path}: is a list of ids; expected {{image_id: [its near duplicates]}}, as "
            "flair.near_duplicates writes it"
        )
    return duplicates
