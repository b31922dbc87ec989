"""One file over HTTP, resumed at the byte, hashed on the way.

A file grows as `<name>.part`; beside it `<name>.part.json` remembers which version of the file the bytes belong to
(its ETag or Last-Modified, asked for again with If-Range, RFC 9110 section 13.1.5). After a kill the next call
continues behind the last byte; when the server has another version by then, or ignores Range, the file starts over.
A finished part keeps its name: the caller checks what is inside, then ends it with `take` or `discard`, so a kill
between the two costs no second transfer. Files are asked for as they are (Accept-Encoding: identity); a text that comes
packed with gzip all the same stays so in its part, where bytes are counted as the server counts them, and is unpacked
by `take`.
"""

from __future__ import annotations

import errno
import gzip
import hashlib
import io
import os
import re
import shutil
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import requests

from flair.download.client import Client, TransferError, TryAgain
from flair.download.headers import content_encoding, content_range, file_name, header_int
from flair.files import atomic, json_text
from flair.parallel.threads import Stopped
from flair.terminal.progress import size as say_size

_START_BYTES = 64  # enough to tell a web page from an archive
_MAGIC = {"gzip": b"\x1f\x8b", "parquet": b"PAR1"}
# JSON of records shrinks to a twentieth.
_MAX_EXPANSION = 200
# Bytes; what a server without a published size may send. FLAIR's metadata has 0.1 GB, its largest raw archive 30 GB.
MOST_BYTES = {"text": 2 << 30, "parquet": 16 << 30, "gzip": 128 << 30}
_LEAST_FREE_BYTES = 64 << 20
_HEADER_VALUE = re.compile(r"[ -~]+")
_LOOK_EVERY_BYTES = 32 << 20


class WrongContent(TransferError):
    """Everything arrived, but it is not what was published."""


class Fetched(NamedTuple):
    """A whole file that arrived; `path` is its part."""

    path: Path
    size: int
    sha256: str


def fetch(
    client: Client,
    url: str,
    part: Path,
    *,
    expect: str = "text",
    size: int | None = None,
    sha256: str | None = None,
    most: int | None = None,
    on_bytes: Callable[[int], None] = lambda count: None,
) -> Fetched:
    """Brings all of `url` to `part`, continuing what is already there.

    Args:
      part: the growing file; its name ends in `.part`.
      expect: "gzip", "parquet" or "text"; another start than theirs, or a web page, is refused.
      size: published size in bytes, checked; None when nobody publishes it.
      sha256: published checksum, checked; None when nobody publishes it.
      most: bytes that are taken at most, whatever the server promises; None: `MOST_BYTES` of what is expected.
      on_bytes: told of every byte (those of an earlier run at once; a negative number when the file starts over).

    Raises:
      NotThere: the server has no such file.
      WrongContent: all arrived, and `size` or `sha256` is not the published one; the part is gone.
      TransferError: given up, with the last reason; the part stays for the next run.
      Stopped: the command is being interrupted; the part stays.
    """
    if most is None:
        most = MOST_BYTES[expect] if size is None else size
    transfer = _Transfer(client, url, part, expect, size, most, on_bytes)
    client.retry(file_name(url), transfer.attempt, lambda: transfer.most_arrived)
    fetched = Fetched(part, transfer.position, transfer.hash.hexdigest())
    if size is not None and fetched.size != size:
        transfer.start_over()
        raise WrongContent(f"has {fetched.size:,} bytes, but {size:,} are published")
    if sha256 is not None and fetched.sha256 != sha256:
        transfer.start_over()
        raise WrongContent(f"has the sha256 {fetched.sha256}, but {sha256} is published")
    return fetched


def arrived_bytes(part: Path) -> int:
    """How many bytes of a file are here from an earlier run."""
    return part.stat().st_size if _read_version(part) else 0


def is_whole(part: Path, url: str | None = None) -> bool:
    """Whether an earlier run brought all of it; from `url`, where that is given."""
    version = _read_version(part)
    return bool(version) and version.get("total") == part.stat().st_size and url in (None, version.get("url"))


