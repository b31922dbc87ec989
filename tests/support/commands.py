"""Runs the toolkit's commands: in this process, or in one of their own where that is what a test is about."""

from __future__ import annotations

import atexit
import contextlib
import csv
import functools
import importlib
import json
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import traceback
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

import h5py
import numpy as np

from flair.parallel import stopping

ROOT = Path(__file__).resolve().parents[2]
_HANDLED = (signal.SIGINT, signal.SIGTERM)


class Result(NamedTuple):
    """How a command ended, and what it printed."""

    returncode: int
    stdout: str
    stderr: str


def command(door: str, *flags: object) -> list[str]:
    """What a shell would start: `door` is a module such as `flair.stats`, or a script such as `prepare_dataset.py`."""
    where = [str(ROOT / door)] if door.endswith(".py") else ["-m", door]
    return [sys.executable, *where, *map(str, flags)]


def run(
    door: str, *flags: object, code: int | None = 0, cwd: Path = ROOT, env: Mapping[str, str] | None = None
) -> Result:
    """Runs a command as `python -m door` would, in this process; it must end with `code`, where that is not None.

    What it leaves in the process is put back: signal handlers, environment, folder, arguments, standard streams.
    """
    path = str(ROOT / (door if door.endswith(".py") else f"{door.replace('.', '/')}.py"))
    if "keras" in sys.modules:
        sys.modules["keras"].backend.clear_session()  # layers are numbered anew, as in a new process
    with _streams() as read, _as_before(), _modules_of(Path(cwd)):
        os.chdir(cwd)
        os.environ.update(env or {})
        sys.argv = [path, *map(str, flags)]
        returncode = _exit_code(door, path)
        sys.stdout.flush()
        sys.stderr.flush()
        result = Result(returncode, *read())
    _check(result, code)
    return result


def run_process(
    door: str, *flags: object, code: int | None = 0, env: Mapping[str, str] | None = None, **options: Any
) -> Result:
    """Runs a command in a process of its own, with the variables `env` beside those of this process."""
    return _ended(command(door, *flags), code, env, options)


def run_program(
    program: str, *arguments: object, code: int | None = 0, env: Mapping[str, str] | None = None, **options: Any
) -> Result:
    """Runs the source text of a program, as `python -c` does."""
    return _ended([sys.executable, "-c", program, *map(str, arguments)], code, env, options)


def run_interrupted(
    signal_name: str, stop_at: int, script: str, *flags: object, env: Mapping[str, str] | None = None
) -> Result:
    """Runs a script that sends itself a signal at an operation on files, or with 0 counts these: see interrupted.py."""
    interrupted = _interrupted()
    assert interrupted.stdin is not None and interrupted.stdout is not None
    with tempfile.TemporaryDirectory() as folder:
        words = list(map(str, (ROOT / script, *flags)))
        print(json.dumps([signal_name, stop_at, words, _environment(env), folder]), file=interrupted.stdin, flush=True)
        returncode = int(interrupted.stdout.readline())
        result = Result(returncode, *((Path(folder) / name).read_text() for name in ("stdout", "stderr")))
    assert "Traceback" not in result.stderr
    return result


def start(door: str, *flags: object, env: Mapping[str, str] | None = None, **options: Any) -> subprocess.Popen[str]:
    """Starts a command in a process of its own and leaves it at work; its output comes through pipes."""
    options = {"cwd": ROOT, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
    return subprocess.Popen(command(door, *flags), text=True, env=_environment(env), **options)


def refused(door: str, *flags: object, code: int = 1) -> str:
    """The one line on standard error with which a command refuses."""
    return only_line(run(door, *flags, code=code))


def only_line(result: Result) -> str:
    """The line that is all that a command printed."""
    assert result.stderr.count("\n") == 1 and result.stderr.endswith("\n"), result.stderr
    assert "Traceback" not in result.stderr
    return result.stderr.rstrip("\n")


def newest_checkpoint(run_dir: Path) -> int:
    """The step of the newest checkpoint in a run's folder; 0 without any."""
    names = (path.stem for path in (run_dir / "checkpoints").glob("checkpoint-*.npz"))
    return max((int(name.removeprefix("checkpoint-")) for name in names), default=0)


def wait_for_checkpoint(process: subprocess.Popen[str], run_dir: Path, step: int) -> None:
    """Waits until a run has a checkpoint of that step or of a later one, or has ended."""
    while newest_checkpoint(run_dir) < step:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.01)
            return


