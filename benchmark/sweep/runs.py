"""Runs the training commands of a sweep, one or several at a time."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from benchmark.run.names import SUMMARY_FILE
from benchmark.sweep.grid import Run
from flair.errors import FlairError
from flair.files import atomic, json_text, regular_file
from flair.parallel.processes import die_with
from flair.parallel.stopping import Terminated

LOG_FILE, ARGUMENTS_FILE = "sweep.log", "sweep_flags.json"
_POLL_SECONDS = 0.1


class Outcome(NamedTuple):
    """How a run ended: `failure` is the last line of its log, None where it is complete."""

    run: Run
    failure: str | None
    seconds: float
    was_complete: bool


class Runner:
    """Starts the runs of a sweep.

    Args:
      folder: of the sweep; every run gets a folder below it.
      setting: `central` or `federated`.
      arguments: the flags that all runs share, flagfiles expanded.
    """

    def __init__(self, folder: Path, setting: str, arguments: Sequence[str]) -> None:
        self.folder, self._setting, self._arguments = folder, setting, list(arguments)
        self._running: dict[subprocess.Popen[bytes], tuple[Run, float]] = {}

    def run_all(self, runs: Sequence[Run], jobs: int, on_end: Callable[[Outcome], None]) -> list[Outcome]:
        """Runs all, at most `jobs` at once, in order; a run that is complete with the same flags is not started.

        Ctrl-C and SIGTERM are passed on once, and the runs save before they end; a second one stops them at once.
        When this process is killed outright, its runs are killed too, and go on from their checkpoints next time.
        """
        waiting, outcomes = list(runs), {}

        def end(outcome: Outcome) -> None:
            outcomes[outcome.run] = outcome
            on_end(outcome)

        try:
            while waiting or self._running:
                while waiting and len(self._running) < jobs:
                    run = waiting.pop(0)
                    if self._is_complete(run):
                        end(Outcome(run, None, 0.0, True))
                    else:
                        self._start(run)
                for outcome in self._ended():
                    end(outcome)
                if self._running:
                    time.sleep(_POLL_SECONDS)
        except BaseException as error:
            self._stop(signal.SIGINT if isinstance(error, KeyboardInterrupt) else signal.SIGTERM)
            raise
        return [outcomes[run] for run in runs]

    def run_folder(self, run: Run) -> Path:
        """The folder of one run."""
        return self.folder / run.folder

    def _command(self, run: Run) -> list[str]:
        folder = self.run_folder(run)
        places = [f"--save_model_dir={folder}", f"--run_dir={folder}"]
        return [sys.executable, "-m", f"benchmark.{self._setting}_main", *self._arguments, *run.flags, *places]

    def _is_complete(self, run: Run) -> bool:
        folder = self.run_folder(run)
        try:
            recorded = json_text.parse(regular_file.read_bytes(folder / ARGUMENTS_FILE))
        except (FileNotFoundError, FlairError, json_text.BadJson):
            return False
        # With other arguments the command itself compares the flags, and says what differs.
        return (folder / SUMMARY_FILE).is_file() and recorded == self._recorded(run)

    def _recorded(self, run: Run) -> dict[str, object]:
        return {"setting": self._setting, "flags": [*self._arguments, *run.flags]}

    def _start(self, run: Run) -> None:
        folder = self.run_folder(run)
        folder.mkdir(parents=True, exist_ok=True)
        parent = os.getpid()
        with open(folder / LOG_FILE, "ab") as log:
            process = subprocess.Popen(
                self._command(run),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                # Ctrl-C reaches a run through us, once: its second one would stop it without saving.
                start_new_session=True,
                preexec_fn=lambda: die_with(parent),
            )
        self._running[process] = (run, time.monotonic())

    def _ended(self) -> list[Outcome]:
        outcomes = []
        for process in [process for process in self._running if process.poll() is not None]:
            run, started = self._running.pop(process)
            failure = None if process.returncode == 0 else self._failure(run, process.returncode)
            if failure is None:
                atomic.write_json(self.run_folder(run) / ARGUMENTS_FILE, self._recorded(run))
            outcomes.append(Outcome(run, failure, time.monotonic() - started, False))
        return outcomes

    def _failure(self, run: Run, code: int) -> str:
        if code < 0:
            return f"ended by {signal.Signals(-code).name}"
        lines = (self.run_folder(run) / LOG_FILE).read_text(encoding="utf-8", errors="replace").split("\n")
        return next((line.strip() for line in reversed(lines) if line.strip()), f"exit code {code}")

    def _stop(self, number: signal.Signals) -> None:
        while self._running:
            for process in self._running:
                process.send_signal(number)  # does nothing where the process has ended
            try:
                for process in self._running:
                    process.wait()
                self._running.clear()
            except (KeyboardInterrupt, Terminated):
                continue
