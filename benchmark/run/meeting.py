"""The machines of a job wait for each other before TensorFlow connects them.

TensorFlow's own wait never returns to Python, and takes SIGTERM over: nothing could end it. So each machine listens at
its port until it has reached the ports of all others; what answers there may be TensorFlow already.
"""

from __future__ import annotations

import socket
import sys
import time

from benchmark.run.tf_config import Place
from flair.errors import FlairError

_POLL_SECONDS = 0.2
_CONNECT_SECONDS = 2.0


def wait_for_all(place: Place) -> None:
    """Returns once every machine of the job has been reached; says what is waited for, and Ctrl-C or SIGTERM ends it.

    Raises:
      FlairError: an address is not host:port, or this machine's port is taken.
    """
    hosts = [_host_and_port(address) for address in place.addresses]
    others = {index: host for index, host in enumerate(hosts) if index != place.worker}
    with _listen(hosts[place.worker][1], place):
        print(f"waiting for the {place.num_workers} machines of TF_CONFIG; Ctrl-C ends it", file=sys.stderr, flush=True)
        while others:
            others = {index: host for index, host in others.items() if not _answers(*host)}
            if others:
                time.sleep(_POLL_SECONDS)


def _host_and_port(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise FlairError(f"TF_CONFIG: {address!r}: expected host:port, such as 10.0.0.1:5000")
    return host.strip("[]"), int(port)


def _listen(port: int, place: Place) -> socket.socket:
    try:
        if socket.has_dualstack_ipv6():
            return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
        return socket.create_server(("", port))
    except OSError as error:
        raise FlairError(
            f"TF_CONFIG: port {port} of worker {place.worker}, this machine, cannot be used: {error.strerror}; end "
            "what listens there, or give another port on all machines"
        ) from None


def _answers(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), timeout=_CONNECT_SECONDS).close()
    except OSError:
        return False
    return True
