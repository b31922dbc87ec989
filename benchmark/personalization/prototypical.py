"""Prototypical networks on fixed features: a linear embedding that is trained on episodes.

Source: Snell, Swersky, Zemel 2017, Prototypical Networks for Few-shot Learning, https://arxiv.org/abs/1703.05175: the
classes of an episode are the means of their embedded support photos, and the loss is the cross-entropy of a softmax
over minus the squared Euclidean distances of the embedded query photos from them. The embedding here is the network as
it is, then a square matrix, which begins as the identity: without training this is the nearest centroid. Pure NumPy.
"""

from __future__ import annotations

import collections
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from benchmark.personalization.few_shot import Floats, centroids
from benchmark.run.checkpoint import Checkpoints
from benchmark.run.interruption import SafePoints
from flair.errors import FlairError
from flair.terminal.counted import counted
from flair.terminal.progress import Progress

_DECAYS, _EPSILON = (0.9, 0.999), 1e-8  # of Adam (Kingma and Ba 2015, https://arxiv.org/abs/1412.6980)
_SECONDS_PER_CHECKPOINT = 60.0
_EPISODES_SHOWN = 100  # over which the loss that is shown is averaged


@dataclass(frozen=True)
class TrainingConfig:
    """How long to train, and the learning rate of Adam, one step per episode."""

    num_episodes: int
    learning_rate: float


class FeatureEpisode(NamedTuple):
    """Standardized features float64 [photos, channels] of both sides, and the place of each photo's class."""

    support: Floats
    support_class: np.ndarray
    query: Floats
    query_class: np.ndarray
    ways: int


class Loss(NamedTuple):
    """Of one episode: mean cross-entropy of the query photos, and its gradient [channels, channels]."""

    value: float
    gradient: Floats


def episode_loss(embedding: Floats, episode: FeatureEpisode) -> Loss:
    """The loss of an episode at a matrix [channels, channels] that features are multiplied by."""
    centres = centroids(episode.support, episode.support_class, episode.ways)
    embedded, prototypes = episode.query @ embedding, centres @ embedding
    logits = 2 * embedded @ prototypes.T - np.sum(prototypes**2, axis=1)  # |embedded|^2 is the same for all classes
    logits -= logits.max(axis=1, keepdims=True)
    log_probabilities = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    rows = np.arange(len(logits))
    error = np.exp(log_probabilities)
    error[rows, episode.query_class] -= 1.0
    error /= len(logits)
    # Each pair (i, j) adds -2 error_ij d d^T times the embedding, where d = query_i - centre_j. The rows of `error` sum
    # to 0, so that the products of a query photo with itself cancel.
    mixed = episode.query.T @ error @ centres
    outer = (centres * error.sum(axis=0)[:, None]).T @ centres - mixed - mixed.T
    return Loss(-float(np.mean(log_probabilities[rows, episode.query_class])), -2 * outer @ embedding)


def train(
    episode: Callable[[int], FeatureEpisode], channels: int, config: TrainingConfig, checkpoints: Checkpoints
) -> Floats:
    """The embedding float64 [channels, channels] after the episodes 0 .. `config.num_episodes` - 1.

    Goes on from the newest checkpoint, to the bits of an unbroken training.

    Raises:
      FlairError: the loss is not a number any more.
    """
    saved = checkpoints.latest()
    done = 0 if saved is None else saved.step
    start = {"embedding": np.eye(channels), "mean": np.zeros((channels,) * 2), "square": np.zeros((channels,) * 2)}
    arrays = start if saved is None else saved.arrays
    if {name: array.shape for name, array in arrays.items()} != {name: array.shape for name, array in start.items()}:
        raise FlairError(f"{checkpoints.folder}: holds checkpoints of another embedding; start over with --overwrite")
    embedding, mean, square = (arrays[name] for name in start)
    losses: collections.deque[float] = collections.deque(maxlen=_EPISODES_SHOWN)
    last_saved = time.monotonic()
    with (
        SafePoints("episode") as safe_points,
        Progress(config.num_episodes, "training on episodes", "episode", done=done) as progress,
    ):
        for number in range(done, config.num_episodes):
            with np.errstate(over="ignore", invalid="ignore"):  # the next line tells
                loss = episode_loss(embedding, episode(number))
            if not np.isfinite(loss.value):
                done_so_far = counted(number, "episode")
                raise FlairError(
                    f"--training_learning_rate={config.learning_rate:g} is too large: after {done_so_far} the loss is "
                    "no longer a number; give a smaller one and --overwrite"
                )
            mean = _DECAYS[0] * mean + (1 - _DECAYS[0]) * loss.gradient
            square = _DECAYS[1] * square + (1 - _DECAYS[1]) * loss.gradient**2
            unbiased, scale = (
                m / (1 - decay ** (number + 1)) for m, decay in zip((mean, square), _DECAYS, strict=True)
            )
            embedding = embedding - config.learning_rate * unbiased / (np.sqrt(scale) + _EPSILON)
            losses.append(loss.value)
            progress.add(1, f"loss {np.mean(list(losses)):.4f}")
            is_last = number + 1 == config.num_episodes
            if is_last or safe_points.requested is not None or time.monotonic() - last_saved > _SECONDS_PER_CHECKPOINT:
                checkpoints.save(number + 1, dict(zip(start, (embedding, mean, square), strict=True)), None)
                last_saved = time.monotonic()
            if safe_points.requested is not None:
                safe_points.stop()
    return embedding
