"""Sends HTTP requests, tries again where that can help, and says in plain words what failed."""

from __future__ import annotations

import contextlib
import random
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple, TypeVar

import requests
import urllib3

from flair import __version__
from flair.download.headers import content_encoding, content_range, file_name, header_int, plain, retry_after
from flair.download.session import NotEncrypted, ReadTooSlow, ReadWatch, open_session, redirect_target
from flair.errors import FlairError
from flair.parallel.threads import Stopped
from flair.terminal.progress import duration
from flair.terminal.progress import size as say_size

CHUNK_BYTES = 1 << 18
MAX_REDIRECTS = 20
# A try that brought fewer new bytes than this counts as one more failure in a row.
WORTHWHILE_BYTES = 1 << 18
LONGEST_RETRY_AFTER_SECONDS = 600.0
_PASSING_STATUS = frozenset({408, 425, 429, 500, 502, 503, 504, 507, 509, 520, 521, 522, 523, 524})
_MALFORMED = (
    requests.exceptions.InvalidURL,
    requests.exceptions.InvalidSchema,
    requests.exceptions.MissingSchema,
    urllib3.exceptions.LocationParseError,
)
_ABSENT_STATUS = frozenset({403, 404, 410})  # 403 is how object stores say it of a file that nobody may list

Result = TypeVar("Result")


class TransferError(FlairError):
    """A file that could not be fetched, with the reason."""


class NotThere(TransferError):
    """The server says that it has no such file (403, 404 or 410)."""


class RangeIgnored(TransferError):
    """The server sends whole files only."""


class TryAgain(Exception):
    """A passing fault; `wait` is how many seconds the server asked for."""

    def __init__(self, reason: str, wait: float = 0.0) -> None:
        super().__init__(reason)
        self.wait = wait


class Patience(NamedTuple):
    """How long to wait for what, in seconds; clock, jitter and sleep are replaceable for tests."""

    retries: int = 6  # tries in a row that bring nothing new, before giving up
    timeout: float = 60.0  # without a byte, or below `minimum_rate` for as long
    connect_timeout: float = 15.0
    minimum_rate: float = 1000.0  # bytes/s
    first_wait: float = 1.0  # doubled after every failure in a row
    longest_wait: float = 60.0
    clock: Callable[[], float] = time.monotonic
    now: Callable[[], float] = time.time
    jitter: Callable[[], float] = random.random
    sleep: Callable[[float], object] | None = None  # None: sleep, but wake when the command is interrupted

    def backoff(self, failures: int) -> float:
        """Exponential back-off with jitter: between half and all of first_wait * 2 ** (failures - 1).

        >>> Patience(jitter=lambda: 1.0).backoff(4)
        8.0
        """
        return min(self.longest_wait, self.first_wait * 2.0 ** min(failures - 1, 99)) * (0.5 + 0.5 * self.jitter())


class Remote(NamedTuple):
    """What a server says about a file without sending it; None where it says nothing."""

    size: int | None
    sha256: str | None
    url: str  # where redirects ended


