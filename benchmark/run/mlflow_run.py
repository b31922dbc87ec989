"""The rows of a run as a run of MLflow (https://mlflow.org/docs/latest/tracking.html)."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmark.run import names
from flair.errors import FlairError
from flair.files import atomic, regular_file

_PARAMS_AT_ONCE = 100  # MLflow takes no more


class MlflowLogger:
    """In files of the run folder, unless MLFLOW_TRACKING_URI says otherwise; flags are parameters.

    MLFLOW_EXPERIMENT_NAME holds.
    """

    package: str | None = "mlflow"
    leaves = (names.MLFLOW_DIR, names.MLFLOW_ID_FILE)

    def __init__(self, folder: Path, step_name: str, flags: Mapping[str, str]) -> None:
        self._folder, self._flags = folder, dict(flags)
        self._client: Any = None
        self._run_id = ""
        self._known: dict[str, set[int]] = {}  # steps that the store has of each metric

    def start(self, rows: Mapping[int, Mapping[str, float]]) -> None:
        """Continues the run of the id that the folder keeps; a FlairError where the store does not have it."""
        from mlflow import MlflowClient
        from mlflow.entities import Param

        uri = os.environ.get("MLFLOW_TRACKING_URI") or str((self._folder / names.MLFLOW_DIR).absolute())
        path = self._folder / names.MLFLOW_ID_FILE
        with _refusals(f"with the store {uri} and the run of {path}; put the store back, or remove that file"):
            client = MlflowClient(uri)
            if path.exists():
                self._run_id = regular_file.read_bytes(path).decode().strip()
                client.update_run(self._run_id, status="RUNNING")
            else:
                name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "Default")
                experiment = client.get_experiment_by_name(name)
                place = client.create_experiment(name) if experiment is None else experiment.experiment_id
                self._run_id = client.create_run(place, run_name=self._folder.name).info.run_id
                atomic.write_text(path, f"{self._run_id}\n")
            self._client, data = client, client.get_run(self._run_id).data
            params = [Param(name, value) for name, value in self._flags.items() if name not in data.params]
            for first in range(0, len(params), _PARAMS_AT_ONCE):
                client.log_batch(self._run_id, params=params[first : first + _PARAMS_AT_ONCE])
            histories = ((name, client.get_metric_history(self._run_id, name)) for name in data.metrics)
            self._known = {name: {point.step for point in history} for name, history in histories}
        for step, values in rows.items():
            self.add(step, values)

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Adds what the store does not have of a row."""
        from mlflow.entities import Metric

        now = int(1000 * time.time())
        new = [Metric(n, float(v), now, step) for n, v in values.items() if step not in self._known.get(n, ())]
        with _refusals("the same command continues"):
            self._client.log_batch(self._run_id, metrics=new)

    def close(self, is_complete: bool) -> None:
        """Marks the run as complete, or as stopped."""
        if self._client is not None:
            with _refusals("at the end of the run"):
                self._client.set_terminated(self._run_id, "FINISHED" if is_complete else "KILLED")


@contextmanager
def _refusals(where: str) -> Iterator[None]:
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        raise FlairError(f"--loggers=mlflow: {' '.join(str(error).split())} ({where})") from None