def read_csv(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file with a header."""
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def read_weights(path: Path) -> dict[str, Any]:
    """Name -> array of everything in a saved model."""
    found: dict[str, Any] = {}
    with h5py.File(path) as file:
        file.visititems(lambda name, item: found.update({name: item[()]}) if isinstance(item, h5py.Dataset) else None)
    return found


def assert_equal_weights(one: Path, other: Path) -> None:
    """Two saved models are the same, bit for bit."""
    first, second = read_weights(one), read_weights(other)
    assert first.keys() == second.keys()
    for name in first:
        np.testing.assert_array_equal(first[name], second[name])


@functools.cache
def _interrupted() -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, ROOT / "tests" / "support" / "interrupted.py"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=_environment({"PYTHONPATH": str(ROOT)}),
    )
    atexit.register(process.communicate)  # it ends when nothing more can be asked of it
    return process


def _ended(words: Sequence[str], code: int | None, env: Mapping[str, str] | None, options: dict[str, Any]) -> Result:
    options = {"cwd": ROOT, "timeout": 300, **options}
    done = subprocess.run(words, capture_output=True, text=True, check=False, env=_environment(env), **options)
    result = Result(done.returncode, done.stdout, done.stderr)
    _check(result, code)
    return result


def _environment(more: Mapping[str, str] | None) -> dict[str, str]:
    """That of a user: conftest.py has told the TensorFlow of this process to be quiet, a command does so itself."""
    environment = {name: value for name, value in os.environ.items() if name != "TF_CPP_MIN_LOG_LEVEL"}
    return {**environment, **(more or {})}


def _check(result: Result, code: int | None) -> None:
    assert code is None or result.returncode == code, f"ended with {result.returncode}: {result.stderr}"


def _exit_code(door: str, path: str) -> int:
    try:
        with warnings.catch_warnings():
            # Some doors are libraries as well, for example `flair.verify.run_checks`.
            warnings.filterwarnings("ignore", ".* found in sys.modules", RuntimeWarning)
            if door.endswith(".py"):
                runpy.run_path(path, run_name="__main__")
            else:
                runpy.run_module(door, run_name="__main__", alter_sys=True)
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 0 if stop.code is None else 1
    except Exception:  # noqa: BLE001 - a process would end with it
        traceback.print_exc()
        return 1
    return 0


@contextlib.contextmanager
def _as_before() -> Iterator[None]:
    handlers = {number: signal.getsignal(number) for number in _HANDLED}
    environment, folder, arguments, hook = dict(os.environ), os.getcwd(), sys.argv, sys.unraisablehook
    try:
        yield
    finally:
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(environment)
        sys.argv, sys.unraisablehook = arguments, hook
        for number, handler in handlers.items():
            signal.signal(number, handler)
        atexit.unregister(stopping._end)


@contextlib.contextmanager
def _modules_of(folder: Path) -> Iterator[None]:
    """`python -m` finds what lies in the folder it is started in; another command finds its own there."""
    if folder == ROOT:
        yield
        return
    before, known = list(sys.path), set(sys.modules)
    sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path[:] = before
        # Whatever was known lies elsewhere; to look at thousands of modules takes longer than most commands do.
        for name in sys.modules.keys() - known:
            if str(getattr(sys.modules[name], "__file__", None)).startswith(f"{folder}{os.sep}"):
                del sys.modules[name]


@contextlib.contextmanager
def _streams() -> Iterator[Any]:
    """Everything printed in this process and its children goes to two files; gives a function that reads them."""
    before, descriptors = (sys.stdout, sys.stderr), (os.dup(1), os.dup(2))
    for stream in before:
        stream.flush()
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        files: tuple[IO[bytes], ...] = (out, err)

        def read() -> list[str]:
            return [os.pread(file.fileno(), os.fstat(file.fileno()).st_size, 0).decode() for file in files]

        for number, file in enumerate(files, start=1):
            os.dup2(file.fileno(), number)
        sys.stdout = open(1, "w", encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115
        sys.stderr = open(  # noqa: SIM115
            2, "w", encoding="utf-8", errors="backslashreplace", closefd=False, buffering=1
        )
        try:
            yield read
        finally:
            for stream in (sys.stdout, sys.stderr):
                stream.flush()
            sys.stdout, sys.stderr = before
            for number, descriptor in enumerate(descriptors, start=1):
                os.dup2(descriptor, number)
                os.close(descriptor)
