"""SCAFFOLD on the clients' side: what corrects their steps, and what they keep for the next time.

Each client has a control variate c_i, an estimate of its gradient, and the server c, the mean over all clients; steps
follow the gradient plus c - c_i, so that clients do not drift apart (Karimireddy et al. 2020, Algorithm 1,
https://arxiv.org/abs/1910.06378).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import tensorflow as tf

from benchmark.rounds.client import LocalTrainer


class States(Protocol):
    """The control variates of clients, each a float32 vector; a `dict` is one, and so is `run.user_states`."""

    def get(self, client_id: str, /) -> np.ndarray | None:
        """The client's, or None of one who has not taken part, whose control variate is zero."""
        ...

    def __setitem__(self, client_id: str, state: np.ndarray, /) -> None: ...


class ControlVariates:
    """The control variates of the clients that a trainer trains, one after another."""

    def __init__(self, trainer: LocalTrainer) -> None:
        self._trainer = trainer
        self._sizes = [weight.shape.num_elements() for weight in trainer.trainable]
        self._change_sum = [tf.Variable(tf.zeros_like(weight), trainable=False) for weight in trainer.trainable]
        self._server: Sequence[tf.Tensor] = ()
        self._states: States = {}
        self._own = tf.zeros(0)

    def begin(self, server: Sequence[tf.Tensor], states: States) -> None:
        """Takes the server's control variate and those of the clients, and forgets the cohort before."""
        self._server, self._states = server, states
        for summed in self._change_sum:
            summed.assign(tf.zeros_like(summed))

    def correction(self, client_id: str) -> list[tf.Tensor]:
        """c - c_i of the client that is next, a tensor per weight."""
        state = self._states.get(client_id)
        self._own = tf.zeros(sum(self._sizes)) if state is None else tf.constant(state, tf.float32)
        corrections: list[tf.Tensor] = self._correct(self._server, self._own)
        return corrections

    def renew(self, client_id: str) -> None:
        """Gives the client that was just trained its new control variate, by option II.

        It is c_i - c + (x - y_i) / (K * learning rate), where the fraction is what the K steps went down by, on
        average. That is added up step by step: of a difference of weights few digits are left at a low learning rate.
        """
        num_steps = tf.constant(self._trainer.num_steps, tf.float32)
        self._states[client_id] = self._renew(self._server, self._own, num_steps).numpy()

    def change(self) -> list[tf.Tensor]:
        """By how much the control variates of the cohort have changed together, a tensor per weight."""
        return [summed.read_value() for summed in self._change_sum]

    @tf.function
    def _correct(self, server: Sequence[tf.Tensor], own: tf.Tensor) -> list[tf.Tensor]:
        return [c - c_i for c, c_i in zip(server, self._split(own), strict=True)]

    @tf.function
    def _renew(self, server: Sequence[tf.Tensor], own: tf.Tensor, num_steps: tf.Tensor) -> tf.Tensor:
        renewed = []
        parts = zip(self._change_sum, self._trainer.gradient_sum, server, self._split(own), strict=True)
        for change_sum, gradient_sum, c, c_i in parts:
            change = gradient_sum / num_steps - c
            change_sum.assign_add(change)
            renewed.append(tf.reshape(c_i + change, [-1]))
        return tf.concat(renewed, 0)

    def _split(self, vector: tf.Tensor) -> list[tf.Tensor]:
        parts = zip(tf.split(vector, self._sizes), self._trainer.trainable, strict=True)
        return [tf.reshape(part, weight.shape) for part, weight in parts]
