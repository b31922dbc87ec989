"""Episodes that are few-shot tasks over fine-grained labels, from the records to the summary."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np

from benchmark.data.labels import PhotoTable, read_photo_table
from benchmark.data.records import Records, Task
from benchmark.model import saved as saved_model
from benchmark.model.saved import SavedModel
from benchmark.personalization import few_shot
from benchmark.personalization import flags as personalize_flags
from benchmark.personalization import summary as personalization_summary
from benchmark.personalization.dump import DumpedEpisode, dump_episodes
from benchmark.personalization.labels import LabelEpisode, LabelEpisodes, make_alphabets, one_alphabet
from benchmark.personalization.log import EpisodeLog, LabelResult
from benchmark.run.flags import Flags
from flair.dataset.metadata import load_taxonomy
from flair.errors import FlairError
from flair.files.npy_file import read_rows, write_rows
from flair.terminal.progress import Progress

_PHOTOS_PER_FILE = 512
_PHOTOS_PER_BATCH = 64


def run_labels(
    flags: Flags,
    records: Records,
    task: Task,
    saved: SavedModel,
    image_size: tuple[int, int],
    folder: Path,
    log: EpisodeLog,
) -> dict[str, Any]:
    """Runs the episodes that are missing in `log` and draws the figure; the rest of the summary."""
    table = read_photo_table(records, flags.partition)
    episodes = _episodes(flags, table, records)
    classes = sum(len(one.classes) for one in episodes.alphabets)
    print(
        f"{classes:,} classes of the {flags.label_set} labels in {flags.partition}, alphabets: "
        f"{len(episodes.alphabets)}" + ("" if flags.taxonomy else "; without --taxonomy all labels are one alphabet"),
        flush=True,
    )
    if flags.dump_dir is not None:
        _dump(flags, records, task, episodes)
    if len(log.results) < flags.num_episodes:
        rows = np.unique(np.concatenate([c.photos for one in episodes.alphabets for c in one.classes]))
        features = _features(flags, records, task, saved, image_size, rows, folder / "features")
        _score(flags, episodes, rows, features, log)
    results = [result for result in log.results[: flags.num_episodes] if isinstance(result, LabelResult)]
    from benchmark.personalization.figures import draw_labels

    draw_labels(folder / "figures", results)
    return {
        "label_set": flags.label_set,
        "taxonomy": flags.taxonomy,
        "alphabets": {one.name: len(one.classes) for one in episodes.alphabets},
        **personalization_summary.summarize_labels(results),
    }


def describe(summary: dict[str, Any]) -> list[str]:
    """The summary as a table for people."""
    lines = [
        f"{summary['episodes']:,} episodes over {sum(summary['alphabets'].values()):,} {summary['label_set']} labels "
        f"in {summary['partition']}, alphabets: {len(summary['alphabets'])}; on average {summary['mean_ways']:.1f} "
        f"ways, {summary['mean_support']:.1f} support and {summary['mean_query']:.1f} query photos",
        f"{'accuracy':<24}{'mean':>9}{'95% interval':>20}",
    ]
    for name in ("chance", "nearest_centroid", "fine_tuning", "difference"):
        found = summary[name]
        if isinstance(found, float):
            lines.append(f"{name:<24}{found:>9.4f}")
            continue
        span = "-" if found["low"] is None else f"{found['low']:.4f} to {found['high']:.4f}"
        lines.append(f"{name.replace('_', ' '):<24}{found['mean']:>9.4f}{span:>20}")
    lines.append(f"fine tuning is better in {summary['share_improved']:.1%} of the episodes")
    for group in summary["by_ways"]:
        lines.append(
            f"  {group['ways'] + ' ways':<22}{group['episodes']:>6} episodes   chance {group['chance']:.3f}   "
            f"nearest centroid {group['nearest_centroid']['mean']:.3f}   fine tuning {group['fine_tuning']['mean']:.3f}"
        )
    return lines


def _episodes(flags: Flags, table: PhotoTable, records: Records) -> LabelEpisodes:
    names = sorted(records.fine_grained_labels, key=records.fine_grained_labels.__getitem__)
    taxonomy = None if flags.taxonomy is None else load_taxonomy(personalize_flags.taxonomy_folder(flags))
    if taxonomy is not None and not set(names) & set(taxonomy):
        raise FlairError(f"--taxonomy={flags.taxonomy}: knows none of the {len(names):,} labels of {records.root}")
    photo_labels = [[names[column] for column in columns] for columns in table.fine_grained_labels]
    alphabets = make_alphabets(photo_labels, taxonomy or one_alphabet(names, records.labels), flags.label_set)
    return LabelEpisodes(alphabets, flags.seed, flags.ways, flags.shots, flags.num_query)


def _features(
    flags: Flags,
    records: Records,
    task: Task,
    saved: SavedModel,
    image_size: tuple[int, int],
    rows: np.ndarray,
    folder: Path,
) -> np.ndarray:
    """Pooled features float32 [rows, channels], computed once and kept in files, so that a killed run has them."""
    import tensorflow as tf

    from benchmark.personalization.personalizer import decode_photos, decoder, pooled_features

    body = pooled_features(saved_model.load(saved, image_size))
    decode = decoder(task, image_size)

    @tf.function(input_signature=[tf.TensorSpec((None, *image_size, 3), tf.float32)])
    def forward(pixels: tf.Tensor) -> tf.Tensor:
        return tf.cast(body(pixels, training=False), tf.float32)

    dtype = np.dtype([("features", np.float32, (int(body.output_shape[-1]),))])
    found = []
    with Progress(len(rows), "features", "photo") as progress:
        for start in range(0, len(rows), _PHOTOS_PER_FILE):
            path = folder / f"{start:07d}.npy"
            chosen = rows[start : start + _PHOTOS_PER_FILE]
            features = _kept(path, dtype, len(chosen))
            if features is None:
                serialized = records.read_photos(flags.partition, chosen)
                batches = [serialized[i : i + _PHOTOS_PER_BATCH] for i in range(0, len(serialized), _PHOTOS_PER_BATCH)]
                features = np.concatenate([forward(decode_photos(decode, batch)[0]).numpy() for batch in batches])
                write_rows(path, np.ascontiguousarray(features).view(dtype)[:, 0])
            found.append(features)
            progress.add(len(chosen))
    return np.concatenate(found)


def _kept(path: Path, dtype: np.dtype[Any], count: int) -> np.ndarray | None:
    """Features float32 [count, channels] that an earlier process saved; None where there are none, or not whole."""
    try:
        kept: np.ndarray = read_rows(path, dtype)["features"]
    except FileNotFoundError:
        return None
    except FlairError:
        print(f"{path}: is damaged; its features are made anew", file=sys.stderr)
        return None
    return kept if len(kept) == count else None


def _score(flags: Flags, episodes: LabelEpisodes, rows: np.ndarray, features: np.ndarray, log: EpisodeLog) -> None:
    steps, learning_rate = personalize_flags.steps(flags), personalize_flags.learning_rate(flags)
    done = len(log.results)
    with Progress(flags.num_episodes, "episodes", "episode", done=done) as progress:
        for number in range(done, flags.num_episodes):
            episode = episodes.episode(number)
            ways = len(episode.classes)
            support, query = (features[np.searchsorted(rows, side)] for side in (episode.support, episode.query))
            support, query = few_shot.standardized(support, query)
            centres = few_shot.centroids(support, episode.support_class, ways)
            head = few_shot.fine_tune(
                support, episode.support_class, ways, steps, learning_rate, flags.proximal_strength
            )
            if not np.isfinite(head[0]).all():
                raise FlairError(f"--learning_rate={learning_rate:g} is too large: the head is no longer a number")
            guesses = few_shot.nearest(query, centres), few_shot.classify(query, *head)
            accuracies = [float(np.mean(guess == episode.query_class)) for guess in guesses]
            log.add(LabelResult(number, episode.alphabet, ways, len(support), len(query), *accuracies))
            progress.add()


def _dump(flags: Flags, records: Records, task: Task, episodes: LabelEpisodes) -> None:
    names = ("episodes", "partition", "label_set", "seed", "ways", "shots", "num_query", "num_episodes")
    settings = {
        **{name: flags[name] for name in names},
        "alphabets": {one.name: [c.name for c in one.classes] for one in episodes.alphabets},
        "data": records.digest(),
    }

    def read(number: int) -> DumpedEpisode:
        episode: LabelEpisode = episodes.episode(number)
        return DumpedEpisode(
            {"alphabet": episode.alphabet, "classes": list(episode.classes)},
            records.read_photos(flags.partition, episode.support.tolist()),
            records.read_photos(flags.partition, episode.query.tolist()),
            episode.support_class.tolist(),
            episode.query_class.tolist(),
            episode.classes,
        )

    dump_episodes(flags.dump_dir, flags.num_episodes, read, records, task.feature, settings)
    print(f"{flags.dump_dir}: {flags.num_episodes:,} episodes as TFRecords", flush=True)
