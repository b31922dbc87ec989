"""An exponential moving average of the global weights, over rounds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

_PREFIX = "ema/"


class WeightAverage:
    """The mean of the weights after each round so far, that of a round counting `decay` times as much as the next's.

    After round t that is (1 - decay) / (1 - decay^t) * sum over i of decay^(t - i) * weights_i: the average of Adam,
    with its correction (Kingma and Ba 2015, section 3, https://arxiv.org/abs/1412.6980), in which the weights before
    the first round have no part. It is a function of models that a private run releases, and costs no privacy.

    >>> average = WeightAverage(0.5)
    >>> for weight in (1.0, 4.0): average.add([np.float32([weight])])
    >>> average.weights
    [array([3.], dtype=float32)]
    """

    def __init__(self, decay: float) -> None:
        self.weights: list[np.ndarray] = []
        self._decay, self._rounds = decay, 0

    def add(self, weights: Sequence[np.ndarray]) -> None:
        """Takes the weights after one more round into the average, float32 of any shapes."""
        self._rounds += 1
        if self._rounds == 1:
            self.weights = [np.array(weight) for weight in weights]
            return
        share = np.float32((1 - self._decay) / (1 - self._decay**self._rounds))
        for average, weight in zip(self.weights, weights, strict=True):
            average += share * (weight - average)

    def arrays(self) -> dict[str, np.ndarray]:
        """The average as arrays of a checkpoint."""
        return {f"{_PREFIX}{index:05d}": weight for index, weight in enumerate(self.weights)}

    def restore(self, arrays: Mapping[str, np.ndarray], rounds: int) -> None:
        """Continues from `arrays` of a checkpoint after so many rounds."""
        self.weights = [arrays[name] for name in sorted(arrays) if is_average(name)]
        self._rounds = rounds


def is_average(name: str) -> bool:
    """Whether an array of a checkpoint, by its name, is part of an average."""
    return name.startswith(_PREFIX)
