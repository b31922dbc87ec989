"""Readers of the files of a run folder, for continued runs, reports and sweeps.

A reader refuses with a FlairError what a training cannot have written, and returns nothing where there is no file.
run.json, summary.json and evaluation.json carry a checksum that notices any changed byte (`flair.files.checked_json`).
flags.txt, metrics.csv and times.csv are plain text, which a person may edit: a value there has to have the form of one,
and to fit those around it.
"""

from __future__ import annotations

import csv
import math
import re
from pathlib import Path
from typing import Any, NoReturn

from benchmark.run.shapes import misfit
from flair.errors import FlairError
from flair.files import checked_json, regular_file
from flair.files.json_text import BadJson, shown

_FLAG = re.compile(r"--(\w+)(?:=(.*))?", re.ASCII)
# As Python writes floats; float() itself also reads 1_0, digits of other scripts, and 1e999 as infinity.
_NUMBER = re.compile(r"-?[0-9]+(\.[0-9]+)?(e[+-]?[0-9]+)?|-?inf|nan")
_STEP = re.compile(r"[1-9][0-9]{0,17}")


def read_json(path: Path, shape: Any) -> dict[str, Any] | None:
    """The object in a JSON file of ours; one without a checksum has to have `shape` at least (`shapes.misfit`)."""
    try:
        data = regular_file.read_bytes(path)
        content = checked_json.parse(data)
    except FileNotFoundError:
        return None
    except BadJson as error:
        raise FlairError(f"{path}: is not JSON as a command of ours wrote it ({error}); restore or delete it") from None
    reason = misfit(content, {} if checked_json.is_checked(data) else shape)
    if reason is not None:
        raise FlairError(f"{path}: is not what a command of ours wrote ({reason}); restore or delete it")
    return dict(content)


def read_flags(path: Path) -> dict[str, str] | None:
    """Flag -> value of a flags.txt, the last one where a flag is there twice."""
    try:
        text = _read_text(path)
    except FileNotFoundError:
        return None
    flags = {}
    for number, line in enumerate(text.split("\n"), 1):
        match = _FLAG.fullmatch(line.strip())
        if match is not None:
            flags[match[1]] = match[2] or ""
        elif line.strip() and not line.lstrip().startswith("#"):
            _refuse(path, f"line {number}, {shown(line)}, is not --flag=value")
    return flags


def read_table(path: Path, step_name: str | None = None) -> tuple[str, dict[int, dict[str, float]]]:
    """A metrics.csv or times.csv: the name of its first column, and step -> column -> value, without empty cells.

    `step_name` is what the first column has to be called. Where there is no file, this returns ("", {}).
    """
    # What follows the last line break is a line that a killed process left half written.
    try:
        lines = _read_text(path).split("\n")[:-1]
    except FileNotFoundError:
        return "", {}
    if not lines:
        return "", {}
    header = _cells(path, 1, lines[0])
    if len(set(header)) < len(header) or not all(header) or step_name not in (None, header[0]):
        _refuse(path, f"line 1, {shown(lines[0])}, does not name the columns of {step_name or 'a run'}")
    rows: dict[int, dict[str, float]] = {}
    last = 0
    for number, line in enumerate(lines[1:], 2):
        cells = _cells(path, number, line)
        if len(cells) != len(header) or not _STEP.fullmatch(cells[0]) or int(cells[0]) <= last:
            _refuse(path, f"line {number}, {shown(line)}, is no row after {header[0]} {last}")
        last = int(cells[0])
        rows[last] = {n: _number(path, number, c) for n, c in zip(header[1:], cells[1:], strict=True) if c}
    return header[0], rows


def read_seconds(path: Path, step_name: str | None = None) -> dict[int, float]:
    """Step -> seconds of training until its end, of a times.csv."""
    seconds: dict[int, float] = {}
    before = 0.0
    for step, row in read_table(path, step_name)[1].items():
        value = row.get("seconds", math.nan)
        if not before <= value < math.inf:
            _refuse(path, f"{value} seconds at {step} are not a time after {before}")
        seconds[step] = before = value
    return seconds


def _read_text(path: Path) -> str:
    data = regular_file.read_bytes(path)
    try:
        return data.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        _refuse(path, f"not UTF-8 text, at byte {error.start}")


def _cells(path: Path, number: int, line: str) -> list[str]:
    try:
        (cells,) = csv.reader([line], strict=True)
    except (csv.Error, ValueError) as error:
        _refuse(path, f"line {number}: {error}")
    if not cells:
        _refuse(path, f"line {number} is empty")
    return cells


def _number(path: Path, number: int, cell: str) -> float:
    value = float(cell) if len(cell) < 100 and _NUMBER.fullmatch(cell) else math.nan
    if not math.isfinite(value) and cell not in ("nan", "inf", "-inf"):
        _refuse(path, f"line {number}: {shown(cell)} is no number")
    return value


def _refuse(path: Path, reason: str) -> NoReturn:
    raise FlairError(f"{path}: is damaged ({reason}); mend it, or move it away to go on without it")
