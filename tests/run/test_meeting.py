"""The machines of a job wait for each other."""

from __future__ import annotations

import socket
import threading

import pytest

from benchmark.run.meeting import wait_for_all
from benchmark.run.tf_config import Place
from flair.errors import FlairError


def _free_address():
    with socket.socket() as server:
        server.bind(("localhost", 0))
        return f"localhost:{server.getsockname()[1]}"


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


@pytest.mark.parametrize(
    "address", ["localhost", "localhost:", ":5000", "localhost:0", "localhost:99999", "localhost:a"]
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
