"""Runs TFF's worker binary and ends it when the process that asked for it is gone, however that process died.

TFF starts its C++ worker as a plain child, which outlives a killed parent with gigabytes of memory. This script stands
between the two: `python tff_worker_guard.py <worker> <flags...>`. It needs the standard library only.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time

_PR_SET_PDEATHSIG = 1
_POLL_SECONDS = 0.2


def main(arguments: list[str]) -> int:
    """Runs `arguments` as a child until it ends or this process's parent does."""
    parent = os.getppid()
    worker = subprocess.Popen(arguments, preexec_fn=_die_with_parent)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: worker.kill())
    while worker.poll() is None:
        if os.getppid() != parent:
            worker.kill()
        time.sleep(_POLL_SECONDS)
    return worker.returncode


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    # Ctrl-C reaches the whole foreground group; the worker must live until the round in flight has ended.
    os.setpgrp()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
