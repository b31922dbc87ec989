"""What the pages say is true: every link leads somewhere, every command runs, the picture is the one that is drawn."""

from __future__ import annotations

import functools
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image

from benchmark.privacy.adaptive import clipped_count_stddev
from benchmark.privacy.caveats import KeyState, RunRecord
from benchmark.privacy.statement import make_statement, statement_text
from flair.download import server as mirror_server
from flair.miniature.archives import pack
from flair.miniature.dataset import make_dataset
from tests.support import documented_commands
from tests.support.commands import Result, run
from tests.support.markdown import (
    ROOT,
    SHELL,
    Command,
    anchors,
    blocks,
    commands,
    inline_commands,
    links,
    looks_like_a_command,
    pages,
)
from tests.support.privacy import plan_of

README = ROOT / "README.md"
PAGES = [*pages(), ROOT / "CHANGELOG.md"]
ALL_COMMANDS = [command for page in pages() for command in commands(page)]
HOW = "see the tables of tests/support/documented_commands.py"


def texts() -> Iterator[tuple[Path, str]]:
    """Every page, and the running text of every notebook."""
    for page in PAGES:
        yield page, page.read_text(encoding="utf-8")
    for path in (*ROOT.glob("*.ipynb"), *ROOT.glob("docs/*.ipynb")):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        yield path, "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")


def test_every_internal_link_resolves() -> None:
    broken, checked = [], 0
    for page, text in texts():
        for target in links(text):
            if re.match(r"https?://|mailto:", target):
                continue
            checked += 1
            name, _, anchor = target.partition("#")
            place = (page.parent / name).resolve() if name else page
            if not place.exists() or ROOT not in (place, *place.parents):
                broken.append(f"{page.name}: {target}: no such file")
            elif anchor and anchor not in anchors(place.read_text(encoding="utf-8") if name else text):
                broken.append(f"{page.name}: {target}: no such heading")
    assert broken == []
    assert checked > 5


def test_files_named_in_running_text_exist() -> None:
    named = {
        (page.name, name)
        for page, text in texts()
        for name in re.findall(r"`((?:docs|tests|flair|benchmark|requirements)/[\w./-]+\.\w+)`", text)
    }
    assert [pair for pair in sorted(named) if not (ROOT / pair[1]).exists()] == []


def test_modules_named_in_running_text_exist() -> None:
    named = {
        (page.name, name)
        for page, text in texts()
        for name in re.findall(r"`(?:python3? -m )?((?:flair|benchmark)(?:\.[a-z_0-9]+)+)", text)
    }
    assert [names for names in sorted(named) if not _is_module(names[1])] == []
    assert len(named) > 20


def _is_module(name: str) -> bool:
    """Whether a dotted name is a module of ours, a package, or something in a module."""
    parts = name.split(".")
    folders = next(count for count in range(len(parts), 0, -1) if (ROOT / Path(*parts[:count])).is_dir())
    return folders == len(parts) or (ROOT / Path(*parts[: folders + 1])).with_suffix(".py").is_file()


def test_the_statement_that_is_explained_is_the_one_a_run_writes() -> None:
    (shown,) = (block for block in blocks((ROOT / "docs/privacy.md").read_text()) if block.language == "text")
    plan = plan_of(num_users=41_131, cohort=200, total_rounds=5_000, epsilon=2.0)
    deviation = clipped_count_stddev(200, plan.run_noise_multiplier)
    record = RunRecord(5_000, [0.1], 0.1, deviation, noise_key=KeyState.DELETED)
    written = statement_text(make_statement(plan, record)).splitlines()
    assert [line for line in shown.lines if line not in written] == []


def test_every_command_is_in_a_block_that_says_so() -> None:
    hidden = [
        f"{page.relative_to(ROOT)}:{block.line}: a block of commands has to begin with ```{SHELL}"
        for page in PAGES
        for block in blocks(page.read_text(encoding="utf-8"))
        if block.language != SHELL and any(map(looks_like_a_command, block.lines))
    ]
    assert hidden == []
    assert len(ALL_COMMANDS) > 10


@functools.lru_cache
def flags_of(program: str, subject: str | None = None) -> frozenset[str]:
    """The flags that `--help` of a program lists, or of a subject of one that has several."""
    ended = run(program, *([subject] if subject else []), "--help")
    plain = set(re.findall(r"--([A-Za-z_]\w*)", ended.stdout))
    switches = re.findall(r"--\[no\](\w+)", ended.stdout)
    return frozenset(plain | set(switches) | {f"no{name}" for name in switches} | {"help"})


def test_every_documented_flag_exists() -> None:
    """Also those of commands that are not run, and of those in backticks within a sentence."""
    said = [*ALL_COMMANDS, *(command for page in pages() for command in inline_commands(page))]
    ours = [command for command in said if re.match(r"(flair|benchmark)\.|\w+(/\w+)*\.py$", command.program)]
    unknown = [
        f"{command}: {command.program} has no --{flag}"
        for command in ours
        for flag in command.flags
        if flag not in flags_of(command.program, command.subject)
        and not any(flag in flags_of(other) for other in documented_commands.PASSES_ON.get(command.program, ()))
    ]
    assert unknown == []
    assert len(ours) > 10


def test_every_flagfile_named_exists() -> None:
    for command in ALL_COMMANDS:
        for word in command.words:
            if word.startswith("--flagfile=benchmark/"):
                assert (ROOT / word.partition("=")[2]).is_file(), str(command)


