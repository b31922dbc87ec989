"""Closed, full and narrow standard streams: the work is done, the exit code is right, no traceback."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.commands import ROOT

BODY = """\
import os, sys
from flair.files import atomic
from flair.terminal import command
from flair.errors import FlairError
from flair.terminal.progress import Progress
def main(argv):
    print("é ± ", "\\udcff", flush=True)
    print("told", file=sys.stderr)
    with open("opened", "w") as file:  # has no number of a stream, which libraries print to
        assert file.fileno() > 2, file.fileno()
        os.write(1, b"of a library")
    atomic.write_text("result", "all of it")
    if argv:
        raise FlairError(f"cannot {argv[0]}")
command.run(main)
"""


def shell(tmp_path: Path, redirections: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    (tmp_path / "prog.py").write_text(BODY)
    return subprocess.run(
        ["sh", "-c", f'"$0" prog.py "$@" {redirections}', sys.executable, *arguments],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize(
    "redirections", [">&-", "2>&-", ">&- 2>&-", "<&-", "<&- >&- 2>&-", "2>/dev/full", "2</dev/null"]
)
def test_missing_and_full_streams_stop_nothing(tmp_path: Path, redirections: str, unbuffered: str) -> None:
    ended = shell(tmp_path, redirections, PYTHONUNBUFFERED=unbuffered)
    assert ended.returncode == 0, ended
    assert "Traceback" not in ended.stderr
    assert (tmp_path / "result").read_text() == "all of it" and (tmp_path / "opened").read_text() == ""
    failed = shell(tmp_path, redirections, "do this", PYTHONUNBUFFERED=unbuffered)
    assert failed.returncode == 1 and "Traceback" not in failed.stderr
    if "2>" not in redirections and "2<" not in redirections:
        assert failed.stderr == "told\nprog.py: cannot do this\n"


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize(
    ("redirection", "reason"), [(">/dev/full", "the disk is full"), ("</dev/null >&0", "Bad file descriptor")]
)
@pytest.mark.parametrize("command", ["-m flair.stats --help", "-m benchmark.privacy_main --help", "prog.py"])
def test_output_that_cannot_be_written_is_one_line(
    tmp_path: Path, command: str, redirection: str, reason: str, unbuffered: str
) -> None:
    ended = shell(tmp_path, f"; '{sys.executable}' {command} {redirection}", "x", PYTHONUNBUFFERED=unbuffered)
    (line,) = [line for line in ended.stderr.splitlines() if "standard output" in line]
    assert ended.returncode == 1 and reason in line and "Traceback" not in ended.stderr


@pytest.mark.parametrize(
    "environment",
    [{"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}, {"LC_ALL": "C"}],
)
def test_text_that_a_terminal_lacks_is_escaped(tmp_path: Path, environment: dict[str, str]) -> None:
    ended = shell(tmp_path, "", "né", **{"PYTHONIOENCODING": "", "LC_ALL": "", **environment})
    assert ended.returncode == 1 and "Traceback" not in ended.stderr
    assert "\\udcff" in ended.stdout
    assert (tmp_path / "result").read_text() == "all of it"
    if "PYTHONIOENCODING" in environment:
        assert ended.stdout.startswith("\\xe9 \\xb1  \\udcff\n")
        assert ended.stderr.splitlines()[-1] == "prog.py: cannot n\\xe9"
