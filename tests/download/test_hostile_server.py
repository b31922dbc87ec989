"""Servers that send what never ends: each request ends in its time, in little memory, with a reason."""

from __future__ import annotations

import contextlib
import gzip
import json
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from flair.download import transfer
from flair.download.client import Client, Patience, TransferError
from tests.support import fault_server
from tests.support.commands import ROOT
from tests.support.fault_server import Fault, FaultServer

Write = Callable[[bytes], object]
_OK = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
_ZEROS = gzip.compress(bytes(40_000_000), 6)  # 40 kB
_CHUNK = b"10000\r\n" + bytes(0x10000) + b"\r\n"
_SECONDS = 0.5  # without progress, in the client
_never = threading.Event()


def _slowly(write: Write, piece: bytes) -> None:
    while not _never.wait(_SECONDS / 10):
        write(piece)


def _for_ever(write: Write, piece: bytes) -> None:
    while True:
        write(piece)


def _redirect(write: Write, headers: bytes) -> None:
    write(b"HTTP/1.1 302 Found\r\nLocation: /target\r\n" + headers + b"\r\n")


def _redirect_without_end(write: Write) -> None:
    _redirect(write, b"Transfer-Encoding: chunked\r\n")
    _for_ever(write, _CHUNK)


def _redirect_packed(write: Write) -> None:
    packed = _ZEROS * 10
    _redirect(write, b"Content-Encoding: gzip\r\nContent-Length: %d\r\n" % len(packed))
    write(packed)


def _redirect_dripping(write: Write) -> None:
    _redirect(write, b"Content-Length: 100000\r\n")
    _slowly(write, b"x")


def _growing_chunk_size(write: Write) -> None:
    write(_OK)
    _slowly(write, b"0")


def _growing_chunk_extension(write: Write) -> None:
    write(_OK + b"5;")
    _slowly(write, b"x")


def _endless_trailers(write: Write) -> None:
    write(_OK + b"5\r\n[1,2]\r\n0\r\n")
    _for_ever(write, b"a: b\r\n")


def _dripping_trailers(write: Write) -> None:
    write(_OK + b"5\r\n[1,2]\r\n0\r\n")
    _slowly(write, b"a: b\r\n")


def _endless_interim_replies(write: Write) -> None:
    _for_ever(write, b"HTTP/1.1 100 Continue\r\n\r\n")


def _endless_early_hints(write: Write) -> None:
    _for_ever(write, b"HTTP/1.1 103 Early Hints\r\n\r\n")


def _endless_body(write: Write) -> None:
    write(_OK)
    _for_ever(write, _CHUNK)


def _endless_body_until_closed(write: Write) -> None:
    write(b"HTTP/1.1 200 OK\r\n\r\n")
    _for_ever(write, bytes(0x10000))


def _packed_bomb(write: Write) -> None:
    write(b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(_ZEROS) + _ZEROS)


REDIRECTS = [_redirect_without_end, _redirect_packed, _redirect_dripping]
STALLS = [
    *(_growing_chunk_size, _growing_chunk_extension, _endless_trailers, _dripping_trailers),
    *(_endless_interim_replies, _endless_early_hints),
]
FLOODS = [_endless_body, _endless_body_until_closed, _packed_bomb]


@pytest.fixture
def server() -> Iterator[FaultServer]:
    with fault_server.serve() as running:
        yield running


def _client() -> Client:
    return Client(Patience(retries=0, timeout=_SECONDS, sleep=lambda seconds: None))


@pytest.mark.parametrize("script", REDIRECTS)
def test_the_body_of_a_redirect_is_never_read(server: FaultServer, tmp_path: Path, script: Callable) -> None:
    server.faults["/a"] = [Fault(script=script)]
    server.files["/target"] = b"[1, 2]"
    fetched = transfer.fetch(_client(), f"{server.url}/a", tmp_path / "a.part")
    assert fetched.path.read_bytes() == b"[1, 2]"


@pytest.mark.parametrize("script", STALLS)
def test_a_reply_without_progress_is_given_up(server: FaultServer, tmp_path: Path, script: Callable) -> None:
    server.faults["/a"] = [Fault(script=script)]
    with pytest.raises(TransferError, match="stalls"):
        transfer.fetch(_client(), f"{server.url}/a", tmp_path / "a.part")


