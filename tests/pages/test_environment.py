"""The environment that make builds from the pins, on machines of all kinds; and what CI runs."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.support.commands import ROOT

EXTRAS = ("dev", "gpu", "huggingface", "notebooks", "ray", "tfds")


class Machine(NamedTuple):
    """A copy of what makes the environment, on a PATH that holds only what a test puts there."""

    root: Path
    commands: Path

    def add(self, name: str, script: str) -> None:
        path = self.commands / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)

    def add_python(self, name: str, disguise: str = "") -> None:
        """An interpreter in which `disguise` runs before any `-c`; its venvs have no pip, which saves seconds."""
        self.add(
            name,
            f'[ "$2" = venv ] && exec {sys.executable} -m venv --without-pip "$3"\n'
            f"exec {sys.executable} -c 'import sys; {disguise or 'pass'}; exec(sys.argv[1])' \"$2\"",
        )

    def add_uv(self, exit_code: int = 0, before: str = "") -> None:
        """A uv that installs nothing, writes its arguments to uv.log, and ends with `exit_code`."""
        self.add("uv", f'[ "$1" = pip ] || exit 2\necho "$@" >> "{self.root}/uv.log"\n{before}\nexit {exit_code}')

    def installed(self) -> list[str]:
        """The arguments of each run of uv since the last call."""
        log = self.root / "uv.log"
        lines = log.read_text().splitlines() if log.exists() else []
        log.unlink(missing_ok=True)
        return lines

    def make(self, target: str = "environment", **variables: str) -> subprocess.CompletedProcess[str]:
        keep = {key: value for key, value in os.environ.items() if key not in ("PYTHON", "MAKEFLAGS", "MAKELEVEL")}
        return subprocess.run(
            ["make", "--no-print-directory", target, *(f"{key}={value}" for key, value in variables.items())],
            cwd=self.root,
            env={**keep, "PATH": str(self.commands)},
            capture_output=True,
            text=True,
            check=False,
        )

    def complaint(self, **variables: str) -> str:
        """The one line on stderr, besides make's own, with which `make environment` fails."""
        ended = self.make(**variables)
        assert ended.returncode != 0
        lines = [line for line in ended.stderr.splitlines() if not line.startswith("make: ")]
        assert len(lines) == 1
        assert not (self.root / ".venv").exists()
        return lines[0]


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """A machine with the usual commands, but no Python and no uv; the pinned files hold no package."""
    root, commands = tmp_path / "a copy", tmp_path / "bin"
    (root / "requirements").mkdir(parents=True)
    commands.mkdir()
    for path in ("Makefile", "requirements/environment.sh"):
        shutil.copy(ROOT / path, root / path)
    for path in ("requirements.txt", *(f"requirements/{extra}.txt" for extra in EXTRAS)):
        (root / path).write_text("# nothing\n")
    usual = "basename cat cmp cp dirname flock kill make mkdir rm sed sh tail touch uname"
    for name in usual.split():
        found = shutil.which(name)
        if found is not None:
            (commands / name).symlink_to(found)
    return Machine(root, commands)


def test_without_any_python_one_line_says_so(machine: Machine) -> None:
    assert "no usable Python 3.11 or 3.10: no python on the PATH; install one" in machine.complaint()


def test_unsuitable_pythons_are_named_with_the_reason(machine: Machine) -> None:
    machine.add_python("python3", "sys.version_info = (3, 12, 1)")
    machine.add_python("python3.11", 'sys.modules["ensurepip"] = None')
    machine.add("python3.10", "echo 'pyenv: python3.10: command not found' >&2; exit 127")
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    line = machine.complaint()
    assert "python3 is Python 3.12" in line
    assert f"python3.11 lacks the module ensurepip (on Debian and Ubuntu: apt install {version}-venv)" in line
    assert "pyenv" not in line


