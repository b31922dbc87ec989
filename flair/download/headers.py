"""Headers that servers send, read strictly."""

from __future__ import annotations

import datetime
import email.utils
import re
from collections.abc import Mapping

import requests

_A_MONTH = 30 * 86_400.0


def plain(text: str) -> str:
    """What a server sent, fit for one line of a message: short, and nothing in it that a terminal would act on."""
    return "".join(character if character.isprintable() else "?" for character in text[:200])


def retry_after(value: str, now: float) -> float:
    """Seconds to wait by a Retry-After header, which is a number of seconds or an HTTP date.

    >>> retry_after("120", now=0.0), retry_after("Thu, 01 Jan 1970 00:01:00 GMT", now=15.0), retry_after("soon", 0.0)
    (120.0, 45.0, 0.0)
    >>> retry_after("0 Jan 2020 99999999999999999999:00:00", now=0.0)
    0.0
    """
    seconds = value.strip()
    if re.fullmatch(r"[0-9]+", seconds):
        return min(float(seconds), _A_MONTH)
    try:
        date = email.utils.parsedate_to_datetime(value)
        if date.tzinfo is None:
            date = date.replace(tzinfo=datetime.timezone.utc)
        return min(max(0.0, date.timestamp() - now), _A_MONTH)
    except (ValueError, OverflowError):
        return 0.0  # a header that cannot be read asks for no wait


def content_range(response: requests.Response) -> tuple[int | None, int | None]:
    """First byte and total of a Content-Range header; None where it does not say."""
    text = response.headers.get("Content-Range", "").strip()
    match = re.fullmatch(r"bytes\s+(?:([0-9]{1,18})-[0-9]{1,18}|\*)/(?:([0-9]{1,18})|\*)", text)
    first, total = match.groups() if match else (None, None)
    return int(first) if first else None, int(total) if total else None


def content_encoding(response: requests.Response) -> str | None:
    """How the body is packed for the way, None for not at all; `x-gzip` is an old name of gzip (RFC 9110, 8.4.1.3)."""
    name = response.headers.get("Content-Encoding", "").strip().lower().removeprefix("x-")
    return None if name in ("", "identity") else plain(name)


def header_int(headers: Mapping[str, str], name: str) -> int | None:
    """A header that is a whole number, else None."""
    text = headers.get(name, "").strip()
    return int(text) if re.fullmatch(r"[0-9]{1,18}", text) else None


def file_name(url: str) -> str:
    """The last part of an address, for messages.

    >>> file_name("https://example.org/images/small_images-00.tar.gz?download=1")
    'small_images-00.tar.gz'
    """
    return url.partition("?")[0].rpartition("/")[2] or url
