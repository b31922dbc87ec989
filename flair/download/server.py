"""An HTTP server of one folder that resumes downloads: it stands in for Apple's server, on the loopback interface."""

from __future__ import annotations

import contextlib
import email.utils
import http.server
import os
import re
import sys
import threading
import urllib.parse
from collections.abc import Iterator
from http import HTTPStatus
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from flair.errors import FlairError

_ONE_RANGE = re.compile(r"bytes=([0-9]{0,18})-([0-9]{0,18})")


class Request(NamedTuple):
    """One request as it was answered; `range` is the header as sent, or None."""

    method: str
    path: str
    range: str | None
    status: int


class Mirror(http.server.ThreadingHTTPServer):
    """Serves the files below `folder`, a thread a connection; `requests` lists what was asked, in order of answering.

    GET and HEAD, HTTP/1.1 with keep-alive, Content-Length, a strong ETag of size and modification time, Last-Modified,
    If-None-Match (304), and single byte ranges (206, 416) with If-Range; a header with several ranges is answered with
    the whole file, as RFC 9110 section 14.2 allows. No listings; nothing outside the folder, not even through links.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, folder: str | Path, port: int = 0) -> None:
        self.folder = Path(folder).resolve()
        if not self.folder.is_dir():
            raise FlairError(
                f"--archives_dir={folder}: no such directory; expected one made by `flair.miniature.archives`"
            )
        self.requests: list[Request] = []
        try:
            super().__init__(("127.0.0.1", port), _Handler)
        except (OSError, OverflowError) as error:
            raise FlairError(f"--port={port}: cannot listen on it ({error}); choose another, or 0 for any") from None

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that has gone is not an error of the server; anything else is shown as usual."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)

    @property
    def url(self) -> str:
        """The address of the folder, without a slash at the end: http://127.0.0.1:PORT."""
        return f"http://127.0.0.1:{self.server_address[1]}"


@contextlib.contextmanager
def serve(folder: str | Path, port: int = 0) -> Iterator[Mirror]:
    """A `Mirror` that serves from a thread until the block ends; port 0 is any free one, FlairError a taken one."""
    with Mirror(folder, port) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Mirror
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    timeout = 60  # seconds that an idle connection is kept

    def do_GET(self) -> None:
        path = self._local_path()
        if path is None:
            self._send_error_text(HTTPStatus.NOT_FOUND)
            return
        try:
            with open(path, "rb") as file:
                self._answer_with(file)
        except PermissionError:
            self._send_error_text(HTTPStatus.FORBIDDEN)

    do_HEAD = do_GET  # what has a body looks at `command`

    def _local_path(self) -> Path | None:
        """The file asked for, or None where there is none inside the folder."""
        asked = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path).lstrip("/")
        if "\0" in asked:
            return None
        try:
            path = (self.server.folder / asked).resolve()
            return path if path.is_relative_to(self.server.folder) and path.is_file() else None
        except (OSError, RuntimeError):  # too long a name, or links in a circle
            return None

    def _answer_with(self, file: BinaryIO) -> None:
        status = os.fstat(file.fileno())
        etag = f'"{status.st_mtime_ns:x}-{status.st_size:x}"'
        modified = email.utils.formatdate(status.st_mtime, usegmt=True)
        if etag in [tag.strip() for tag in self.headers.get("If-None-Match", "").split(",")]:
            self._send_head(HTTPStatus.NOT_MODIFIED, {"ETag": etag})
            return
        headers = {"ETag": etag, "Last-Modified": modified, "Accept-Ranges": "bytes"}
        start, stop = 0, status.st_size
        code = HTTPStatus.OK
        if self.headers.get("If-Range", etag) in (etag, modified):
            try:
                asked = _parse_range(self.headers.get("Range", ""), status.st_size)
            except ValueError:
                headers["Content-Range"] = f"bytes */{status.st_size}"
                self._send_error_text(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, headers)
                return
            if asked is not None:
                start, stop = asked
                code = HTTPStatus.PARTIAL_CONTENT
                headers["Content-Range"] = f"bytes {start}-{stop - 1}/{status.st_size}"
        headers |= {"Content-Type": "application/octet-stream", "Content-Length": str(stop - start)}
        self._send_head(code, headers)
        if self.command == "GET" and stop > start:
            try:
                self.wfile.flush()
                self.connection.sendfile(file, start, stop - start)
            except (ConnectionError, TimeoutError):
                self.close_connection = True  # the client hung up, as downloaders under test do

    def _send_error_text(self, code: HTTPStatus, headers: dict[str, str] | None = None) -> None:
        text = f"{code.value} {code.phrase}\n".encode()
        self._send_head(code, {"Content-Type": "text/plain", "Content-Length": str(len(text)), **(headers or {})})
        if self.command == "GET":
            self.wfile.write(text)

    def _send_head(self, code: HTTPStatus, headers: dict[str, str]) -> None:
        self.server.requests.append(Request(self.command, self.path, self.headers.get("Range"), code.value))
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Silent: `Mirror.requests` has it."""


def _parse_range(header: str, size: int) -> tuple[int, int] | None:
    """[start, stop) of a single byte range; None for no, several or malformed ranges; ValueError: outside the file.

    >>> _parse_range("bytes=2-4", 10), _parse_range("bytes=-3", 10), _parse_range("bytes=0-1,4-5", 10)
    ((2, 5), (7, 10), None)
    """
    match = _ONE_RANGE.fullmatch(header.strip())
    if match is None or match[0] == "bytes=-":
        return None
    first, last = match[1], match[2]
    if not first:
        start, stop = max(0, size - int(last)), size
    else:
        start, stop = int(first), min(size, int(last) + 1) if last else size
        if last and int(last) < start:
            return None
    if start >= size or stop <= start:
        raise ValueError
    return start, stop
