"""The machines of a job wait for each other."""

from __future__ import annotations

import contextlib
import socket
import threading

import pytest

from benchmark.run import tf_config
from benchmark.run.tf_config import Place, wait_for_all
from flair.errors import FlairError
from tests.support.ports import free_port


def _free_address():
    return f"localhost:{free_port()}"


def test_three_machines_meet_in_any_order():
    addresses = tuple(_free_address() for _ in range(3))

    def machine(worker):
        wait_for_all(Place(worker, 3, addresses))
        host, port = addresses[worker].split(":")
        servers.append(socket.create_server((host, int(port))))  # as TensorFlow's

    servers = []
    threads = [threading.Thread(target=machine, args=(worker,), daemon=True) for worker in (2, 0, 1)]
    for thread in threads[:2]:
        thread.start()
    assert not servers  # one is missing
    threads[2].start()
    for thread in threads:
        thread.join(timeout=100)
    assert len(servers) == 3
    for server in servers:
        server.close()


def test_many_who_only_look_do_not_fill_the_queue(monkeypatch):
    monkeypatch.setattr(tf_config, "_POLL_SECONDS", 0.001)
    addresses = _free_address(), _free_address()
    waiting = threading.Thread(target=wait_for_all, args=(Place(0, 2, addresses),), daemon=True)
    waiting.start()
    host, port = addresses[0].split(":")
    answered = 0
    while answered < 300:
        with contextlib.suppress(OSError):  # before it listens, and where the queue is full for a moment
            socket.create_connection((host, int(port)), timeout=100).close()
            answered += 1
    host, port = addresses[1].split(":")
    with socket.create_server((host, int(port))):
        waiting.join(timeout=100)
    assert not waiting.is_alive()


def test_who_is_missing_is_named_again(monkeypatch, capsys):
    monkeypatch.setattr(tf_config, "_SECONDS_PER_LINE", 0.0)
    addresses = _free_address(), _free_address()
    waiting = threading.Thread(target=wait_for_all, args=(Place(0, 2, addresses),), daemon=True)
    waiting.start()
    printed = ""
    while "still waiting" not in printed:
        printed += capsys.readouterr().err
    assert f"still waiting for worker 1 at {addresses[1]}" in printed
    host, port = addresses[1].split(":")
    with socket.create_server((host, int(port))):
        waiting.join(timeout=100)


@pytest.mark.parametrize(
    "address",
    [
        *("localhost", "localhost:", ":5000", "localhost:0", "localhost:99999", "localhost:a", "grpc://localhost:5000"),
        *("[]:5000", "a..b:5000", "\ud800:5", "a\0b:5", "h:" + "9" * 5000),
    ],
)
def test_an_address_without_a_host_or_port_is_one_line(address):
    with pytest.raises(FlairError, match="expected host:port, such as"):
        wait_for_all(Place(0, 2, (address, "localhost:5000")))


def test_a_port_that_is_taken_is_one_line():
    with socket.create_server(("localhost", 0)) as server:
        address = f"localhost:{server.getsockname()[1]}"
        with pytest.raises(
            FlairError, match=r"port \d+ of worker 0, this machine, cannot be used: Address already in use"
        ):
            wait_for_all(Place(0, 2, (address, _free_address())))
