"""The loop over the episodes of a personalization run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from benchmark.data.records import Records, Task
from benchmark.model.saved import SavedModel
from benchmark.personalization.dump import dump_episodes
from benchmark.personalization.log import EpisodeLog, EpisodeResult
from benchmark.personalization.sources import LabelEpisodeSource, UserEpisodeSource
from benchmark.run.interruption import SafePoints
from flair.terminal.progress import Progress

if TYPE_CHECKING:
    import tensorflow as tf

    from benchmark.data.inputs import Inputs

_PHOTOS_PER_BATCH = 64


@dataclass(frozen=True)
class RunConfig:
    """What every personalization run has; an episode is a function of its number and the seed.

    `image_size` is (height, width), `dump_dir` the folder to which episodes are also written as TFRecords, and
    `feature_dir` the one of features that a training left; None: photos are decoded.
    """

    records: Records
    partition: str
    task: Task
    model: SavedModel
    image_size: tuple[int, int]
    num_episodes: int
    seed: int
    dump_dir: str | None
    feature_dir: str | None = None

    def inputs(self, model: tf.keras.Model, partition: str) -> Inputs:
        """The photos of a partition as this model takes them, or features of them."""
        from benchmark.features.cache import inputs_of

        of_partition = self.records, self.task, partition, _PHOTOS_PER_BATCH
        return inputs_of(model, self.model, self.image_size, self.feature_dir, *of_partition)


def run_episodes(
    config: RunConfig,
    episodes: UserEpisodeSource | LabelEpisodeSource,
    prepare: Callable[[], Callable[[int], EpisodeResult]],
    log: EpisodeLog,
) -> Sequence[EpisodeResult]:
    """Runs the episodes that are missing in `log`, and dumps all where that is asked for; returns all results.

    `prepare` loads the model and returns what runs the episode of a number; it is called where one is missing.
    """
    if config.dump_dir is not None:
        dump_episodes(config.dump_dir, config.num_episodes, episodes)
        print(f"{config.dump_dir}: {config.num_episodes:,} episodes as TFRecords", flush=True)
    done = len(log.results)
    if done < config.num_episodes:
        run_episode = prepare()
        with (
            SafePoints("episode") as safe_points,
            Progress(config.num_episodes, "episodes", "episode", done=done) as progress,
        ):
            for number in range(done, config.num_episodes):
                log.add(run_episode(number))
                progress.add()
                if safe_points.requested is not None:
                    safe_points.stop()
    return log.results[: config.num_episodes]
