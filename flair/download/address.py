"""Addresses that users give, looked at before anything is sent; imports nothing heavy."""

from __future__ import annotations

from urllib.parse import urlsplit


def checked_address(text: str) -> str:
    """The address as it is, if requests could be sent to it.

    Raises:
      ValueError: it is none; one line.
    """
    try:
        parts = urlsplit(text)
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0 and text.isprintable()
    except ValueError:
        good = False
    if not good or text != text.strip():
        raise ValueError(f"expected an http:// or https:// address, got {text!r:.200}")
    return text
