"""Trains every combination of some flags' values with several seeds, and prints one table: mean ± sd over the seeds.

All flags of the training command may follow. Each run has a folder of its own, named by its settings. The same command
continues a sweep: complete runs are skipped, interrupted ones go on from their checkpoints.
"""

from __future__ import annotations

import argparse
import re
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from benchmark.central import flags as central_flags
from benchmark.federated import flags as federated_flags
from benchmark.run import flag_file
from benchmark.run.flags import Role, names_of
from benchmark.sweep import table
from benchmark.sweep.grid import Run, make_runs, parse_grid
from benchmark.sweep.runs import LOG_FILE, Outcome, Runner
from flair.errors import FlairError
from flair.files import lock
from flair.terminal.counted import counted
from flair.terminal.flags import Parser, positive_int
from flair.terminal.paths import path_flag, word
from flair.terminal.progress import Progress, duration

LOCK_FILE = "sweep.lock"
TABLES = {"central": central_flags.FLAGS, "federated": federated_flags.FLAGS}
_NOT_TAKEN = {
    Role.PLACE: "the sweep gives every run a folder of its own below --output_dir",
    Role.CALL: "plan one run with the training command itself",
}
_OVERWRITE = "delete the folder of a run to start it over"


def main(argv: Sequence[str]) -> int:
    """Parses the flags, runs what is not done, prints the table; 1 if a run failed."""
    started = time.monotonic()
    flags, training_flags = _parse(argv)
    arguments = flag_file.expand([*(f"--flagfile={path}" for path in flags.flagfile), *training_flags])
    grid = parse_grid([text for texts in flags.grid for text in texts], names_of(TABLES.values(), Role))
    given = _names_in(arguments)
    _check(given, _names_in(training_flags), grid)
    setting = _choose_setting(flags.setting, [*given, *grid])
    runs = make_runs(grid, _first_seed(arguments), flags.seeds)
    folder = Path(flags.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    with lock.exclusive(folder / LOCK_FILE, f"{folder}: another sweep is running here; choose another --output_dir"):
        print(
            f"{counted(len(runs), 'run')} of benchmark.{setting}_main in {folder}, {flags.jobs} at a time", flush=True
        )
        outcomes = _run(Runner(folder, setting, arguments), runs, flags.jobs)
        rows = table.rows_of(folder, runs, {one.run for one in outcomes if one.failure is None})
        table.write(folder, rows)
    return _report(folder, rows, outcomes, time.monotonic() - started)


def _check(given: Sequence[str], typed: Sequence[str], grid: dict[str, list[str]]) -> None:
    for name, role in names_of(TABLES.values(), _NOT_TAKEN).items():
        if name in given:
            reason = _OVERWRITE if name == "overwrite" else _NOT_TAKEN[role]
            raise FlairError(f"--{name} is no flag of a sweep: {reason}")
    if not {"tfrecords_dir", "tfds_data_dir"} & {*given, *grid}:
        raise FlairError("--tfrecords_dir: is missing; give the folder that prepare_tfrecords.py wrote")
    for name in grid:
        if name in typed:
            raise FlairError(f"--{name}: is in the grid and a flag of its own; leave one out")


def _names_in(arguments: Iterable[str]) -> list[str]:
    """Names of the flags in expanded arguments.

    >>> _names_in(["--seed=3", "--iid", "--epsilon", "2"])
    ['seed', 'iid', 'epsilon']
    """
    return [argument.lstrip("-").partition("=")[0] for argument in arguments if argument.startswith("-")]


def _value_of(name: str, arguments: Sequence[str]) -> str | None:
    """The last value of a flag in expanded arguments, None where it is not among them.

    >>> _value_of("seed", ["--seed=3", "--iid", "--seed", "4"])
    '4'
    """
    found = None
    for position, argument in enumerate(arguments):
        given, equals, value = argument.partition("=")
        if argument.startswith("-") and given.lstrip("-") == name:
            found = value if equals else next(iter(arguments[position + 1 : position + 2]), "")
    return found


def _choose_setting(given: str | None, names: Sequence[str]) -> str:
    """The training whose command knows all flags: `central` or `federated`; `given` is --setting."""
    unknown = {}
    for setting in [given] if given else TABLES:
        known = {flag.name for flag in TABLES[setting]}
        unknown[setting] = [name for name in names if not {name, name.removeprefix("no")} & known]
    fitting = [setting for setting, missing in unknown.items() if not missing]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        raise FlairError("the flags are those of both trainings: give --setting=central or --setting=federated")
    setting, missing = min(unknown.items(), key=lambda pair: len(pair[1]))
    raise FlairError(f"--{missing[0]}: no such flag of benchmark.{setting}_main; its --help lists them")


def _first_seed(arguments: Sequence[str]) -> int:
    text = _value_of("seed", arguments)
    if text is not None and not re.fullmatch(r"-?[0-9]{1,18}", text):
        raise FlairError(f"--seed={text}: expected a whole number")
    return 0 if text is None else int(text)


def _run(runner: Runner, runs: Sequence[Run], jobs: int) -> list[Outcome]:
    with Progress(len(runs), "sweep", "run") as progress:

        def note(outcome: Outcome) -> None:
            how = "complete already" if outcome.was_complete else f"done in {duration(outcome.seconds)}"
            if outcome.failure is not None:
                how = f"FAILED: {outcome.failure} (log: {runner.run_folder(outcome.run) / LOG_FILE})"
            print(f"{outcome.run.folder}: {how}", flush=True)
            progress.add(1)

        return runner.run_all(runs, jobs, note)


def _report(folder: Path, rows: Sequence[table.Row], outcomes: Sequence[Outcome], seconds: float) -> int:
    failed = [outcome for outcome in outcomes if outcome.failure is not None]
    print(f"\n{table.table(rows)}")
    print("mean ± standard deviation over seeds; the test numbers choose nothing: pick a setting by val")
    if any("epsilon" in row.numbers for row in rows):
        print("every run of a private sweep costs epsilon of its own: see [tuning] in each privacy.txt")
    print(f"results: {folder / table.CSV_FILE}, {folder / table.JSON_FILE}")
    print(f"{len(outcomes) - len(failed)} of {counted(len(outcomes), 'run')} complete, in {duration(seconds)}")
    for outcome in failed:
        log = folder / outcome.run.folder / LOG_FILE
        print(f"{outcome.run.folder} failed: {outcome.failure} (log: {log})", file=sys.stderr)
    done = next((outcome.run.folder for outcome in outcomes if outcome.failure is None), None)
    if failed:
        print("next: mend what failed, then the same command")
    elif done is not None:
        print(f"next: python -m benchmark.report_main {word(folder)}/*/")
    return 1 if failed else 0


def _parse(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    parser = Parser(
        "python -m benchmark.sweep_main",
        __doc__,
        usage="%(prog)s --flagfile=FILE --grid FLAG=VALUE,VALUE ... --seeds=N [--training_flag=value ...]",
        allow_abbrev=False,
    )
    parser.add_argument("--flagfile", action="append", default=[], help="flags that all runs share, one a line")
    parser.add_argument(
        "--grid", action="append", nargs="+", default=[], metavar="FLAG=VALUE,VALUE", help="flags to vary"
    )
    parser.add_argument(
        "--seeds", type=positive_int, default=1, help="seeds of each setting, from --seed on (default: 1)"
    )
    parser.add_argument("--jobs", type=positive_int, default=1, help="runs at once (default: 1)")
    parser.add_argument(
        "--output_dir",
        was="sweep_dir",
        type=path_flag,
        default="sweep",
        help="folder of the sweep (default: sweep)",
    )
    parser.add_argument("--setting", choices=TABLES, help="training command; found from the flags where not given")
    flags, rest = parser.parse_known_args(argv)
    stray = next((argument for argument in rest if not argument.startswith("-")), None)
    if stray is not None:
        parser.error(f"{stray!r}: write the flags of the training as --flag=value")
    return flags, rest


if __name__ == "__main__":
    from flair.terminal.command import CONTINUES, run

    run(main, stopped=CONTINUES)
