"""Writes a report of training runs: one HTML page that needs no network, and its figures as PNG.

Takes run folders, or folders that hold some. Learning curves over steps and over time, the metric against epsilon,
clip and update norms, the table of results, the settings that differ, the privacy statements; with intervals, labels
and users where benchmark.evaluate_main has evaluated a run. Figures that a run has in figures/ are shown as well.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from benchmark.central import flags as central_flags
from benchmark.federated import flags as federated_flags
from benchmark.personalization import flags as personalization_flags
from benchmark.run import command, files
from benchmark.run.flags import SETTINGS, Flags, Role, Table, names_of, path, text
from benchmark.run.names import EVALUATION_FILE
from benchmark.run.shapes import ESTIMATE
from flair.errors import FlairError
from flair.files import atomic
from flair.terminal.counted import counted
from flair.terminal.progress import Progress, duration

FLAGS: Table = (
    path("output_dir", "report", "Folder for index.html and figures/.", Role.PLACE),
    text("title", "FLAIR runs", "Title of the page.", Role.RESULT),
    path(
        "evaluation",
        None,
        "Folder of an evaluation of several models, whose paired differences are shown as well.",
        Role.RESULT,
    ),
)

PAGE_FILE, FIGURES_DIR = "index.html", "figures"
_EVALUATION = {"comparisons": [{"a": str, "b": str, "partition": str, "metrics": {"*": ESTIMATE}}]}


def main(flags: Flags, folders: list[str]) -> None:
    """Reads the runs, draws the figures, writes the page."""
    started = time.monotonic()
    output = Path(flags.output_dir)
    if output.exists() and not output.is_dir():
        raise FlairError(f"--output_dir={output}: is a file; expected a folder")
    from benchmark.report import drawing
    from benchmark.report import figures as report_figures
    from benchmark.report import page as report_page
    from benchmark.report import runs as report_runs

    runs = report_runs.open_runs(folders)
    comparisons = [] if flags.evaluation is None else _comparisons(Path(flags.evaluation))
    outcomes = []
    with Progress(None, "drawing", "figure") as progress:
        for outcome in report_figures.draw_all(runs):
            outcomes.append(outcome)
            progress.add()
    drawn = [one for one in outcomes if isinstance(one, drawing.Drawn)]
    made = time.strftime("%Y-%m-%d %H:%M")
    tables = (central_flags.FLAGS, federated_flags.FLAGS, personalization_flags.FLAGS)
    # Where a run is and how it is continued is not a setting of it.
    hidden = names_of(tables, set(Role) - set(SETTINGS))
    page = report_page.render(runs, outcomes, flags.title, made, comparisons, hidden)
    figures = output / FIGURES_DIR
    figures.mkdir(parents=True, exist_ok=True)
    for one in drawn:
        atomic.write_bytes(figures / f"{_file_name(one.name)}.png", one.png)
    atomic.write_text(output / PAGE_FILE, page)
    for outcome in outcomes:
        if isinstance(outcome, drawing.Left):
            print(outcome.reason)
    for run in runs:
        for note in run.notes:
            print(f"{run.path}: {note}")
    count = len(drawn) + sum(len(run.figures) for run in runs)
    print(f"{counted(len(runs), 'run')}, {counted(count, 'figure')}, {duration(time.monotonic() - started)}")
    print(f"figures: {figures}")
    print(f"report: {output / PAGE_FILE}")
    print(f"next: open {(output / PAGE_FILE).resolve().as_uri()} in a browser")


def _comparisons(folder: Path) -> list[dict[str, Any]]:
    path = folder if folder.is_file() else folder / EVALUATION_FILE
    found = files.read_json(path, _EVALUATION)
    if found is None:
        raise FlairError(f"--evaluation={folder}: has no evaluation.json; make it with benchmark.evaluate_main")
    return list(found["comparisons"])


def _file_name(name: str) -> str:
    return "".join(character if character.isalnum() or character in "-_." else "_" for character in name)


if __name__ == "__main__":
    command.run(main, FLAGS, takes="RUN_DIR")
