"""Ctrl-C and SIGTERM from the first line of a command to its last: one line, the right exit code, no traceback."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.commands import ROOT

ENDS = [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]
# A module of the standard library that the command imports, slow to come: it waits for the signal that it asks for.
PLANTED = """\
import os, signal, sys
number = int(os.environ.pop("PLANTED", "0"))  # once
if number:
    os.kill(os.getpid(), number)
    for _ in range(100_000):  # the handler runs within a few of these
        pass
    print("still here", file=sys.stderr)
    raise ImportError("no signal came")
"""


def run(arguments: list[str], folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": f"{folder}{os.pathsep}{ROOT}", **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


@pytest.mark.parametrize(("number", "code", "word"), ENDS)
@pytest.mark.parametrize(
    ("arguments", "program", "slow"),
    [
        (["-m", "flair.stats"], "flair.stats", "argparse"),
        (["-m", "benchmark.privacy_main"], "benchmark.privacy_main", "absl"),
        (["-m", "benchmark.evaluate_main"], "benchmark.evaluate_main", "absl"),
        ([str(ROOT / "prepare_tfrecords.py")], "prepare_tfrecords.py", "fractions"),
        ([str(ROOT / "download_dataset.py")], "download_dataset.py", "shlex"),
    ],
)
def test_while_a_command_starts(
    tmp_path: Path, arguments: list[str], program: str, slow: str, number: int, code: int, word: str
) -> None:
    (tmp_path / f"{slow}.py").write_text(PLANTED)
    ended = run(arguments, tmp_path, PLANTED=str(number))
    assert (ended.returncode, ended.stdout, ended.stderr) == (code, "", f"{program}: {word}\n")


PROGRAM = """\
import atexit, os, signal, sys, threading, time
from flair.terminal import command
from flair.errors import FlairError
number = int(sys.argv[1])
def main(argv):
{body}
command.run(main, stopped=command.CONTINUES)
"""


def ended_by(tmp_path: Path, body: str, number: int) -> subprocess.CompletedProcess[str]:
    (tmp_path / "prog.py").write_text(PROGRAM.format(body="\n".join(f"    {line}" for line in body.splitlines())))
    return run(["prog.py", str(int(number))], tmp_path)


@pytest.mark.parametrize(("number", "code", "word"), ENDS)
@pytest.mark.parametrize(
    "body",
    [
        "class Dropped:\n    def __del__(self): os.kill(os.getpid(), number)\nDropped()\nsignal.pause()",
        "import weakref\nclass Seen: pass\nseen = Seen()\n"
        "kept = weakref.ref(seen, lambda _: os.kill(os.getpid(), number))\ndel seen\nsignal.pause()",
        "try:\n    os.kill(os.getpid(), number)\n    signal.pause()\n"
        "except BaseException:\n    raise ImportError('half a module')",
    ],
    ids=["in a destructor", "in a callback of a weak reference", "turned into another error"],
)
def test_a_signal_where_python_drops_it(tmp_path: Path, body: str, number: int, code: int, word: str) -> None:
    ended = ended_by(tmp_path, body, number)
    said = f"prog.py: {word}; the same command continues where it stopped\n"
    assert (ended.returncode, ended.stdout, ended.stderr) == (code, "", said)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(
    "late",
    [
        "atexit.register(os.kill, os.getpid(), number)",
        "class Last:\n    def __del__(self, kill=os.kill, me=os.getpid(), number=number): kill(me, number)\n"
        "sys.modules['last'] = Last()",
        "def wait():\n    threading.main_thread().join()\n    os.kill(os.getpid(), number)\n    time.sleep(0.2)\n"
        "threading.Thread(target=wait).start()",
    ],
    ids=["at exit", "when modules go", "in a last thread"],
)
@pytest.mark.parametrize(("result", "code", "said"), [("0", 0, ""), ("3", 3, "")])
def test_while_the_interpreter_ends(tmp_path: Path, late: str, number: int, result: str, code: int, said: str) -> None:
    ended = ended_by(tmp_path, f"{late}\nprint('done')\nreturn {result}", number)
    assert (ended.returncode, ended.stdout, ended.stderr) == (code, "done\n", said)


LEFT = """\
from flair.parallel import threads
class Last:
    def __del__(self, write=os.write):
        write(1, b"the interpreter is taken down")
sys.last = Last()
atexit.register(lambda: os.write(1, b"exit functions, "))
forever = threading.Event()
def work(item):
    if item:
        os.kill(os.getpid(), number)
        forever.wait()
threads.run(work, [{item}], 1, threading.Event())
"""


def test_threads_that_are_left_behind_do_not_see_the_interpreter_end(tmp_path: Path) -> None:
    """One of them came back from pyarrow then: the exit code was -6, or the process hung."""
    done = ended_by(tmp_path, LEFT.format(item=0), signal.SIGINT)
    assert (done.returncode, done.stdout) == (0, "exit functions, the interpreter is taken down")
    stopped = ended_by(tmp_path, LEFT.format(item=1), signal.SIGINT)
    assert (stopped.returncode, stopped.stdout) == (130, "exit functions, ")
    assert stopped.stderr == "prog.py: interrupted; the same command continues where it stopped\n"


def test_a_second_signal_does_not_break_the_line_of_the_first(tmp_path: Path) -> None:
    body = (
        "class Slow(str):\n    def __str__(self):\n        os.kill(os.getpid(), number)\n        return 'a mistake'\n"
        "raise FlairError(Slow())"
    )
    ended = ended_by(tmp_path, body, signal.SIGTERM)
    assert (ended.returncode, ended.stderr) == (1, "prog.py: a mistake\n")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_program_that_only_imports_the_packages_keeps_its_handlers(tmp_path: Path, number: int) -> None:
    code = f"import signal; before = signal.getsignal({number:d}); import flair, benchmark.run.command; "
    ended = run(["-c", code + f"print(before is signal.getsignal({number:d}))"], tmp_path)
    assert (ended.stdout, ended.stderr) == ("True\n", "")


def test_a_command_in_the_background_ignores_ctrl_c_as_the_shell_asks(tmp_path: Path) -> None:
    (tmp_path / "prog.py").write_text(
        PROGRAM.format(body="    os.kill(os.getpid(), signal.SIGINT)\n    print('went on')")
    )
    ended = subprocess.run(
        ["sh", "-c", f"trap '' INT; '{sys.executable}' prog.py 2"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "went on\n", "")
