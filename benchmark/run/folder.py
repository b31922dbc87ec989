"""The folder of one run: enough to watch it, to continue it and to repeat it.

flags.txt      every flag, reusable with --flagfile
noise.key      of a private run that is not complete: what its noise and cohorts follow from
run.json       versions, machine, git revision, data digest, seeds, when it started and continued
metrics.csv    one row per epoch or round; equal for equal flags, however often the run was interrupted
times.csv      seconds of training by the end of each row
clients.csv.gz one row per client that was looked at, a gzip member per round in which some were
tensorboard/   the same numbers as TensorBoard events; wandb/ and mlflow/ where they are logged there, too
checkpoints/   what a resumed run starts from
user_states/   in SCAFFOLD, what is kept for every user; the checkpoints name its files
summary.json   the result; its presence means that the run is complete
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmark.run import members, names, user_states
from benchmark.run.checkpoint import Checkpoints
from benchmark.run.files import read_flags, read_json, read_seconds, read_table
from benchmark.run.loggers import DEFAULT, KNOWN, CsvTable, Logger
from benchmark.run.machine import environment
from benchmark.run.shapes import NUMBER
from flair.errors import FlairError
from flair.files import atomic, checked_json, lock

# Everything a run leaves beside its folders and what loggers write. A privacy statement, above all, must not outlive
# the run it is about.
_OUTPUTS = (
    *(names.FLAGS_FILE, names.RUN_FILE, names.TIMES_FILE, names.SUMMARY_FILE),
    *("privacy.*", names.AUDIT_FILE, names.KEY_FILE, names.BEST_FILE, names.LAST_FILE, "clients*.csv"),
    *(names.BEST_EMA_FILE, names.LAST_EMA_FILE, names.CLIENTS_FILE, names.EVALUATION_FILE),
)
_DESCRIPTION = {"started": str, "continued?": [str], "data?": {"digest?": str}}
_METRICS = {"val": {"*": NUMBER}, "test": {"*": NUMBER}, "training_seconds": NUMBER}
# What the summary of a complete run has to hold, by the name of its steps.
_SUMMARIES: dict[str, Any] = {
    "epoch": {**_METRICS, "saved_model?": str, "num_epochs": int, "epochs": int, "best_epoch": int}
    | {"know_nothing": {"val": NUMBER, "test": NUMBER}},
    "round": {**_METRICS, "saved_model?": str, "rounds": int, "best_round": int, "epsilon?": NUMBER}
    | {"clients?": {"count": int, "test": {"*": {"*": NUMBER}}}},
    "episode": {"episodes": int, "kind": str, "seconds": NUMBER},
}
_DATA_FILES = ("label_index.json", "label_to_index.json", "labels_and_metadata.json")


class RunFolder:
    """A run folder, locked against a second process while entered.

    Args:
      path: made when missing.
      flag_lines: `--name=value` of every flag, as `Flags.lines` has them.
      step_name: first column of metrics.csv: `epoch`, `round` or `episode`.
      changeable: names of flags that a continued run may change.
      overwrite: forget what an earlier run left here.
      defaults: value of each flag, taken for a run of an older version that did not have the flag.
      loggers: names of `loggers.KNOWN`, where rows go.

    Attributes:
      is_written: whether this process writes files.
    """

    is_written = True

    def __init__(
        self,
        path: str | os.PathLike[str],
        flag_lines: list[str],
        step_name: str,
        changeable: Iterable[str] = (),
        overwrite: bool = False,
        defaults: Mapping[str, str] | None = None,
        loggers: Iterable[str] = DEFAULT,
    ) -> None:
        self.path = Path(path)
        self.step_name = step_name
        self.checkpoints = Checkpoints(self.path / names.CHECKPOINTS_DIR)
        self.rows: dict[int, dict[str, float]] = {}
        self._seconds: dict[int, float] = {}
        self._flag_lines, self._changeable, self._overwrite = flag_lines, frozenset(changeable), overwrite
        self._defaults = dict(defaults or {})
        self._times = CsvTable(self.path / names.TIMES_FILE, step_name, "{:.3f}".format)
        settings = self.path, step_name, _flag_values(flag_lines)
        self._loggers: list[Logger] = [KNOWN[name](*settings) for name in loggers]
        self._entered = contextlib.ExitStack()
        self._is_new = False

    def __enter__(self) -> RunFolder:
        foreign = [name for name in _DATA_FILES if (self.path / name).exists()]
        if foreign:
            raise FlairError(f"{self.path}: holds data ({foreign[0]}) and cannot be a run folder too; give a --run_dir")
        self.path.mkdir(parents=True, exist_ok=True)
        busy = f"{self.path}: another run is writing to this folder; choose another --run_dir"
        with contextlib.ExitStack() as entered:
            entered.enter_context(lock.exclusive(self.path / names.LOCK_FILE, busy))
            self._open()
            self._entered = entered.pop_all()
        return self

    def __exit__(self, _kind: object, error: object, _traceback: object) -> None:
        # A refusal before the first step leaves no flags: the same command with one of them mended is not another run.
        if isinstance(error, FlairError) and self._is_new and not self.has_begun:
            for name in (names.FLAGS_FILE, names.RUN_FILE):
                (self.path / name).unlink(missing_ok=True)
        try:
            for logger in self._loggers:
                logger.close((self.path / names.SUMMARY_FILE).is_file())
        finally:
            self._entered.close()

    @property
    def has_begun(self) -> bool:
        """Whether a step of this run has been trained."""
        return bool(self.rows) or any((self.path / names.CHECKPOINTS_DIR).glob("*"))

    @property
    def is_described(self) -> bool:
        """Whether `describe` has been called on this folder, by any process."""
        return (self.path / names.RUN_FILE).is_file()

    @property
    def summary(self) -> dict[str, Any] | None:
        """The result of a complete run, None before; a FlairError where the file is damaged."""
        return read_json(self.path / names.SUMMARY_FILE, _SUMMARIES.get(self.step_name, {}))

    @property
    def seconds(self) -> float:
        """Seconds of training by the end of the last row, over all processes of the run."""
        return max(self._seconds.values(), default=0.0)

    def describe(self, **facts: Any) -> None:
        """Writes flags.txt and run.json: versions, machine, `facts`; a continued run keeps its start, adds a time."""
        self.check_inputs(facts.get("data", {}), facts.get("restored_model"))
        known, network = self._described(), facts.get("network_sha256")
        if known.get("network_sha256", network) != network:
            raise FlairError(
                f"{self.path}: the run was begun with another network than --model builds now: its function, or what "
                "that reads, was changed; bring it back to continue, or give another --run_dir, or --overwrite"
            )
        if self.has_begun and known.get("logit_adjustment") != facts.get("logit_adjustment"):
            raise FlairError(
                f"{self.path}: the run was begun with other frequencies than the file of --logit_adjustment holds now; "
                "give the same file to continue it, another --run_dir, or --overwrite"
            )
        self._write_flags()  # of which some may have changed; not before it is known that this is the same run
        now = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        continued = [*known.get("continued", []), now] if self.has_begun else []
        begun = {"started": known.get("started", now), "continued": continued}
        checked_json.write(self.path / names.RUN_FILE, {**begun, **environment(), **facts})

    def check_inputs(self, data: Mapping[str, Any], restored_model: Mapping[str, Any] | None) -> None:
        """Raises a FlairError if the run was begun with other photos or weights than these, as run.json names them."""
        known = self._described()
        before = known.get("data", {}).get("digest")
        if before is not None and before != data.get("digest"):
            raise FlairError(
                f"{self.path}: the run was made with other data than {place_of(data)} holds now; "
                "give the same records to continue it, another --run_dir, or --overwrite"
            )
        if "restored_model" in known and _sha256(known["restored_model"]) != _sha256(restored_model):
            raise FlairError(
                f"{self.path}: the run was begun with other restored weights than --restore_model_path or "
                "--backbone_weights names now; give the same file to continue it, another --run_dir, or --overwrite"
            )

    def _described(self) -> dict[str, Any]:
        """run.json of a run that has begun."""
        return (read_json(self.path / names.RUN_FILE, _DESCRIPTION) if self.has_begun else None) or {}

    def start_at(self, step: int) -> None:
        """Forgets every row after `step`: the run goes on from there. Says which rows up to there are lost."""
        lost = [row for row in range(1, step + 1) if row not in self.rows]
        if lost:
            unit = self.step_name
            print(
                f"{self.path / names.METRICS_FILE}: has lost {len(lost):,} of the rows up to {unit} {step:,}, the "
                f"first of {unit} {lost[0]:,}; the run goes on without them",
                file=sys.stderr,
            )
        self.rows = {row: values for row, values in self.rows.items() if row <= step}
        self._seconds = {row: seconds for row, seconds in self._seconds.items() if row <= step}
        members.cut_back(self.path / names.CLIENTS_FILE, step)
        for logger in self._loggers:
            logger.start(self.rows)
        self._times.start({step: {"seconds": seconds} for step, seconds in self._seconds.items()})

    def add_row(self, step: int, values: Mapping[str, float], seconds: float) -> None:
        """Adds one row to times.csv and to what the loggers keep; `seconds` is the run's training time."""
        self.rows[step], self._seconds[step] = dict(values), seconds
        for logger in self._loggers:
            logger.add(step, self.rows[step])
        self._times.add(step, {"seconds": seconds})

    def add_clients(self, header: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Adds the clients of one step, which begins each row, to clients.csv.gz."""
        members.append(self.path / names.CLIENTS_FILE, header, rows)

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Writes summary.json, which marks the run complete."""
        checked_json.write(self.path / names.SUMMARY_FILE, summary)

    def reopen(self) -> None:
        """Takes the mark of completeness away, to train on."""
        (self.path / names.SUMMARY_FILE).unlink(missing_ok=True)

    def _open(self) -> None:
        if self._overwrite:
            self._check_command()
            self._forget_user_states()
            of_loggers = [name for logger in KNOWN.values() for name in logger.leaves]
            for path in [found for pattern in (*_OUTPUTS, *of_loggers) for found in self.path.glob(pattern)]:
                atomic.remove(path)
            shutil.rmtree(self.path / names.CHECKPOINTS_DIR, ignore_errors=True)
        atomic.remove_leftovers(self.path)
        self._check_flags()
        self.rows = read_table(self.path / names.METRICS_FILE, self.step_name)[1]
        self._seconds = read_seconds(self.path / names.TIMES_FILE, self.step_name)

    def _forget_user_states(self) -> None:
        """Of the run that was here, wherever it kept them."""
        shutil.rmtree(self.path / names.USER_STATES_DIR, ignore_errors=True)
        try:
            outside = (read_flags(self.path / names.FLAGS_FILE) or {}).get("user_state_dir")
        except FlairError:
            return  # A damaged run: nobody knows where.
        if outside:
            user_states.remove(Path(outside), self.path)

    def _check_command(self) -> None:
        """Refuses to start over in the folder of another command, whose run nobody meant to lose."""
        try:
            described = read_json(self.path / names.RUN_FILE, {"command": [str]})
        except FlairError:
            return  # A damaged run: to start over is the way out.
        before = next(iter(described["command"]), "") if described else ""
        began, now = (Path(command).stem for command in (before, sys.argv[0]))
        if began != now and began.endswith("_main") and now.endswith("_main"):
            raise FlairError(f"{self.path}: holds a run of benchmark.{began}; choose another --run_dir")

    def _check_flags(self) -> None:
        path = self.path / names.FLAGS_FILE
        before = read_flags(path)
        if before is None and any(self.checkpoints.folder.glob("*")):
            raise FlairError(f"{path}: is missing, beside checkpoints of a run; restore it, or add --overwrite")
        if before is None:
            self._is_new = True
            self._write_flags()
            return
        now = _flag_values(self._flag_lines)
        before = {name: value for name, value in self._defaults.items() if name in now} | before
        different = [n for n in sorted({*before, *now} - self._changeable) if before.get(n) != now.get(n)]
        if different:
            changes = ", ".join(f"--{n} was {_printable(before.get(n))} and is {now.get(n)}" for n in different)
            raise FlairError(
                f"{self.path}: holds a run with other flags ({changes}); "
                "give the same flags to continue it, another --run_dir, or --overwrite"
            )

    def _write_flags(self) -> None:
        atomic.write_text(self.path / names.FLAGS_FILE, "".join(f"{line}\n" for line in self._flag_lines))


class WatchedRunFolder(RunFolder):
    """The run folder as the other processes of a job see it: on a shared file system, and never written."""

    is_written = False

    def __init__(self, path: str | os.PathLike[str]) -> None:
        super().__init__(path, [], "")

    def __enter__(self) -> WatchedRunFolder:
        return self

    def describe(self, **facts: Any) -> None:
        """Writes nothing, and neither do the methods below."""

    def start_at(self, step: int) -> None: ...

    def add_row(self, step: int, values: Mapping[str, float], seconds: float) -> None: ...

    def finish(self, summary: Mapping[str, Any]) -> None: ...

    def reopen(self) -> None: ...


def _sha256(restored: Any) -> str | None:
    return restored.get("sha256") if isinstance(restored, dict) else None


def place_of(data: Mapping[str, Any]) -> str | None:
    """Where the records of a run lay, as its run.json has it under `data`."""
    return data.get("tfrecords_dir") or data.get("tfds_data_dir")


def _flag_values(lines: Iterable[str]) -> dict[str, str]:
    return {name: value for name, _, value in (line.strip().removeprefix("--").partition("=") for line in lines)}


def _printable(value: str | None) -> str | None:
    return value if value is None or value.isprintable() else repr(value)
