"""Runs few-shot tasks over fine-grained labels, and summarizes them."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmark.data.labels import PhotoTable, read_photo_table
from benchmark.model import saved as saved_model
from benchmark.personalization import few_shot
from benchmark.personalization import summary as personalization_summary
from benchmark.personalization.dump import DumpedEpisode
from benchmark.personalization.labels import LabelEpisodes, make_alphabets, one_alphabet
from benchmark.personalization.log import EpisodeResult, LabelResult
from benchmark.personalization.run_users import span
from benchmark.personalization.runner import RunConfig
from flair.dataset.metadata import load_taxonomy
from flair.errors import FlairError
from flair.files import feature_file
from flair.terminal.table import Columns

_PHOTOS_PER_BATCH = 64


@dataclass(frozen=True)
class LabelsConfig:
    """Which labels make the episodes (see `LabelEpisodes`), and how `few_shot.fine_tune` trains the linear head.

    `taxonomy` is `--taxonomy` as it was given, and the folder of its file; None: all labels are one alphabet.
    """

    label_set: str
    ways: int | None
    shots: int | None
    num_query: int | None
    taxonomy: tuple[str, Path] | None
    steps: int
    learning_rate: float
    proximal_strength: float


class Labels:
    """Few-shot tasks over the fine-grained labels of a partition; says over how many classes."""

    def __init__(self, config: RunConfig, of_labels: LabelsConfig) -> None:
        self._config, self._of_labels = config, of_labels
        table = read_photo_table(config.records, config.partition)
        self._episodes = _episodes(config, of_labels, table)
        classes = sum(len(one.classes) for one in self._episodes.alphabets)
        print(
            f"{classes:,} classes of the {of_labels.label_set} labels in {config.partition}, alphabets: "
            f"{len(self._episodes.alphabets)}"
            + ("" if of_labels.taxonomy else "; without --taxonomy all labels are one alphabet"),
            flush=True,
        )

    def dump_settings(self) -> dict[str, Any]:
        return {
            "episodes": "labels",
            "partition": self._config.partition,
            "label_set": self._of_labels.label_set,
            "seed": self._config.seed,
            **{name: getattr(self._of_labels, name) for name in ("ways", "shots", "num_query")},
            "num_episodes": self._config.num_episodes,
            "alphabets": {one.name: [c.name for c in one.classes] for one in self._episodes.alphabets},
            "data": self._config.records.digest(),
        }

    def dumped(self, number: int) -> DumpedEpisode:
        episode = self._episodes.episode(number)
        read, partition = self._config.records.read_photos, self._config.partition
        return DumpedEpisode(
            {"alphabet": episode.alphabet, "classes": list(episode.classes)},
            read(partition, episode.support.tolist()),
            read(partition, episode.query.tolist()),
            episode.support_class.tolist(),
            episode.query_class.tolist(),
            episode.classes,
        )

    def prepare(self, folder: Path) -> Callable[[int], EpisodeResult]:
        """Computes the features of all photos; returns what scores both baselines on an episode."""
        of = self._of_labels
        rows = np.unique(np.concatenate([c.photos for one in self._episodes.alphabets for c in one.classes]))
        features = _features(self._config, rows, folder / "features")

        def run_episode(number: int) -> LabelResult:
            episode = self._episodes.episode(number)
            ways = len(episode.classes)
            support, query = (features[np.searchsorted(rows, side)] for side in (episode.support, episode.query))
            support, query = few_shot.standardized(support, query)
            centres = few_shot.centroids(support, episode.support_class, ways)
            tuning = (of.steps, of.learning_rate, of.proximal_strength)
            head = few_shot.fine_tune(support, episode.support_class, ways, *tuning)
            if not np.isfinite(head[0]).all():
                raise FlairError(f"--learning_rate={of.learning_rate:g} is too large: the head is no longer a number")
            guesses = few_shot.nearest(query, centres), few_shot.classify(query, *head)
            accuracies = [float(np.mean(guess == episode.query_class)) for guess in guesses]
            return LabelResult(number, episode.alphabet, ways, len(support), len(query), *accuracies)

        return run_episode

    def summarize(self, results: Sequence[EpisodeResult], folder: Path) -> dict[str, Any]:
        """Draws the figure; returns the accuracy of both baselines and their paired difference."""
        from benchmark.personalization.figures import draw_labels  # Matplotlib, which only the end needs

        of_labels = [one for one in results if isinstance(one, LabelResult)]
        draw_labels(folder / "figures", of_labels)
        return {
            "label_set": self._of_labels.label_set,
            "taxonomy": self._of_labels.taxonomy and self._of_labels.taxonomy[0],
            "alphabets": {one.name: len(one.classes) for one in self._episodes.alphabets},
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
    for name in ("chance", "nearest_centroid", "fine_tuning", "difference"):
        found = summary[name]
        cells = (found, "") if isinstance(found, float) else (found["mean"], span(found))
        lines.append(columns.line(name.replace("_", " "), *cells).rstrip())
    lines.append(f"fine tuning is better in {summary['share_improved']:.1%} of the episodes")
    for group in summary["by_ways"]:
        lines.append(
            f"  {group['ways'] + ' ways':<22}{group['episodes']:>6} episodes   chance {group['chance']:.3f}   "
            f"nearest centroid {group['nearest_centroid']['mean']:.3f}   fine tuning {group['fine_tuning']['mean']:.3f}"
        )
    return lines


def _episodes(config: RunConfig, of_labels: LabelsConfig, table: PhotoTable) -> LabelEpisodes:
    records = config.records
    names = sorted(records.fine_grained_labels, key=records.fine_grained_labels.__getitem__)
    parents: Mapping[str, Iterable[str]] = one_alphabet(names, records.labels)
    if of_labels.taxonomy is not None:
        given, folder = of_labels.taxonomy
        parents = load_taxonomy(folder)
        if not set(names) & set(parents):
            raise FlairError(f"--taxonomy={given}: knows none of the {len(names):,} labels of {records.root}")
    photo_labels = [[names[column] for column in columns] for columns in table.fine_grained_labels]
    alphabets = make_alphabets(photo_labels, parents, of_labels.label_set)
    return LabelEpisodes(alphabets, config.seed, of_labels.ways, of_labels.shots, of_labels.num_query)


def _features(config: RunConfig, rows: np.ndarray, folder: Path) -> np.ndarray:
    """Pooled features float32 [rows, channels]: of a training's, or computed once and kept in the run's folder."""
    from benchmark.data.pipeline import EvaluationData
    from benchmark.features.extraction import compiled, fill
    from benchmark.model.trainable import body_and_head

    model = saved_model.load(config.model, config.image_size)
    if config.feature_dir is not None:
        photos = config.inputs(model).evaluation(config.partition)
        photos.select(rows)
        return np.concatenate([features.numpy() for features, _ in photos])
    body, _ = body_and_head(model)
    path, ids = folder / "features.npy", [str(row) for row in rows]
    try:
        kept, about = feature_file.read(path)
        if about["image_ids"] == ids:
            return np.array(kept)
    except FileNotFoundError:
        pass
    except feature_file.DamagedFeatures as error:
        print(f"{error}; its features are made anew", file=sys.stderr)
    folder.mkdir(exist_ok=True)
    dtype, shape = np.dtype(np.float32), (len(rows), int(body.output_shape[-1]))
    growing = feature_file.growing(path, shape, dtype, {"rows": hashlib.sha256(rows.tobytes()).hexdigest()})
    photos = EvaluationData(
        config.records, config.partition, config.task, config.image_size, _PHOTOS_PER_BATCH, rows[growing.num_done :]
    )
    fill(growing, compiled(body), (pixels for pixels, _ in photos), dtype, "features")
    feature_file.finish(growing, path, ids, {})
    return np.array(feature_file.read(path)[0])
