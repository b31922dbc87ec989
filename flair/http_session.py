"""A requests session whose servers have to finish the head of a reply in time, and may not lead out of encryption.

The timeouts of requests are for each read of the socket, so a server that sends a header byte by byte could hold it for
ever. The body is read in pieces by `flair.client`, which watches its rate itself.
"""

from __future__ import annotations

import contextlib
import http.client
import socket
import threading
from collections.abc import Iterator
from typing import Any
from urllib.parse import urljoin, urlsplit

import requests
import urllib3
from requests.adapters import HTTPAdapter


class NotEncrypted(requests.RequestException):
    """An https address redirects to one that is not; nothing has been sent there."""


class _Session(requests.Session):
    def get_redirect_target(self, resp: requests.Response) -> str | None:
        """As that of requests, which asks it before every hop of a redirect, whatever the method."""
        target: str | None = super().get_redirect_target(resp)
        if target is not None and urlsplit(resp.url).scheme == "https":
            address = urljoin(resp.url, target)
            if urlsplit(address).scheme != "https":
                resp.close()
                raise NotEncrypted(f"{resp.url} redirects to {address}, which is not encrypted; refused")
        return target


def open_session(head_seconds: float) -> requests.Session:
    """A new session; the connection breaks when the head of a reply takes longer than `head_seconds`.

    Its requests raise NotEncrypted before they would follow a redirect from https to anything else.
    """
    pools = _pool_classes(head_seconds)

    class Adapter(HTTPAdapter):
        def init_poolmanager(self, *args: Any, **options: Any) -> None:
            super().init_poolmanager(*args, **options)
            self.poolmanager.pool_classes_by_scheme = pools

        def proxy_manager_for(self, *args: Any, **options: Any) -> Any:
            manager = super().proxy_manager_for(*args, **options)
            manager.pool_classes_by_scheme = pools
            return manager

    session = _Session()
    session.mount("http://", Adapter())
    session.mount("https://", Adapter())
    return session


def _pool_classes(head_seconds: float) -> dict[str, type[urllib3.HTTPConnectionPool]]:
    class Connection(urllib3.connection.HTTPConnection):
        def getresponse(self) -> Any:
            with _deadline(self, head_seconds):
                return super().getresponse()

    class SecureConnection(urllib3.connection.HTTPSConnection):
        def getresponse(self) -> Any:
            with _deadline(self, head_seconds):
                return super().getresponse()

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
        with contextlib.suppress(OSError):  # closed in the meantime
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
