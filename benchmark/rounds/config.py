"""What a federated run is: algorithm, optimizers, aggregator and noise, as plain data that imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass, field

from benchmark.metrics.loss import CROSS_ENTROPY, LossConfig
from benchmark.privacy.request import Mechanism

FED_AVG = "fed_avg"
FED_PROX = "fed_prox"
FED_SGD = "fed_sgd"
MIME_LITE = "mime_lite"
SCAFFOLD = "scaffold"
ALGORITHMS = (FED_AVG, FED_PROX, FED_SGD, MIME_LITE, SCAFFOLD)

SERVER_OPTIMIZERS = ("adam", "adamw", "sgd", "momentum", "yogi", "adagrad")
SECURE = "secure"
AGGREGATORS = ("mean", "clipping", "zeroing", "robust", "compression", SECURE)

# The squares of a longer update overflow in float32, where clipping would scale it by infinity.
MAX_UPDATE_NORM = 1e19


@dataclass(frozen=True)
class OptimizerConfig:
    """A server optimizer with its learning rates: one per round, or one for all rounds.

    `beta_2` is Adam's, AdamW's and Yogi's decay of the second moment, `weight_decay` is AdamW's.
    """

    name: str = "adam"
    learning_rates: tuple[float, ...] = (0.1,)
    momentum: float = 0.9
    epsilon: float = 0.01
    beta_2: float = 0.999
    weight_decay: float = 0.004


@dataclass(frozen=True)
class LocalNoiseConfig:
    """Noise that each client adds to its update: `noise_multiplier` in terms of the clip norm, which is fixed."""

    noise_multiplier: float
    l2_norm_clip: float


@dataclass(frozen=True)
class ClientConfig:
    """What a client does with its photos.

    Attributes:
      algorithm: one of `ALGORITHMS`.
      learning_rates: of the client's SGD, one per round or one for all.
      clipnorm: bound on the L2 norm of the gradient, per weight tensor (as Keras's `clipnorm`) or, with
        `global_clipnorm`, of all of them together; 0 turns clipping off.
      proximal_strength: FedProx's mu; the gradient gains mu * (weights - global weights).
      weighted: a client counts by its examples, else each counts once.
      local_noise: of local privacy; None: updates are sent as they are.
      loss: what the steps descend.
    """

    algorithm: str = FED_AVG
    learning_rates: tuple[float, ...] = (0.1,)
    clipnorm: float = 10.0
    global_clipnorm: bool = False
    proximal_strength: float = 0.0
    weighted: bool = True
    # Not in the text of a configuration, from which the key of a run of before they existed follows.
    local_noise: LocalNoiseConfig | None = field(default=None, repr=False)
    loss: LossConfig = field(default=CROSS_ENTROPY, repr=False)


@dataclass(frozen=True)
class NoiseConfig:
    """Clipping and noise of the aggregate, in the terms of TFF's `DifferentiallyPrivateFactory`.

    Attributes:
      mechanism: `gaussian` (fresh noise per round), or `banded` or `tree` (DP-FTRL), whose clip norm is fixed.
      noise_multiplier: effective total, relative to the clipping norm, for the sum over the cohort.
      clients_per_round: expected cohort; the sum is divided by it whoever takes part.
      l2_norm_clip: bound on a client's update, or where the adaptive bound starts.
      target_unclipped_quantile: of the adaptive bound; 0 keeps the bound fixed.
      clipped_count_stddev: noise of the count that adapts the bound, in clients.
      column: of the matrix of banded noise.
    """

    mechanism: Mechanism
    noise_multiplier: float
    clients_per_round: float
    l2_norm_clip: float
    target_unclipped_quantile: float = 0.0
    clipped_count_stddev: float | None = None
    clip_learning_rate: float = 0.2
    # Not in `repr`, by which runs of one --noise_key_file are told apart: what a run was called before stays its name.
    column: tuple[float, ...] = field(default=(), repr=False)


@dataclass(frozen=True)
class ServerConfig:
    """What the server does with the clients' updates: all that the graphs of a round depend on, beside the weights.

    Attributes:
      weighted: as of the clients.
      base_optimizer: MimeLite's global optimizer, whose step the clients take with a frozen state; None: no MimeLite.
    """

    optimizer: OptimizerConfig
    aggregator: str
    noise: NoiseConfig | None
    weighted: bool
    debug_measurements: bool
    base_optimizer: OptimizerConfig | None


@dataclass(frozen=True)
class FederatedConfig:
    """A federated algorithm: client work, aggregation, server step."""

    client: ClientConfig = ClientConfig()
    server_optimizer: OptimizerConfig = OptimizerConfig()
    aggregator: str = "mean"
    noise: NoiseConfig | None = None
    debug_measurements: bool = False

    @property
    def server(self) -> ServerConfig:
        """The server's part, which runs may share whose clients differ."""
        client, optimizer = self.client, self.server_optimizer
        base = OptimizerConfig("momentum", client.learning_rates[:1], momentum=optimizer.momentum)
        return ServerConfig(
            optimizer,
            self.aggregator,
            self.noise,
            client.weighted,
            self.debug_measurements,
            base if client.algorithm == MIME_LITE else None,
        )


@dataclass(frozen=True)
class CanaryConfig:
    """The canaries of an audited run: how many, about half of which are in, and how probably one takes part in a round.

    Not a part of `FederatedConfig`, on whose text the noise of repeated runs depends.
    """

    count: int
    probability: float
