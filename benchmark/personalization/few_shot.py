"""Learners of few-shot tasks on fixed features: nearest centroid, linear head, prototypical networks.

Features are centred and scaled by the support set, with one number for all: no distance comparison changes, and one
learning rate fits every network. Every query photo is scored by itself, so that blocks of queries give the same
numbers. Pure NumPy.

Prototypical networks (Snell, Swersky, Zemel 2017, https://arxiv.org/abs/1703.05175) train a linear embedding on
episodes: the classes of an episode are the means of their embedded support photos, and the loss is the cross-entropy of
a softmax over minus the squared Euclidean distances of the embedded query photos from them. The embedding here is the
network as it is, then a square matrix, which begins as the identity: without training this is the nearest centroid.
"""

from __future__ import annotations

import collections
import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from benchmark.run.checkpoint import Checkpoints
from benchmark.run.interruption import SafePoints
from flair.errors import FlairError
from flair.terminal.counted import counted
from flair.terminal.progress import Progress

Floats = npt.NDArray[np.float64]
_DECAYS, _EPSILON = (0.9, 0.999), 1e-8  # of Adam (Kingma and Ba 2015, https://arxiv.org/abs/1412.6980)
_SECONDS_PER_CHECKPOINT = 60.0
_EPISODES_SHOWN = 100  # over which the loss that is shown is averaged


class HeadConfig(NamedTuple):
    """How `fine_tune` trains the linear head."""

    steps: int
    learning_rate: float
    proximal_strength: float = 0.0


class TrainingConfig(NamedTuple):
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


def standardized(support: np.ndarray, query: np.ndarray) -> tuple[Floats, Floats]:
    """Both, minus the mean of the support features, divided by the root mean square of their distances from it.

    Args:
      support, query: [photos, channels].
    """
    support, query = np.asarray(support, np.float64), np.asarray(query, np.float64)
    mean = support.mean(axis=0)
    scale = np.sqrt(np.mean(np.sum((support - mean) ** 2, axis=1)))
    return (support - mean) / (scale or 1.0), (query - mean) / (scale or 1.0)


def centroids(support: Floats, classes: np.ndarray, ways: int) -> Floats:
    """Mean support feature of each class, [ways, channels]; prototypes of Snell et al. 2017 on fixed features.

    https://arxiv.org/abs/1703.05175
    """
    one_hot = _one_hot(classes, ways)
    return np.asarray(one_hot.T @ support / one_hot.sum(axis=0)[:, None])


def nearest(query: Floats, centres: Floats) -> npt.NDArray[np.int64]:
    """Class int64 [photos] of the centroid at the least squared Euclidean distance."""
    return np.array([np.argmin(np.sum((centres - one) ** 2, axis=1)) for one in query], np.int64)


def fine_tune(
    support: Floats, classes: np.ndarray, ways: int, steps: int, learning_rate: float, proximal_strength: float = 0.0
) -> tuple[Floats, Floats]:
    """A linear head, from zero, by gradient descent on the cross-entropy of the whole support set.

    Returns:
      Weights [channels, ways] and bias [ways].
    """
    weights, bias = np.zeros((support.shape[1], ways)), np.zeros(ways)
    truth = _one_hot(classes, ways)
    for _ in range(steps):
        logits = support @ weights + bias
        shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
        error = (shifted / shifted.sum(axis=1, keepdims=True) - truth) / len(support)
        weights -= learning_rate * (support.T @ error + proximal_strength * weights)
        bias -= learning_rate * (error.sum(axis=0) + proximal_strength * bias)
    return weights, bias


def classify(query: Floats, weights: Floats, bias: Floats) -> npt.NDArray[np.int64]:
    """Class int64 [photos] of the largest logit of a linear head."""
    return np.array([np.argmax(one @ weights + bias) for one in query], np.int64)


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


def _one_hot(classes: np.ndarray, ways: int) -> Floats:
    return np.eye(ways)[np.asarray(classes)]
