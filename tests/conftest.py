"""Data for all tests: a miniature made once a session, and the shared photos where this machine has them."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from flair.miniature.dataset import make_dataset
from flair.records.tfrecord.writer import write_tfrecords

# `make test` runs in a make: the makes under test must not take themselves for its children.
for _name in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS"):
    os.environ.pop(_name, None)
# Commands that tests run in this process print their one line on standard error; TensorFlow's own would join it.
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # Started in the background: commands under test would inherit that, and ignore the Ctrl-C that tests send them.
    signal.signal(signal.SIGINT, signal.default_int_handler)

if TYPE_CHECKING:
    from playwright.sync_api import Browser

    from benchmark.data.records import Records, Task

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def miniature(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A synthetic dataset_dir: 160 photos of 40 users; 32/4/4 users, several coarse labels a partition. Read only."""
    folder = tmp_path_factory.mktemp("miniature") / "dataset"
    make_dataset(folder, num_users=40, num_images=160, seed=1)
    return folder


@pytest.fixture(scope="session")
def tfrecords(miniature: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The TFRecords of the miniature, a file a user. Read only."""
    folder = tmp_path_factory.mktemp("records") / "records"
    write_tfrecords(miniature, folder, num_workers=1)
    return folder


@pytest.fixture(scope="session")
def records(tfrecords: Path) -> Records:
    """The TFRecords of the miniature, opened."""
    from benchmark.data.opening import open_records

    return open_records(tfrecords)


@pytest.fixture(scope="session")
def task(records: Records) -> Task:
    """The coarse labels of the miniature, all of them."""
    from benchmark.data.opening import make_task

    return make_task(records, False, None)


@pytest.fixture(scope="session")
def flair_sample() -> Path:
    """35 real FLAIR photos of 15 users, as a dataset_dir. Read only."""
    return _shared("flair_sample")


@pytest.fixture(scope="session")
def coco256() -> Path:
    """256 COCO photos of 47 simulated users, as a dataset_dir. Read only."""
    return _shared("coco256")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A headless Chromium (playwright's `Browser`); its pages see only loopback."""
    from tests.support.browser import headless_chromium

    with headless_chromium() as chromium:
        yield chromium


def _shared(name: str) -> Path:
    folder = SHARED_DATA / name
    if not folder.is_dir():
        pytest.skip(f"{folder} is not on this machine")
    return folder
