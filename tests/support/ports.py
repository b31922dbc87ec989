"""A port for a server of a test."""

from __future__ import annotations

import socket


def free_port() -> int:
    """A port of this machine that nothing listens at."""
    with socket.socket() as server:
        server.bind(("localhost", 0))
        return int(server.getsockname()[1])
