"""Runs few-shot tasks over fine-grained labels, and summarizes them."""

from __future__ import annotations

import hashlib
import io
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmark.model import saved as saved_model
from benchmark.personalization import few_shot, prototypical
from benchmark.personalization import summary as personalization_summary
from benchmark.personalization.log import EpisodeResult, LabelResult
from benchmark.personalization.prototypical import FeatureEpisode, TrainingConfig
from benchmark.personalization.run_users import span
from benchmark.personalization.runner import RunConfig
from benchmark.personalization.sources import LabelEpisodeSource
from benchmark.personalization.summary import LEARNERS
from benchmark.run.checkpoint import Checkpoints
from benchmark.run.names import CHECKPOINTS_DIR
from flair.errors import FlairError
from flair.files import atomic, feature_file
from flair.terminal.table import Columns

if TYPE_CHECKING:
    import tensorflow as tf

EMBEDDING_FILE = "embedding.npy"
# Of the summary, as people read them; an accuracy, or the paired difference of two.
_ROWS = {
    **{name: name.replace("_", " ") for name in ("chance", *LEARNERS)},
    "difference": "fine tuning - centroid",
    "networks_centroid_difference": "networks - centroid",
    "networks_tuning_difference": "networks - fine tuning",
}
_PHOTOS_PER_BATCH = 64


@dataclass(frozen=True)
class HeadConfig:
    """How `few_shot.fine_tune` trains the linear head."""

    steps: int
    learning_rate: float
    proximal_strength: float


class Labels:
    """Few-shot tasks over the fine-grained labels of a partition; says over how many classes.

    Args:
      training: episodes to train prototypical networks on, and how; None: without them.
    """

    def __init__(
        self,
        config: RunConfig,
        episodes: LabelEpisodeSource,
        head: HeadConfig,
        training: tuple[LabelEpisodeSource, TrainingConfig] | None = None,
    ) -> None:
        self.episodes = episodes
        self._config, self._head, self._training = config, head, training
        for one in (episodes, *((training[0],) if training else ())):
            print(
                f"{sum(len(alphabet.classes) for alphabet in one.drawn.alphabets):,} classes of the {one.label_set} "
                f"labels in {one.partition}, alphabets: {len(one.drawn.alphabets)}"
                + ("" if one.taxonomy else "; without --taxonomy all labels are one alphabet"),
                flush=True,
            )

    def prepare(self, folder: Path) -> Callable[[int], EpisodeResult]:
        """Computes the features of all photos, and trains; returns what scores an episode."""
        model, head = saved_model.load(self._config.model, self._config.image_size), self._head
        embedding = None if self._training is None else self._train(model, folder, *self._training)
        draw = _feature_episodes(self._config, model, self.episodes, folder / "features" / "features.npy")

        def run_episode(number: int) -> LabelResult:
            episode = draw(number)
            support, support_class, query, truth, ways = episode
            tuning = head.steps, head.learning_rate, head.proximal_strength
            linear = few_shot.fine_tune(support, support_class, ways, *tuning)
            if not np.isfinite(linear[0]).all():
                raise FlairError(f"--learning_rate={head.learning_rate:g} is too large: the head is no longer a number")
            centres = few_shot.centroids(support, support_class, ways)
            guesses = [few_shot.nearest(query, centres), few_shot.classify(query, *linear)]
            if embedding is not None:
                guesses.append(few_shot.nearest(query @ embedding, centres @ embedding))
            accuracies = [float(np.mean(guess == truth)) for guess in guesses]
            alphabet = self.episodes.drawn.episode(number).alphabet
            return LabelResult(number, alphabet, ways, len(support), len(query), *accuracies)

        return run_episode

    def _train(
        self, model: tf.keras.Model, folder: Path, episodes: LabelEpisodeSource, training: TrainingConfig
    ) -> few_shot.Floats:
        """The embedding, which is also written to the run's folder."""
        draw = _feature_episodes(self._config, model, episodes, folder / "features" / "training.npy")
        channels = draw(0).support.shape[1]
        embedding = prototypical.train(draw, channels, training, Checkpoints(folder / CHECKPOINTS_DIR))
        text = io.BytesIO()
        np.save(text, embedding, allow_pickle=False)
        atomic.write_bytes(folder / EMBEDDING_FILE, text.getvalue())
        return embedding

    def summarize(self, results: Sequence[EpisodeResult], folder: Path) -> dict[str, Any]:
        """Draws the figure; returns the accuracy of each learner and their paired differences."""
        from benchmark.personalization.figures import draw_labels  # Matplotlib, which only the end needs

        of_labels = [one for one in results if isinstance(one, LabelResult)]
        draw_labels(folder / "figures", of_labels)
        return {
            "label_set": self.episodes.label_set,
            "taxonomy": self.episodes.taxonomy,
            "alphabets": {one.name: len(one.classes) for one in self.episodes.drawn.alphabets},
            **({"training_episodes": self._training[1].num_episodes} if self._training else {}),
            **personalization_summary.summarize_labels(of_labels),
        }


