"""Episodes as files that Meta-Dataset's readers open, and a reader of our own.

`episode-0000-train.tfrecords` holds the support photos of episode 0, `episode-0000-test.tfrecords` its query photos, in
their order. A photo is an example with Meta-Dataset's `image` and `label`, the place of its class in the episode (-1 in
episodes of users, whose photos have several labels and no class), and beside them the labels and ids of the prepared
records. `images_per_class.json` counts, for each file, the photos of each `label`. `episodes.json` says whose episodes
they are and which settings made them, `label_index.json` what the columns mean: docs/formats.md.

Names and types are those of google-research/meta-dataset (meta_dataset/data: dump_episodes.py, utils.py, decoder.py).
"""

from __future__ import annotations

import contextlib
import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import NoneType
from typing import Any

from benchmark.data.labels import check_columns
from benchmark.personalization.sources import LabelEpisodeSource, SerializedEpisode, UserEpisodeSource
from benchmark.run.files import read_json
from flair.errors import FlairError
from flair.files import atomic, json_text
from flair.records.tfrecord import example
from flair.records.tfrecord.frames import frame, read_payloads
from flair.terminal.progress import Progress

IMAGES_PER_CLASS_FILE, EPISODES_FILE, LABELS_FILE = "images_per_class.json", "episodes.json", "label_index.json"
_SETTINGS_FILE = ".settings.json"
_IDS = [(str, NoneType)]
_EPISODE = {"user_id?": str, "alphabet?": str, "classes?": [str], "train": _IDS, "test": _IDS}
_EPISODES: dict[str, Any] = {"settings": {"episodes": str}, "episodes": [_EPISODE]}
_LABELS: dict[str, Any] = {"labels": {"*": int}, "fine_grained_labels": {"*": int}}


def dump_episodes(folder: str | Path, count: int, episodes: UserEpisodeSource | LabelEpisodeSource) -> None:
    """Writes the episodes 0 .. count - 1; those that an interrupted dump of the same settings wrote are kept.

    Raises:
      FlairError: the folder holds anything else, or the records hold no JPEGs.
    """
    folder, records = Path(folder), episodes.records
    if episodes.image_format != "jpeg":
        raise FlairError(f"--dump_dir={folder}: {records.root} holds pixels, not JPEGs; give --tfrecords_dir a folder")
    settings = {**episodes.settings(), "num_episodes": count}
    _claim(folder, settings)
    counts: dict[str, dict[str, int]] = {}
    listed = []
    with Progress(count, f"dumping to {folder}", "episode") as progress:
        for number in range(count):
            one = episodes.serialized(number)
            sides = (("train", one.support, one.support_class), ("test", one.query, one.query_class))
            ids = {}
            for side, serialized, classes in sides:
                path = _path(folder, number, side)
                photos = [example.decode(photo) for photo in serialized]
                places = classes or [example.NO_CLASS] * len(photos)
                _write(path, [example.encode_in_episode(*pair) for pair in zip(photos, places, strict=True)])
                counts[path.name] = {str(place): times for place, times in sorted(Counter(places).items())}
                ids[side] = [photo.image_id for photo in photos]
            listed.append({"episode": number, **_facts(one), **ids})
            progress.add()
    atomic.write_json(folder / LABELS_FILE, {name: dict(getattr(episodes, name)) for name in _LABELS})
    atomic.write_json(folder / EPISODES_FILE, {"settings": settings, "episodes": listed}, indent=None)
    atomic.write_json(folder / IMAGES_PER_CLASS_FILE, counts)


