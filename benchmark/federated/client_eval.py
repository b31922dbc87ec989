"""Looks at clients while a federated run trains: how the model does on each, and how far their updates lie apart.

Every N rounds the model after the round is scored on a fixed sample of validation users, who never train, and on some
clients of the round, who just did; with local training, the validation users also before and after each has trained by
itself. Beside the scores of a client of the round stands its drift (`benchmark.rounds.drift`). None of it is private.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from benchmark.data.clients import Clients
from benchmark.data.labels import read_photo_table
from benchmark.data.records import Records
from benchmark.federated.scoring import ClientScore, Scorer, sample_clients
from benchmark.federated.settings import Setup, is_local, is_private
from benchmark.rounds.config import ClientConfig
from benchmark.rounds.dp_metrics import PREFIX
from benchmark.rounds.drift import Drift
from benchmark.run.folder import RunFolder
from benchmark.run.seeds import derive_generator
from flair.statistics import divergence

COLUMNS = ("round", "client", "kind", "photos", "loss", "micro_averaged_precision")
"""Of clients.csv.gz; after them stand `DRIFT_COLUMNS`. `photos` is how many the client has, or in rows about local
training how many of them were held out and scored."""
DRIFT_COLUMNS = ("update_norm", "cosine_to_mean", "label_divergence")
VAL, VAL_BEFORE, VAL_AFTER, COHORT = "val", "val_before", "val_after", "cohort"


@dataclass(frozen=True)
class ClientEvalConfig:
    """When clients are looked at, and how.

    Attributes:
      rounds: between two times.
      clients: at most so many validation users are scored, and so many of the round's clients.
      local_training: how validation users train by themselves; None: they do not.
      seed: of the run.
      is_private: the run has privacy, and what is found here has none: columns of metrics.csv say so.
    """

    rounds: int
    clients: int
    local_training: ClientConfig | None
    seed: int
    is_private: bool


class ClientEvaluation:
    """Looks at clients every so many rounds.

    Args:
      scorer: of the model; knows the training clients by the partition `train`.
      clients: that train.
    """

    def __init__(self, config: ClientEvalConfig, scorer: Scorer, records: Records, clients: Clients) -> None:
        self._config, self._scorer, self._clients = config, scorer, clients
        self._users = sample_clients(records.users("val"), config.clients, config.seed)
        self._labels = LabelDistance(records, clients)

    @classmethod
    def of(cls, setup: Setup, scorer: Scorer) -> ClientEvaluation | None:
        """As the flags ask for it; None: they do not."""
        flags = setup.flags
        if not flags.rounds_per_client_eval:
            return None
        # The same rate every time, whatever the schedule, so that times can be compared.
        client = replace(setup.config.client, learning_rates=(float(flags.client_learning_rate),))
        local_training = client if flags.federated_eval_local_training else None
        private = is_private(flags) or is_local(flags)
        how = flags.rounds_per_client_eval, flags.clients_per_client_eval, local_training, flags.seed, private
        return cls(ClientEvalConfig(*how), scorer, setup.records, setup.clients)

    def looked_at(self, round_number: int, cohort: Sequence[str]) -> list[int] | None:
        """The places in the cohort of the clients to look at in a round, counted from 0; None: no client of it."""
        if (round_number + 1) % self._config.rounds:
            return None
        generator = derive_generator(self._config.seed, "clients looked at", round_number)
        count = min(self._config.clients, len(cohort))
        return sorted(generator.choice(len(cohort), count, replace=False).tolist()) if count else []

    def evaluate(self, rounds: int, cohort: Sequence[str], drift: Drift, run: RunFolder) -> dict[str, float]:
        """Scores the model, writes a row per client; the round's aggregates, by the names that metrics.csv has.

        Args:
          rounds: done, with the one that the cohort trained in.
          drift: of that round.
        """
        rows = [*self._users_rows(), *self._cohort_rows(cohort, drift)]
        run.add_clients((*COLUMNS, *DRIFT_COLUMNS), [(rounds, *map(_cell, row)) for row in rows])
        found = {"gradient_diversity": drift.diversity, "cosine_to_mean": _mean(drift.cosines)}
        if self._config.is_private:  # whose `dp_metrics` have the norm of every round
            found = {PREFIX + name: value for name, value in found.items()}
        else:
            found["update_norm"] = _mean(drift.norms)
        return {name: value for name, value in found.items() if math.isfinite(value)}

    def _users_rows(self) -> Iterator[tuple[Any, ...]]:
        scores = self._scorer.score_clients("val", self._users)
        for score, distance in zip(scores, self._labels.of_users("val", self._users), strict=True):
            yield *_scored(VAL, score), None, None, distance
        config = self._config
        if config.local_training is None:
            return
        compared = self._scorer.compare_local_training("val", self._users, config.local_training, config.seed)
        for kind, name in ((VAL_BEFORE, "before"), (VAL_AFTER, "after")):
            for one in compared:
                yield *_scored(kind, getattr(one, name)), None, None, None

    def _cohort_rows(self, cohort: Sequence[str], drift: Drift) -> Iterator[tuple[Any, ...]]:
        scores = self._scorer.score_clients("train", [cohort[place] for place in drift.looked_at])
        places = drift.looked_at.tolist()
        scored = dict(zip(places, zip(scores, drift.cosines, strict=True), strict=True))
        distances = self._labels.of_clients(cohort)
        for place, (client_id, norm, distance) in enumerate(zip(cohort, drift.norms, distances, strict=True)):
            if place in scored:
                score, cosine = scored[place]
                yield *_scored(COHORT, score), norm, cosine, distance
            else:
                yield client_id, COHORT, self._clients.num_photos(client_id), None, None, norm, None, distance


class LabelDistance:
    """How far clients' coarse labels lie from those of all training photos (`flair.statistics.divergence`), in bits.

    The labels of a partition are read when they are first asked for: a pass over its records, once per process.
    """

    def __init__(self, records: Records, clients: Clients) -> None:
        self._records, self._clients = records, clients
        self._labels = functools.cache(self._read)

    def of_clients(self, client_ids: Sequence[str]) -> np.ndarray:
        """float64 [clients] of training clients; NaN of one whose photos have no label."""
        return self._distances("train", [self._clients.rows(client_id) for client_id in client_ids])

    def of_users(self, partition: str, user_ids: Sequence[str]) -> np.ndarray:
        """The same of users of a partition."""
        return self._distances(partition, [self._records.rows_of(partition, user_id) for user_id in user_ids])

    def _distances(self, partition: str, rows: Sequence[np.ndarray]) -> np.ndarray:
        labels = self._labels(partition)
        counts = np.array([labels[own].sum(0) for own in rows], np.int64).reshape(len(rows), labels.shape[1])
        found, is_labelled = np.full(len(rows), np.nan), counts.any(1)
        found[is_labelled] = divergence.divergences(counts[is_labelled], self._labels("train").sum(0))
        return found

    def _read(self, partition: str) -> np.ndarray:
        """bool [photos, labels]: which photo has which label."""
        table = read_photo_table(self._records, partition)
        found = np.zeros((len(table.labels), len(self._records.labels)), bool)
        for photo, columns in enumerate(table.labels):
            found[photo, list(columns)] = True
        return found


def _scored(kind: str, score: ClientScore) -> tuple[Any, ...]:
    return score.client_id, kind, *score[1:]


def _cell(value: Any) -> Any:
    """A number with all digits and nothing where there is none, whatever NumPy calls it."""
    value = value.item() if isinstance(value, np.generic) else value
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _mean(values: np.ndarray) -> float:
    """The mean of those that are numbers; NaN of none."""
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if len(finite) else math.nan
