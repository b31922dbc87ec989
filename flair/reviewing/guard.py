"""Refuses requests to the review page from other web pages or other machines, and links in the place of photos.

The server listens on loopback only, but any page open in the same browser can send requests there. So a request must
name this server as its host (a foreign name that resolves to 127.0.0.1 does not: DNS rebinding), a change must come
from a page of this server (Origin), and carry the token that only such a page can read, beside a SameSite cookie.
"""

from __future__ import annotations

import errno
import hmac
import os
import secrets
import stat
from pathlib import Path
from typing import BinaryIO

from flask import Flask, Response, abort, request

LOOPBACK = "127.0.0.1"
TOKEN_HEADER = "X-Review-Token"
MAX_REQUEST_BYTES = 4 << 20
_HOSTS = (LOOPBACK, "localhost")
_HTTP_PORT = 80
_CONTENT_SECURITY_POLICY = (
    "default-src 'self'; object-src 'none'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)

_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK  # opening a pipe would wait for its other end


class Guard:
    """Checks every request of one app, and adds headers to every response.

    Attributes:
      token: what changes must carry; new with each process.
    """

    def __init__(self, port: int) -> None:
        self.token = secrets.token_urlsafe(32)
        # Browsers name the host without the port where that is HTTP's own.
        self._hosts = frozenset(host if port == _HTTP_PORT else f"{host}:{port}" for host in _HOSTS)
        self._cookie = f"flair_review_{port}"  # cookies know no ports, so the name does

    def install(self, app: Flask) -> None:
        """Guards all routes of `app`."""
        app.config["MAX_CONTENT_LENGTH"] = MAX_REQUEST_BYTES
        app.before_request(self._check)
        app.after_request(self._add_headers)

    def _check(self) -> None:
        if request.host not in self._hosts:
            abort(400, f"expected the address this page was opened at, found the host {request.host!r:.80}")
        if request.method in ("GET", "HEAD", "OPTIONS"):
            return
        own = f"http://{request.host}"
        same_site = request.headers.get("Sec-Fetch-Site", "same-origin") == "same-origin"
        if request.headers.get("Origin", own) != own or not same_site:
            abort(400, "the request comes from another page")
        if request.mimetype != "application/json":
            abort(400, "expected JSON")
        sent = (request.headers.get(TOKEN_HEADER, ""), request.cookies.get(self._cookie, ""))
        if not all(hmac.compare_digest(value.encode(), self.token.encode()) for value in sent):
            abort(400, "the page is older than the server; load it again")

    def _add_headers(self, response: Response) -> Response:
        headers = response.headers
        headers["Content-Security-Policy"] = _CONTENT_SECURITY_POLICY
        headers["X-Content-Type-Options"] = "nosniff"
        headers["X-Frame-Options"] = "DENY"
        headers["Referrer-Policy"] = "no-referrer"
        headers["Cross-Origin-Resource-Policy"] = "same-origin"
        headers["Cross-Origin-Opener-Policy"] = "same-origin"
        headers.setdefault("Cache-Control", "no-store")
        if response.mimetype == "text/html" and request.cookies.get(self._cookie) != self.token:
            response.set_cookie(self._cookie, self.token, httponly=True, samesite="Strict")
        return response


def open_photo(path: Path) -> BinaryIO | None:
    """Opens the file to read; None if it is missing or not a regular file, or if it or its folder is a symbolic link.

    Raises:
      OSError: it cannot be opened for another reason, such as its permissions.
    """
    try:
        folder = os.open(path.parent, _READ | os.O_DIRECTORY)
    except (FileNotFoundError, NotADirectoryError):  # the latter also for a link
        return None
    try:
        file = open(os.open(path.name, _READ, dir_fd=folder), "rb")  # noqa: SIM115 - the caller closes it
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO, errno.EISDIR):  # a link, a socket, a folder
            return None
        raise
    finally:
        os.close(folder)
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        return None
    return file
