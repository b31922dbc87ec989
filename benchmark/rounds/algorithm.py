"""A `FederatedConfig` as TFF's own parts: optimizers, aggregation factory, learning process.

All runtimes are built from here. `build_learning_process` is the unmodified `tff.learning.algorithms` process;
`benchmark.rounds.compilation` takes the same aggregation factory and server optimizer for the other runtimes.
"""

from __future__ import annotations

import collections
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import tensorflow as tf
import tensorflow_federated as tff

from benchmark.model.clipping import clip_gradients
from benchmark.privacy.request import Mechanism
from benchmark.rounds.config import (
    FED_PROX,
    FED_SGD,
    MAX_UPDATE_NORM,
    MIME_LITE,
    SECURE,
    ClientConfig,
    FederatedConfig,
    NoiseConfig,
    OptimizerConfig,
    ServerConfig,
)

AggregationFactory: TypeAlias = (
    "tff.aggregators.WeightedAggregationFactory | tff.aggregators.UnweightedAggregationFactory"
)


class ClippedOptimizer(tff.learning.optimizers.Optimizer):
    """Clips the gradients, then calls another TFF optimizer: Keras's `clipnorm`, which TFF's optimizers lack.

    Its hyperparameters are those of the other one, because TFF keeps them in the state that checkpoints hold.
    """

    def __init__(self, base: tff.learning.optimizers.Optimizer, clipnorm: float, global_clipnorm: bool) -> None:
        self._base, self._clipnorm, self._global = base, clipnorm, global_clipnorm

    def initialize(self, specs: Any) -> Any:
        return self._base.initialize(specs)

    def next(self, state: Any, weights: Any, gradients: Any) -> Any:
        clipped = clip_gradients(tf.nest.flatten(gradients), self._clipnorm, self._global)
        return self._base.next(state, weights, tf.nest.pack_sequence_as(gradients, clipped))

    def get_hparams(self, state: Any) -> Any:
        return self._base.get_hparams(state)

    def set_hparams(self, state: Any, hparams: Any) -> Any:
        return self._base.set_hparams(state, hparams)


class ProximalOptimizer(tff.learning.optimizers.Optimizer):
    """FedProx as a client optimizer: adds mu * (weights - initial weights) to the gradient, then calls another.

    TFF 0.87's own `build_weighted_fed_prox` adds mu * (initial weights - weights) for Keras models, which drives
    clients away from the global model instead of holding them (the reverse of Li et al. 2020, eq. 2,
    https://arxiv.org/abs/1812.06127), so FedProx is FedAvg with this optimizer here. The initial weights are the ones
    that the first step sees.
    """

    def __init__(self, base: tff.learning.optimizers.Optimizer, strength: float) -> None:
        self._base, self._strength = base, strength

    def initialize(self, specs: Any) -> Any:
        zeros = tf.nest.map_structure(lambda spec: tf.zeros(spec.shape, spec.dtype), specs)
        return collections.OrderedDict(
            base=self._base.initialize(specs), started=tf.constant(False), initial_weights=zeros
        )

    def next(self, state: Any, weights: Any, gradients: Any) -> Any:
        anchor = tf.nest.map_structure(
            lambda initial, weight: tf.where(state["started"], initial, weight), state["initial_weights"], weights
        )
        pulled = tf.nest.map_structure(
            lambda gradient, weight, initial: gradient + self._strength * (weight - initial), gradients, weights, anchor
        )
        base, updated = self._base.next(state["base"], weights, pulled)
        return collections.OrderedDict(base=base, started=tf.constant(True), initial_weights=anchor), updated


def build_optimizer(config: OptimizerConfig) -> tff.learning.optimizers.Optimizer:
    """The TFF optimizer of that name, its learning rate scheduled where it changes over rounds."""
    rate, optimizers = config.learning_rates[0], tff.learning.optimizers
    second_moment = {"beta_2": config.beta_2, "epsilon": config.epsilon}
    built = {
        "adam": lambda: optimizers.build_adam(rate, **second_moment),
        "adamw": lambda: optimizers.build_adamw(rate, weight_decay=config.weight_decay, **second_moment),
        "sgd": lambda: optimizers.build_sgdm(rate),
        "momentum": lambda: optimizers.build_sgdm(rate, momentum=config.momentum),
        "yogi": lambda: optimizers.build_yogi(rate, **second_moment),
        "adagrad": lambda: optimizers.build_adagrad(rate, epsilon=config.epsilon),
    }[config.name]()
    if len(set(config.learning_rates)) == 1:
        return built
    return optimizers.schedule_learning_rate(built, _rate_of_round(config.learning_rates))


