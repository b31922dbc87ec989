"""The Python that docs/personalization.md shows runs, on a miniature in the places that it names."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from benchmark.data.opening import open_records
from benchmark.personalization.dump import dump_episodes
from benchmark.personalization.sources import UserEpisodeSource
from tests.support.commands import ROOT
from tests.support.markdown import blocks

PAGE = ROOT / "docs/personalization.md"
PYTHON = ["\n".join(block.lines) for block in blocks(PAGE.read_text(encoding="utf-8")) if block.language == "python"]


@pytest.fixture(scope="module")
def places(miniature: Path, tfrecords: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("places")
    shutil.copytree(tfrecords, folder / "tfrecords", symlinks=True)
    (folder / "data").symlink_to(miniature)
    dump_episodes(folder / "episodes", 3, UserEpisodeSource(open_records(tfrecords), "train"))
    return folder


def test_the_page_shows_python() -> None:
    assert PYTHON


@pytest.mark.parametrize("code", PYTHON, ids=range(len(PYTHON)))
def test_its_python_runs(code: str, places: Path) -> None:
    exec(code.replace("/path/to/", f"{places}/"), {"__name__": "__main__"})
