"""What Ctrl-C and SIGTERM do while a command starts, works and ends.

They always end it, and never with a traceback. While it starts there is nothing to tidy up: one line, and the process
is gone. While it works a signal is an exception, so that temporary files are removed. While the interpreter ends, the
result and the exit code stand already.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import sys
import threading
from types import FrameType

INTERRUPTED, TERMINATED = "interrupted", "terminated"
EXIT_CODES = {INTERRUPTED: 130, TERMINATED: 143}
_WORDS = {signal.SIGINT: INTERRUPTED, signal.SIGTERM: TERMINATED}
_SCRIPTS = ("download_dataset.py", "prepare_dataset.py", "prepare_tfrecords.py")
_AGAIN_SECONDS = 0.05
_exit_code = 0  # once it is known


class Terminated(BaseException):
    """SIGTERM arrived: unwind as for Ctrl-C, so that temporary files are removed."""


def starting_command() -> str | None:
    """The name of our command that is starting; None in any other process that imports the packages."""
    script = os.path.basename(sys.argv[0]) if sys.argv else ""
    if script == "-m":  # as long as Python looks for the module, importing its package
        module = sys.orig_argv[sys.orig_argv.index("-m") + 1] if "-m" in sys.orig_argv else ""
        return module if module.startswith(("flair.", "benchmark.")) else None
    return script if script in _SCRIPTS and sys.argv[0] in sys.orig_argv else None


def while_starting(program: str) -> None:
    """From now on a signal ends the process at once, with one line."""

    def leave(number: int, _frame: FrameType | None) -> None:
        word = _WORDS[signal.Signals(number)]
        try:
            os.write(2, f"{program}: {word}\n".encode(errors="backslashreplace"))
        finally:
            os._exit(EXIT_CODES[word])

    _handle(leave)


def while_working() -> None:
    """From now on a signal raises KeyboardInterrupt or Terminated in the main thread."""
    _handle(_raise)
    sys.unraisablehook = _send_again
    # Registered before those of the libraries, it is called after them; then Python would put the defaults back.
    atexit.register(_end)


def while_reporting() -> None:
    """From now on signals wait for `while_ending`, as there are only lines left to print."""
    _handle(lambda _number, _frame: None)


def while_ending(code: int) -> None:
    """From now on a signal cuts the interpreter's end short; the exit code is `code` all the same."""
    global _exit_code
    _exit_code = code

    def leave(number: int, frame: FrameType | None) -> None:
        if threading.main_thread().is_alive():  # whoever called the command goes on
            _raise(number, frame)
        os._exit(code)

    _handle(leave)


def reason(error: BaseException | None) -> str | None:
    """INTERRUPTED or TERMINATED where a signal is behind an exception, as when an import broke off; else None."""
    while error is not None:
        if isinstance(error, KeyboardInterrupt | Terminated):
            return TERMINATED if isinstance(error, Terminated) else INTERRUPTED
        error = error.__cause__ or error.__context__
    return None


def _handle(handler: signal._HANDLER) -> None:
    if threading.current_thread() is threading.main_thread():
        for number in _WORDS:
            # A shell starts a command in the background with SIGINT ignored.
            if number != signal.SIGINT or signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, handler)


def _raise(number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt if number == signal.SIGINT else Terminated


def _end() -> None:
    _handle(signal.SIG_IGN)
    threads = sys.modules.get("flair.parallel.threads")
    if threads is not None and threads.are_left():
        # One of them may be inside a library that calls Python, and aborts where the interpreter is gone.
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError):
                stream.flush()
        os._exit(_exit_code)


def _send_again(lost: sys.UnraisableHookArgs) -> None:
    """A signal in a destructor or a callback of the import system, where Python drops exceptions, comes once more."""
    if not isinstance(lost.exc_value, KeyboardInterrupt | Terminated):
        sys.__unraisablehook__(lost)
        return
    number = signal.SIGTERM if isinstance(lost.exc_value, Terminated) else signal.SIGINT
    again = threading.Timer(_AGAIN_SECONDS, os.kill, (os.getpid(), number))
    again.daemon = True
    again.start()
