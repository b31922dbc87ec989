"""Locks: two commands never work in one place, and a file system without locks stops neither."""

from __future__ import annotations

import errno
import fcntl
import os
import resource
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from flair.curation.reviews import PhotoChange, ReviewFile
from flair.errors import FlairError
from flair.files import lock
from flair.records.hdf5.reader import HDF5File
from flair.records.hdf5.writer import write_hdf5
from tests.support.commands import ROOT

NO_LOCKS = [errno.ENOLCK, errno.EIO, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.EBADF]
WITHOUT_LOCKS = """\
#include <errno.h>
#include <stdlib.h>
int flock(int descriptor, int operation) { errno = atoi(getenv("FLOCK_ERRNO")); return descriptor | operation | -1; }
"""


@pytest.fixture
def no_locks(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of the error with which locking fails from now on, as on some network file systems."""
    number = [errno.ENOLCK]

    def flock(descriptor: int, operation: int) -> None:
        raise OSError(number[0], os.strerror(number[0]))

    monkeypatch.setattr(fcntl, "flock", flock)
    monkeypatch.setattr(lock, "_told", set())
    return number


def test_a_second_one_is_refused_and_a_patient_one_waits(tmp_path: Path) -> None:
    begun: list[Path] = []
    for path in (tmp_path, tmp_path / "file.lock"):
        with lock.exclusive(path, "in use"):
            with pytest.raises(FlairError, match="in use"), lock.exclusive(path, "in use"):
                pass
            with (
                pytest.raises(FlairError, match="in use"),
                lock.exclusive(path, "in use", patience=0.15, on_wait=lambda: begun.append(tmp_path)),
            ):
                pass
        with lock.exclusive(path, "in use"):
            pass
    assert len(begun) == 2


@pytest.mark.parametrize("number", NO_LOCKS)
def test_without_locks_the_work_goes_on_and_one_line_says_so(
    tmp_path: Path, no_locks: list[int], number: int, capsys: pytest.CaptureFixture[str]
) -> None:
    no_locks[0] = number
    for _ in range(2):
        with lock.exclusive(tmp_path, "in use") as descriptor, lock.exclusive(tmp_path / "file", "in use"):
            os.fstat(descriptor)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{tmp_path}: the file system has no locks ({os.strerror(number)}); going on without")


@pytest.mark.parametrize("number", [errno.EWOULDBLOCK, errno.EACCES])
def test_a_lock_of_somebody_else_is_none_that_is_missing(tmp_path: Path, no_locks: list[int], number: int) -> None:
    no_locks[0] = number
    with pytest.raises(FlairError, match="in use"), lock.exclusive(tmp_path, "in use"):
        pass


def test_windows_of_one_page_lose_no_mark_without_locks(tmp_path: Path, no_locks: list[int]) -> None:
    reviews = ReviewFile(tmp_path / "reviews.json")

    def mark(window: int) -> None:
        for photo in range(6):
            change = PhotoChange(f"{window}{photo}", "ok")
            reviews.update(lambda _, change=change: [change], "me", "2024-01-01T00:00:00+00:00")

    windows = [threading.Thread(target=mark, args=(window,)) for window in range(4)]
    for window in windows:
        window.start()
    for window in windows:
        window.join()
    assert len(reviews.read().photos) == 24


@pytest.fixture(scope="module")
def without_locks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Environment of a process in which no file can be locked, by whatever library."""
    if shutil.which("gcc") is None:
        pytest.skip("gcc is not on this machine")
    folder = tmp_path_factory.mktemp("without_locks")
    (folder / "flock.c").write_text(WITHOUT_LOCKS)
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", folder / "flock.so", folder / "flock.c"], check=True)
    environment = {name: value for name, value in os.environ.items() if name != "HDF5_USE_FILE_LOCKING"}
    return {**environment, "PYTHONPATH": str(ROOT), "LD_PRELOAD": str(folder / "flock.so")}


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EIO])
def test_hdf5_is_written_and_read_without_locks(
    tmp_path: Path, miniature: Path, without_locks: dict[str, str], number: int
) -> None:
    made = tmp_path / "made.hdf5"
    flags = [f"--dataset_dir={miniature}", "--num_workers=1"]
    for command in (
        [str(ROOT / "prepare_dataset.py"), f"--output_file={made}", "--image_format=jpeg"],
        ["-m", "flair.verify", f"--hdf5_file={made}"],
    ):
        ended = subprocess.run(
            [sys.executable, *command, *flags],
            env={**without_locks, "FLOCK_ERRNO": str(number)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert ended.returncode == 0, ended
        assert ended.stderr.count("has no locks") == ("prepare" in command[0])
    with HDF5File(made) as file:
        assert file.groups("train")


@pytest.mark.slow
def test_models_are_saved_and_read_without_locks(tmp_path: Path, without_locks: dict[str, str]) -> None:
    program = (
        "import sys\nfrom flair.terminal import command\ndef main(argv):\n"
        "    from benchmark.model import loading, networks\n"
        "    from benchmark.model import saved\n"
        "    loading.save_model(networks.build_model('cnn', (32, 32, 3), 17), argv[0])\n"
        "    print(saved.describe(__import__('pathlib').Path(argv[0])).num_outputs)\n"
        "command.run(main)\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "m.h5")],
        env={**without_locks, "FLOCK_ERRNO": str(errno.ENOLCK)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ended.returncode, ended.stdout) == (0, "17\n"), ended.stderr


def test_an_hdf5_file_that_the_system_refuses_is_not_called_damaged(tmp_path: Path, miniature: Path) -> None:
    made = tmp_path / "made.hdf5"
    write_hdf5(miniature, made, num_workers=1)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, limits[1]))
    try:
        with pytest.raises(OSError, match="Too many open files") as refused:
            HDF5File(made)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert refused.value.filename == str(made)
