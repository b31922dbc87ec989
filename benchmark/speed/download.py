"""The download beside curl and tar: the same archives in the official layout, from a server on this machine.

Either way the two label files come first and then the archives, as many at a time, unpacked while others arrive. Ours
also keeps each archive until it has proved whole, takes its checksum, checks every record of the metadata, and notes
what it has finished. The server is a process of its own, whose time and memory count for neither.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmark.speed.harness import ROOT, Step
from flair.dataset import catalog
from flair.errors import FlairError

NUM_TRANSFERS = 4
CURL = f"download: curl | tar, {NUM_TRANSFERS} at a time"
OURS = f"download: ours, {NUM_TRANSFERS} workers"
NAMES = (CURL, OURS)
_SERVER = "http://server"  # in place of the address, which is known when the server runs
_PROGRAMS = ("curl", "tar", "xargs")
_CURL_AND_TAR = """
set -e
server=$1 target=$2 transfers=$3; shift 3
mkdir "$target"; cd "$target"
curl --fail --silent --show-error --remote-name-all "$server/$1" "$server/$2"; shift 2
printf '%s\\n' "$@" |
xargs -n 1 -P "$transfers" sh -c 'curl --fail --silent --show-error "$0/$1" | tar -xzf -' "$server"
"""


def make_steps(with_curl: Path, with_ours: Path, num_bytes: int, num_archives: int) -> list[Step]:
    """Both ways to bring labels and photos to a folder; `at` gives them the address of the server."""
    paths = [catalog.METADATA_URL_PATH, catalog.TAXONOMY_URL_PATH]
    paths += [catalog.small_archive_url_path(index) for index in range(num_archives)]
    curl = ["sh", "-c", _CURL_AND_TAR, "sh", _SERVER, str(with_curl), str(NUM_TRANSFERS), *paths]
    ours = [sys.executable, str(ROOT / "download_dataset.py"), f"--dataset_dir={with_ours}", f"--base_url={_SERVER}"]
    return [
        Step(CURL, curl, num_bytes, with_curl),
        Step(OURS, [*ours, f"--num_workers={NUM_TRANSFERS}"], num_bytes, with_ours, CURL),
    ]


def without_missing_programs(steps: Sequence[Step]) -> list[Step]:
    """The steps that this machine can run; says in a line what is left out."""
    missing = [program for program in _PROGRAMS if shutil.which(program) is None]
    if not missing or all(step.name != CURL for step in steps):
        return list(steps)
    print(f"Skipped: {CURL}: {', '.join(missing)} not on this machine", flush=True)
    return [step for step in steps if step.name != CURL]


def at(address: str, steps: Sequence[Step]) -> list[Step]:
    """The steps with the address of the server."""
    return [step._replace(command=[word.replace(_SERVER, address) for word in step.command]) for step in steps]


@contextlib.contextmanager
def serving(archives: Path) -> Iterator[str]:
    """Serves the folder in a process of its own; yields the address."""
    process = subprocess.Popen(
        [sys.executable, "-m", "flair.mirror", f"--archives_dir={archives}", "--port=0"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert process.stdout is not None
        address = re.search(r"http://127\.0\.0\.1:\d+", process.stdout.readline())
        if address is None:
            raise FlairError(f"{archives}: the server did not start; its reason is above")
        yield address[0]
    finally:
        process.kill()
        process.communicate()
