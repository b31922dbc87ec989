"""HTTP sessions that break off replies that are too slow, and follow only safe redirects.

The timeouts of requests are for each read of the socket, so that a server that sends byte by byte could hold it for
ever. The body is read in pieces by `flair.download.client`, which watches its rate itself.
"""

from __future__ import annotations

import contextlib
import http.client
import http.cookiejar
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import urljoin, urlsplit

import requests
import urllib3
from requests.adapters import HTTPAdapter
from requests.utils import requote_uri


class NotEncrypted(requests.RequestException):
    """An https address redirects to one that is not; nothing has been sent there."""


class ReadTooSlow(Exception):
    """One read of a body gave nothing in time, though the server may have sent bytes, such as lengths of chunks."""


class _Session(requests.Session):
    def get_redirect_target(self, resp: requests.Response) -> None:
        """None, as if no reply redirected: requests would read the whole body of a redirect before it follows it."""


def redirect_target(response: requests.Response) -> str | None:
    """The whole address to which a reply redirects, None where it does not; a login in the address stays on its server.

    Raises:
      NotEncrypted: it leads from https to anything else.
      requests.exceptions.InvalidURL: it leads to what is not an address.
    """
    if not response.is_redirect:
        return None
    location = response.headers["Location"]
    try:
        location = location.encode("latin-1").decode("utf-8")  # as requests has it of servers that send text as it is
        address = urljoin(response.url, requote_uri(location))
        before, after = urlsplit(response.url), urlsplit(address)
    except ValueError:
        response.close()
        raise requests.exceptions.InvalidURL(f"{response.url} redirects to {location[:80]!r}") from None
    if before.scheme == "https" and after.scheme != "https":
        response.close()
        raise NotEncrypted(f"{response.url} redirects to {address}, which is not encrypted; refused")
    login, _, server = before.netloc.rpartition("@")
    if login and (before.scheme, server) == (after.scheme, after.netloc):
        return after._replace(netloc=before.netloc).geturl()
    return address


class ReadWatch:
    """Breaks the connection where one read of a body takes longer than 1.5 times `seconds`.

    The socket's own timeout is for each byte, and http.client reads the line before a chunk, or the lines behind the
    last one, to their end: a server that sends them byte by byte, or without end, would hold the reader for ever.
    """

    def __init__(self, response: requests.Response, seconds: float) -> None:
        self._response, self._seconds = response, seconds
        self._since: float | None = None
        self._is_cut = False
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> ReadWatch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()

    @contextlib.contextmanager
    def reading(self) -> Iterator[None]:
        """Around one read; raises ReadTooSlow in place of what came of a read that was cut."""
        self._since = time.monotonic()
        try:
            yield
        except Exception:
            if not self._is_cut:
                raise
        finally:
            self._since = None
        if self._is_cut:
            raise ReadTooSlow

    def _watch(self) -> None:
        while not self._ended.wait(self._seconds / 4):
            since = self._since
            # Later than the socket's own timeout, which knows that nothing came at all.
            if since is not None and time.monotonic() - since > 1.5 * self._seconds:
                self._is_cut = True
                body: Any = self._response.raw._fp  # urllib3's, of http.client, over the file of the socket
                with contextlib.suppress(OSError, AttributeError):  # closed in the meantime
                    body.fp.raw._sock.shutdown(socket.SHUT_RDWR)
                return


def open_session(head_seconds: float) -> requests.Session:
    """A new session; the connection breaks when the head of a reply takes longer than `head_seconds`."""
    pools = _pool_classes(head_seconds)

    class Adapter(HTTPAdapter):
        def proxy_manager_for(self, *args: Any, **options: Any) -> Any:
            manager = super().proxy_manager_for(*args, **options)
            manager.pool_classes_by_scheme = pools
            return manager

    session = _Session()
    session.cookies.set_policy(http.cookiejar.DefaultCookiePolicy(allowed_domains=()))  # none: files need none
    adapter = Adapter()
    adapter.poolmanager.pool_classes_by_scheme = pools
    session.mount("http://", adapter)
    session.mount("https://", adapter)
    return session


def _pool_classes(head_seconds: float) -> dict[str, type[urllib3.HTTPConnectionPool]]:
    class Response(http.client.HTTPResponse):
        def _read_status(self) -> tuple[str, int, str]:
            """Early hints (103) and their like are read over, as http.client does with 100 alone (RFC 9110, 15.2)."""
            version, status, reason = super()._read_status()  # type: ignore[misc]
            return version, 100 if 102 <= status < 200 else status, reason

    class Connection(urllib3.connection.HTTPConnection):
        response_class = Response

        def connect(self) -> None:
            with _deadline(self, head_seconds):  # a proxy may dawdle over its answer, too
                super().connect()

        def getresponse(self) -> Any:
            with _deadline(self, head_seconds):
                return super().getresponse()

    class SecureConnection(Connection, urllib3.connection.HTTPSConnection):
        """Its `super()` in Connection is HTTPSConnection, which is a kind of HTTPConnection."""

    class Pool(urllib3.HTTPConnectionPool):
        ConnectionCls = Connection

    class SecurePool(urllib3.HTTPSConnectionPool):
        ConnectionCls = SecureConnection

    return {"http": Pool, "https": SecurePool}


@contextlib.contextmanager
def _deadline(connection: urllib3.connection.HTTPConnection, seconds: float) -> Iterator[None]:
    too_late = threading.Event()

    def cut() -> None:
        too_late.set()
        with contextlib.suppress(OSError, AttributeError):  # closed in the meantime, or not open yet
            connection.sock.shutdown(socket.SHUT_RDWR)

    timer = threading.Timer(seconds, cut)
    timer.daemon = True
    timer.start()
    try:
        yield
    except (OSError, http.client.HTTPException):
        if not too_late.is_set():
            raise
    finally:
        timer.cancel()
    if too_late.is_set():  # whatever came of it: http.client takes a head that breaks off for a whole one
        raise TimeoutError("the head of the reply took too long")