@pytest.mark.parametrize(
    ("disguise", "reason"),
    [
        ("sys.version_info = (3, 9, 2)", "is Python 3.9"),
        ("sys.maxsize = 2**31 - 1", "is not a 64-bit CPython"),
        ('import platform; platform.libc_ver = lambda: ("", "")', "runs on an unknown C library"),
        ('import platform; platform.libc_ver = lambda: ("glibc", "2.28")', "runs on glibc 2.28"),
        ('sys.modules["ssl"] = None', "lacks the module ssl"),
    ],
)
def test_a_python_that_was_asked_for_by_name_must_suit(machine: Machine, disguise: str, reason: str) -> None:
    machine.add_python("python3.11")
    machine.add_python("chosen", disguise)
    assert f"PYTHON=chosen cannot be used: chosen {reason}" in machine.complaint(PYTHON="chosen")
    assert "PYTHON=absent cannot be used: it does not run" in machine.complaint(PYTHON="absent")


def test_other_systems_are_refused(machine: Machine) -> None:
    machine.add_python("python3.11")
    (machine.commands / "uname").unlink()
    machine.add("uname", '[ "$1" = -s ] && echo Darwin || echo arm64')
    assert "Linux x86-64 only, this is Darwin arm64" in machine.complaint()


def test_an_unknown_extra_is_refused(machine: Machine) -> None:
    machine.add_python("python3.11")
    assert f"no extra is named 'nope'; there are: {' '.join(EXTRAS)}" in machine.complaint(EXTRAS="nope")


def test_interop_is_an_environment_of_its_own(machine: Machine) -> None:
    machine.add_python("python3")
    machine.add_uv()
    (machine.root / "requirements" / "interop.txt").write_text("# nothing\n")
    assert machine.make("interop").returncode == 0
    (line,) = machine.installed()
    assert line.endswith("--python .venv-interop/bin/python --no-deps --require-hashes -r requirements/interop.txt")
    assert not (machine.root / ".venv").exists()
    assert machine.make("interop").stdout == ""
    assert "no extra is named 'interop'" in machine.complaint(EXTRAS="dev interop")


def test_a_second_run_installs_nothing_and_changed_pins_are_installed(machine: Machine) -> None:
    machine.add_python("python3")
    machine.add_uv()
    assert machine.make().returncode == 0
    (first,) = machine.installed()
    assert "--no-deps --require-hashes -r requirements.txt" in first
    assert machine.make().stdout == ""
    assert machine.installed() == []
    assert machine.make(EXTRAS="ray dev").returncode == 0
    (extras,) = machine.installed()
    assert extras.endswith("--require-hashes -r requirements/ray.txt -r requirements/dev.txt")
    (machine.root / "requirements.txt").write_text("# other pins\n")
    assert machine.make(EXTRAS="dev").returncode == 0
    (changed,) = machine.installed()
    assert changed.endswith("--require-hashes -r requirements.txt")


def test_a_failed_installation_is_tried_again_and_never_taken_for_complete(machine: Machine) -> None:
    machine.add_python("python3")
    machine.add_uv(exit_code=1)
    ended = machine.make()
    assert ended.returncode != 0
    assert "the installation failed, see above; the same command tries it again" in ended.stderr
    assert len(machine.installed()) == 3
    (machine.root / ".venv" / "half a package").touch()
    machine.add_uv()
    assert machine.make().returncode == 0
    assert len(machine.installed()) == 1
    assert not (machine.root / ".venv" / "half a package").exists()


def test_a_killed_installation_starts_over_in_a_new_venv(machine: Machine) -> None:
    machine.add_python("python3")
    machine.add_uv(before="touch '.venv/half a package'; kill -9 $PPID; kill -9 $$")
    assert machine.make().returncode != 0
    assert (machine.root / ".venv" / "half a package").exists()
    machine.add_uv()
    assert machine.make().returncode == 0
    assert not (machine.root / ".venv" / "half a package").exists()
    assert machine.make().stdout == ""