def build_client_optimizer(config: ClientConfig, learning_rate: Any) -> tff.learning.optimizers.Optimizer:
    """The client's SGD with its gradient clipping and, in FedProx, its proximal term."""
    sgd = tff.learning.optimizers.build_sgdm(learning_rate)
    clipped = ClippedOptimizer(sgd, config.clipnorm, config.global_clipnorm)
    return ProximalOptimizer(clipped, config.proximal_strength) if config.algorithm == FED_PROX else clipped


def build_aggregation_factory(config: ServerConfig) -> AggregationFactory:
    """Mean, robust or, with noise, private aggregation of client updates, as TFF defines it."""
    weighted, learning = config.weighted, tff.learning
    factory: AggregationFactory
    if config.noise is not None:
        factory = _private_factory(config.noise)
    elif config.aggregator == "mean":
        factory = tff.aggregators.MeanFactory() if weighted else tff.aggregators.UnweightedMeanFactory()
    else:
        others = {"compression": learning.compression_aggregator, SECURE: learning.secure_aggregator}
        factory = others.get(config.aggregator, learning.robust_aggregator)(
            zeroing=config.aggregator in ("zeroing", "robust"),
            clipping=config.aggregator in ("clipping", "robust"),
            weighted=weighted,
        )
    return learning.add_debug_measurements(factory) if config.debug_measurements else factory


def build_learning_process(
    config: FederatedConfig, model_fn: Callable[[], tff.learning.models.VariableModel]
) -> tff.learning.templates.LearningProcess:
    """The `tff.learning.algorithms` process of this configuration, for TFF's own runtime."""
    client, algorithms = config.client, tff.learning.algorithms
    server_optimizer = build_optimizer(config.server_optimizer)
    if config.noise is not None and config.noise.mechanism is not Mechanism.GAUSSIAN:
        raise ValueError(f"TFF's own runtime cannot be given {config.noise.mechanism} noise")
    # TFF leaves out updates that are not finite, but not those whose norm is not.
    factory = tff.aggregators.zeroing_factory(MAX_UPDATE_NORM, build_aggregation_factory(config.server), norm_order=2.0)
    if isinstance(factory, tff.aggregators.UnweightedAggregationFactory):
        factory = tff.aggregators.as_weighted_aggregator(factory)
    common: dict[str, Any] = {
        "model_aggregator": factory,
        "loop_implementation": tff.learning.LoopImplementation.DATASET_ITERATOR,
    }
    if client.algorithm == FED_SGD:
        return algorithms.build_fed_sgd(model_fn, server_optimizer, **common)
    if client.algorithm != MIME_LITE and len(set(client.learning_rates)) > 1:
        return algorithms.build_weighted_fed_avg_with_optimizer_schedule(
            model_fn,
            _rate_of_round(client.learning_rates),
            lambda rate: build_client_optimizer(client, rate),
            server_optimizer,
            **common,
        )
    weighting = tff.learning.ClientWeighting.NUM_EXAMPLES if client.weighted else tff.learning.ClientWeighting.UNIFORM
    common["client_weighting"] = weighting
    if (base := config.server.base_optimizer) is not None:
        return algorithms.build_weighted_mime_lite(model_fn, build_optimizer(base), server_optimizer, **common)
    optimizer = build_client_optimizer(client, client.learning_rates[0])
    return algorithms.build_weighted_fed_avg(model_fn, optimizer, server_optimizer, **common)


def _private_factory(noise: NoiseConfig) -> tff.aggregators.UnweightedAggregationFactory:
    # Banded noise and tree aggregation are the same sum with other normal numbers (`benchmark.privacy.noise`). TFF's
    # own tree keeps its noise in its state, from where any checkpoint would give it away.
    factories = tff.aggregators.DifferentiallyPrivateFactory
    if noise.target_unclipped_quantile > 0:
        if noise.mechanism is not Mechanism.GAUSSIAN:
            raise ValueError(f"{noise.mechanism} noise takes a fixed clip norm")
        return factories.gaussian_adaptive(
            noise.noise_multiplier,
            noise.clients_per_round,
            initial_l2_norm_clip=noise.l2_norm_clip,
            target_unclipped_quantile=noise.target_unclipped_quantile,
            learning_rate=noise.clip_learning_rate,
            clipped_count_stddev=noise.clipped_count_stddev,
        )
    return factories.gaussian_fixed(noise.noise_multiplier, noise.clients_per_round, noise.l2_norm_clip)


def _rate_of_round(rates: Sequence[float]) -> Callable[[Any], tf.Tensor]:
    def rate(round_number: Any) -> tf.Tensor:
        table = tf.constant(rates, tf.float32)
        return tf.gather(table, tf.minimum(tf.cast(round_number, tf.int32), len(rates) - 1))

    return rate