def take(part: Path, final: Path, most: int = MOST_BYTES["text"]) -> None:
    """Gives a finished part its final name, and unpacks it where the server had packed it for the way.

    A part that unpacks to more than `most` bytes, or not at all, is a TransferError, and gone.
    """
    if _read_version(part).get("encoding") == "gzip":
        _unpack(part, final, most)
    else:
        with open(part, "rb") as file:
            atomic.sync(file.fileno())
        os.replace(part, final)
    discard(part)


def discard(part: Path) -> None:
    """Removes a part and what is remembered of it."""
    _version_path(part).unlink(missing_ok=True)
    part.unlink(missing_ok=True)


def _unpack(part: Path, final: Path, most: int) -> None:
    limit = min(most, _MAX_EXPANSION * part.stat().st_size)
    try:
        with atomic.replacing(final) as temporary, gzip.open(part) as packed, open(temporary, "wb") as file:
            while data := packed.read(1 << 20):
                file.write(data)
                if file.tell() > limit:
                    raise TransferError(f"unpacks to more than {say_size(limit)}, which no text does; refused")
    except (gzip.BadGzipFile, EOFError, zlib.error, TransferError) as error:
        discard(part)
        if isinstance(error, TransferError):
            raise
        raise TransferError(f"came packed with gzip, and damaged ({error}); run the same command again") from None