def describe(summary: dict[str, Any]) -> list[str]:
    """The summary as a table for people."""
    columns = Columns("<24", ">9.4f", ">20")
    lines = [
        f"{summary['episodes']:,} episodes over {sum(summary['alphabets'].values()):,} {summary['label_set']} labels "
        f"in {summary['partition']}, alphabets: {len(summary['alphabets'])}; on average {summary['mean_ways']:.1f} "
        f"ways, {summary['mean_support']:.1f} support and {summary['mean_query']:.1f} query photos",
        columns.line("accuracy", "mean", "95% interval"),
    ]
    for name, shown in _ROWS.items():
        if name in summary:
            found = summary[name]
            cells = (found, "") if isinstance(found, float) else (found["mean"], span(found))
            lines.append(columns.line(shown, *cells).rstrip())
    lines.append(f"fine tuning is better in {summary['share_improved']:.1%} of the episodes")
    for group in summary["by_ways"]:
        means = (f"{name.replace('_', ' ')} {group[name]['mean']:.3f}" for name in LEARNERS if name in group)
        which = f"  {group['ways'] + ' ways':<22}{group['episodes']:>6} episodes"
        lines.append("   ".join([which, f"chance {group['chance']:.3f}", *means]))
    return lines


def _feature_episodes(
    config: RunConfig, model: tf.keras.Model, episodes: LabelEpisodeSource, path: Path
) -> Callable[[int], FeatureEpisode]:
    """Episodes as standardized features, which are kept at `path`."""
    rows = np.unique(np.concatenate([c.photos for one in episodes.drawn.alphabets for c in one.classes]))
    features = _features(config, model, episodes.partition, rows, path)

    def draw(number: int) -> FeatureEpisode:
        one = episodes.drawn.episode(number)
        sides = (features[np.searchsorted(rows, side)] for side in (one.support, one.query))
        support, query = few_shot.standardized(*sides)
        return FeatureEpisode(support, one.support_class, query, one.query_class, len(one.classes))

    return draw


def _features(config: RunConfig, model: tf.keras.Model, partition: str, rows: np.ndarray, path: Path) -> np.ndarray:
    """Pooled features float32 [rows, channels]: of a training's, or computed once and kept at `path`."""
    from benchmark.data.pipeline import EvaluationData
    from benchmark.features.extraction import compiled, fill
    from benchmark.model.trainable import body_and_head

    if config.feature_dir is not None:
        photos = config.inputs(model, partition).evaluation(partition)
        photos.select(rows)
        return np.concatenate([features.numpy() for features, _ in photos])
    body, _ = body_and_head(model)
    ids = [str(row) for row in rows]
    try:
        kept, about = feature_file.read(path)
        if about["image_ids"] == ids:
            return np.array(kept)
    except FileNotFoundError:
        pass
    except feature_file.DamagedFeatures as error:
        print(f"{error}; its features are made anew", file=sys.stderr)
    path.parent.mkdir(exist_ok=True)
    dtype, shape = np.dtype(np.float32), (len(rows), int(body.output_shape[-1]))
    growing = feature_file.growing(path, shape, dtype, {"rows": hashlib.sha256(rows.tobytes()).hexdigest()})
    photos = EvaluationData(
        config.records, partition, config.task, config.image_size, _PHOTOS_PER_BATCH, rows[growing.num_done :]
    )
    fill(growing, compiled(body), (pixels for pixels, _ in photos), dtype, f"features of {partition}")
    feature_file.finish(growing, path, ids, {})
    return np.array(feature_file.read(path)[0])
