"""How commands end: exit codes, one line on stderr, clean interruption."""

from __future__ import annotations

import argparse
import errno
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pytest

from flair import review, sample_testset
from flair.reviewing.view import page_of
from flair.terminal.command import explain_os_error
from flair.terminal.flags import finite_number, positive_int
from tests.support.commands import ROOT


@pytest.fixture
def command(tmp_path: Path) -> Iterator[object]:
    """Starts a command `prog.py` whose main(argv) has the given body; stdout and stderr are pipes unless named."""
    started = []

    def start(body: str, *arguments: str, stdout: int | IO[str] = subprocess.PIPE) -> subprocess.Popen[str]:
        script = tmp_path / "prog.py"
        lines = "\n".join("    " + line for line in body.splitlines())
        script.write_text(
            "import signal, sys\nfrom flair.files import atomic\nfrom flair.terminal.command import run\n"
            f"from flair.errors import FlairError\ndef main(argv):\n{lines}\nrun(main)\n"
        )
        process = subprocess.Popen(
            [sys.executable, str(script), *arguments],
            stdout=stdout,
            stderr=subprocess.PIPE,
            text=True,
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": ""},
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()
        for stream in (process.stdout, process.stderr):
            if stream is not None:
                stream.close()


def test_none_is_success_and_a_number_is_the_exit_code(command) -> None:
    ended = command("print(argv)", "--seed=1", "b")
    assert (*ended.communicate(), ended.returncode) == ("['--seed=1', 'b']\n", "", 0)
    ended = command("return 3")
    assert (*ended.communicate(), ended.returncode) == ("", "", 3)


def test_a_mistake_of_the_user_ends_in_one_line(command) -> None:
    ended = command("print('so far')\nraise FlairError('no such label: cat; give one of: dog')")
    out, err = ended.communicate()
    assert (out, err, ended.returncode) == ("so far\n", "prog.py: no such label: cat; give one of: dog\n", 1)


def test_a_mistake_of_ours_keeps_its_traceback(command) -> None:
    ended = command("return {}['missing']")
    _, err = ended.communicate()
    assert ended.returncode == 1
    assert err.startswith("Traceback") and "KeyError: 'missing'" in err


def test_wrong_usage_exits_with_2(command) -> None:
    ended = command("import argparse\nargparse.ArgumentParser().parse_args(argv)", "--nonsense")
    _, err = ended.communicate()
    assert ended.returncode == 2
    assert "--nonsense" in err and "Traceback" not in err


def test_a_module_is_named_as_it_was_typed(tmp_path: Path) -> None:
    (tmp_path / "pack").mkdir()
    (tmp_path / "pack" / "tool.py").write_text(
        "from flair.terminal.command import run\nfrom flair.errors import FlairError\n"
        "def main(argv):\n    raise FlairError('no')\nrun(main)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    ended = subprocess.run(
        [sys.executable, "-m", "pack.tool"], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert (ended.stderr, ended.returncode) == ("pack.tool: no\n", 1)


@pytest.mark.parametrize(
    ("signal_number", "code", "word"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]
)
def test_a_signal_removes_what_is_half_written(
    command, tmp_path: Path, signal_number: int, code: int, word: str
) -> None:
    process = command(
        "with atomic.replacing('result.txt') as temporary:\n"
        "    temporary.write_text('half')\n"
        "    print('ready', flush=True)\n"
        "    signal.pause()"
    )
    assert process.stdout.readline() == "ready\n"
    assert len(list(tmp_path.glob(".result.txt.*.tmp"))) == 1
    process.send_signal(signal_number)
    _, err = process.communicate()
    assert process.returncode == code
    assert err == f"prog.py: {word}; the same command starts over\n"
    assert [path.name for path in tmp_path.iterdir()] == ["prog.py"]


@pytest.mark.parametrize("body", ["print('x' * 10)", "for _ in range(20): print('x' * 100_000)"])
def test_a_reader_that_leaves_ends_the_command_quietly(command, body: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w") as stdout:
        process = command(body, stdout=stdout)
        _, err = process.communicate()
    assert (err, process.returncode) == ("", 1)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="/dev/full is not on this machine")
def test_a_full_disk_under_stdout_is_one_line(command) -> None:
    with open("/dev/full", "w") as stdout:
        process = command("print('lost')", stdout=stdout)
        _, err = process.communicate()
    assert process.returncode == 1
    assert err == (
        "prog.py: cannot write to standard output: the disk is full; free some space and run the same command again\n"
    )


def test_a_missing_file_is_named(command) -> None:
    process = command("open('no/such.json')")
    _, err = process.communicate()
    assert process.returncode == 1
    assert err == "prog.py: cannot read or write 'no/such.json': no such file or directory; check the path\n"


@pytest.mark.parametrize(
    ("number", "advice"),
    [
        (errno.ENOSPC, "free some space"),
        (errno.EDQUOT, "free some space"),
        (errno.EACCES, "choose a place"),
        (errno.EROFS, "choose another place"),
        (errno.ENOTDIR, "check the path"),
        (errno.EMFILE, "ulimit -n"),
        (errno.EIO, os.strerror(errno.EIO)),
    ],
)
def test_system_errors_say_where_and_what_next(number: int, advice: str) -> None:
    line = explain_os_error(OSError(number, os.strerror(number), "/data/x"))
    assert line.startswith("cannot read or write '/data/x': ") and advice in line
    assert "\n" not in line and "Errno" not in line


@pytest.mark.parametrize("number", [errno.ENOENT, errno.EACCES, errno.EROFS, errno.ENOTDIR])
def test_without_a_file_no_path_is_blamed(number: int) -> None:
    """Shared memory and semaphores fail so, too, and no other path helps them."""
    assert explain_os_error(OSError(number, os.strerror(number))) == f"cannot read or write: {os.strerror(number)}"


def test_an_error_without_a_number_is_said_once() -> None:
    assert explain_os_error(OSError("the server closed the connection")) == "the server closed the connection"


@pytest.mark.parametrize("number", ["\u0663", "\uff13", "\U0001d7db", "\u0967"])
def test_a_flag_takes_no_digits_of_other_scripts(number: str, capsys: pytest.CaptureFixture[str]) -> None:
    for convert in (positive_int, finite_number):
        with pytest.raises(argparse.ArgumentTypeError, match="expected a"):
            convert(number)
    assert page_of(1000, 10, number).number == 1
    for main, flag in ((review.main, "--port"), (sample_testset.main, "--revision")):
        with pytest.raises(SystemExit, match="2"):
            main([f"{flag}={number}"])
        assert f"argument {flag}: expected " in capsys.readouterr().err
