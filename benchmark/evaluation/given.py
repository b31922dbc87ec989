"""What somebody else predicts: a .npy file of scores with the ids of its rows, or a function that scores photos.

PyTorch, JAX or a spreadsheet may have made them: scores are numbers from 0 to 1, a column for each label in the order
of label_index.json.
"""

from __future__ import annotations

import csv
import functools
import hashlib
import io
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmark.model import saved, specs
from benchmark.model.saved import SavedModel
from benchmark.run.names import distinct, short_names
from flair.errors import FlairError
from flair.files import npy_file, text_file
from flair.files.regular_file import file_sha256
from flair.terminal.counted import counted

if TYPE_CHECKING:
    from benchmark.evaluation.sets import EvaluationSet

IDS_FILE, ID_COLUMN = "ids.csv", "image_id"
_FORM = "expected float32 [photos, outputs] as numpy.save(path, numpy.ascontiguousarray(scores, 'float32')) writes it"
_SCORES = "expected scores, the sigmoid of what a network calls logits"
_LEAST = 1e-7  # a score of exactly 0 or 1 counts as this far from it in the loss, as in Keras
_ROWS_AT_ONCE = 4096


@dataclass(frozen=True, eq=False)
class GivenPredictions:
    """A file of scores float32 [photos, outputs], and a .csv that names the photo of each row.

    Attributes:
      row_of: image id -> row.
    """

    path: Path
    ids_path: Path
    name: str
    scores: np.ndarray
    row_of: dict[str, int]
    network = "predictions"
    run_dir = labels = binary_label = None
    image_size = (0, 0)
    is_size_known = True

    @property
    def num_outputs(self) -> int:
        return int(self.scores.shape[1])

    @functools.cached_property
    def digest(self) -> str:
        """SHA-256 of both files' SHA-256."""
        return hashlib.sha256("".join(map(file_sha256, (self.path, self.ids_path))).encode()).hexdigest()

    def check(self, sets: Sequence[EvaluationSet]) -> None:
        """Raises a FlairError where a photo is missing, of no partition that is evaluated, or has no score."""
        known = {image_id for one in sets for image_id in one.of_partition}
        if any(image_id.startswith("#") for image_id in known):
            raise FlairError(
                f"{self.path}: the records tell no ids of photos, which predictions need; prepare them anew"
            )
        names = ", ".join(dict.fromkeys(one.partition for one in sets))
        for one in sets:
            missing = [image_id for image_id in one.image_ids if image_id not in self.row_of]
            if missing:
                raise FlairError(
                    f"{self.ids_path}: lacks {len(missing):,} of the {len(one.image_ids):,} photos of {one.name}, such "
                    f"as {missing[0]!r:.60}; predict them, or evaluate other --partitions"
                )
        surplus = [image_id for image_id in self.row_of if image_id not in known]
        if surplus:
            raise FlairError(
                f"{self.ids_path}: {len(surplus):,} of its {len(self.row_of):,} photos, such as {surplus[0]!r:.60}, "
                f"are not of {names}; leave them out, or name their partition in --partitions"
            )
        for one in sets:
            for start in range(0, len(one.image_ids), _ROWS_AT_ONCE):
                image_ids = one.image_ids[start : start + _ROWS_AT_ONCE]
                check_scores(self._scores_of(image_ids), str(self.path), image_ids)

    def batches(self, photos: EvaluationSet, start: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Scores and losses of the photos of a set from `start` on."""
        for first in range(start, len(photos.image_ids), _ROWS_AT_ONCE):
            part = slice(first, first + _ROWS_AT_ONCE)
            scores = self._scores_of(photos.image_ids[part])
            yield scores, losses_of(photos.labels[part], scores)

    def _scores_of(self, image_ids: Sequence[str]) -> np.ndarray:
        return np.asarray(self.scores[[self.row_of[image_id] for image_id in image_ids]])


@dataclass(frozen=True, eq=False)
class GivenFunction:
    """Somebody's function of photos float32 [b, height, width, 3], 0 to 255, that returns scores [b, outputs]."""

    name: str
    image_size: tuple[int, int]
    num_outputs: int
    score: Callable[[np.ndarray], Any]
    digest: str
    is_size_known = True
    run_dir = labels = binary_label = None

    @property
    def path(self) -> str:
        return self.name

    @property
    def network(self) -> str:
        return self.name

    def scores_of(self, pixels: np.ndarray) -> np.ndarray:
        """Scores float32 [b, outputs] of a batch; a FlairError where the function raises or returns anything else."""
        try:
            scores = np.asarray(self.score(pixels), np.float32)
        except (Exception, SystemExit) as error:  # somebody else's code
            raise FlairError(f"--models={self.name}: what it returned raised {specs.one_line(error)}") from error
        if scores.ndim != 2 or len(scores) != len(pixels) or self.num_outputs not in (0, scores.shape[-1]):
            shape, photos = list(scores.shape), counted(len(pixels), "photo")
            raise FlairError(
                f"--models={self.name}: it gives an array of shape {shape} for {photos}; expected [photos, outputs]"
            )
        check_scores(scores, f"--models={self.name}")
        return scores


Model = SavedModel | GivenPredictions | GivenFunction


def find_models(names: Sequence[str], network: str | None, height: int | None, width: int | None) -> list[Model]:
    """What `--models` names: files of predictions (.npy), functions (MODULE:FUNCTION), and saved models.

    Args:
      network: as for `saved.find_models`.
      height, width: of the photos that functions are given; None: the published ones.

    Raises:
      FlairError: there is no such thing, or one cannot be read; one line that names it.
    """
    files = [name for name in names if name.endswith(".npy")]
    functions = [name for name in names if _is_function(name)]
    others = [name for name in names if name not in (*files, *functions)]
    for name in others:
        if specs.is_keras(name):
            raise FlairError(
                f"--models={name}: is a network without weights for these labels; train it with --model={name} and "
                "give the file, or give MODULE:FUNCTION, whose function loads weights of your own"
            )
    if network and names and not others:
        raise FlairError(f"--network={network}: none of the models is a saved one; leave it out")
    models: list[Model] = [*(saved.find_models(others, network) if others or not names else ())]
    paths = distinct(map(Path, files))
    models += [_read(path, name) for path, name in zip(paths, short_names(map(_named_by, paths)), strict=True)]
    size = height or saved.PUBLISHED_SIZE[0], width or saved.PUBLISHED_SIZE[1]
    models += [_build(name, size) for name in dict.fromkeys(functions)]
    twice = [model.name for model in models if [other.name for other in models].count(model.name) > 1]
    if twice:
        raise FlairError(f"--models: two are called {twice[0]}, under which results would lie; rename one")
    return models


def losses_of(labels: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Binary cross-entropy of each photo, the mean over its labels: float32 [photos]; from scores, not from logits.

    >>> losses_of(np.array([[1, 0]]), np.array([[0.5, 0.5]], np.float32)).round(4).tolist()
    [0.6930999755859375]
    """
    scores = np.clip(scores.astype(np.float64), _LEAST, 1 - _LEAST)
    return np.asarray(-np.log(np.where(labels > 0, scores, 1 - scores)).mean(axis=1), np.float32)


def check_scores(scores: np.ndarray, place: str, image_ids: Sequence[str] = ()) -> None:
    """Raises a FlairError where a score is not a number from 0 to 1; it names `place`, and the photo where known."""
    bad = ~((scores >= 0) & (scores <= 1))  # so that NaN is bad, too
    if bad.any():
        row, column = np.argwhere(bad)[0]
        where = f"{place}: photo {image_ids[row]}" if image_ids else place
        raise FlairError(f"{where} has the number {scores[row, column]:.6g} for output {column}; {_SCORES}")


def _is_function(name: str) -> bool:
    return specs.is_function(name) and not os.path.exists(name)


def _named_by(path: Path) -> Path:
    """The path that names predictions: of our own evaluation, PARTITION/MODEL/predictions.npy, the folder."""
    folder = path.absolute().parent
    return folder if path.stem == "predictions" and folder.name else path.with_suffix("")


def _read(path: Path, name: str) -> GivenPredictions:
    try:
        scores = npy_file.map_array(path, [np.dtype("<f4")], 2)
    except FileNotFoundError:
        raise FlairError(f"--models={path}: no such file; {_FORM}") from None
    except npy_file.BadNpy as error:
        raise FlairError(f"{path}: is no file of predictions ({error}); {_FORM}") from None
    beside = [folder / IDS_FILE for folder in (path.parent, path.absolute().parent.parent)]
    ids_path = next((place for place in beside if place.is_file()), None)
    if ids_path is None:
        raise FlairError(
            f"{path}: has no {IDS_FILE} beside it or in the folder above; expected a line {ID_COLUMN}, then a line "
            "with the id of the photo of each row"
        )
    image_ids = _read_ids(ids_path)
    if len(image_ids) != len(scores):
        raise FlairError(f"{path}: has {len(scores):,} rows, but {ids_path} names {len(image_ids):,} photos")
    return GivenPredictions(path, ids_path, name, scores, {image_id: row for row, image_id in enumerate(image_ids)})


def _read_ids(path: Path) -> list[str]:
    expected = f"expected CSV with a column {ID_COLUMN}, as ids.csv of benchmark.evaluate_main"
    try:
        rows = csv.DictReader(io.StringIO(text_file.read(path)), strict=True)
        if rows.fieldnames is None or list(rows.fieldnames).count(ID_COLUMN) != 1:
            raise FlairError(f"{path}: has not one column {ID_COLUMN} in its first line; {expected}")
        image_ids = [row[ID_COLUMN] or "" for row in rows]
    except (text_file.NotText, csv.Error) as error:
        raise FlairError(f"{path}: is {error}; {expected}") from None
    repeated = [image_id for image_id, count in Counter(image_ids).items() if count > 1]
    if repeated:
        raise FlairError(
            f"{path}: names {counted(len(repeated), 'photo')} twice, such as {repeated[0]!r:.60}; give each one row"
        )
    return image_ids


def _build(spec: str, image_size: tuple[int, int]) -> GivenFunction:
    from benchmark.model import custom

    found = custom.call(spec, (*image_size, 3), "--models")
    # predict_on_batch runs in inference mode and compiled, which calling a Keras model does not.
    score = getattr(found, "predict_on_batch", found)
    if not callable(score):
        raise FlairError(f"--models={spec}: it returned {type(found).__name__}, expected a function of photos")
    # Nobody can tell whether a function of that name scores as it did: no predictions of it are taken over.
    digest = f"{spec}, called at {time.time_ns()}"
    unknown = GivenFunction(spec, image_size, 0, score, digest)
    return replace(unknown, num_outputs=unknown.scores_of(np.zeros((1, *image_size, 3), np.float32)).shape[1])
