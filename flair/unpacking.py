"""Every archive is unpacked in a process of its own: decompression does not slow the transfers, nor they it.

The process ends by itself when its parent is gone, however that was killed, and until then holds the parent's lock on
the dataset folder, so that a new run never meets an old one at work. It is out of reach of Ctrl-C, which the parent
handles for it.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, NamedTuple

from flair.staging import Unpacked, UnpackError, staging_folder
from flair.threads import Stopped

_ROOT = Path(__file__).resolve().parent.parent
# The folder of the package takes the place of the current one, which may hold another `flair`.
_CHILD = "import sys; sys.path[0] = sys.argv[1]; from flair.unpacking import main; main(sys.argv[2])"


class Job(NamedTuple):
    """What to unpack and where to; `kind` is "gzip" (a tar.gz) or "parquet"."""

    kind: str
    archive: str
    name: str
    photos_dir: str
    listing: str
    max_photo_bytes: int


def unpack(job: Job, lock: int, stop: threading.Event) -> Unpacked:
    """Unpacks in a new process and waits for it; `lock` is an open file that the process keeps open.

    Raises:
      UnpackError: the archive is damaged or refused; none of its photos is in place.
      OSError: the process could not write (disk full, no permission).
      Stopped: `stop` was set; the process is gone.
    """
    life, hold = os.pipe()
    try:
        request = json.dumps({"life": life, **job._asdict()})
        process = subprocess.Popen(
            [sys.executable, "-c", _CHILD, str(_ROOT), request],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            pass_fds=(life, lock),
            start_new_session=True,
            text=True,
        )
        os.close(life)
        life = -1
        output, errors = _communicate(process, stop)
    finally:
        if life >= 0:
            os.close(life)
        os.close(hold)
    if process.returncode < 0 and stop.is_set():
        shutil.rmtree(staging_folder(Path(job.photos_dir), job.name), ignore_errors=True)
        raise Stopped
    return _result(process.returncode, output, errors)


def main(request: str) -> None:
    """The process itself: unpacks and prints one line of JSON."""
    job = json.loads(request)
    threading.Thread(target=_exit_with_parent, args=(job.pop("life"),), daemon=True).start()
    kind = job.pop("kind")
    for key in ("archive", "photos_dir", "listing"):
        job[key] = Path(job[key])
    result: dict[str, Any]
    try:
        if kind == "gzip":
            from flair.archive import unpack as unpack_kind
        else:
            from flair.huggingface import unpack as unpack_kind
        result = unpack_kind(**job)._asdict()
    except UnpackError as error:
        result = {"refused": str(error), "corrupt": error.corrupt}
    except OSError as error:
        where = str(error.filename or job["photos_dir"])
        result = {"errno": error.errno, "strerror": error.strerror, "filename": where}
    print(json.dumps(result))


def _communicate(process: subprocess.Popen[str], stop: threading.Event) -> tuple[str, str]:
    while True:
        try:
            return process.communicate(timeout=0.1)
        except subprocess.TimeoutExpired:
            if stop.is_set():
                process.kill()


def _result(code: int, output: str, errors: str) -> Unpacked:
    if code < 0:
        raise UnpackError(f"could not be unpacked: the process was killed by signal {-code} (out of memory?)")
    if code > 0:
        raise RuntimeError(f"unpacking failed:\n{errors}")
    result = json.loads(output)
    if "refused" in result:
        raise UnpackError(result["refused"], corrupt=result["corrupt"])
    if "errno" in result:
        raise OSError(result["errno"], result["strerror"], result["filename"])
    return Unpacked(**result)


def _exit_with_parent(life: int) -> None:
    os.read(life, 1)  # nobody writes: this returns when the last writer, the parent, is gone
    os._exit(1)
