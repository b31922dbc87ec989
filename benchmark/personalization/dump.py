"""Episodes as files, so that another framework can score the very same ones.

`episode-0000-train.tfrecords` holds the support photos of episode 0, `episode-0000-test.tfrecords` its query photos, in
their order, as examples of the prepared records (docs/formats.md); a photo of a label episode also has the int64
feature `episode_class`, the place of its class in the episode. `images_per_class.json` counts, for each file, the
photos of each class (for users: with each label). `episodes.json` says whose episodes they are and which settings made
them, `label_index.json` what the columns mean. The file names are those of Meta-Dataset's dumped episodes.
"""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmark.data.records import Records
from flair.errors import FlairError
from flair.files import atomic, json_text
from flair.records.tfrecord import example
from flair.records.tfrecord.frames import frame, read_payloads
from flair.terminal.progress import Progress

IMAGES_PER_CLASS_FILE, EPISODES_FILE, LABELS_FILE = "images_per_class.json", "episodes.json", "label_index.json"
_SETTINGS_FILE = ".settings.json"
CLASS_KEY = "episode_class"


class DumpedEpisode(NamedTuple):
    """What is written of one episode: `facts` for `episodes.json`, and serialized examples.

    A label episode also has `classes`, and the place in them of each photo's class.
    """

    facts: Mapping[str, Any]
    support: Sequence[bytes]
    query: Sequence[bytes]
    support_class: Sequence[int] | None = None
    query_class: Sequence[int] | None = None
    classes: Sequence[str] | None = None


def dump_episodes(
    folder: str | Path,
    count: int,
    episode: Callable[[int], DumpedEpisode],
    records: Records,
    feature: str,
    settings: Mapping[str, Any],
) -> None:
    """Writes the episodes 0 .. count - 1; those that an interrupted dump of the same settings wrote are kept.

    For episodes of users, `images_per_class.json` counts the `feature`, `labels` or `fine_grained_labels`.

    Raises:
      FlairError: the folder holds anything else, or the records hold no JPEGs.
    """
    folder = Path(folder)
    if records.image_format != "jpeg":
        raise FlairError(f"--dump_dir={folder}: {records.root} holds pixels, not JPEGs; give --tfrecords_dir a folder")
    _claim(folder, settings)
    columns = getattr(records, feature)
    names = sorted(columns, key=columns.__getitem__)
    counts: dict[str, dict[str, int]] = {}
    facts = []
    with Progress(count, f"dumping to {folder}", "episode") as progress:
        for number in range(count):
            one = episode(number)
            ids = {}
            for side, photos, places in (
                ("train", one.support, one.support_class),
                ("test", one.query, one.query_class),
            ):
                path = folder / f"episode-{number:04d}-{side}.tfrecords"
                _write(path, photos, places)
                decoded = [example.decode(photo) for photo in photos]
                counts[path.name] = (
                    _count(names[column] for photo in decoded for column in getattr(photo, feature))
                    if places is None or one.classes is None
                    else _count(one.classes[place] for place in places)
                )
                ids[side] = [photo.image_id for photo in decoded]
            facts.append({"episode": number, **one.facts, "train": ids["train"], "test": ids["test"]})
            progress.add()
    atomic.write_json(
        folder / LABELS_FILE, {"labels": records.labels, "fine_grained_labels": records.fine_grained_labels}
    )
    atomic.write_json(folder / EPISODES_FILE, {"settings": dict(settings), "episodes": facts}, indent=None)
    atomic.write_json(folder / IMAGES_PER_CLASS_FILE, counts)


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


def _write(path: Path, photos: Sequence[bytes], places: Sequence[int] | None) -> None:
    payloads = photos if places is None else [_with_class(*pair) for pair in zip(photos, places, strict=True)]
    if path.is_file():
        with contextlib.suppress(FlairError):  # a damaged file is written anew
            if list(read_payloads(path)) == list(payloads):
                return
    atomic.write_bytes(path, b"".join(frame(payload) for payload in payloads))


def _with_class(serialized: bytes, place: int) -> bytes:
    import tensorflow as tf

    message = tf.train.Example.FromString(serialized)
    message.features.feature[CLASS_KEY].int64_list.value.append(int(place))
    return bytes(message.SerializeToString(deterministic=True))


def _count(names: Iterable[str]) -> dict[str, int]:
    return dict(sorted(Counter(names).items()))