class DumpedEpisodes:
    """The episodes that `dump_episodes` wrote to a folder.

    Attributes:
      num_episodes: how many there are.
      settings: what decided which they are.

    Raises:
      FlairError: the folder holds no complete dump, or one of its files is damaged; one line naming it.
    """

    image_format = "jpeg"

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        columns, dump = (
            self._read(name, shape) for name, shape in ((LABELS_FILE, _LABELS), (EPISODES_FILE, _EPISODES))
        )
        self.labels, self.fine_grained_labels = (columns[name] for name in _LABELS)
        if any(sorted(of.values()) != list(range(len(of))) for of in (self.labels, self.fine_grained_labels)):
            raise FlairError(f"{self.folder / LABELS_FILE}: its columns are not 0, 1, 2, ...; dump the episodes again")
        self.settings, self._listed = dump["settings"], dump["episodes"]
        self.has_classes = self.settings["episodes"] == "labels"
        self.num_episodes = len(self._listed)

    def serialized(self, number: int) -> SerializedEpisode:
        """The episode of this number; its photos are examples of the prepared records again.

        Raises:
          FlairError: there is no such episode, or a file does not hold it.
        """
        if not 0 <= number < self.num_episodes:
            raise FlairError(f"{self.folder}: has no episode {number}, but 0 to {self.num_episodes - 1}")
        facts = self._listed[number]
        classes = tuple(facts.get("classes", ()))
        if bool(classes) != self.has_classes or not self.fine_grained_labels.keys() >= set(classes):
            raise FlairError(f"{self.folder / EPISODES_FILE}: episode {number} has other classes than {LABELS_FILE}")
        support, support_class = self._photos(number, "train", facts["train"], len(classes))
        query, query_class = self._photos(number, "test", facts["test"], len(classes))
        whose = facts.get("user_id"), facts.get("alphabet"), classes
        return SerializedEpisode(support, query, *whose, support_class, query_class)

    def _photos(self, number: int, side: str, ids: Sequence[str], ways: int) -> tuple[list[bytes], Sequence[int]]:
        path = _path(self.folder, number, side)
        if not path.is_file():
            raise FlairError(f"{path}: is missing; dump the episodes again")
        try:
            photos = [example.decode_in_episode(payload) for payload in read_payloads(path)]
        except example.MalformedExample as error:
            raise FlairError(f"{path}: {error}; dump the episodes again") from None
        places = [place for _, place in photos]
        allowed = range(ways) if ways else [example.NO_CLASS]
        if [photo.image_id for photo, _ in photos] != ids or not all(place in allowed for place in places):
            raise FlairError(f"{path}: does not hold the photos that {EPISODES_FILE} lists; dump the episodes again")
        for photo, _ in photos:
            check_columns(photo.labels, len(self.labels), str(path))
            check_columns(photo.fine_grained_labels, len(self.fine_grained_labels), str(path))
        return [example.encode(photo) for photo, _ in photos], places if ways else ()

    def _read(self, name: str, shape: Mapping[str, Any]) -> dict[str, Any]:
        found = read_json(self.folder / name, shape)
        if found is None:
            raise FlairError(
                f"{self.folder}: holds no complete dump of episodes, {name} is missing; give the --dump_dir of a "
                "personalize_main that has ended"
            )
        return found


def _path(folder: Path, number: int, side: str) -> Path:
    return folder / f"episode-{number:04d}-{side}.tfrecords"


def _facts(episode: SerializedEpisode) -> dict[str, Any]:
    if episode.user_id is not None:
        return {"user_id": episode.user_id}
    return {"alphabet": episode.alphabet, "classes": list(episode.classes)}


def _claim(folder: Path, settings: Mapping[str, Any]) -> None:
    path = folder / _SETTINGS_FILE
    wanted = json.loads(json.dumps(dict(settings)))
    if path.is_file():
        try:
            found = json_text.read(path)
        except json_text.BadJson:
            found = None
        if found != wanted:
            raise FlairError(f"--dump_dir={folder}: holds episodes of other settings; choose a new or empty folder")
        atomic.remove_leftovers(folder)
        return
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FlairError(
            f"--dump_dir={folder}: is not empty and holds no dumped episodes; choose a new or empty folder"
        )
    atomic.write_json(path, wanted)


def _write(path: Path, payloads: Sequence[bytes]) -> None:
    if path.is_file():
        with contextlib.suppress(FlairError):  # a damaged file is written anew
            if list(read_payloads(path)) == list(payloads):
                return
    atomic.write_bytes(path, b"".join(frame(payload) for payload in payloads))
