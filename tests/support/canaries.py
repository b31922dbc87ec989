"""Audited runs of a small network, honest or with a fault planted in their noise or clipping."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import Any
from unittest import mock

import numpy as np
import tensorflow as tf

from benchmark.metrics.histogram import NUM_BUCKETS
from benchmark.privacy import accounting
from benchmark.privacy.audit import CanaryScores, Claim
from benchmark.privacy.noise import FreshNoise
from benchmark.privacy.noise_key import NoiseKey
from benchmark.privacy.request import Mechanism
from benchmark.rounds.aggregation import Aggregation
from benchmark.rounds.canaries import Canaries
from benchmark.rounds.config import CanaryConfig, ClientConfig, FederatedConfig, NoiseConfig, OptimizerConfig
from benchmark.rounds.server import RoundServer
from benchmark.rounds.shard import ShardResult

INPUTS, HIDDEN, OUTPUTS = 128, 16, 17
SIZES = (INPUTS * HIDDEN, HIDDEN, HIDDEN * OUTPUTS, OUTPUTS)
COHORT, PROBABILITY, CLIP, DELTA = 5.0, 0.1, 0.5, 1e-5
FAULTS = ("noise at half its size", "noise forgotten on one layer", "clipping off", "a public seed")
_FORGOTTEN = slice(SIZES[0] + SIZES[1], SIZES[0] + SIZES[1] + SIZES[2])


def network() -> tf.keras.Model:
    """Two layers, 2,353 weights, all of them 0; the rounds look at nothing but these."""
    sizes = {"first": HIDDEN, "second": OUTPUTS}
    layers = [tf.keras.layers.Dense(size, kernel_initializer="zeros", name=name) for name, size in sizes.items()]
    return tf.keras.Sequential([tf.keras.layers.Input((INPUTS,)), *layers])


def private_config(noise_multiplier: float) -> FederatedConfig:
    """Fixed clip, plain steps."""
    noise = NoiseConfig(Mechanism.GAUSSIAN, noise_multiplier, COHORT, CLIP)
    return FederatedConfig(ClientConfig(weighted=False), OptimizerConfig("sgd", (0.1,)), noise=noise)


def key(number: int) -> NoiseKey:
    """A key that is no secret."""
    return NoiseKey(number.to_bytes(32, "big"))


def split(vector: np.ndarray) -> list[tf.Tensor]:
    """Numbers as the network's tensors."""
    parts = np.split(np.asarray(vector, np.float32), np.cumsum(SIZES)[:-1])
    shapes = ((INPUTS, HIDDEN), (HIDDEN,), (HIDDEN, OUTPUTS), (OUTPUTS,))
    return [tf.constant(part.reshape(shape)) for part, shape in zip(parts, shapes, strict=True)]


def flat(tensors: Any) -> np.ndarray:
    """The tensors' numbers."""
    return np.concatenate([np.ravel(tensor) for tensor in tensors])


def users(server: RoundServer, round_number: int, seed: int, agreeing: int = 0) -> ShardResult:
    """What a random cohort of users comes to, whose updates agree in part and all need clipping.

    So many more are `agreeing` that their sum is the same in every round.
    """
    generator = np.random.default_rng((seed, round_number))
    shared = np.random.default_rng(seed).normal(size=sum(SIZES))
    aggregate, sent = server.aggregation.zero(), server.broadcast(round_number)
    for _ in range(generator.poisson(COHORT)):
        vector = shared + generator.normal(size=sum(SIZES))
        result = [*split(2 * CLIP * vector / np.linalg.norm(vector)), tf.constant(1.0)]
        aggregate = server.aggregation.accumulate(aggregate, result, sent.aggregator, tf.constant([0, 0], tf.int64))
    length = agreeing * CLIP / np.linalg.norm(shared)
    aggregate[-len(SIZES) :] = [
        one + more for one, more in zip(aggregate[-len(SIZES) :], split(length * shared), strict=True)
    ]
    sums = [np.zeros((OUTPUTS, 2, NUM_BUCKETS), np.int64), np.float32(1), np.int64(1)]
    return ShardResult(aggregate, sums, 1, (), np.zeros(0), np.zeros(0, np.float32))


def audited(
    seed: int, canaries: int, fault: str | None = None, epsilon: float = 2.0, rounds: int = 40, agreeing: int = 0
) -> tuple[Claim, CanaryScores]:
    """A run of so many rounds that claims `epsilon`, and what its canaries saw."""
    noise = accounting.noise_multiplier_for("pld", epsilon, PROBABILITY, rounds, DELTA)
    with planted(fault, noise):
        server = RoundServer(network(), private_config(noise), False, 0, key(seed), CanaryConfig(canaries, PROBABILITY))
        for number in range(rounds):
            server.finish(number, [users(server, number, seed, agreeing)])
    claimed = accounting.epsilon("pld", noise, PROBABILITY, rounds, DELTA)
    scores = server.canary_scores()
    assert scores is not None
    return Claim(claimed, DELTA, "pld", noise, None, PROBABILITY, rounds, COHORT), scores


@contextlib.contextmanager
def planted(fault: str | None, noise_multiplier: float) -> Iterator[None]:
    """Runs in this block have the fault, and do not know it."""
    normals, accumulate, observe = FreshNoise.normals, Aggregation.accumulate, Canaries.observe

    def half(noise: FreshNoise, round_number: int, count: int) -> np.ndarray:
        return normals(noise, round_number, count) / 2

    def forgotten(noise: FreshNoise, round_number: int, count: int) -> np.ndarray:
        numbers = normals(noise, round_number, count)
        numbers[_FORGOTTEN] = 0
        return numbers

    def unclipped(aggregation: Aggregation, aggregate: Any, result: Any, _sent: Any, seed: Any) -> list[tf.Tensor]:
        return accumulate(aggregation, aggregate, result, [tf.constant(1e9)], seed)

    def seeing(canaries: Canaries, round_number: int, clip_norm: float, update: Any, moved: Any) -> None:
        noise = FreshNoise(canaries._key).normals(round_number, sum(SIZES)) * noise_multiplier * CLIP / COHORT
        observe(canaries, round_number, clip_norm, split(flat(update) - noise), moved)

    noise = functools.partial(mock.patch.object, FreshNoise, "normals")
    with {
        None: contextlib.nullcontext,
        FAULTS[0]: functools.partial(noise, half),
        FAULTS[1]: functools.partial(noise, forgotten),
        FAULTS[2]: functools.partial(mock.patch.object, Aggregation, "accumulate", unclipped),
        FAULTS[3]: functools.partial(mock.patch.object, Canaries, "observe", seeing),
    }[fault]():
        yield
