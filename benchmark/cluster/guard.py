"""Ends what is left of a Ray cluster of this machine when its owner is gone, however it went.

The kernel ends Ray's head processes with their parent, and workers notice within seconds, but Ray's agents may take
minutes. This script waits beside the cluster: `python guard.py <folder>`, its standard input a pipe from the owner.
When that closes, it kills every process of Ray that names the cluster's folder or writes its log there, and removes the
folder, unless the owner's last word was `keep`. It needs the standard library only.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time

_POLL_SECONDS = 0.2
_QUIET_POLLS = 5  # without a process of the folder, before it is removed


def main(folder: str) -> int:
    """Waits for the owner's end, then cleans up."""
    keep = sys.stdin.read().strip() == "keep"
    quiet = 0
    while quiet < _QUIET_POLLS:
        found = processes_of(folder)
        for process in found:
            try:
                os.kill(process, signal.SIGKILL)
            except ProcessLookupError:
                continue
        quiet = 0 if found else quiet + 1
        time.sleep(_POLL_SECONDS)
    if not keep:
        shutil.rmtree(folder, ignore_errors=True)
    return 0


def processes_of(folder: str) -> list[int]:
    """Living processes of Ray that name the folder in their command line or have it behind an output of theirs."""
    others = (name for name in os.listdir("/proc") if name.isdigit() and int(name) != os.getpid())
    return [int(name) for name in others if _belongs(f"/proc/{name}", folder)]


def _belongs(process: str, folder: str) -> bool:
    try:
        with open(f"{process}/cmdline", "rb") as file:
            command = file.read()
        # Not whoever only looks at a log; a zombie has neither command line nor files.
        if folder.encode() in command and b"/ray/" in command:
            return True
        return any(os.readlink(f"{process}/fd/{number}").startswith(folder + "/") for number in (1, 2))
    except OSError:
        return False


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
