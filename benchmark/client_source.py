"""Where the clients' photos are, as plain data with which another process, maybe on another machine, opens them."""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

from benchmark.client_data import IidClients, UserClients
from benchmark.records import Records, open_records
from flair.errors import FlairError

Clients: TypeAlias = UserClients | IidClients


class ClientSource(NamedTuple):
    """Training clients of a folder of records.

    Attributes:
      tfrecords_dir: absolute path, the same on every machine.
      digest: `Records.digest()` of the data that is meant.
      iid, seed, photos_per_client: whether clients are artificial, and how they are made.
    """

    tfrecords_dir: str
    digest: str
    iid: bool = False
    seed: int = 0
    photos_per_client: int | None = None

    def open(self) -> tuple[Records, Clients]:
        """The records and their training clients.

        Raises:
          FlairError: there are none at this path, or other ones.
        """
        records = open_records(self.tfrecords_dir)
        if records.digest() != self.digest:
            raise FlairError(
                f"{self.tfrecords_dir}: holds other data than on the machine that started the run; copy its files here"
            )
        return records, training_clients(records, self.iid, self.seed, self.photos_per_client)


def training_clients(records: Records, iid: bool, seed: int, photos_per_client: int | None) -> Clients:
    """The clients of the train partition: its users, or artificial ones with `iid`."""
    if iid:
        return IidClients(records, "train", seed, photos_per_client)
    return UserClients(records, "train")
