"""The loopback mirror: HTTP as resuming downloaders need it, checked against slices of the file and raw requests."""

from __future__ import annotations

import concurrent.futures
import http.client
import os
import re
import signal
import socket
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
from hypothesis import given, settings
from hypothesis import strategies as st

from flair.download import server as mirror_server
from flair.errors import FlairError
from tests.support.commands import start

CONTENT = bytes(range(256)) * 40 + b"end"
SIZE = len(CONTENT)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[mirror_server.Mirror]:
    folder = tmp_path_factory.mktemp("mirror") / "public"
    (folder / "images").mkdir(parents=True)
    (folder / "images" / "photo 1.bin").write_bytes(CONTENT)
    (folder / "empty").write_bytes(b"")
    (folder.parent / "secret").write_text("not yours")
    (folder / "link").symlink_to(folder.parent / "secret")
    with mirror_server.serve(folder) as running:
        yield running


@pytest.fixture
def url(server: mirror_server.Mirror) -> str:
    return f"{server.url}/images/photo%201.bin"


def get(url: str, **headers: str) -> requests.Response:
    return requests.get(url, headers={name.replace("_", "-"): value for name, value in headers.items()}, timeout=10)


def test_a_whole_file(url: str) -> None:
    response = get(url)
    assert (response.status_code, response.content) == (200, CONTENT)
    assert response.headers["Content-Length"] == str(SIZE)
    assert response.headers["Accept-Ranges"] == "bytes"
    assert re.fullmatch(r'"[^"]+"', response.headers["ETag"])
    assert "Last-Modified" in response.headers


def test_an_empty_file(server: mirror_server.Mirror) -> None:
    assert get(f"{server.url}/empty").content == b""
    assert get(f"{server.url}/empty", Range="bytes=0-").status_code == 416


def test_head_has_the_headers_of_get_and_no_body(server: mirror_server.Mirror, url: str) -> None:
    head = requests.head(url, timeout=10)
    assert (head.status_code, head.content) == (200, b"")
    for name in ("Content-Length", "ETag", "Last-Modified", "Accept-Ranges"):
        assert head.headers[name] == get(url).headers[name]
    assert requests.head(f"{server.url}/missing", timeout=10).status_code == 404


@given(first=st.integers(0, SIZE + 50), length=st.one_of(st.none(), st.integers(1, SIZE + 50)))
@settings(max_examples=60, deadline=None)
def test_a_range_is_a_slice(server: mirror_server.Mirror, first: int, length: int | None) -> None:
    last = "" if length is None else first + length - 1
    response = get(f"{server.url}/images/photo%201.bin", Range=f"bytes={first}-{last}")
    if first >= SIZE:
        assert (response.status_code, response.headers["Content-Range"]) == (416, f"bytes */{SIZE}")
        return
    expected = CONTENT[first:] if length is None else CONTENT[first : first + length]
    assert (response.status_code, response.content) == (206, expected)
    assert response.headers["Content-Range"] == f"bytes {first}-{first + len(expected) - 1}/{SIZE}"


@pytest.mark.parametrize("count", [1, 300, SIZE, SIZE + 1])
def test_the_last_bytes(url: str, count: int) -> None:
    response = get(url, Range=f"bytes=-{count}")
    assert (response.status_code, response.content) == (206, CONTENT[-count:])


@pytest.mark.parametrize(
    "header",
    ["bytes=0-1,5-6", "bytes=-", "bytes=9-3", "lines=1-2", "bytes=a-b", "bytes=\xb2-", "bytes=0-" + "9" * 5000],
)
def test_ranges_that_need_not_be_understood_give_the_whole_file(url: str, header: str) -> None:
    response = get(url, Range=header)
    assert (response.status_code, response.content) == (200, CONTENT)


def test_none_of_the_last_bytes_cannot_be_had(url: str) -> None:
    assert get(url, Range="bytes=-0").status_code == 416


def test_a_range_is_only_given_of_the_same_file(url: str) -> None:
    fresh = get(url)
    for validator in (fresh.headers["ETag"], fresh.headers["Last-Modified"]):
        assert get(url, Range="bytes=7-", If_Range=validator).content == CONTENT[7:]
    for validator in ('"another"', "Thu, 01 Jan 1970 00:00:00 GMT"):
        response = get(url, Range="bytes=7-", If_Range=validator)
        assert (response.status_code, response.content) == (200, CONTENT)


def test_what_is_known_is_not_sent_again(url: str) -> None:
    response = get(url, If_None_Match=f'"another", {get(url).headers["ETag"]}')
    assert (response.status_code, response.content) == (304, b"")
    assert get(url, If_None_Match='"another"').status_code == 200


