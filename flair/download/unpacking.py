"""Processes that unpack archives, so that decompression and the transfers do not slow each other.

They are not a ProcessPoolExecutor, whose processes cannot be given the parent's open lock, nor be killed one by one.
Such a process takes one job after another as lines of JSON on its standard input, and ends by itself when that is
closed, which happens however its parent is killed. Until then it holds the parent's lock on the dataset folder, so that
a new run never meets an old one at work. It is out of reach of Ctrl-C, which the parent handles for it.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import select
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, NamedTuple

from flair.download.staging import Unpacked, UnpackError, staging_folder
from flair.parallel.threads import Stopped

_ROOT = Path(__file__).resolve().parents[2]
# The folder of the package takes the place of the current one, which may hold another `flair`.
_CHILD = "import sys; sys.path[0] = sys.argv[1]; from flair.download.unpacking import main; main()"


class Job(NamedTuple):
    """What to unpack and where to; `kind` is "gzip" (a tar.gz) or "parquet"; `num_photos` is None if not published."""

    kind: str
    archive: Path
    name: str
    photos_dir: Path
    listing: Path
    max_photo_bytes: int
    num_photos: int | None = None


class Unpackers:
    """As many processes as threads ask at the same time; each keeps `lock`, an open file, open."""

    def __init__(self, lock: int, stop: threading.Event) -> None:
        self._lock, self._stop = lock, stop
        self._idle: queue.SimpleQueue[subprocess.Popen[str]] = queue.SimpleQueue()

    def unpack(self, job: Job) -> Unpacked:
        """Unpacks one archive, and waits for it.

        Raises:
          UnpackError: the archive is damaged or refused; none of its photos is in place.
          OSError: the process could not write (disk full, no permission).
          Stopped: the command is being interrupted; the process is gone.
        """
        try:
            process = self._idle.get_nowait()
        except queue.Empty:
            process = self._start()
        assert process.stdin is not None and process.stdout is not None
        with contextlib.suppress(BrokenPipeError):  # it has died, as the missing reply will tell
            process.stdin.write(json.dumps(job._asdict(), default=str) + "\n")
            process.stdin.flush()
        while not select.select([process.stdout], [], [], 0.1)[0]:
            if self._stop.is_set():
                process.kill()
                process.communicate()
                shutil.rmtree(staging_folder(job.photos_dir, job.name), ignore_errors=True)
                raise Stopped
        reply = process.stdout.readline()
        if not reply:
            raise _death(process)
        self._idle.put(process)
        return _result(json.loads(reply))

    def close(self) -> None:
        """Ends the processes; none is at work."""
        while True:
            try:
                process = self._idle.get_nowait()
            except queue.Empty:
                return
            process.kill()
            process.communicate()

    def _start(self) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-c", _CHILD, str(_ROOT)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            pass_fds=(self._lock,),
            start_new_session=True,
            text=True,
        )


def main() -> None:
    """The process itself: a line of JSON in, a line of JSON out."""
    jobs: queue.SimpleQueue[str] = queue.SimpleQueue()
    threading.Thread(target=_read_jobs, args=(jobs,), daemon=True).start()
    while True:
        print(json.dumps(_work(json.loads(jobs.get()))), flush=True)


def _read_jobs(jobs: queue.SimpleQueue[str]) -> None:
    while line := sys.stdin.readline():
        jobs.put(line)
    os._exit(0)  # the parent is done, or gone


def _work(job: dict[str, Any]) -> dict[str, Any]:
    kind = job.pop("kind")
    for key in ("archive", "photos_dir", "listing"):
        job[key] = Path(job[key])
    try:
        if kind == "gzip":
            from flair.download.archive import unpack as unpack_kind
        else:
            from flair.download.huggingface import unpack as unpack_kind
        return unpack_kind(**job)._asdict()
    except UnpackError as error:
        return {"refused": str(error), "corrupt": error.corrupt, "rival": error.rival}
    except OSError as error:
        where = str(error.filename or job["photos_dir"])
        return {"errno": error.errno, "strerror": error.strerror, "filename": where}


def _result(reply: dict[str, Any]) -> Unpacked:
    if "refused" in reply:
        raise UnpackError(reply["refused"], corrupt=reply["corrupt"], rival=reply["rival"])
    if "errno" in reply:
        raise OSError(reply["errno"], reply["strerror"], reply["filename"])
    return Unpacked(**reply)


def _death(process: subprocess.Popen[str]) -> Exception:
    _, errors = process.communicate()
    if process.returncode < 0:
        signal = -process.returncode
        return UnpackError(f"could not be unpacked: the process was killed by signal {signal} (out of memory?)")
    return RuntimeError(f"unpacking failed:\n{errors}")
