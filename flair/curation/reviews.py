"""`reviews.json`: what people decided about photos and pairs of photos, kept under a lock so that nothing is lost.

Marks belong to a photo or to a pair of photos, never to a test set or a component: when a set changes little, all that
was decided still holds. Each mark is kept with its reviewer and time, older ones too; the last one counts.
"""

from __future__ import annotations

import itertools
import os
import threading
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from flair.curation.exclusion import Exclusion, connected_components
from flair.dataset.metadata import check_id
from flair.errors import FlairError
from flair.files import checked_json, json_text, lock, regular_file
from flair.files.atomic import beside

FORMAT = "flair-reviews"
FORMAT_VERSION = 1
NO_MARK = "none"  # takes an earlier mark back
PHOTO_MARKS = ("ok", "problematic", "blacklist", NO_MARK)
PAIR_MARKS = ("duplicate", "not", NO_MARK)
REFUSED_MARKS = ("blacklist", "problematic")
MAX_REVIEWER_LENGTH = 80
_THREADS = threading.Lock()

Pair = tuple[str, str]


class Mark(NamedTuple):
    """One decision: what, by whom, when (ISO 8601, UTC)."""

    mark: str
    reviewer: str
    time: str


class Reviews(NamedTuple):
    """All decisions, oldest first, by photo and by pair (its two ids sorted)."""

    photos: Mapping[str, tuple[Mark, ...]]
    pairs: Mapping[Pair, tuple[Mark, ...]]

    def photo_mark(self, image_id: str) -> str:
        """The last mark of a photo, which counts; `none` where it has no mark."""
        return self.photos[image_id][-1].mark if image_id in self.photos else NO_MARK

    def pair_mark(self, one: str, other: str) -> str:
        """The last mark of a pair, which counts; its ids in either order."""
        key = pair(one, other)
        return self.pairs[key][-1].mark if key in self.pairs else NO_MARK

    def photos_marked(self, *marks: str) -> frozenset[str]:
        """Photos whose mark is one of `marks`."""
        return frozenset(image_id for image_id, history in self.photos.items() if history[-1].mark in marks)

    def pairs_marked(self, mark: str) -> frozenset[Pair]:
        """Pairs whose mark is `mark`."""
        return frozenset(key for key, history in self.pairs.items() if history[-1].mark == mark)

    def applied_to(self, exclusion: Exclusion) -> Exclusion:
        """The near duplicates as reviewers see them: pairs marked `duplicate` join, pairs marked `not` come apart.

        In a component all pairs count as joined, except those marked `not`: a photo leaves a component of three when it
        is marked `not` with both others.
        """
        apart = self.pairs_marked("not")
        disputed = {image_id for key in apart for image_id in key}
        edges = list(self.pairs_marked("duplicate"))
        for component in exclusion.components:
            members = sorted(component)
            if disputed.isdisjoint(component):
                edges += itertools.pairwise(members)
            else:
                edges += [key for key in itertools.combinations(members, 2) if key not in apart]
        return Exclusion(exclusion.listed, connected_components(edges))


NO_REVIEWS = Reviews({}, {})


class PhotoChange(NamedTuple):
    """A photo and the mark it gets."""

    image_id: str
    mark: str


class PairChange(NamedTuple):
    """A pair and the mark it gets."""

    pair: Pair
    mark: str


Change = PhotoChange | PairChange


