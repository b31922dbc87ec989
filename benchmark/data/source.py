"""Where the clients' photos are, as plain data: another process, perhaps on another machine, opens them with it."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np

from benchmark.data.artificial import Artificial, FreshClients
from benchmark.data.clients import ClientData, IidClients, UserClients
from benchmark.data.opening import open_records
from benchmark.data.records import Records
from flair.errors import FlairError


class Clients(ClientData, Protocol):
    """Clients of whom it is known how many photos each has."""

    def num_photos(self, client_id: str) -> int:
        """How many examples the client has, found without reading them."""
        ...

    def rows(self, client_id: str) -> np.ndarray:
        """The client's rows of `Records.photo_index`."""
        ...


class ClientSource(NamedTuple):
    """Training clients of a place with records."""

    place: str  # absolute path of what `open_records` opens, the same on every machine
    digest: str  # `Records.digest()` of the data that is meant
    artificial: Artificial | None = None  # None: clients are users

    def open(self) -> tuple[Records, Clients]:
        """The records and their training clients.

        Raises:
          FlairError: there are no records at this path, or others than these.
        """
        records = open_records(self.place)
        if records.digest() != self.digest:
            raise FlairError(
                f"{self.place}: holds other data than on the machine that started the run; copy its files here"
            )
        return records, training_clients(records, self.artificial)


def training_clients(records: Records, artificial: Artificial | None) -> Clients:
    """The clients of the train partition: its users, or artificial ones."""
    if artificial is None:
        return UserClients(records, "train")
    if artificial.is_fresh:
        return FreshClients(records, "train", artificial)
    return IidClients(records, "train", artificial.seed, artificial.photos_per_client)
