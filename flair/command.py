"""How every command of the toolkit ends: exit codes, one-line errors, Ctrl-C."""

from __future__ import annotations

import errno
import os
import signal
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from flair.errors import FlairError

EXIT_OK = 0
EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130
EXIT_TERMINATED = 143


class Terminated(BaseException):
    """SIGTERM arrived: unwind as for Ctrl-C, so that temporary files are removed."""


def run(main: Callable[[Sequence[str]], int | None], argv: Sequence[str] | None = None) -> NoReturn:
    """Runs `main(argv)` and exits: 0, its return value, 1 with one line on stderr, 130 (Ctrl-C) or 143 (SIGTERM)."""
    signal.signal(signal.SIGTERM, _terminate)
    # Figures go to files; matplotlib does not even start where a user's value names a window system that it lacks.
    os.environ["MPLBACKEND"] = "agg"
    program = os.path.basename(sys.argv[0])
    if program == "__main__.py" or sys.modules["__main__"].__spec__ is not None:
        program = getattr(sys.modules["__main__"].__spec__, "name", program)
    try:
        code = main(sys.argv[1:] if argv is None else argv) or EXIT_OK
        sys.stdout.flush()
    except FlairError as error:
        print(f"{program}: {error}", file=sys.stderr)
        code = EXIT_FAILED
    except KeyboardInterrupt:
        print(f"{program}: interrupted; the same command continues where it stopped", file=sys.stderr)
        code = EXIT_INTERRUPTED
    except Terminated:
        print(f"{program}: terminated; the same command continues where it stopped", file=sys.stderr)
        code = EXIT_TERMINATED
    except BrokenPipeError:
        code = EXIT_FAILED
    except OSError as error:
        print(f"{program}: {explain_os_error(error)}", file=sys.stderr)
        code = EXIT_FAILED
    try:
        sys.stdout.flush()
    except OSError:
        # Python flushes once more as it ends: into the void, or that would fail with a traceback.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(code)


def explain_os_error(error: OSError) -> str:
    """One line for an operating-system error: which file, what went wrong, what to do next."""
    if not error.errno:
        return str(error)
    where = f" {error.filename!r}" if error.filename else ""
    advice = {
        errno.ENOSPC: "the disk is full; free some space and run the same command again",
        errno.EDQUOT: "the disk quota is used up; free some space and run the same command again",
        errno.EACCES: "permission denied; choose a place you may read and write",
        errno.EPERM: "not permitted; choose a place you may read and write",
        errno.EROFS: "the file system is read-only; choose another place",
        errno.ENOENT: "no such file or directory; check the path",
        errno.ENOTDIR: "a part of the path is not a directory; check the path",
        errno.EISDIR: "is a directory; a file was expected",
        errno.EMFILE: "too many open files; raise the limit with `ulimit -n`",
    }.get(error.errno)
    return f"cannot read or write{where}: {advice or error.strerror}"


def _terminate(_signum: int, _frame: object) -> None:
    raise Terminated