@dataclass
class _Transfer:
    """One file between tries: how far it is, its running hash, and which version of it this is."""

    client: Client
    url: str
    part: Path
    expect: str
    size: int | None
    most: int
    on_bytes: Callable[[int], None]

    def __post_init__(self) -> None:
        self.hash = hashlib.sha256()
        self.position = self.most_arrived = 0
        self.start = b""
        self.contradicted = False
        self.version = _read_version(self.part, self.url)  # empty where nothing of the file is here
        if self.version:
            with open(self.part, "rb") as file:
                while chunk := file.read(1 << 20):
                    if self.client.stop.is_set():
                        raise Stopped
                    self._count(chunk)

    def attempt(self) -> None:
        """One request; returns when the file is whole."""
        if self.position and self.position == self._total() and self.version.get("url") == self.url:
            return
        headers = {}
        if self.position:
            headers["Range"] = f"bytes={self.position}-"
            if validator := _validator(self.version):
                headers["If-Range"] = validator
        with self.client.get(self.url, headers) as response:
            if response.status_code == 416:
                self._accept_end(response)
            elif response.status_code == 206:
                self._continue(response)
                self._receive(response)
            else:
                self._begin(response)
                self._receive(response)
        self._check_start()
        if self._total() is None:
            self._remember({**self.version, "total": self.position})

    def start_over(self) -> None:
        """Forgets all that has arrived."""
        self.on_bytes(-self.position)
        self.hash, self.position, self.start, self.version = hashlib.sha256(), 0, b"", {}
        discard(self.part)

    def _count(self, chunk: bytes) -> None:
        self.hash.update(chunk)
        self.start += chunk[: _START_BYTES - len(self.start)]
        self.position += len(chunk)
        self.most_arrived = max(self.most_arrived, self.position)
        self.on_bytes(len(chunk))

    def _total(self) -> int | None:
        return self.version.get("total")

    def _accept_end(self, response: requests.Response) -> None:
        """416 where the part is as long as the file: the length promised before was wrong, and the part is whole."""
        if content_range(response)[1] != self.position:
            self.start_over()
            raise TryAgain("the file on the server is shorter than what has arrived of it; starting over")
        self._remember({**self.version, "url": self.url, "total": self.position})

    def _begin(self, response: requests.Response) -> None:
        if self.position:
            name = file_name(self.url)
            self.client.log(f"{name}: the server sends it whole again (changed there, or Range ignored); starting over")
        self.start_over()
        total = None if "Transfer-Encoding" in response.headers else header_int(response.headers, "Content-Length")
        kind = response.headers.get("Content-Type", "").partition(";")[0].strip().lower()
        if kind in ("text/html", "application/xhtml+xml"):
            raise TryAgain(f"the server sent a web page ({kind}) in place of the file: a proxy or a login page?")
        if self.size is not None and total is not None and total != self.size:
            reason = f"the server promises {total:,} bytes, but {self.size:,} are published"
            if self.contradicted:
                raise TransferError(f"{reason}; asked twice, so the two do not belong together")
            self.contradicted = True
            raise TryAgain(reason)
        encoding = self._encoding(response)
        etag, last_modified = response.headers.get("ETag"), response.headers.get("Last-Modified")
        self._remember(
            {"url": self.url, "etag": etag, "last_modified": last_modified, "total": total, "encoding": encoding}
        )

    def _encoding(self, response: requests.Response) -> str | None:
        """What the body is packed with beyond the file itself; raises for what is not unpacked here."""
        encoding = content_encoding(response)
        if encoding == "gzip" and self.expect == "gzip":
            return None  # some servers say that of a .tar.gz as it is
        if encoding is not None and (encoding, self.expect) != ("gzip", "text"):
            raise TransferError(
                f"the server sends it packed with {encoding}, which nobody asked for (Content-Encoding); refused"
            )
        return encoding

    def _continue(self, response: requests.Response) -> None:
        first, total = content_range(response)
        same = all(
            self.version.get(key) is None or response.headers.get(header) in (None, self.version[key])
            for key, header in (("etag", "ETag"), ("last_modified", "Last-Modified"))
        )
        same_total = total is None or self._total() in (None, total)
        same = same and self._encoding(response) == self.version.get("encoding")
        if not self.version or first != self.position or not same or not same_total:
            self.start_over()
            raise TryAgain("the file changed on the server; starting over")

    def _receive(self, response: requests.Response) -> None:
        end = self._total()
        if end is not None and end > self.most:
            self._refuse_length(f"promises {say_size(end)},")
        looked_at = self.position
        with open(self.part, "ab", buffering=0) as file:
            for chunk in self.client.chunks(response, None if end is None else end - self.position):
                if self.position + len(chunk) > self.most:
                    self._refuse_length("sends")  # of what nobody knows the end: not once more
                if self.position - looked_at >= _LOOK_EVERY_BYTES:
                    self._check_disk()
                    looked_at = self.position
                self._write(file, chunk)
                self._count(chunk)
                if len(self.start) == _START_BYTES:
                    self._check_start()
        if end is not None and self.position < end:
            raise TryAgain(f"the connection broke after {say_size(self.position)} of {say_size(end)}")

    def _refuse_length(self, does: str) -> None:
        self.start_over()
        raise TransferError(
            f"the server {does} more than the {say_size(self.most)} that such a file may have; refused, nothing is kept"
        )

    def _check_disk(self) -> None:
        if shutil.disk_usage(self.part.parent).free < _LEAST_FREE_BYTES:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.part))  # before it stops everybody

    def _write(self, file: io.FileIO, chunk: bytes) -> None:
        try:
            atomic.write_all(file.fileno(), chunk)
        except OSError as error:
            error.filename = str(self.part)
            raise

    def _check_start(self) -> None:
        if not self.start:
            self.start_over()
            raise TryAgain("the server sent an empty file")
        page = re.match(rb"\s*(?:<!doctype\s+html|<html)", self.start, re.IGNORECASE)
        if self.start.startswith(_MAGIC.get(self.expect, b"")) and not page:
            return
        shown = "a web page" if page else f"{self.start[:12]!r}"
        self.start_over()
        raise TryAgain(f"the server sent {shown} in place of {self.expect}")

    def _remember(self, version: dict[str, Any]) -> None:
        self.version = version
        atomic.write_json(_version_path(self.part), version)


def _version_path(part: Path) -> Path:
    return part.with_name(part.name + ".json")


def _read_version(part: Path, url: str | None = None) -> dict[str, Any]:
    """Which version of the file the bytes of `part` belong to; empty when nobody knows: then they are worth nothing."""
    try:
        version = json_text.read(_version_path(part)) if part.is_file() else {}
    except (FileNotFoundError, ValueError):
        return {}
    if not isinstance(version, dict) or (url and _validator(version) is None and version.get("url") != url):
        return {}
    return version


def _validator(version: dict[str, Any]) -> str | None:
    """What If-Range may carry: a strong ETag, else the date."""
    etag, last_modified = (
        value if isinstance(value, str) and _HEADER_VALUE.fullmatch(value) else None
        for value in (version.get("etag"), version.get("last_modified"))
    )
    return etag if etag is not None and not etag.startswith("W/") else last_modified
