"""Runs few-shot tasks over fine-grained labels, and summarizes them."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmark.model import saved as saved_model
from benchmark.personalization import few_shot
from benchmark.personalization import summary as personalization_summary
from benchmark.personalization.few_shot import FeatureEpisode, HeadConfig, TrainingConfig
from benchmark.personalization.log import EpisodeLog, LabelResult
from benchmark.personalization.run_users import span
from benchmark.personalization.runner import RunConfig, run_episodes
from benchmark.personalization.sources import LabelEpisodeSource
from benchmark.personalization.summary import LEARNERS
from benchmark.run.checkpoint import Checkpoints
from benchmark.run.names import CHECKPOINTS_DIR
from flair.errors import FlairError
from flair.files import feature_file, npy_file
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


def run(
    config: RunConfig,
    episodes: LabelEpisodeSource,
    head: HeadConfig,
    training: tuple[LabelEpisodeSource, TrainingConfig] | None,
    log: EpisodeLog,
    folder: Path,
) -> dict[str, Any]:
    """Few-shot tasks over the fine-grained labels of a partition, whose figure is drawn into the run's folder.

    `training` is the episodes to train prototypical networks on, and how; None: without them. Returns the accuracy of
    each learner and their paired differences.
    """
    for one in (episodes, *((training[0],) if training else ())):
        print(
            f"{sum(len(alphabet.classes) for alphabet in one.drawn.alphabets):,} classes of the {one.label_set} "
            f"labels in {one.partition}, alphabets: {len(one.drawn.alphabets)}"
            + ("" if one.taxonomy else "; without --taxonomy all labels are one alphabet"),
            flush=True,
        )

    def prepare() -> Callable[[int], LabelResult]:
        model = saved_model.load(config.model, config.image_size)
        embedding = None if training is None else _train(config, model, folder, *training)
        draw = _feature_episodes(config, model, episodes, folder / "features" / "features.npy")

        def run_episode(number: int) -> LabelResult:
            support, support_class, query, truth, ways = draw(number)
            linear = few_shot.fine_tune(support, support_class, ways, *head)
            if not np.isfinite(linear[0]).all():
                raise FlairError(f"--learning_rate={head.learning_rate:g} is too large: the head is no longer a number")
            centres = few_shot.centroids(support, support_class, ways)
            guesses = [few_shot.nearest(query, centres), few_shot.classify(query, *linear)]
            if embedding is not None:
                guesses.append(few_shot.nearest(query @ embedding, centres @ embedding))
            accuracies = [float(np.mean(guess == truth)) for guess in guesses]
            alphabet = episodes.drawn.episode(number).alphabet
            return LabelResult(number, alphabet, ways, len(support), len(query), *accuracies)

        return run_episode

    results = [one for one in run_episodes(config, episodes, prepare, log) if isinstance(one, LabelResult)]
    from benchmark.personalization.figures import draw_labels  # Matplotlib, which only the end needs

    draw_labels(folder / "figures", results)
    return {
        "label_set": episodes.label_set,
        "taxonomy": episodes.taxonomy,
        "alphabets": {one.name: len(one.classes) for one in episodes.drawn.alphabets},
        **({"training_episodes": training[1].num_episodes} if training else {}),
        **personalization_summary.summarize_labels(results),
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


def _train(
    config: RunConfig, model: tf.keras.Model, folder: Path, episodes: LabelEpisodeSource, training: TrainingConfig
) -> few_shot.Floats:
    """The embedding, which is also written to the run's folder."""
    draw = _feature_episodes(config, model, episodes, folder / "features" / "training.npy")
    channels = draw(0).support.shape[1]
    embedding = few_shot.train(draw, channels, training, Checkpoints(folder / CHECKPOINTS_DIR))
    npy_file.write_array(folder / EMBEDDING_FILE, embedding)
    return embedding


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
