"""This process's place in a job of several machines, from the environment variable TF_CONFIG.

The format is TensorFlow's: https://www.tensorflow.org/guide/distributed_training#setting_up_tf_config_environment_variable
"""

from __future__ import annotations

import os
from typing import NamedTuple

from flair.errors import FlairError
from flair.files import json_text


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
