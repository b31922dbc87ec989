"""The machines of a job: this one's place among them, from the environment variable TF_CONFIG, and waiting for them.

The format is TensorFlow's: https://www.tensorflow.org/guide/distributed_training#setting_up_tf_config_environment_variable
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import sys
import time
from typing import NamedTuple

from flair.errors import FlairError
from flair.files import json_text

_ADDRESS = re.compile(r"(\[[^\[\]/]+\]|[^\[\]/\0]+):([0-9]{1,5})")
_POLL_SECONDS = 0.2
_CONNECT_SECONDS = 2.0
_SECONDS_PER_LINE = 60.0


class Place(NamedTuple):
    """Process `worker` of `num_workers`, the chief first; 0 of 1 without TF_CONFIG. Addresses are host:port, of all."""

    worker: int
    num_workers: int
    addresses: tuple[str, ...] = ()


def place() -> Place:
    """The place that TF_CONFIG gives; a FlairError if it is not JSON, or its task is not one of its machines."""
    text = os.environ.get("TF_CONFIG")
    if not text:
        return Place(0, 1)
    try:
        config = json_text.parse(text)
        cluster = config.get("cluster", {})
        hosts = {kind: cluster.get(kind, []) for kind in ("chief", "worker")}
        if not all(isinstance(names, list) for names in hosts.values()):
            raise TypeError("expected lists of addresses")
        machines = [(kind, index) for kind, names in hosts.items() for index in range(len(names))]
        if not machines:
            return Place(0, 1)
        mine = (config["task"]["type"], config["task"]["index"])
        addresses = tuple(str(address) for names in hosts.values() for address in names)
        return Place(machines.index(mine), len(machines), addresses)
    except (ValueError, TypeError, KeyError, AttributeError):
        raise FlairError(
            f"TF_CONFIG={text:.200}: expected JSON such as "
            '{"cluster": {"worker": ["host1:5000", "host2:5000"]}, "task": {"type": "worker", "index": 0}}'
        ) from None


def wait_for_all(place: Place) -> None:
    """Returns once every machine of the job answers; says which are waited for, and Ctrl-C or SIGTERM ends it.

    TensorFlow, which connects them afterwards, would wait without ever returning to Python, and takes SIGTERM over. So
    each machine listens at its port until it has reached those of all others; what answers may be TensorFlow already.

    Raises:
      FlairError: an address is not host:port, or this machine's port is taken.
    """
    hosts = [_host_and_port(address) for address in place.addresses]
    others = [index for index in range(len(hosts)) if index != place.worker]
    with _listen(hosts[place.worker][1], place) as server:
        print(f"waiting for the {place.num_workers} machines of TF_CONFIG; Ctrl-C ends it", file=sys.stderr, flush=True)
        said = time.monotonic()
        # All of them in one pass: one that has answered may be gone again.
        while missing := [index for index in others if not _answers(*hosts[index])]:
            _accept_all(server)
            if time.monotonic() - said >= _SECONDS_PER_LINE:
                said = time.monotonic()
                named = ", ".join(f"worker {index} at {place.addresses[index]}" for index in missing[:5])
                print(f"still waiting for {named}", file=sys.stderr, flush=True)
            time.sleep(_POLL_SECONDS)


def _host_and_port(address: str) -> tuple[str, int]:
    match = _ADDRESS.fullmatch(address)
    if match is not None and 0 < int(match[2]) < 65536:
        host = match[1].strip("[]")
        with contextlib.suppress(UnicodeError):
            host.encode("idna")  # as connecting would
            return host, int(match[2])
    raise FlairError(f"TF_CONFIG: {address!r:.200}: expected host:port, such as 10.0.0.1:5000")


def _listen(port: int, place: Place) -> socket.socket:
    try:
        if socket.has_dualstack_ipv6():
            server = socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
        else:
            server = socket.create_server(("", port))
    except OSError as error:
        raise FlairError(
            f"TF_CONFIG: port {port} of worker {place.worker}, this machine, cannot be used: {error.strerror}; end "
            "what listens there, or give another port on all machines"
        ) from None
    server.setblocking(False)
    return server


def _accept_all(server: socket.socket) -> None:
    """Takes what has connected, because a full queue would refuse the others."""
    with contextlib.suppress(BlockingIOError):
        while True:
            server.accept()[0].close()


def _answers(host: str, port: int) -> bool:
    try:
        with socket.create_connection((host, port), timeout=_CONNECT_SECONDS) as connection:
            # On one machine a connection may, by chance, begin at the very port that it goes to.
            return connection.getsockname() != connection.getpeername()
    except OSError:
        return False
