"""Paths in flags: home folders, and lines that can be typed again."""

from __future__ import annotations

import ast
import io
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flair.terminal.paths import command_line, expand
from tests.support.commands import ROOT

OF_PATHS = re.compile(r"(_dir|_file|_path)$|^(models?|output|exclude|reviews|duplicates|report|json)$")
HELP_OF_PATHS = re.compile(r"\b([Ff]older|[Ff]ile|FILE)\b|\.h5\b")
NO_PATHS = {
    **dict.fromkeys([("flags", "model"), *((of, "model") for of in ("step", "central"))], "a network"),
    **dict.fromkeys([("flags", "binary_label"), ("evaluate_main", "binary_label")], "a label"),
    ("flags", "loggers"): "names of loggers",
    ("sweep_main", "flagfile"): "absl, which reads it, expands it",
}


def text_flags() -> list[tuple[str, str, str, str]]:
    """Module, name, type and help of each flag that takes any text."""
    found = []
    for path in [*ROOT.glob("flair/**/*.py"), *ROOT.glob("benchmark/**/*.py"), *ROOT.glob("*.py")]:
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not (isinstance(call, ast.Call) and call.args and isinstance(call.args[0], ast.Constant)):
                continue
            function, name = ast.unparse(call.func).rpartition(".")[2], str(call.args[0].value).lstrip("-")
            given = {str(one.arg): ast.unparse(one.value) for one in call.keywords}
            if function in ("text", "path", "paths", "multi_paths") and len(call.args) > 2:
                found.append((path.stem, name, function, ast.unparse(call.args[2])))
            elif (
                function in ("add", "add_argument")
                and str(call.args[0].value).startswith("--")
                and not given.keys() & {"choices", "action"}
                and given.get("type", "path_flag") == "path_flag"
            ):
                found.append((path.stem, name, given.get("type", "str"), str(given)))
    return found


def test_every_flag_that_is_a_path_is_read_as_one() -> None:
    flags = text_flags()
    literal = [
        f"{module}: --{name}"
        for module, name, kind, text in flags
        if "path" not in kind
        and (OF_PATHS.search(name) or HELP_OF_PATHS.search(text))
        and (module, name) not in NO_PATHS
    ]
    assert literal == [] and sum("path" in kind for _, _, kind, _ in flags) > 60


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "my home"
    folder.mkdir()
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.chdir(tmp_path)
    return folder


def test_home_folders_and_what_only_looks_like_one(home: Path) -> None:
    assert [expand(path) for path in ("~", "~/a", "~root/a", "./~", "a/~", "a~", "")] == [
        str(home), f"{home}/a", f"{os.path.expanduser('~root')}/a", "./~", "a/~", "a~", "",
    ]  # fmt: skip
    with pytest.raises(ValueError, match=r"~no-such-user is the home folder of nobody here.*\./~no-"):
        expand("~no-such-user/x")


@given(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])))
def test_a_line_is_read_back_by_a_shell_as_it_was(path: str) -> None:
    line = command_line("python -m x", path, dataset_dir=path, exclude=None)
    shown = f"./{path}" if path.startswith("-") else path
    assert shlex.split(line) == ["python", "-m", "x", f"--dataset_dir={path}", shown]


def test_a_path_that_lost_its_dot_or_has_bytes_that_are_no_text_is_read_back_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`./~` came back as the home folder, and a name that is not UTF-8 as another one."""
    for name in (os.fsdecode(b"b\xff\\'"), "~", "~x"):
        line = command_line("printf %s", Path(f"./{name}"))
        printed = subprocess.run(["bash", "-c", line], capture_output=True, check=True).stdout
        assert os.path.normpath(expand(os.fsdecode(printed))) == name
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding="ascii"))
    printed = subprocess.run(["bash", "-c", command_line("printf %s", "é")], capture_output=True, check=True).stdout
    assert printed.decode() == "é"


def run(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def test_argparse_and_absl_find_the_home_folder(home: Path, tmp_path: Path) -> None:
    made = run("-m", "flair.synthetic", "--dataset_dir=~/d s", "--num_users=4", "--num_images=12", folder=tmp_path)
    assert made.returncode == 0, made.stderr
    assert (home / "d s" / "labels_and_metadata.json").is_file()
    line = made.stdout.splitlines()[1].removeprefix("next: python ")
    program, *flags = shlex.split(line)
    assert flags[0] == f"--dataset_dir={home}/d s"
    prepared = run(str(ROOT / program), *flags[:1], "--output_file=~/o u t.hdf5", folder=tmp_path)
    assert prepared.returncode == 0, prepared.stderr
    *module, dataset, hdf5 = shlex.split(prepared.stdout.splitlines()[-1].removeprefix("Next: python "))
    assert run(*module, dataset, hdf5, folder=tmp_path).returncode == 0
    (home / "flags").write_text("--weights=~/w.safetensors\n--output_file=~/o.h5\n")
    ended = run("-m", "benchmark.convert_torchvision", "--flagfile=~/flags", folder=tmp_path)
    assert ended.returncode == 1 and f"{home}/w.safetensors: " in ended.stderr
    refused = run("-m", "benchmark.agreement_main", "--models=a,~no-such-user/b", folder=tmp_path)
    assert refused.returncode == 2 and "--models=a,~no-such-user/b" in refused.stderr and "./~no" in refused.stderr
    assert sorted(os.listdir(tmp_path)) == ["my home"]


def test_a_folder_that_is_called_so_is_reached_by_its_path(home: Path, tmp_path: Path) -> None:
    made = run(
        "-m",
        "flair.synthetic",
        "--dataset_dir=./~",
        "--num_users=4",
        "--num_images=12",
        "--metadata_only",
        folder=tmp_path,
    )
    assert made.returncode == 0 and (tmp_path / "~" / "labels_and_metadata.json").is_file()
