"""A loopback HTTP server that misbehaves exactly as a test tells it to, and remembers every request."""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import hashlib
import http.server
import re
import ssl
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import NamedTuple

PIECE_BYTES = 4096


@dataclasses.dataclass
class Request:
    """A request as it was answered; `sent` is how many bytes of the body have gone out."""

    method: str
    path: str
    range: str | None
    if_range: str | None
    status: int
    user_agent: str
    login: str | None
    sent: int = 0


class Fault(NamedTuple):
    """How one request is answered wrongly. What is not set is done right."""

    status: int | None = None  # answer with this status and `body`
    headers: tuple[tuple[str, str], ...] = ()  # in addition; a value replaces the right one
    body: bytes = b""
    drop_after: int | None = None  # bytes of the body after which the connection breaks
    ignore_range: bool = False
    promise: int = 0  # added to Content-Length
    chunked: bool = False  # no Content-Length
    before_piece: Callable[[int], object] | None = None  # called with the bytes sent so far
    piece_bytes: int = PIECE_BYTES
    script: Callable[[Callable[[bytes], object]], object] | None = None  # writes the whole reply, until it fails


class FaultServer(http.server.ThreadingHTTPServer):
    """Serves `files` (path -> content); the n-th GET of a path meets the n-th of `faults[path]`, later ones none."""

    daemon_threads = True

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self._scheme = "http" if tls is None else "https"
        if tls is not None:
            self.socket = tls.wrap_socket(self.socket, server_side=True, do_handshake_on_connect=False)
        self.files: dict[str, bytes] = {}
        self.etags: dict[str, str | None] = {}  # in place of the right one; None: no validator at all
        self.redirects: dict[str, tuple[tuple[str, str], ...]] = {}  # path -> headers, Location among them
        self.faults: dict[str, list[Fault]] = defaultdict(list)
        self.requests: list[Request] = []
        self.lock = threading.Lock()
        self.body_bytes = 0
        self._hold_at: int | None = None
        self.held = threading.Event()
        self._go_on = threading.Event()

    @property
    def url(self) -> str:
        return f"{self._scheme}://127.0.0.1:{self.server_address[1]}"

    def hold_after(self, num_bytes: int) -> None:
        """Sends `num_bytes` more of any bodies, then sets `held` and lets every body wait for `release`."""
        self.held.clear()
        self._go_on.clear()
        self._hold_at = self.body_bytes + num_bytes

    def release(self) -> None:
        """Lets waiting bodies go on."""
        self._hold_at = None
        self._go_on.set()

    def gets(self, path: str = "") -> list[Request]:
        """The GET requests of one path, or of all."""
        return [request for request in self.requests if request.method == "GET" and path in ("", request.path)]

    def allowance(self, wanted: int) -> int:
        """How many of `wanted` bytes may be sent now; waits while the server holds."""
        while True:
            with self.lock:
                if self._hold_at is None:
                    granted = wanted
                else:
                    granted = min(wanted, self._hold_at - self.body_bytes)
                if granted > 0:
                    self.body_bytes += granted
                    return granted
            self.held.set()
            self._go_on.wait()

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that break off are what the tests are about."""


@contextlib.contextmanager
def serve(tls: ssl.SSLContext | None = None) -> Iterator[FaultServer]:
    """A server at work until the block ends."""
    with FaultServer(tls) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.release()
            server.shutdown()
            thread.join()


class _Handler(http.server.BaseHTTPRequestHandler):
    server: FaultServer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_HEAD(self) -> None:
        content = self.server.files.get(self.path)
        if self.path in self.server.redirects:
            self._answer(302, b"", [("Content-Length", "0"), *self.server.redirects[self.path]], Fault())
            return
        self._remember(404 if content is None else 200)
        self.send_response(404 if content is None else 200)
        self.send_header("Content-Length", str(len(content or b"")))
        self.end_headers()

    def do_GET(self) -> None:
        with self.server.lock:
            waiting = self.server.faults[self.path]
            fault = waiting.pop(0) if waiting else Fault()
        if fault.script is not None:
            self._remember(0)
            self.close_connection = True
            with contextlib.suppress(OSError):  # the client broke off
                fault.script(self.wfile.write)
            return
        content = self.server.files.get(self.path)
        if fault.status is None and self.path in self.server.redirects:
            self._answer(302, b"", [("Content-Length", "0"), *self.server.redirects[self.path]], fault)
            return
        if fault.status is not None or content is None:
            self._answer(fault.status or 404, fault.body, [("Content-Length", str(len(fault.body)))], fault)
            return
        etag = self.server.etags.get(self.path, f'"{hashlib.sha256(content).hexdigest()[:16]}"')
        headers = [] if etag is None else [("ETag", etag)]
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if wanted is None or fault.ignore_range or self.headers.get("If-Range", etag) != etag:
            self._answer(200, content, [*headers, ("Content-Length", str(len(content) + fault.promise))], fault)
            return
        first, last = int(wanted[1]), int(wanted[2] or len(content) - 1)
        if first >= len(content):
            self._answer(416, b"", [("Content-Range", f"bytes */{len(content)}"), ("Content-Length", "0")], fault)
            return
        body = content[first : last + 1]
        place = f"bytes {first}-{first + len(body) - 1}/{len(content)}"
        length = str(len(body) + fault.promise)
        self._answer(206, body, [*headers, ("Content-Range", place), ("Content-Length", length)], fault)

    def _answer(self, status: int, body: bytes, headers: list[tuple[str, str]], fault: Fault) -> None:
        request = self._remember(status)
        replaced = {name for name, _ in fault.headers} | ({"Content-Length"} if fault.chunked else set())
        self.send_response(status)
        for name, value in [header for header in headers if header[0] not in replaced] + list(fault.headers):
            self.send_header(name, value)
        if fault.chunked:
            self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        end = len(body) if fault.drop_after is None else min(len(body), fault.drop_after)
        try:
            while request.sent < end:
                if fault.before_piece is not None:
                    fault.before_piece(request.sent)
                count = self.server.allowance(min(fault.piece_bytes, end - request.sent))
                piece = body[request.sent : request.sent + count]
                request.sent += count
                self.wfile.write(b"%x\r\n%s\r\n" % (count, piece) if fault.chunked else piece)
                self.wfile.flush()
            if fault.chunked and fault.drop_after is None:
                self.wfile.write(b"0\r\n\r\n")
        except OSError:
            pass  # the client broke off
        if fault.drop_after is not None or fault.promise:
            self.close_connection = True

    def _remember(self, status: int) -> Request:
        headers = self.headers
        agent, basic = headers.get("User-Agent", ""), headers.get("Authorization")
        login = None if basic is None else base64.b64decode(basic.removeprefix("Basic ")).decode()
        request = Request(self.command, self.path, headers.get("Range"), headers.get("If-Range"), status, agent, login)
        with self.server.lock:
            self.server.requests.append(request)
        return request

    def log_message(self, format: str, *args: object) -> None:
        pass