def test_a_proxy_that_dawdles_over_its_answer_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(connection: socket.socket) -> None:
        with contextlib.suppress(OSError), connection:
            _slowly(connection.sendall, b"H")

    with socket.create_server(("127.0.0.1", 0)) as proxy:
        threading.Thread(target=lambda: answer(proxy.accept()[0]), daemon=True).start()
        monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{proxy.getsockname()[1]}")
        monkeypatch.setenv("NO_PROXY", "")
        with pytest.raises(TransferError, match="gave up after 1 try"):
            transfer.fetch(_client(), "https://flair.invalid/a", tmp_path / "a.part")


@pytest.mark.parametrize("script", FLOODS)
def test_a_body_without_length_has_a_ceiling(server: FaultServer, tmp_path: Path, script: Callable) -> None:
    server.faults["/a"] = [Fault(script=script)]
    part = tmp_path / "a.part"

    def bring() -> None:
        transfer.fetch(_client(), f"{server.url}/a", part, most=1_000_000)
        transfer.take(part, tmp_path / "a", 1_000_000)

    with pytest.raises(TransferError, match="more than"):
        bring()
    assert list(tmp_path.iterdir()) == []


def test_a_promise_above_the_ceiling_is_refused_before_any_byte_is_kept(server: FaultServer, tmp_path: Path) -> None:
    server.files["/a"] = b"[1]"
    server.faults["/a"] = [Fault(promise=10**9)]
    with pytest.raises(TransferError, match=r"promises 1\.0 GB, more than the 1\.0 MB"):
        transfer.fetch(_client(), f"{server.url}/a", tmp_path / "a.part", most=1_000_000)


@pytest.mark.parametrize("location", ["http://[bad", "/a", "ftp://127.0.0.1/a", "http://127.0.0.1:99999999/"])
def test_a_redirect_that_leads_nowhere_ends_in_one_line(server: FaultServer, tmp_path: Path, location: str) -> None:
    server.redirects["/a"] = (("Location", location),)
    with pytest.raises(TransferError) as error:
        transfer.fetch(_client(), f"{server.url}/a", tmp_path / "a.part")
    assert "\n" not in str(error.value)


def test_a_size_that_contradicts_the_manifest_is_asked_for_once_more_only(server: FaultServer, tmp_path: Path) -> None:
    server.files["/a"] = b"\x1f\x8b" + bytes(100)
    client = Client(Patience(sleep=lambda seconds: None))
    with pytest.raises(TransferError, match="102 bytes, but 99 are published"):
        transfer.fetch(client, f"{server.url}/a", tmp_path / "a.part", expect="gzip", size=99)
    assert len(server.gets("/a")) == 2


_CHILD = """
import json, sys
from benchmark.run import machine
from concurrent.futures import ThreadPoolExecutor
from flair.download import transfer
from flair.download.client import Client, Patience, TransferError
from pathlib import Path
def reason(url):
    part = Path(sys.argv[2]) / f"{url.rpartition('/')[2]}.part"
    try:
        client = Client(Patience(retries=0, timeout=0.5, sleep=lambda seconds: None))
        transfer.fetch(client, url, part, most=50_000_000)
        transfer.take(part, part.with_suffix(""), 50_000_000)
    except TransferError as error:
        return str(error)
waiting, floods = json.loads(sys.argv[1])
with ThreadPoolExecutor(len(waiting)) as threads:
    reasons = list(threads.map(reason, waiting))
reasons += map(reason, floods)  # one after another, that none is taken for one that stalls
print(*filter(None, reasons), sep="\\n")
print(machine.peak_bytes())
"""


def test_no_server_takes_more_than_200_megabytes(server: FaultServer, tmp_path: Path) -> None:
    """All of the above in one process, whose peak of memory is asked for at the end."""
    server.files["/target"] = b"[1, 2]"
    scripts = [*REDIRECTS, *STALLS, *FLOODS]
    for number, script in enumerate(scripts):
        server.faults[f"/{number}"] = [Fault(script=script)]
    urls = [f"{server.url}/{number}" for number in range(len(scripts))]
    waiting_and_floods = json.dumps([urls[: -len(FLOODS)], urls[-len(FLOODS) :]])
    command = [sys.executable, "-c", _CHILD, waiting_and_floods, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=True)
    *reasons, peak = done.stdout.splitlines()
    assert len(reasons) == len(STALLS) + len(FLOODS), reasons
    assert int(peak) < 200_000_000
