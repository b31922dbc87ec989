"""One file from a server that does everything wrong: the bytes are right in the end, or the reason is told."""

from __future__ import annotations

import contextlib
import datetime
import email.utils
import hashlib
import ipaddress
import json
import random
import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import example, given, settings
from hypothesis import strategies as st

import download_dataset
from flair.download import transfer
from flair.download.client import Client, NotThere, Patience, TransferError
from flair.download.headers import retry_after
from flair.errors import FlairError
from flair.parallel.threads import Stopped
from tests.support import fault_server
from tests.support.fault_server import Fault, FaultServer

CONTENT = b"\x1f\x8b" + random.Random(0).randbytes(1_000_000)
HTML = b"<!DOCTYPE html><html><body>Please log in</body></html>"


@pytest.fixture
def server() -> Iterator[FaultServer]:
    with fault_server.serve() as running:
        running.files["/a.tar.gz"] = CONTENT
        yield running


@pytest.fixture(scope="module")
def tls_certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate and its key that nobody signed, for 127.0.0.1."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    address = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    begin = datetime.datetime(2020, 1, 1)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number(), begin)
        .not_valid_after(begin + datetime.timedelta(days=36_500))
        .add_extension(address, critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    path = tmp_path_factory.mktemp("tls") / "server.pem"
    path.write_bytes(
        certificate.public_bytes(pem)
        + key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return path


@pytest.fixture
def tls_server(tls_certificate: Path) -> Iterator[FaultServer]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tls_certificate)
    with fault_server.serve(context) as running:
        running.files["/a.tar.gz"] = CONTENT
        yield running


class Waits(list[float]):
    """Seconds slept, without sleeping."""

    def __call__(self, seconds: float) -> None:
        self.append(seconds)


def make_client(waits: Waits, log: list[str] | None = None, **patience: object) -> Client:
    rules = Patience(jitter=lambda: 1.0, sleep=waits, **patience)  # type: ignore[arg-type]
    return Client(rules, log=(log if log is not None else []).append)


def fetch(server: FaultServer, part: Path, client: Client | None = None, **options: object) -> transfer.Fetched:
    client = client or make_client(Waits())
    return transfer.fetch(client, f"{server.url}/a.tar.gz", part, expect="gzip", **options)  # type: ignore[arg-type]


def check(fetched: transfer.Fetched) -> None:
    assert fetched.path.read_bytes() == CONTENT
    assert fetched.size == len(CONTENT)
    assert fetched.sha256 == hashlib.sha256(CONTENT).hexdigest()


def test_a_good_server_is_asked_once(server: FaultServer, tmp_path: Path) -> None:
    check(fetch(server, tmp_path / "a.part"))
    assert [(request.status, request.range) for request in server.requests] == [(200, None)]
    assert server.requests[0].user_agent.startswith("flair-toolkit/")


def test_drop_in_the_body_resumes_at_the_byte(server: FaultServer, tmp_path: Path) -> None:
    server.faults["/a.tar.gz"] = [Fault(drop_after=300_000), Fault(drop_after=400_000)]
    waits, log = Waits(), []
    check(fetch(server, tmp_path / "a.part", make_client(waits, log)))
    assert [request.range for request in server.requests] == [None, "bytes=300000-", "bytes=700000-"]
    assert all(request.if_range is not None for request in server.requests[1:])
    assert sum(request.sent for request in server.requests) == len(CONTENT)
    assert waits == [1.0, 1.0], "a try that brought much starts the back-off anew"
    assert "a.tar.gz: the connection broke after 300.0 kB of 1.0 MB; retry 1 of 6 in 1.0 s" in log


def test_a_new_process_resumes_where_the_old_one_was_killed(server: FaultServer, tmp_path: Path) -> None:
    server.faults["/a.tar.gz"] = [Fault(drop_after=300_000)]
    with pytest.raises(TransferError):
        fetch(server, tmp_path / "a.part", make_client(Waits(), retries=0))
    counted: list[int] = []
    check(fetch(server, tmp_path / "a.part", on_bytes=counted.append))
    assert counted[0] == 300_000
    assert server.requests[-1].range == "bytes=300000-"
    assert sum(counted) == len(CONTENT)


def test_a_whole_part_is_not_asked_for_again(server: FaultServer, tmp_path: Path) -> None:
    check(fetch(server, tmp_path / "a.part"))
    server.requests.clear()
    check(fetch(server, tmp_path / "a.part"))
    assert server.requests == []


def test_a_whole_part_of_another_address_is_asked_for(server: FaultServer, tmp_path: Path) -> None:
    check(fetch(server, tmp_path / "a.part"))
    server.files["/same"], server.files["/other"] = CONTENT, CONTENT[:2] + bytes(len(CONTENT) - 2)
    client = make_client(Waits())
    check(transfer.fetch(client, f"{server.url}/same", tmp_path / "a.part"))
    assert [(request.status, request.sent) for request in server.gets("/same")] == [(416, 0)]
    assert (
        transfer.fetch(client, f"{server.url}/other", tmp_path / "a.part").path.read_bytes() == server.files["/other"]
    )


def test_take_leaves_only_the_final_file(server: FaultServer, tmp_path: Path) -> None:
    fetch(server, tmp_path / "a.part")
    transfer.take(tmp_path / "a.part", tmp_path / "a.tar.gz")
    assert [path.name for path in tmp_path.iterdir()] == ["a.tar.gz"]


def test_server_that_ignores_range_starts_over(server: FaultServer, tmp_path: Path) -> None:
    server.faults["/a.tar.gz"] = [Fault(drop_after=300_000), Fault(ignore_range=True)]
    log: list[str] = []
    counted: list[int] = []
    check(fetch(server, tmp_path / "a.part", make_client(Waits(), log), on_bytes=counted.append))
    assert server.requests[-1].status == 200
    assert sum(counted) == len(CONTENT)
    assert any("starting over" in line for line in log)


def test_server_that_ignores_range_and_always_drops_at_the_same_byte_is_given_up(
    server: FaultServer, tmp_path: Path
) -> None:
    server.faults["/a.tar.gz"] = [Fault(drop_after=300_000, ignore_range=True)] * 20
    with pytest.raises(TransferError, match=r"the connection broke after 300\.0 kB of 1\.0 MB; gave up after 4 tries"):
        fetch(server, tmp_path / "a.part", make_client(Waits(), retries=3))
    assert len(server.requests) == 4


def test_changed_etag_starts_over(server: FaultServer, tmp_path: Path) -> None:
    server.files["/a.tar.gz"] = b"\x1f\x8b" + bytes(900_000)
    server.faults["/a.tar.gz"] = [Fault(drop_after=300_000)]
    with pytest.raises(TransferError):
        fetch(server, tmp_path / "a.part", make_client(Waits(), retries=0))
    server.files["/a.tar.gz"] = CONTENT
    check(fetch(server, tmp_path / "a.part"))
    assert server.requests[-1].status == 200


def test_changed_etag_behind_a_server_that_ignores_if_range_starts_over(server: FaultServer, tmp_path: Path) -> None:
    server.faults["/a.tar.gz"] = [
        Fault(drop_after=300_000, headers=(("ETag", '"old"'),)),
        Fault(
            status=206,
            body=b"of another version",
            headers=(("ETag", '"new"'), ("Content-Range", f"bytes 300000-300017/{len(CONTENT)}")),
        ),
    ]
    log: list[str] = []
    check(fetch(server, tmp_path / "a.part", make_client(Waits(), log)))
    assert any("the file changed on the server; starting over" in line for line in log)


@pytest.mark.parametrize("place", ["bytes 0-999/1000002", "bytes 300000-400000/77", "pages 1-2/3", ""])
def test_a_wrong_content_range_is_never_appended(server: FaultServer, tmp_path: Path, place: str) -> None:
    server.faults["/a.tar.gz"] = [
        Fault(drop_after=300_000),
        Fault(status=206, body=b"x" * 1000, headers=(("Content-Range", place),)),
    ]
    check(fetch(server, tmp_path / "a.part"))


def test_no_validator_resumes_from_the_same_address_only(server: FaultServer, tmp_path: Path) -> None:
    server.etags["/a.tar.gz"] = None
    server.faults["/a.tar.gz"] = [Fault(drop_after=300_000), Fault(drop_after=0)]
    part = tmp_path / "a.part"
    with pytest.raises(TransferError):
        fetch(server, part, make_client(Waits(), retries=1))
    assert [request.range for request in server.requests] == [None, "bytes=300000-"]
    version = json.loads((tmp_path / "a.part.json").read_text())
    (tmp_path / "a.part.json").write_text(json.dumps({**version, "url": "http://elsewhere/a.tar.gz"}))
    check(fetch(server, part))
    assert server.requests[-1].range is None


def test_500_then_200(server: FaultServer, tmp_path: Path) -> None:
    server.faults["/a.tar.gz"] = [Fault(status=500), Fault(status=503)]
    waits, log = Waits(), []
    check(fetch(server, tmp_path / "a.part", make_client(waits, log)))
    assert waits == [1.0, 2.0]
    assert log[0] == "a.tar.gz: the server answered 500 Internal Server Error; retry 1 of 6 in 1.0 s"


def test_500_for_ever_is_given_up(server: FaultServer, tmp_path: Path) -> None:
    server.faults["/a.tar.gz"] = [Fault(status=500)] * 99
    waits = Waits()
    with pytest.raises(TransferError, match=r"answered 500 Internal Server Error; gave up after 7 tries in a row"):
        fetch(server, tmp_path / "a.part", make_client(waits))
    assert waits == [1.0, 2.0, 4.0, 8.0, 16.0, 32.0]


def test_429_waits_as_many_seconds_as_the_server_asks(server: FaultServer, tmp_path: Path) -> None:
    server.faults["/a.tar.gz"] = [Fault(status=429, headers=(("Retry-After", "7"),))]
    waits = Waits()
    check(fetch(server, tmp_path / "a.part", make_client(waits)))
    assert waits == [7.0]


def test_429_waits_until_the_date_the_server_gives(server: FaultServer, tmp_path: Path) -> None:
    date = email.utils.formatdate(1_000_090, usegmt=True)
    server.faults["/a.tar.gz"] = [Fault(status=429, headers=(("Retry-After", date),))]
    waits = Waits()
    check(fetch(server, tmp_path / "a.part", make_client(waits, now=lambda: 1_000_000.0)))
    assert waits == [90.0]


def test_429_that_asks_for_hours_is_told_and_not_waited_for(server: FaultServer, tmp_path: Path) -> None:
    server.faults["/a.tar.gz"] = [Fault(status=429, headers=(("Retry-After", "7200"),))]
    with pytest.raises(TransferError, match=r"asks to wait 2 h 0 min; run the same command again then"):
        fetch(server, tmp_path / "a.part")


@given(st.text(max_size=40))
@example("0\x1f")  # blank to strip, and not to float
@settings(max_examples=100)
def test_no_retry_after_header_is_a_crash_or_a_negative_wait(text: str) -> None:
    assert retry_after(text, now=1e9) >= 0


def test_404_is_not_retried(server: FaultServer, tmp_path: Path) -> None:
    with pytest.raises(NotThere, match=r"answered 404 Not Found for http://127\.0\.0\.1:\d+/b"):
        transfer.fetch(make_client(Waits()), f"{server.url}/b", tmp_path / "b.part")
    assert len(server.requests) == 1


def test_html_body_with_its_content_type(server: FaultServer, tmp_path: Path) -> None:
    page = Fault(status=200, body=HTML, headers=(("Content-Type", "text/html; charset=utf-8"),))
    server.faults["/a.tar.gz"] = [page] * 3
    with pytest.raises(TransferError, match=r"sent a web page \(text/html\) in place of the file: a proxy or a login"):
        fetch(server, tmp_path / "a.part", make_client(Waits(), retries=2))
    assert not (tmp_path / "a.part").exists()


def test_html_body_that_calls_itself_an_archive(server: FaultServer, tmp_path: Path) -> None:
    server.faults["/a.tar.gz"] = [Fault(status=200, body=HTML, headers=(("Content-Type", "application/gzip"),))]
    log: list[str] = []
    check(fetch(server, tmp_path / "a.part", make_client(Waits(), log)))
    assert "a.tar.gz: the server sent a web page in place of gzip; retry 1 of 6 in 1.0 s" in log


def test_something_else_in_place_of_an_archive(server: FaultServer, tmp_path: Path) -> None:
    server.files["/a.tar.gz"] = b"PK\x03\x04" + bytes(500_000)
    with pytest.raises(TransferError, match=r"sent b'PK\\x03\\x04.*' in place of gzip; gave up after 2 tries"):
        fetch(server, tmp_path / "a.part", make_client(Waits(), retries=1))


@pytest.mark.parametrize("headers", [(), (("Content-Length", "0"),)])
def test_an_empty_file(server: FaultServer, tmp_path: Path, headers: tuple[tuple[str, str], ...]) -> None:
    server.faults["/a.tar.gz"] = [Fault(status=200, headers=headers)] * 2
    with pytest.raises(TransferError, match=r"the server sent an empty file; gave up after 2 tries"):
        transfer.fetch(make_client(Waits(), retries=1), f"{server.url}/a.tar.gz", tmp_path / "a.part")


def test_content_length_too_large(server: FaultServer, tmp_path: Path) -> None:
    server.faults["/a.tar.gz"] = [Fault(promise=5)]
    check(fetch(server, tmp_path / "a.part"))  # the 416 to the next request tells the true length


def test_content_length_too_small_is_caught_by_the_published_size(server: FaultServer, tmp_path: Path) -> None:
    server.faults["/a.tar.gz"] = [Fault(promise=-5)]
    log: list[str] = []
    check(fetch(server, tmp_path / "a.part", make_client(Waits(), log), size=len(CONTENT)))
    assert any("promises 999,997 bytes, but 1,000,002 are published" in line for line in log)


def test_a_size_that_contradicts_the_published_one_is_asked_for_once_more(server: FaultServer, tmp_path: Path) -> None:
    waits = Waits()
    with pytest.raises(
        transfer.TransferError, match=r"promises 1,000,002 bytes, but 999,999 are published; asked twice"
    ):
        fetch(server, tmp_path / "a.part", make_client(waits), size=999_999)
    assert (len(server.gets()), len(waits), list(tmp_path.iterdir())) == (2, 1, [])


def test_content_that_is_not_the_published_one(server: FaultServer, tmp_path: Path) -> None:
    counted: list[int] = []
    with pytest.raises(transfer.WrongContent, match=r"has the sha256 \w{64}, but f{64} is published"):
        fetch(server, tmp_path / "a.part", sha256="f" * 64, on_bytes=counted.append)
    assert list(tmp_path.iterdir()) == []
    assert sum(counted) == 0


def test_without_a_content_length_a_whole_chunked_body_is_taken(server: FaultServer, tmp_path: Path) -> None:
    server.faults["/a.tar.gz"] = [Fault(chunked=True)]
    check(fetch(server, tmp_path / "a.part"))
    assert transfer.is_whole(tmp_path / "a.part")


def test_without_a_content_length_a_broken_chunked_body_is_resumed(server: FaultServer, tmp_path: Path) -> None:
    server.faults["/a.tar.gz"] = [Fault(chunked=True, drop_after=300_000)]
    check(fetch(server, tmp_path / "a.part"))
    assert server.requests[-1].range == "bytes=300000-"


def test_stall_without_a_byte(server: FaultServer, tmp_path: Path) -> None:
    go_on = threading.Event()
    server.faults["/a.tar.gz"] = [Fault(before_piece=lambda sent: sent < 8192 or go_on.wait())]
    log: list[str] = []
    check(fetch(server, tmp_path / "a.part", make_client(Waits(), log, timeout=0.5)))
    go_on.set()
    assert "a.tar.gz: the server stalls: no answer in time; retry 1 of 6 in 1.0 s" in log
    assert [request.range for request in server.requests] == [None, "bytes=8192-"]


def test_slow_loris_that_trickles_is_cut_off(server: FaultServer, tmp_path: Path) -> None:
    reads = threading.Semaphore(0)
    seconds = iter(range(0, 10**9, 20))

    def clock() -> float:
        reads.release()  # the server sends its next byte when the client has looked at its clock: no real time
        return float(next(seconds))

    server.faults["/a.tar.gz"] = [Fault(piece_bytes=1, before_piece=lambda sent: reads.acquire())]
    log: list[str] = []
    check(fetch(server, tmp_path / "a.part", make_client(Waits(), log, clock=clock)))
    assert any("the server stalls: 3 B in 1 min 0 s" in line for line in log)


def test_slow_loris_in_the_header_is_cut_off(tmp_path: Path) -> None:
    served = threading.Event()

    def trickle(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        connection.sendall(b"HTTP/1.1 200 OK\r\nX-Never-Ends: ")
        with contextlib.suppress(OSError):
            while True:  # until the client hangs up
                connection.sendall(b"a")
                served.wait(0.01)
        served.set()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=trickle, args=(listener,), daemon=True).start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/a.tar.gz"
        with pytest.raises(TransferError, match=r"the server stalls: no answer in time; gave up"):
            transfer.fetch(make_client(Waits(), retries=0, timeout=0.1), url, tmp_path / "a.part")
    assert served.wait(30)


def test_a_server_that_is_not_there(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    with pytest.raises(TransferError, match=r"the server refuses connections; gave up after 3 tries in a row"):
        transfer.fetch(make_client(Waits(), retries=2), f"http://127.0.0.1:{port}/a", tmp_path / "a.part")


def test_an_interrupted_transfer_keeps_its_part(server: FaultServer, tmp_path: Path) -> None:
    client = make_client(Waits())

    def on_bytes(count: int) -> None:
        if count > 0:
            client.stop.set()

    with pytest.raises(Stopped):
        fetch(server, tmp_path / "a.part", client, on_bytes=on_bytes)
    arrived = transfer.arrived_bytes(tmp_path / "a.part")
    assert 0 < arrived < len(CONTENT)
    check(fetch(server, tmp_path / "a.part"))
    assert server.requests[-1].range == f"bytes={arrived}-"


def test_bytes_of_unknown_origin_are_thrown_away(server: FaultServer, tmp_path: Path) -> None:
    (tmp_path / "a.part").write_bytes(b"from nowhere" * 1000)
    check(fetch(server, tmp_path / "a.part"))
    assert server.requests[0].range is None


def test_a_damaged_version_file_starts_over(server: FaultServer, tmp_path: Path) -> None:
    (tmp_path / "a.part").write_bytes(CONTENT[:1000])
    (tmp_path / "a.part.json").write_text("{")
    check(fetch(server, tmp_path / "a.part"))
    assert server.requests[0].range is None


def test_redirects_are_followed_with_the_range(server: FaultServer, tmp_path: Path) -> None:
    server.files["/elsewhere"] = CONTENT
    redirect = Fault(status=302, headers=(("Location", "/elsewhere"),))
    server.faults["/a.tar.gz"] = [redirect, redirect]
    server.faults["/elsewhere"] = [Fault(drop_after=300_000)]
    check(fetch(server, tmp_path / "a.part"))
    assert [request.range for request in server.gets("/elsewhere")] == [None, "bytes=300000-"]


def test_a_thousand_retries_wait_as_long_as_sixty() -> None:
    """2 to the 1,025th is no number: a run that had waited for 17 hours ended in a traceback."""
    assert Patience(jitter=lambda: 1.0).backoff(10**6) == Patience().longest_wait


@pytest.mark.parametrize(
    "address",
    ["", "foo", "http://", "http://[", "http://[::1", "https://a:b", "http://a:99999", "ftp://a", "http://a\n"],
)
def test_what_is_no_address_is_named_before_anything_is_sent(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        download_dataset.main([f"--dataset_dir={tmp_path / 'd'}", f"--base_url={address}"])
    assert ended.value.code == 2 and "expected an http:// or https:// address" in capsys.readouterr().err
    if address:
        monkeypatch.setenv("HF_ENDPOINT", address)
        with pytest.raises(FlairError, match="HF_ENDPOINT: expected an http:// or https:// address"):
            download_dataset.main([f"--dataset_dir={tmp_path / 'd'}", "--source=huggingface"])
    assert not (tmp_path / "d").exists()


def test_early_hints_are_read_over(server: FaultServer, tmp_path: Path) -> None:
    reply = b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n[1]"
    server.faults["/a"] = [Fault(script=lambda write: write(reply))]
    assert transfer.fetch(Client(), f"{server.url}/a", tmp_path / "a.part").path.read_bytes() == b"[1]"


def test_a_login_in_the_address_stays_on_its_server(server: FaultServer, tmp_path: Path) -> None:
    server.files["/elsewhere"] = CONTENT
    with fault_server.serve() as other:
        other.files["/elsewhere"] = CONTENT
        for number, to in enumerate((server, other)):
            server.redirects[f"/{number}"] = (("Location", f"{to.url}/elsewhere"),)
            login = server.url.replace("//", "//ann:secret@")
            transfer.fetch(Client(), f"{login}/{number}", tmp_path / f"{number}.part")
        assert [request.login for request in server.gets("/elsewhere")] == ["ann:secret"]
        assert [request.login for request in other.gets("/elsewhere")] == [None]


def test_an_https_address_may_not_redirect_to_http(
    server: FaultServer, tls_server: FaultServer, tls_certificate: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tls_certificate))
    tls_server.faults["/a.tar.gz"] = [Fault(status=302, headers=(("Location", f"{server.url}/a.tar.gz"),))]
    with pytest.raises(TransferError, match=r"redirects to http://.*which is not encrypted; refused"):
        fetch(tls_server, tmp_path / "a.part")
    assert server.requests == [], "nothing is asked of the address that is not encrypted"
    check(fetch(tls_server, tmp_path / "a.part"))


def test_no_request_of_any_kind_is_redirected_from_https_to_http(
    server: FaultServer, tls_server: FaultServer, tls_certificate: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tls_certificate))
    tls_server.redirects["/a.tar.gz"] = (("Location", f"{server.url}/a.tar.gz"),)
    tls_server.redirects["/first"] = (("Location", "/a.tar.gz"),)  # and at the second hop
    client = make_client(Waits())
    for path in ("/a.tar.gz", "/first"):
        url = tls_server.url + path
        for ask in (
            lambda url: client.ask(url),
            lambda url: client.read_range(url, 5, 10),
            lambda url: transfer.fetch(client, url, tmp_path / "a.part"),
        ):
            with pytest.raises(TransferError, match=r"redirects to http://.*which is not encrypted; refused"):
                ask(url)
    assert client.retried == 0
    assert server.requests == []
    with fault_server.serve() as plain:  # from http to https and to http is as good as before
        plain.redirects["/a.tar.gz"] = (("Location", f"{server.url}/a.tar.gz"),)
        assert client.ask(f"{plain.url}/a.tar.gz").size == len(CONTENT)


def test_redirect_circle_is_not_retried(server: FaultServer, tmp_path: Path) -> None:
    server.faults["/a.tar.gz"] = [Fault(status=302, headers=(("Location", "/a.tar.gz"),))] * 99
    with pytest.raises(TransferError, match=r"redirects in a circle"):
        fetch(server, tmp_path / "a.part")


def test_http_proxy_is_used(server: FaultServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server.files["http://photos.invalid/a.tar.gz"] = CONTENT  # a proxy is asked for the whole address
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HTTP_PROXY", server.url)
    monkeypatch.setenv("http_proxy", server.url)
    check(transfer.fetch(make_client(Waits()), "http://photos.invalid/a.tar.gz", tmp_path / "a.part", expect="gzip"))
    assert server.requests[0].path == "http://photos.invalid/a.tar.gz"


def test_a_proxy_that_is_down_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{port}")
    with pytest.raises(TransferError, match=r"the proxy \(HTTP_PROXY or HTTPS_PROXY\) refuses or cannot be reached"):
        transfer.fetch(make_client(Waits(), retries=0), "http://photos.invalid/a", tmp_path / "a.part")


def test_an_unknown_certificate_is_refused_at_once(tls_server: FaultServer, tmp_path: Path) -> None:
    waits = Waits()
    with pytest.raises(TransferError, match=r"TLS certificate cannot be verified.*REQUESTS_CA_BUNDLE"):
        fetch(tls_server, tmp_path / "a.part", make_client(waits))
    assert waits == []


@given(drops=st.lists(st.integers(0, 400_000), max_size=6), ranges=st.lists(st.booleans(), min_size=6, max_size=6))
@settings(max_examples=25, deadline=None)
def test_whatever_the_drops_the_bytes_are_right(
    tmp_path_factory: pytest.TempPathFactory, drops: list[int], ranges: list[bool]
) -> None:
    with fault_server.serve() as server:
        server.files["/a.tar.gz"] = CONTENT
        server.faults["/a.tar.gz"] = [
            Fault(drop_after=drop, ignore_range=not ranged) for drop, ranged in zip(drops, ranges, strict=False)
        ]
        check(fetch(server, tmp_path_factory.mktemp("drops") / "a.part"))