@pytest.mark.parametrize("broken", ["bin/python", "pyvenv.cfg"])
def test_a_broken_venv_is_made_anew(machine: Machine, broken: str) -> None:
    machine.add_python("python3")
    machine.add_uv()
    machine.make()
    (machine.root / ".venv" / broken).unlink()
    machine.installed()
    assert "making .venv with python3" in machine.make().stdout
    assert len(machine.installed()) == 1


@pytest.mark.slow
def test_pip_installs_the_pinned_bytes_and_no_others_where_there_is_no_uv(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    (machine.commands / "python3.11").symlink_to(sys.executable)
    pinned = machine.root / "requirements.txt"
    pinned.write_text(f"tiny==1.0 --hash=sha256:{tiny_wheel(tmp_path, '1.0')}\n")
    ended = machine.make()
    assert (ended.returncode, ended.stderr) == (0, "")
    show = [machine.root / ".venv" / "bin" / "python", "-c", "import tiny; print(tiny.version)"]
    assert subprocess.run(show, capture_output=True, text=True, check=True).stdout == "1.0\n"

    tiny_wheel(tmp_path, "1.1")
    pinned.write_text(f"tiny==1.1 --hash=sha256:{'0' * 64}\n")
    ended = machine.make()
    assert ended.returncode != 0
    assert "DO NOT MATCH THE HASHES" in ended.stderr
    assert subprocess.run(show, capture_output=True, text=True, check=True).stdout == "1.0\n"


def tiny_wheel(folder: Path, version: str) -> str:
    """Makes a wheel of one module in `folder`; returns its sha256."""
    wheel, about = folder / f"tiny-{version}-py3-none-any.whl", f"tiny-{version}.dist-info"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("tiny.py", f"version = '{version}'\n")
        archive.writestr(f"{about}/METADATA", f"Metadata-Version: 2.1\nName: tiny\nVersion: {version}\n")
        archive.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{about}/RECORD", "")
    return hashlib.sha256(wheel.read_bytes()).hexdigest()


def test_make_alone_lists_every_target(machine: Machine) -> None:
    targets = set(re.findall(r"^([a-z]+): ##", (ROOT / "Makefile").read_text(), re.MULTILINE))
    ended = subprocess.run(["make"], cwd=machine.root, capture_output=True, text=True, check=True)
    assert {line.split()[0] for line in ended.stdout.splitlines()[1:]} == targets
    assert targets >= {"help", "demo", "test", "slow", "check", "format", "lock", "clean"}


@pytest.mark.parametrize("failing", ["none", "check", "test", "slow"])
def test_ci_runs_everything_and_fails_when_any_part_fails(tmp_path: Path, failing: str) -> None:
    (tmp_path / ".ci").mkdir()
    shutil.copy(ROOT / ".ci" / "run", tmp_path / ".ci" / "run")
    commands = tmp_path / "bin"
    commands.mkdir()
    for name in ("bash", "cat", "dirname", "env", "mktemp", "rm", "sh", "tail", "tee"):
        (commands / name).symlink_to(str(shutil.which(name)))
    for name, script in {
        "make": f'cat\necho "closing line of $1"\n[ "$1" != {failing} ]',
        "id": "echo 0",
        "apt-get": "exit 100",
    }.items():
        (commands / name).write_text(f"#!/bin/sh\n{script}\n")
        (commands / name).chmod(0o755)
    ended = subprocess.run(
        [tmp_path / ".ci" / "run"],
        env={**os.environ, "PATH": str(commands)},
        stdin=subprocess.PIPE,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "no Chromium could be installed: the tests of pages will be skipped" in ended.stdout
    assert ended.returncode == (0 if failing == "none" else 1)
    closing = ended.stdout[ended.stdout.index("== closing lines") :]
    assert [f"closing line of {target}" in closing for target in ("check", "test", "slow")] == [True] * 3
    assert (f"== failed: {failing}\n" in ended.stdout) == (failing != "none")