class Client:
    """Sends requests by one set of rules; one client serves many threads.

    Proxies come from HTTP_PROXY, HTTPS_PROXY and NO_PROXY, extra certificates from REQUESTS_CA_BUNDLE. TLS is always
    verified, and no request, whatever its method, follows a redirect from https to http.
    """

    def __init__(self, patience: Patience | None = None, log: Callable[[str], None] = lambda message: None) -> None:
        self.patience, self.log = patience or Patience(), log
        self.stop = threading.Event()  # once it is set, everything ends with Stopped
        self.retried = 0
        self._lock = threading.Lock()
        self._local = threading.local()

    def ask(self, url: str) -> Remote:
        """Size and, where the hub publishes it, sha256 of `url` by HEAD; TransferError where https leads to http."""
        try:
            hops, response = self._send("HEAD", url, {})
        except NotEncrypted as error:
            raise TransferError(plain(str(error))) from None
        except (requests.RequestException, urllib3.exceptions.HTTPError):
            return Remote(None, None, url)  # only an estimate is lost: the transfer itself reports what is wrong
        with response:
            size = header_int(response.headers, "Content-Length") if response.ok else None
            sha256 = None
            for linked in (*hops, _linked(response)):
                size = header_int(linked, "X-Linked-Size") or size
                etag = linked["X-Linked-ETag"].strip('"')
                sha256 = etag if re.fullmatch(r"[0-9a-f]{64}", etag) else sha256
            return Remote(size, sha256, response.url)

    def read_range(self, url: str, start: int, length: int) -> bytes:
        """Reads `length` bytes of `url` from `start` on.

        Raises:
          RangeIgnored: the server cannot send a part of a file.
          TransferError: given up, with the last reason.
        """

        def attempt() -> bytes:
            with self.get(url, {"Range": f"bytes={start}-{start + length - 1}"}) as response:
                if encoding := content_encoding(response):
                    reason = f"the server of {url} sends parts of it packed with {encoding}, which are of no use"
                    raise RangeIgnored(reason)
                if response.status_code != 206 or content_range(response)[0] != start:
                    raise RangeIgnored(f"the server of {url} sends whole files only (it ignores Range)")
                data = b"".join(self.chunks(response, length))
            if len(data) != length:
                raise TryAgain(f"the connection broke after {say_size(len(data))} of {say_size(length)}")
            return data

        return self.retry(file_name(url), attempt)

    def retry(self, name: str, attempt: Callable[[], Result], arrived: Callable[[], int] = lambda: 0) -> Result:
        """Calls `attempt` until it succeeds, fails for good, or fails too often without `arrived` growing."""
        failures, mark = 0, arrived()
        while True:
            if self.stop.is_set():
                raise Stopped
            try:
                return attempt()
            except (TryAgain, requests.RequestException, urllib3.exceptions.HTTPError) as error:
                if never := _hopeless(error):
                    raise TransferError(never) from None
                reason, asked = explain(error), error.wait if isinstance(error, TryAgain) else 0.0
            if arrived() - mark >= WORTHWHILE_BYTES:
                failures, mark = 0, arrived()
            failures += 1
            if failures > self.patience.retries:
                tries = "1 try" if failures == 1 else f"{failures} tries in a row"
                raise TransferError(f"{reason}; gave up after {tries}")
            if asked > LONGEST_RETRY_AFTER_SECONDS:
                raise TransferError(f"{reason} and asks to wait {duration(asked)}; run the same command again then")
            self._wait(name, reason, failures, max(asked, self.patience.backoff(failures)))

    @contextlib.contextmanager
    def get(self, url: str, headers: Mapping[str, str]) -> Iterator[requests.Response]:
        """The streamed reply to one GET: 200, 206 or 416; any other status is raised as what it means."""
        with self._send("GET", url, headers)[1] as response:
            if response.status_code not in (200, 206, 416):
                self._drain(response)
                raise self._refusal(response)
            yield response

    def chunks(self, response: requests.Response, remaining: int | None) -> Iterator[bytes]:
        """The body as it arrives, at most `remaining` bytes; ends early when the connection breaks.

        Each chunk is what one read of the socket gave, so that a server that trickles cannot hold the reader: less
        than the minimum rate over the timeout is a fault.
        """
        clock, timeout = self.patience.clock, self.patience.timeout
        window_start, window_bytes = clock(), 0
        with ReadWatch(response, timeout) as watch:
            while remaining is None or remaining > 0:
                wanted = CHUNK_BYTES if remaining is None else min(CHUNK_BYTES, remaining)
                try:
                    with watch.reading():
                        chunk = response.raw.read1(wanted, decode_content=False)
                except ReadTooSlow:
                    raise TryAgain(f"the server stalls: no data in {duration(timeout)}, though it sends") from None
                except urllib3.exceptions.ProtocolError:
                    if remaining is None:
                        raise
                    return  # the caller counts, and says how much is missing
                if not chunk:
                    return
                if self.stop.is_set():
                    raise Stopped
                yield chunk
                remaining = None if remaining is None else remaining - len(chunk)
                window_bytes += len(chunk)
                elapsed = clock() - window_start
                if elapsed >= timeout:
                    if window_bytes < self.patience.minimum_rate * elapsed:
                        raise TryAgain(f"the server stalls: {say_size(window_bytes)} in {duration(elapsed)}")
                    window_start, window_bytes = clock(), 0

    def _send(
        self, method: str, url: str, headers: Mapping[str, str]
    ) -> tuple[list[dict[str, str]], requests.Response]:
        """What redirects say of the file, their bodies unread, and the reply at their end, streamed."""
        hops: list[dict[str, str]] = []  # not the redirects themselves, whose heads may have megabytes each
        stream = method != "HEAD"  # which has no body: once it is "read" the connection serves the next request
        identity = {"Accept-Encoding": "identity", **headers}
        timeouts = min(self.patience.connect_timeout, self.patience.timeout), self.patience.timeout
        while True:
            response = self._session().request(
                method, url, headers=identity, stream=stream, timeout=timeouts, allow_redirects=False
            )
            target = redirect_target(response)
            if target is None:
                return hops, response
            hops.append(_linked(response))
            response.close()  # requests itself would read all of the body, however much that is
            if len(hops) > MAX_REDIRECTS:
                raise requests.exceptions.TooManyRedirects
            url = target

    def _wait(self, name: str, reason: str, failures: int, seconds: float) -> None:
        with self._lock:
            self.retried += 1
        self.log(f"{name}: {reason}; retry {failures} of {self.patience.retries} in {duration(seconds)}")
        if self.patience.sleep is not None:
            self.patience.sleep(seconds)
        elif self.stop.wait(seconds):
            raise Stopped

    def _drain(self, response: requests.Response) -> None:
        """Reads a short error page to its end, so that the connection serves the next request too."""
        length = header_int(response.headers, "Content-Length")
        if length is not None and length <= CHUNK_BYTES:
            with (
                contextlib.suppress(urllib3.exceptions.HTTPError, ReadTooSlow),
                ReadWatch(response, self.patience.timeout) as watch,
                watch.reading(),  # all of it in the time of one read: nobody needs it
            ):
                response.raw.read(length, decode_content=False)

    def _refusal(self, response: requests.Response) -> Exception:
        reason = f"the server answered {response.status_code} {plain(response.reason or '')}".rstrip()
        if response.status_code in _ABSENT_STATUS:
            return NotThere(f"{reason} for {plain(response.url)}")
        if response.status_code in _PASSING_STATUS:
            return TryAgain(reason, retry_after(response.headers.get("Retry-After", ""), self.patience.now()))
        return TransferError(f"{reason} for {plain(response.url)}")

    def _session(self) -> requests.Session:
        session: requests.Session | None = getattr(self._local, "session", None)
        if session is None:
            session = self._local.session = open_session(self.patience.timeout)
            session.headers["User-Agent"] = f"flair-toolkit/{__version__}"
        return session


