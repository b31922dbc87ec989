"""The Ray cluster of a run: one of this machine alone, which ends with the run, or a running one by its address.

The cluster of this machine listens on loopback only, shows no dashboard, sends no usage statistics, and asks whoever
connects for a random token, because other users of this machine can reach loopback too. It ends with this process,
however that ends: by the kernel, which Ray asks for it (PR_SET_PDEATHSIG), and by `guard` for the rest.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmark.cluster import guard
from flair.errors import FlairError

_LOOPBACK = "127.0.0.1"
_CONNECT_SECONDS = 10
# Sockets of Ray lie below the folder, and their paths may have 107 bytes.
_LONGEST_TEMPORARY_FOLDER = 30
_TOKEN = secrets.token_hex(32)  # one per process, because Ray reads it once


class Cluster:
    """A connection to a Ray cluster; one per process.

    Args:
      address: host:port of a running cluster, `auto`, or None for a cluster of this machine.
      num_cpus: cores that the cluster of this machine hands out.
      use_gpus: whether the cluster of this machine hands out its GPUs.

    Raises:
      FlairError: nothing answers at the address, or another version of Ray or Python.
    """

    def __init__(self, address: str | None, num_cpus: int, use_gpus: bool = False) -> None:
        self._guard: _Guard | None = None
        with _environment(is_local=address is None), _signals_kept():
            import ray

            self._ray = ray
            common: dict[str, Any] = {"log_to_driver": False, "logging_level": "error", "configure_logging": True}
            if address is None:
                self._guard = _Guard()
                try:
                    ray.init(
                        address="local",
                        num_cpus=num_cpus,
                        num_gpus=None if use_gpus else 0,
                        include_dashboard=False,
                        _node_ip_address=_LOOPBACK,
                        _temp_dir=self._guard.folder,
                        **common,
                    )
                except Exception as error:  # noqa: BLE001, Ray raises that when a process of its does not come up
                    self._guard.release(keep_folder=True)
                    raise FlairError(
                        f"Ray did not start on this machine: {_one_line(error)}; its logs are in {self._guard.folder}"
                    ) from None
            else:
                _connect(ray, address, common)

    def resources(self) -> tuple[float, float]:
        """CPUs and GPUs of all machines, taken or not."""
        found = self._ray.cluster_resources()
        return float(found.get("CPU", 0)), float(found.get("GPU", 0))

    def room(self, cpus: int, gpus: float) -> int:
        """How many workers of this size fit on the machines of the cluster together."""
        fitting = 0
        for node in self._ray.nodes():
            if node["Alive"]:
                offered = node["Resources"]
                wanted = {"CPU": cpus, "GPU": gpus}
                # A tenth goes ten times into one only if the last bit is forgiven.
                fitting += min(int(offered.get(name, 0) / size + 1e-9) for name, size in wanted.items() if size > 0)
        return fitting

    def close(self, keep_logs: bool = False) -> None:
        """Ends the cluster of this machine, or the connection; `keep_logs` leaves the logs of the workers."""
        with _signals_kept():
            self._ray.shutdown()
        if self._guard is not None:
            self._guard.release(keep_logs)


class _Guard:
    """The folder of a cluster of this machine, and the process that cleans up after it."""

    def __init__(self) -> None:
        place = tempfile.gettempdir()
        place = place if len(place) <= _LONGEST_TEMPORARY_FOLDER else "/tmp"
        self.folder = tempfile.mkdtemp(prefix="flair-ray-", dir=place)
        command = [sys.executable, "-S", guard.__file__, self.folder]
        # A session of its own, so that no Ctrl-C reaches it.
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True, cwd="/")

    def release(self, keep_folder: bool) -> None:
        """Lets it do its work now."""
        self._process.communicate(b"keep" if keep_folder else b"")


def _connect(ray: Any, address: str, common: dict[str, Any]) -> None:
    advice = "start it with `ray start --head`, or leave --ray_address out"
    if address != "auto":
        host, _, port = address.rpartition(":")
        try:
            # Ray's own attempt would end this process with a page of C++ frames.
            socket.create_connection((host.strip("[]"), int(port)), _CONNECT_SECONDS).close()
        except OSError as error:
            reason = error.strerror or error
            raise FlairError(f"--ray_address={address}: no Ray cluster answers ({reason}); {advice}") from None
    try:
        ray.init(address=address, **common)
    except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        raise FlairError(f"--ray_address={address}: {_one_line(error)}; {advice}") from None


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:400]


@contextlib.contextmanager
def _environment(is_local: bool) -> Iterator[None]:
    """What Ray's processes find in their environment; ours is put back except for what Ray reads again later."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    # Else Ray warns about a coming change of its default.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    if not is_local:
        yield
        return
    # Ray's 15 would starve a round beside anything else that the machine does; `inprocess` has 0, too.
    os.environ.setdefault("RAY_worker_niceness", "0")
    # Ray takes the mode when it is imported, and a program that imported it for itself did without.
    if "RAY_AUTH_MODE" not in os.environ and "ray" not in sys.modules:
        os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": _TOKEN}
    before = os.environ.get("PYTHONPATH")
    root = str(Path(__file__).resolve().parents[2])
    # The folder last: --model=MODULE:FUNCTION may be there, and nothing in it is to stand in front of anything else.
    os.environ["PYTHONPATH"] = os.pathsep.join([root, *([before] if before else []), os.getcwd()])
    try:
        yield
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before


@contextlib.contextmanager
def _signals_kept() -> Iterator[None]:
    """Ray puts its own handlers in place of the command's."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
