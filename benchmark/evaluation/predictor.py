"""Makes a saved model's predictions on a set of photos, or takes them over from an earlier evaluation."""

from __future__ import annotations

import functools
import os
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from benchmark.data.records import Records, Task
from benchmark.evaluation.given import GivenFunction, GivenPredictions, Model, losses_of
from benchmark.evaluation.predictions import Predictions, PredictionWriter, compare, open_predictions
from benchmark.evaluation.sets import EvaluationSet
from benchmark.model import saved
from benchmark.model.saved import SavedModel
from flair.errors import FlairError
from flair.files import atomic, npy_file, regular_file
from flair.files.regular_file import file_sha256
from flair.parallel.stopping import Terminated
from flair.terminal.progress import Progress

UNFINISHED_FILE, IDS_FILE, LABELS_FILE = "unfinished.json", "ids.csv", "labels.npy"
_EVALUATION = re.compile(rb"([0-9]+-[0-9]+)\n")


class Predictor:
    """Makes the predictions of one evaluation.

    Until `finish`, the folder says that an evaluation is under way. A later process finds that, and takes over what the
    interrupted one has predicted; after `finish` a rerun predicts anew and compares.

    Args:
      folder: of the evaluation.
      reuse: take over whatever fits, also of finished evaluations.
      feature_dir: folder of features that trainings of the models left; None: photos are decoded.

    Attributes:
      digest_of: SHA-256 of the file of a model, or what stands for it.
    """

    def __init__(
        self, folder: Path, records: Records, task: Task, batch_size: int, reuse: bool, feature_dir: str | None = None
    ) -> None:
        self._folder, self._records, self._task = folder, records, task
        self._batch_size, self._reuse, self._feature_dir = batch_size, reuse, feature_dir
        self._records_digest = records.digest()
        self._load = functools.lru_cache(maxsize=1)(saved.load)
        self.digest_of = functools.cache(_digest)
        marker = folder / UNFINISHED_FILE
        self._evaluation = _read_marker(marker)
        if self._evaluation:
            print(f"{folder}: continuing the evaluation that was interrupted", flush=True)
        else:
            self._evaluation = f"{time.time_ns()}-{os.getpid()}"
            atomic.write_text(marker, self._evaluation + "\n")

    def predict(
        self, model: Model, image_size: tuple[int, int], photos: EvaluationSet, place: Path
    ) -> tuple[Predictions, str]:
        """The predictions, and one line on how they compare with the last ones in `place`."""
        atomic.write_text(self._folder / photos.name / IDS_FILE, photos.ids_text())
        npy_file.write_array(self._folder / photos.name / LABELS_FILE, photos.labels)
        facts = {
            "model": self.digest_of(model),
            "image_size": list(image_size),
            "records": self._records_digest,
            "photos": photos.digest,
            "features": self._feature_dir and os.path.abspath(self._feature_dir),
        }
        old = open_predictions(place)
        if old is not None and {key: old.facts.get(key) for key in facts} == facts:
            if old.facts.get("evaluation") == self._evaluation:
                return old, "made before the interruption"
            if self._reuse:
                return old, "old predictions are reused"
        writer = PredictionWriter(
            place, (len(photos.rows), self._task.num_outputs), facts | {"evaluation": self._evaluation}
        )
        self._fill(writer, model, image_size, photos)
        new = writer.publish()
        rerun = "first predictions" if old is None else compare(old, new)
        if old is not None:
            print(f"{photos.name}, {model.name}: {rerun}", flush=True)
        return new, rerun

    def finish(self) -> None:
        """The evaluation is complete: the next one predicts anew."""
        (self._folder / UNFINISHED_FILE).unlink(missing_ok=True)

    def _fill(self, writer: PredictionWriter, model: Model, image_size: tuple[int, int], photos: EvaluationSet) -> None:
        description = f"{model.name} on {photos.name}"
        with Progress(len(photos.rows), description, "photo", done=writer.num_done) as progress:
            try:
                for scores, losses in self._batches(model, image_size, photos, writer.num_done):
                    writer.add(scores, losses)
                    progress.add(len(losses))
            except (KeyboardInterrupt, Terminated):
                writer.save()
                raise

    def _batches(
        self, model: Model, image_size: tuple[int, int], photos: EvaluationSet, start: int
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Scores and losses of the photos of a set from `start` on."""
        if isinstance(model, GivenPredictions):
            yield from model.batches(photos, start)
        elif isinstance(model, GivenFunction):
            from benchmark.data.inputs import PixelInputs

            inputs = PixelInputs(self._records, self._task, image_size, self._batch_size)
            data = inputs.evaluation(photos.partition)
            data.select(photos.rows[start:])
            for pixels, labels in data:
                scores = model.scores_of(np.array(pixels))  # a copy: TensorFlow's own memory may not be written to
                yield scores, losses_of(np.asarray(labels), scores)
        else:
            yield from self._predicted(model, image_size, photos, start)

    def _predicted(
        self, model: SavedModel, image_size: tuple[int, int], photos: EvaluationSet, start: int
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        from benchmark.evaluation import passes
        from benchmark.features.cache import inputs_of
        from benchmark.model.trainable import body_and_head

        network, partition = self._load(model, image_size), photos.partition
        of_partition = self._records, self._task, partition, self._batch_size
        data = inputs_of(network, model, image_size, self._feature_dir, *of_partition).evaluation(partition)
        data.select(photos.rows[start:])
        taking = network if self._feature_dir is None else body_and_head(network)[1]  # pixels, or features
        for scores, _, losses in passes.predicted(taking, data):
            if not (np.isfinite(scores).all() and np.isfinite(losses).all()):
                raise FlairError(
                    f"{model.path}: gives scores or losses that are no finite numbers, its training has "
                    "diverged; leave it out of --models"
                )
            yield scores, losses


def _digest(model: Model) -> str:
    return file_sha256(model.path) if isinstance(model, SavedModel) else model.digest


def _read_marker(path: Path) -> str:
    """The name of the evaluation that is under way, empty where no evaluation is."""
    try:
        data = regular_file.read_bytes(path)
    except FileNotFoundError:
        return ""
    match = _EVALUATION.fullmatch(data)
    if match is None:
        print(f"{path}: is damaged; the interrupted evaluation's predictions are made anew", file=sys.stderr)
        return ""
    return match[1].decode()
