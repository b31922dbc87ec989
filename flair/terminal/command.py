"""How every command of the toolkit ends: exit codes, one-line errors, Ctrl-C."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from flair.errors import FlairError
from flair.parallel import stopping, threads
from flair.terminal import standard_streams

EXIT_OK = 0
EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = stopping.EXIT_CODES[stopping.INTERRUPTED]
CONTINUES = "the same command continues where it stopped"
STARTS_OVER = "the same command starts over"

# What to do next, whatever the file was.
_ADVICE = {
    errno.ENOSPC: "the disk is full; free some space and run the same command again",
    errno.EDQUOT: "the disk quota is used up; free some space and run the same command again",
    errno.EMFILE: "too many open files; raise the limit with `ulimit -n`",
    errno.EFBIG: "File too large; raise the limit with `ulimit -f`, or choose another file system",
}
# For the file that the error names; an error without a name is about something else, such as shared memory.
_ADVICE_FOR_A_FILE = {
    errno.EACCES: "permission denied; choose a place you may read and write",
    errno.EPERM: "not permitted; choose a place you may read and write",
    errno.EROFS: "the file system is read-only; choose another place",
    errno.ENOENT: "no such file or directory; check the path",
    errno.ENOTDIR: "a part of the path is not a directory; check the path",
    errno.EISDIR: "is a directory; a file was expected",
    errno.EEXIST: "exists already, as something else; choose another place",
    errno.ENAMETOOLONG: "the name is too long; choose a shorter one",
    errno.ELOOP: "links that lead in a circle; choose another place",
}


def run(
    main: Callable[[Sequence[str]], int | None], argv: Sequence[str] | None = None, stopped: str = STARTS_OVER
) -> NoReturn:
    """Runs `main(argv)` and exits: 0, its return value, 1 with one line on stderr, 130 (Ctrl-C) or 143 (SIGTERM).

    `stopped` ends the line after Ctrl-C or SIGTERM: it says what the same command does when it is given again.
    """
    standard_streams.mend()
    # Our HDF5 files appear whole, under other names than those they are written to: there is nothing to lock, and some
    # file systems cannot. Keras opens files by itself and asks the environment only, when the library is imported.
    os.environ.setdefault("HDF5_USE_FILE_LOCKING", "FALSE")
    # Commands draw into files; another backend, as a notebook's, may not be installed.
    os.environ["MPLBACKEND"] = "agg"
    code = EXIT_FAILED
    try:
        try:
            stopping.while_working()
            code = _exit_code(main, sys.argv[1:] if argv is None else argv)
            standard_streams.flush()
        finally:
            stopping.while_reporting()
    except FlairError as error:
        code = _fail(str(error))
    except BrokenPipeError:
        code = EXIT_FAILED  # the reader of the output has gone, and wants no more
    except OSError as error:
        code = _fail(explain_os_error(error))
    except RuntimeError as error:
        if str(error) != threads.REFUSED:
            raise
        code = _fail("the system refuses more threads; use fewer --num_workers, or raise the limit with `ulimit -u`")
    except BaseException as error:
        reason = stopping.reason(error)
        if reason is None:
            raise
        _fail(f"{reason}; {stopped}")
        code = stopping.EXIT_CODES[reason]
    try:
        sys.stdout.flush()
    except OSError:
        # Python flushes once more as it ends: into the void, or that would fail with a traceback.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    stopping.while_ending(code)
    sys.exit(code)


def explain_os_error(error: OSError) -> str:
    """One line for an operating-system error: which file, what went wrong, what to do next."""
    if not error.errno:
        return str(error)
    if error.filename == standard_streams.STANDARD_OUTPUT:
        where = f"cannot write to {error.filename}"
    else:
        where = "cannot read or write" + (f" {error.filename!r}" if error.filename else "")
    advice = _ADVICE | (_ADVICE_FOR_A_FILE if error.filename else {})
    return f"{where}: {advice.get(error.errno, error.strerror)}"


def _exit_code(main: Callable[[Sequence[str]], int | None], argv: Sequence[str]) -> int:
    try:
        return main(argv) or EXIT_OK
    except SystemExit as stop:  # of argparse
        if isinstance(stop.code, str):
            raise FlairError(stop.code) from None
        return stop.code or EXIT_OK


def _fail(text: str) -> int:
    program = os.path.basename(sys.argv[0])
    if program == "__main__.py" or sys.modules["__main__"].__spec__ is not None:
        program = getattr(sys.modules["__main__"].__spec__, "name", program)
    print(f"{program}: {text}", file=sys.stderr)
    return EXIT_FAILED