def test_a_changed_file_has_another_etag(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"old")
    with mirror_server.serve(tmp_path) as running:
        before = get(f"{running.url}/file").headers["ETag"]
        (tmp_path / "file").write_bytes(b"new")
        os.utime(tmp_path / "file", ns=(1, 1))
        after = get(f"{running.url}/file", Range="bytes=1-", If_Range=before)
    assert after.headers["ETag"] != before
    assert (after.status_code, after.content) == (200, b"new")


@pytest.mark.parametrize(
    "path",
    ["/../secret", "/images/../../secret", "/%2e%2e/secret", "//../secret", "/link", "/images", "/", "/no", "/%00"],
)
def test_nothing_outside_the_folder_is_served(server: mirror_server.Mirror, path: str) -> None:
    connection = http.client.HTTPConnection(*server.server_address[:2], timeout=10)
    connection.request("GET", path)  # unlike requests, it sends the path as it is
    response = connection.getresponse()
    assert (response.status, response.read()) == (404, b"404 Not Found\n")
    connection.close()


def test_names_that_no_file_can_have_are_not_there(
    server: mirror_server.Mirror, url: str, capfd: pytest.CaptureFixture[str]
) -> None:
    (server.folder / "loop").symlink_to("loop")
    try:
        for path in ("/" + "a" * 300, "/loop", "/loop/a"):
            assert get(url.rpartition("/")[0] + path).status_code == 404
    finally:
        (server.folder / "loop").unlink()
    assert capfd.readouterr().err == ""


def test_one_connection_serves_many_requests(server: mirror_server.Mirror) -> None:
    connection = http.client.HTTPConnection(*server.server_address[:2], timeout=10)
    local_ports = set()
    for path in ("/images/photo%201.bin", "/no", "/empty", "/images/photo%201.bin"):
        connection.request("GET", path)
        connection.getresponse().read()
        local_ports.add(connection.sock.getsockname()[1])
    assert len(local_ports) == 1
    connection.close()


def test_many_at_once_and_one_who_hangs_up(server: mirror_server.Mirror, url: str) -> None:
    rude = http.client.HTTPConnection(*server.server_address[:2], timeout=10)
    rude.request("GET", "/images/photo%201.bin")
    rude.close()
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        contents = list(pool.map(lambda start: get(url, Range=f"bytes={start}-").content, range(40)))
    assert contents == [CONTENT[start:] for start in range(40)]


def test_requests_are_recorded(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"12345")
    with mirror_server.serve(tmp_path) as running:
        get(f"{running.url}/file", Range="bytes=2-")
        requests.head(f"{running.url}/other", timeout=10)
        assert running.requests == [
            mirror_server.Request("GET", "/file", "bytes=2-", 206),
            mirror_server.Request("HEAD", "/other", None, 404),
        ]


def test_it_listens_on_loopback_only_and_stops_with_the_block(tmp_path: Path) -> None:
    with mirror_server.serve(tmp_path) as running:
        assert running.server_address[0] == "127.0.0.1"
        url = running.url
    with pytest.raises(requests.ConnectionError):
        get(url)


def test_a_missing_folder_and_a_taken_port_are_one_line(server: mirror_server.Mirror, tmp_path: Path) -> None:
    with pytest.raises(FlairError, match="no such directory"), mirror_server.serve(tmp_path / "none"):
        pass
    with pytest.raises(FlairError, match="cannot listen"), mirror_server.serve(tmp_path, server.server_address[1]):
        pass
    with pytest.raises(FlairError, match="cannot listen"), mirror_server.serve(tmp_path, 70_000):
        pass


def test_the_command_serves_until_it_is_interrupted(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"12345")
    running = start("flair.mirror", f"--archives_dir={tmp_path}", "--port=0", stderr=None)
    assert running.stdout is not None
    url = re.search(r"http://127\.0\.0\.1:\d+", running.stdout.readline())
    assert url is not None
    assert "download_dataset.py" in running.stdout.readline()
    assert get(f"{url[0]}/file").content == b"12345"
    running.send_signal(signal.SIGINT)
    rest, _ = running.communicate(timeout=20)
    assert (running.returncode, rest) == (0, "served 1 requests\n")


def test_a_client_that_resets_an_idle_connection_leaves_no_traceback(tmp_path, capfd):
    (tmp_path / "file").write_bytes(b"content")
    others = set(threading.enumerate())  # which may serve connections of their own
    with mirror_server.serve(tmp_path) as server:
        with socket.create_connection(server.server_address[:2]) as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # closes with a reset
            client.sendall(b"GET /file HTTP/1.1\r\nHost: localhost\r\n\r\n")
            received = b""
            while not received.endswith(b"content"):
                received += client.recv(1000)
        for thread in set(threading.enumerate()) - others:
            if "process_request" in thread.name:
                thread.join()
    assert "Traceback" not in capfd.readouterr().err
