"""Where the rows of a run go: one interface, and a class for each place.

Who adds a place writes a class with the methods of `Logger` and the attributes of `KNOWN`'s classes, and a line there.
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from benchmark.run import names
from benchmark.run.mlflow_run import MlflowLogger
from benchmark.run.wandb_run import WandbLogger
from flair.errors import FlairError
from flair.files import atomic
from flair.records.tfrecord import frames
from flair.terminal.paths import command_line

if TYPE_CHECKING:
    from tensorboard.compat.proto.event_pb2 import Event

DEFAULT = ("csv", "tensorboard")


class Logger(Protocol):
    """Keeps what metrics.csv has, step by step; made by the run's folder, the name of its steps and its flags."""

    def start(self, rows: Mapping[int, Mapping[str, float]]) -> None:
        """Begins, or goes on after `rows`, which are all that the run has: none of them may be there twice."""
        ...

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Adds a row. After a run was stopped, rows may come again that are there already, with the same values."""
        ...

    def close(self, is_complete: bool) -> None:
        """Ends, with a run that is complete or one that may be continued."""
        ...


class CsvTable:
    """A CSV file of rows by step, whose columns may become more."""

    def __init__(self, path: Path, step_name: str, cell: Callable[[float], str] = repr) -> None:
        self._path, self._step_name, self._cell = path, step_name, cell
        self._rows: dict[int, Mapping[str, float]] = {}
        self._columns: list[str] = []

    def start(self, rows: Mapping[int, Mapping[str, float]]) -> None:
        """Writes the file anew."""
        self._rows = dict(rows)
        self._columns = list(dict.fromkeys(name for row in self._rows.values() for name in row))
        atomic.write_csv(self._path, [[self._step_name, *self._columns], *map(self._line, self._rows)])

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Appends a row, or writes the file anew where it has new columns."""
        self._rows[step] = values
        if values.keys() - set(self._columns):
            self.start(self._rows)
            return
        with open(self._path, "a", encoding="utf-8", newline="") as file:
            file.write(atomic.csv_text([self._line(step)]))

    def close(self, is_complete: bool) -> None:
        """Nothing is left to do."""

    def _line(self, step: int) -> list[Any]:
        row = self._rows[step]
        return [step, *(self._cell(float(row[name])) if name in row else "" for name in self._columns)]


class CsvLogger(CsvTable):
    """metrics.csv."""

    package: str | None = None
    leaves = (names.METRICS_FILE,)

    def __init__(self, folder: Path, step_name: str, flags: Mapping[str, str]) -> None:
        super().__init__(folder / names.METRICS_FILE, step_name)


class TensorBoardLogger:
    """One event file. TensorFlow's own writer only appends, so that a resumed run would show steps it repeats twice."""

    package: str | None = None
    leaves = (names.TENSORBOARD_DIR,)

    def __init__(self, folder: Path, step_name: str, flags: Mapping[str, str]) -> None:
        # TensorBoard reads the files whose names hold "tfevents".
        self._path = folder / names.TENSORBOARD_DIR / "events.out.tfevents.run"

    def start(self, rows: Mapping[int, Mapping[str, float]]) -> None:
        """Writes the event file anew."""
        from tensorboard.compat.proto.event_pb2 import Event  # protobuf would slow every --help down

        self._path.parent.mkdir(exist_ok=True)
        atomic.remove_leftovers(self._path.parent)
        events = [Event(wall_time=time.time(), file_version="brain.Event:2"), *map(_event, rows, rows.values())]
        atomic.write_bytes(self._path, b"".join(frames.frame(event.SerializeToString()) for event in events))

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Adds one step to the event file."""
        with open(self._path, "ab") as file:
            file.write(frames.frame(_event(step, values).SerializeToString()))

    def close(self, is_complete: bool) -> None:
        """Nothing is left to do."""


# The class of each. It says which package has to be installed for it, and what it leaves in the run folder.
KNOWN: dict[str, Any] = {
    "csv": CsvLogger,
    "tensorboard": TensorBoardLogger,
    "wandb": WandbLogger,
    "mlflow": MlflowLogger,
}


def chosen(text: str) -> tuple[str, ...]:
    """The names in the value of --loggers; a FlairError for one that is unknown or not installed.

    >>> chosen("tensorboard,csv")
    ('tensorboard', 'csv')
    """
    found = tuple(dict.fromkeys(text.split(",")))
    unknown = [name for name in found if name not in KNOWN]
    if unknown:
        raise FlairError(f"--loggers={text}: {unknown[0]!r} is not one of {', '.join(KNOWN)}, separated by commas")
    if "csv" not in found:
        raise FlairError(f"--loggers={text}: csv cannot be left out, a continued run reads metrics.csv; add it")
    for name in found:
        package = KNOWN[name].package
        if package is not None and not _is_installed(package):
            raise FlairError(
                f"--loggers={text}: the package {package} is not installed; add it with `make environment "
                f"EXTRAS={name}`"
            )
    return found


def command_to_watch(folder: Path) -> str:
    """What shows a run to somebody at this machine, as it can be typed in a shell."""
    if (folder / names.TENSORBOARD_DIR).is_dir():
        return command_line("tensorboard", logdir=folder)
    return command_line("python -m benchmark.report_main", folder)


def _event(step: int, values: Mapping[str, float]) -> Event:
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary

    scalars = [Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()]
    return Event(wall_time=time.time(), step=step, summary=Summary(value=scalars))


def _is_installed(package: str) -> bool:
    spec = importlib.util.find_spec(package)
    return spec is not None and spec.origin is not None  # a folder `wandb`, of runs, has no origin