class ReviewFile:
    """One `reviews.json`; any number of threads and processes may read and update it."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._cache: tuple[tuple[int, int, int] | None, Reviews] = (None, NO_REVIEWS)

    def read(self) -> Reviews:
        """All decisions of this moment; parsed again only where the file has changed."""
        try:
            status = os.stat(self.path)
        except FileNotFoundError:
            return NO_REVIEWS
        state = (status.st_ino, status.st_mtime_ns, status.st_size)
        seen, reviews = self._cache
        if state != seen:
            reviews = read_reviews(self.path)
            self._cache = (state, reviews)  # one assignment, so that threads never see one without the other
        return reviews

    def update(self, change: Callable[[Reviews], Iterable[Change]], reviewer: str, time: str) -> Reviews:
        """Calls `change` with what is in the file, adds the marks that it returns, and writes the file, whole.

        All of it happens under a lock, so that nothing that others write meanwhile is lost.

        Raises:
          FlairError: the file there is damaged (it stays as it is), or the reviewer's name is unusable.
        """
        check_reviewer(reviewer)
        # Through a link, which the new file would replace: the lock is of the file that others may reach otherwise.
        path = Path(os.path.realpath(self.path))
        path.parent.mkdir(parents=True, exist_ok=True)
        busy = f"{path}: another process has been writing there for a minute; stop it"
        # The lock is on a file of its own: the reviews are replaced at each update, and a lock on them would go with
        # them. The threads of this process have one besides, which does not depend on the file system.
        with _THREADS, lock.exclusive(beside(path, "lock"), busy, patience=60):
            before = read_reviews(path) if path.exists() else NO_REVIEWS
            photos, pairs = dict(before.photos), dict(before.pairs)
            for item in change(before):
                mark = Mark(item.mark, reviewer, time)
                if isinstance(item, PhotoChange):
                    photos[item.image_id] = (*photos.get(item.image_id, ()), mark)
                else:
                    pairs[item.pair] = (*pairs.get(item.pair, ()), mark)
            after = Reviews(photos, pairs)
            checked_json.write(path, to_json(after))
        return after


def read_reviews(path: str | Path) -> Reviews:
    """Reads a file of the review page.

    Raises:
      FlairError: the file is missing, was not written by the page, or was made by a later version; one line naming it.
    """
    expected = "expected the reviews.json that python -m flair.review wrote"
    try:
        content = checked_json.parse(regular_file.read_bytes(path))
    except FileNotFoundError:
        raise FlairError(f"{path}: no such file; {expected}") from None
    except json_text.BadJson as error:
        raise FlairError(f"{path}: cannot be read: {error}; {expected}") from None
    try:
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise ValueError(f"expected an object with the format {FORMAT!r}")
        if content.get("format_version") != FORMAT_VERSION:
            raise ValueError(f"its format_version is not {FORMAT_VERSION}, the one this version reads")
        photos = {
            check_id(image_id, "image id", str(path)): _history(history, PHOTO_MARKS, image_id)
            for image_id, history in _object(content, "photos").items()
        }
        pairs = {
            _parse_pair(key, path): _history(history, PAIR_MARKS, key)
            for key, history in _object(content, "pairs").items()
        }
        return Reviews(photos, pairs)
    except ValueError as error:
        raise FlairError(f"{path}: is no file of reviews: {error}; mend it or move it away") from None


def to_json(reviews: Reviews) -> dict[str, Any]:
    """The content of the file."""
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "photos": {image_id: [mark._asdict() for mark in history] for image_id, history in reviews.photos.items()},
        "pairs": {" ".join(key): [mark._asdict() for mark in history] for key, history in reviews.pairs.items()},
    }


def pair(one: str, other: str) -> Pair:
    """The pair of two photos, whichever comes first.

    >>> pair("9", "4")
    ('4', '9')
    """
    return (one, other) if one < other else (other, one)


def check_reviewer(name: str) -> str:
    """Returns the name if it can be written beside a mark, else raises a FlairError."""
    if not name.strip() or len(name) > MAX_REVIEWER_LENGTH or any(unicodedata.category(c)[0] == "C" for c in name):
        raise FlairError(f"the reviewer's name must have 1 to {MAX_REVIEWER_LENGTH} printable characters")
    return name


def _object(content: Mapping[str, Any], key: str) -> dict[str, Any]:
    value = content.get(key)
    if not isinstance(value, dict):
        raise ValueError(f"field {key!r} must be an object")
    return value


def _parse_pair(key: str, path: str | Path) -> Pair:
    one, _, other = key.partition(" ")
    if not one < other:
        raise ValueError(f"the pair {key!r:.80} is not two ids in order, one space between them")
    return check_id(one, "image id", str(path)), check_id(other, "image id", str(path))


def _history(value: Any, marks: tuple[str, ...], where: str) -> tuple[Mark, ...]:
    if not isinstance(value, list) or not value:
        raise ValueError(f"the marks of {where!r:.80} are no list")
    history = []
    for item in value:
        texts: list[Any] = [item.get(name) for name in Mark._fields] if isinstance(item, dict) else []
        mark = Mark(*texts) if len(texts) == 3 and all(isinstance(text, str) for text in texts) else None
        if mark is None or mark.mark not in marks:
            raise ValueError(f"a mark of {where!r:.80} is not one of {', '.join(marks)} with a reviewer and a time")
        history.append(mark)
    return tuple(history)