def _linked(response: requests.Response) -> dict[str, str]:
    """What the hub says, beside a redirect, about the file behind it."""
    return {name: response.headers.get(name, "") for name in ("X-Linked-Size", "X-Linked-ETag")}


def explain(error: Exception) -> str:
    """A network fault in plain words.

    >>> explain(requests.exceptions.ConnectTimeout())
    'no connection in time'
    """
    text = str(error)
    if isinstance(error, requests.exceptions.ProxyError):
        return "the proxy (HTTP_PROXY or HTTPS_PROXY) refuses or cannot be reached"
    if isinstance(error, requests.exceptions.ConnectTimeout):
        return "no connection in time"
    if isinstance(error, (requests.exceptions.Timeout, urllib3.exceptions.TimeoutError)) or "Read timed out" in text:
        return "the server stalls: no answer in time"
    if "NameResolutionError" in text or "getaddrinfo" in text:
        return "the server's name cannot be found (is the network up?)"
    if "Connection refused" in text:
        return "the server refuses connections"
    if isinstance(error, (requests.exceptions.ConnectionError, urllib3.exceptions.ProtocolError)):
        return "the connection broke"
    return plain(" ".join(text.split())) or type(error).__name__


def _hopeless(error: Exception) -> str | None:
    """Why trying again cannot help, or None."""
    if "CERTIFICATE_VERIFY_FAILED" in str(error):
        return (
            "the server's TLS certificate cannot be verified; check this machine's date, and point "
            "REQUESTS_CA_BUNDLE at the certificate of your network's proxy if it has one"
        )
    if isinstance(error, NotEncrypted):
        return plain(str(error))
    if isinstance(error, requests.exceptions.TooManyRedirects):
        return "the server redirects in a circle"
    if isinstance(error, _MALFORMED):
        return f"not an address that can be fetched: {plain(str(error))}"
    return None
