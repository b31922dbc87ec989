"""Reading text that people wrote: UTF-8, with or without a byte order mark, from a file or a pipe."""

from __future__ import annotations

import codecs
import os
import stat
from pathlib import Path

from flair.files import regular_file

ENCODING = "utf-8-sig"  # UTF-8 whose byte order mark, if there is one, does not belong to the text
_UTF16_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


class NotText(ValueError):
    """The bytes are not UTF-8 text; the message is a clause that says what they are, without the file's name."""


def read(path: str | Path, most_bytes: int = 1 << 30) -> str:
    """The text of a file, its line ends as they are. A pipe such as `<(command)` will do; without a writer it is empty.

    Raises:
      NotText: what `decode` refuses, a device, or more than `most_bytes`.
      OSError: it cannot be read.
    """
    # Without O_NONBLOCK, a pipe nobody writes to is waited for, without end.
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
        found = os.fstat(file.fileno())
        if not (regular_file.is_file(found) or stat.S_ISFIFO(found.st_mode)):
            raise NotText("a device, not a file of text")
        os.set_blocking(file.fileno(), True)  # now for the writer of a pipe; one without a writer is at its end
        data = bytearray()
        while len(data) <= most_bytes and (chunk := file.read1(1 << 20)):
            data += chunk
    if len(data) > most_bytes:
        raise NotText(f"larger than {most_bytes:,} bytes, which no such text is")
    return decode(bytes(data))


def decode(data: bytes) -> str:
    """The text without its byte order mark.

    Raises:
      NotText: it is UTF-16, or no text at all.

    >>> decode(b"\\xef\\xbb\\xbfdog -> animal")
    'dog -> animal'
    >>> decode("dog".encode("utf-16"))
    Traceback (most recent call last):
    flair.files.text_file.NotText: UTF-16 text; save it as UTF-8
    """
    try:
        text = data.decode(ENCODING)
    except UnicodeDecodeError as error:
        raise NotText(explain(error)) from None
    if "\0" in text:
        raise NotText("not UTF-8 text, but has zero bytes, as UTF-16 does; save it as UTF-8")
    return text


def explain(error: UnicodeDecodeError) -> str:
    """The clause for a file that is read piece by piece, with the encoding above."""
    is_utf16 = error.start == 0 and error.object[:2] in _UTF16_MARKS
    return f"{'UTF-16' if is_utf16 else 'not UTF-8'} text; save it as UTF-8"