def test_programs_that_only_servers_are_run_by_are_there() -> None:
    installed = Path(sys.executable).parent
    for name in {command.program for command in ALL_COMMANDS if documented_commands.reason_not_to_run(command)}:
        if name in ("jupyter", "tensorboard"):
            assert (installed / name).exists(), name


def test_no_reason_is_left_of_a_command_that_is_gone() -> None:
    for pattern, _reason in documented_commands.NOT_RUN:
        assert any(re.fullmatch(pattern, command.text) for command in ALL_COMMANDS), f"{pattern}: {HOW}"
    for pattern, _replacement, _reason in documented_commands.REPLACED:
        assert any(re.search(pattern, command.text) for command in ALL_COMMANDS), f"{pattern}: {HOW}"


def test_every_command_of_the_readme_table_is_there() -> None:
    table = re.findall(r"^\| `([^`]+)` \|", README.read_text(), re.M)
    assert len(table) > 10
    for text in table:
        assert flags_of(Command("README.md", 0, text).program)


def test_every_command_has_a_row_in_the_readme_table() -> None:
    sources = [path for folder in ("flair", "benchmark") for path in (ROOT / folder).glob("*.py")]
    found = {
        path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".")
        for path in sources
        if re.search(r'__name__ == "__main__":\n +command\.run\(main[,)]', path.read_text(encoding="utf-8"))
    }
    table = set(re.findall(r"^\| `python -m ([\w.]+)` \|", README.read_text(), re.M))
    assert len(found) > 8
    assert found - table == set(), "add a row to the README's table of commands"


def test_the_picture_is_what_its_command_draws(tmp_path: Path) -> None:
    drawn = tmp_path / "drawn.png"
    subprocess.run(
        [sys.executable, "docs/architecture_figure.py", f"--output_file={drawn}"], cwd=ROOT, check=True, timeout=60
    )
    new, committed = (
        np.asarray(Image.open(path).convert("L"), int) for path in (drawn, ROOT / "docs/architecture.png")
    )
    assert new.shape == committed.shape
    assert (np.abs(new - committed) > 8).mean() < 0.001


class Workplace(NamedTuple):
    """Folders to run commands in, and a mirror of a miniature's archives."""

    ready: Path
    mirror: str


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workplace]:
    """A miniature, served as Apple serves FLAIR; and prepared, for pages that begin with prepared data."""
    ready = tmp_path_factory.mktemp("documentation")
    make_dataset(ready / "data", num_users=60, num_images=400, seed=3)
    pack(ready / "data", ready / "server", 3)
    # What a reader restores: weights with the statistics of batch normalization, of a model that tests make small.
    from benchmark.model import loading, networks

    pretrained = networks.build_model("cnn", (32, 32, 3), 17, pretrained_norm=True)
    loading.save_model(pretrained, ready / "resnet18.h5")
    shown = f"--dataset_dir={ready / 'data'}"
    train = Command("", 0, f"python3 -m benchmark.federated_main --tfrecords_dir={ready / 'tfrecords'}")
    _, _, *train_small = documented_commands.as_run(train, str(ready), "").split()
    for command in (
        ["prepare_tfrecords.py", shown, f"--tfrecords_dir={ready / 'tfrecords'}"],
        ["prepare_dataset.py", shown, f"--output_file={ready / 'flair.hdf5'}"],
        [*train_small, "--model=cnn", f"--save_model_dir={ready / 'federated'}"],
    ):
        run(*command)
    with mirror_server.serve(ready / "server") as server:
        yield Workplace(ready, server.url)


def run_in(folder: Path, line: str) -> Result | subprocess.CompletedProcess[str]:
    """Runs a command line as a reader with an activated environment would, in a folder that looks like the checkout."""
    words = shlex.split(line)
    # Ray, TFF's runtime and W&B stay with the process that started them; what needs a shell gets one.
    if words[:2] == ["python3", "-m"] and not set("&|;<>$`*~") & set(line) and not re.search("ray|runtime|wandb", line):
        return run(*words[2:], code=None, cwd=folder)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        ["bash", "-c", line],
        cwd=folder,
        env={**os.environ, "PATH": path, "TF_CPP_MIN_LOG_LEVEL": "3"},
        capture_output=True,
        text=True,
        timeout=1200,
        check=False,
    )


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("page", [page for page in pages() if commands(page)], ids=lambda page: page.name)
def test_every_command_of_a_page_runs(page: Path, workplace: Workplace, tmp_path: Path) -> None:
    checkout = tmp_path / "checkout"
    checkout.mkdir()
    for path in ROOT.iterdir():
        if path.name not in (".git", "demo", "mini", "flair_stats") and not path.name.endswith("_cache"):
            (checkout / path.name).symlink_to(path)
    # docs/ as a copy, because a command may draw a picture into it.
    (checkout / "docs").unlink()
    shutil.copytree(ROOT / "docs", checkout / "docs")
    work = tmp_path / "work"
    work.mkdir()
    if page != README:
        for name in ("data", "tfrecords", "flair.hdf5", "resnet18.h5", "federated"):
            (work / name).symlink_to(workplace.ready / name)
    for command in commands(page):
        if documented_commands.reason_not_to_run(command):
            continue
        line = documented_commands.as_run(command, str(work), workplace.mirror)
        ended = run_in(checkout, line)
        assert ended.returncode == 0, (
            f"{command}\nwas run as: {line}\nand ended with {ended.returncode} ({HOW}):\n"
            f"{ended.stdout[-2000:]}\n{ended.stderr[-4000:]}"
        )
