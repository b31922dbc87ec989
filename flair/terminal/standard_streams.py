"""Makes standard input, output and error usable, however the command was started."""

from __future__ import annotations

import io
import os
import sys
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

STANDARD_OUTPUT = "standard output"


def mend() -> None:
    """Makes the three streams usable; a second call changes nothing.

    One that is closed (`>&-`) becomes the null device. What a terminal's encoding lacks is written with backslashes
    (`\\xe9`). Errors of standard output name it; standard error drops what cannot be written.
    """
    for descriptor in range(3):
        _fill(descriptor)
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # to the end of the process, so that nothing closes it
            stream = open(os.devnull, mode, encoding="utf-8", errors="backslashreplace")  # noqa: SIM115
            setattr(sys, name, stream)
    if sys.stdout is sys.__stdout__:
        sys.stdout = _on(_Named, sys.stdout)
    if sys.stderr is sys.__stderr__:
        sys.stderr = _on(_Lossy, sys.stderr)


def flush() -> None:
    """Writes what waits for standard output; raises the OSError of that, or of an earlier print that was dropped."""
    sys.stdout.flush()
    raw = getattr(sys.stdout, "buffer", None)
    raw = getattr(raw, "raw", raw)
    if isinstance(raw, _Named) and raw.error is not None:
        raise raw.error


class _Named(io.FileIO):
    """Standard output. Its errors name it, and are kept: argparse drops those of its help."""

    error: OSError | None = None

    def write(self, data: ReadableBuffer, /) -> int:
        try:
            return super().write(data)
        except OSError as error:
            error.filename = STANDARD_OUTPUT
            self.error = error
            raise


class _Lossy(io.FileIO):
    """Standard error. Where it is full or broken, nobody can be told, and the work goes on."""

    def write(self, data: ReadableBuffer, /) -> int:
        try:
            return super().write(data)
        except OSError:
            return memoryview(data).nbytes


def _on(kind: type[io.FileIO], stream: TextIO) -> TextIO:
    """A new stream like `stream`, with the same buffering, over a file of class `kind`."""
    if not isinstance(stream, io.TextIOWrapper):
        return stream
    raw = kind(stream.fileno(), "w", closefd=False)
    whole, line = stream.write_through, stream.line_buffering
    file = raw if whole else io.BufferedWriter(raw)
    return io.TextIOWrapper(file, stream.encoding, "backslashreplace", line_buffering=line, write_through=whole)


def _fill(descriptor: int) -> None:
    """Opens the null device where nothing is open; else the next file would get this number, and stray output."""
    try:
        os.fstat(descriptor)
    except OSError:
        opened = os.open(os.devnull, os.O_RDWR)
        os.dup2(opened, descriptor)
        os.set_inheritable(descriptor, True)
        if opened != descriptor:
            os.close(opened)
