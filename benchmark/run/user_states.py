"""What a run keeps for every user that has taken part: a vector each, on disk, in versions that checkpoints name.

A vector is a file of its own, named by its user and by the round that wrote it, and is never written again. A
checkpoint holds, for each user, the round of the vector that it means. So it copies none of them, and whatever later
rounds wrote before a process was killed has other names. A version goes when no checkpoint that is left means it.
docs/formats.md has the format.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import itertools
import os
import re
import secrets
import shutil
import struct
from collections.abc import Sequence
from pathlib import Path

import google_crc32c
import numpy as np

from flair.errors import FlairError
from flair.files import atomic, checked_json, lock, regular_file

STORE_FILE, _LOCK_FILE = "store.json", "store.lock"
_FORMAT = 1
_NAME = re.compile(r"(\d{8})-(\d{10})\.npy", re.ASCII)
_CHECKSUM = struct.Struct("<I")
_BLOCK = 4096  # bytes that a file system gives to a file, at least
_START_OVER = "give the folder of this run, another --user_state_dir, or --overwrite"


class UserStates:
    """The vectors of a run's users, float32 of one size.

    Args:
      folder: for the files, made when the run begins.
      run_dir: of the run whose they are.
      user_ids: who can take part, in an order that does not change.
      size: numbers in a vector.
      bytes_needed: free disk without which the run does not begin.
    """

    def __init__(self, folder: Path, run_dir: Path, user_ids: Sequence[str], size: int, bytes_needed: int = 0) -> None:
        self._folder, self._bytes_needed = folder, bytes_needed
        self._index = {user: index for index, user in enumerate(user_ids)}
        digest = hashlib.sha256("\n".join(user_ids).encode("utf-8", "surrogateescape")).hexdigest()
        self._facts = {"format": _FORMAT, "users": len(user_ids), "users_sha256": digest, "size": size}
        self._run = _name_of(run_dir, folder)
        self._header = _header(size)
        # Of each user the round that wrote its newest vector, counted from 1; 0: none has.
        self._newest = np.zeros(len(user_ids), np.int32)
        self._round = 0  # that writes now, counted from 1
        self._saved = 0  # newest round that a checkpoint may mean
        self._superseded: list[tuple[int, Path]] = []  # versions that a checkpoint may mean, and the next one's round
        self._unsynced: set[Path] = set()
        self._token = b""
        self._is_claimed = False
        self._locked = contextlib.ExitStack()

    @property
    def num_users(self) -> int:
        """Users that can take part."""
        return len(self._newest)

    def claim(self) -> None:
        """Makes and locks the folder for a run that has not begun; `begin_round` does it where nobody did before.

        Raises:
          FlairError: the folder is in use, holds something else, or its disk is too small.
        """
        if self._is_claimed:
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        self._lock()
        names = {entry.name for entry in os.scandir(self._folder)} - {_LOCK_FILE}
        if names and _read_facts(self._folder).get("run") != self._run:
            raise FlairError(f"{self._folder}: is not empty, and its files are not of this run; {_START_OVER}")
        _remove_vectors(self._folder)
        free = shutil.disk_usage(self._folder).free
        if free < self._bytes_needed:
            raise FlairError(
                f"{self._folder}: user states may need {self._bytes_needed / 1e9:.3g} GB, and {free / 1e9:.3g} GB are "
                "free; give a --user_state_dir on a larger disk, or train fewer weights (--trainable=film)"
            )
        self._is_claimed = True

    def begin_round(self, round_number: int) -> None:
        """What is set from now on was written by this round, counted from 0; round 0 begins with nobody's vector.

        Raises:
          FlairError: the folder holds something else, or its disk is too small.
        """
        if not self._token:
            if round_number:
                raise ValueError(f"round {round_number} needs the vectors of the rounds before: restore them")
            self.claim()
            self._token = secrets.token_bytes(16)
            facts = {**self._facts, "run": self._run, "store": self._token.hex()}
            checked_json.write(self._folder / STORE_FILE, facts)
        self._round = round_number + 1

    def get(self, user: str) -> np.ndarray | None:
        """The user's vector, or None of one who has not taken part.

        Raises:
          FlairError: its file is gone, damaged, or another run's.
        """
        index = self._index[user]
        version = int(self._newest[index])
        return self._read(self._path(index, version)) if version else None

    def __setitem__(self, user: str, vector: np.ndarray) -> None:
        """Writes the user's new vector, whole or not at all; the one before stays where a checkpoint means it."""
        index = self._index[user]
        path, before = self._path(index, self._round), int(self._newest[index])
        data = self._header + np.ascontiguousarray(vector, "<f4").tobytes()
        temporary = atomic.beside(path, f"{os.getpid()}.tmp")
        try:
            temporary.write_bytes(data + _CHECKSUM.pack(self._crc32c(path, data)))
            os.replace(temporary, path)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            error.filename, error.filename2 = str(path), None
            raise
        self._unsynced.add(path)
        self._newest[index] = self._round
        if before in (0, self._round):
            return
        old = self._path(index, before)
        if before > self._saved:
            self._unsynced.discard(old)
            old.unlink()
        else:
            self._superseded.append((self._round, old))

    def state(self) -> list[np.ndarray]:
        """For a checkpoint: int32 [users], the rounds of the vectors, and which store they are in; all are on disk."""
        for path in self._unsynced:
            with open(path, "rb") as file:
                atomic.sync(file.fileno())
        folder = os.open(self._folder, os.O_RDONLY)
        try:
            atomic.sync(folder)  # the names of the files
        finally:
            os.close(folder)
        self._unsynced.clear()
        self._saved = self._round
        return [self._newest.copy(), np.frombuffer(self._token, np.uint8).copy()]

    def restore(self, newest: np.ndarray, token: np.ndarray) -> None:
        """Goes on from `state()` of another process, and removes what was written after it.

        Raises:
          FlairError: the folder holds another run's vectors, or does not hold all that the state means.
        """
        self._lock()
        facts = _read_facts(self._folder)
        expected = {**self._facts, "store": token.tobytes().hex()}
        if {name: facts.get(name) for name in expected} != expected:
            raise FlairError(f"{self._folder}: holds the user states of another run, model or users; {_START_OVER}")
        self._token, self._newest = token.tobytes(), np.array(newest, np.int32)
        self._saved = self._round = int(newest.max(initial=0))
        versions = _versions(self._folder)
        for index, version in enumerate(self._newest.tolist()):
            if version and version not in versions.get(index, ()):
                path = self._path(index, version)
                raise FlairError(f"{path}: is missing, and the checkpoint needs it; restore it, or add --overwrite")
        for index, rounds in versions.items():
            newest_round = int(self._newest[index]) if index < len(self._newest) else 0
            kept = [version for version in rounds if version <= newest_round]
            for version in rounds:
                if version > newest_round:
                    self._path(index, version).unlink()
            self._superseded += [(after, self._path(index, one)) for one, after in itertools.pairwise(kept)]

    def forget(self, round_number: int) -> None:
        """Removes the versions that no checkpoint after this many rounds, or more, means."""
        gone = [path for after, path in self._superseded if after <= round_number]
        self._superseded = [(after, path) for after, path in self._superseded if after > round_number]
        for path in gone:
            path.unlink(missing_ok=True)

    def close(self) -> None:
        """Lets another process use the folder."""
        self._locked.close()

    def _lock(self) -> None:
        busy = f"{self._folder}: another run keeps its user states there; give another --user_state_dir"
        if not self._folder.is_dir():
            raise FlairError(f"{self._folder}: is missing, and the checkpoint needs its user states; {_START_OVER}")
        self._locked.enter_context(lock.exclusive(self._folder / _LOCK_FILE, busy))
        atomic.remove_leftovers(self._folder)

    def _read(self, path: Path) -> np.ndarray:
        try:
            data = regular_file.read_bytes(path)
        except FileNotFoundError:
            raise FlairError(f"{path}: is missing; restore it, or add --overwrite") from None
        content, checksum = data[: -_CHECKSUM.size], data[-_CHECKSUM.size :]
        if not data.startswith(self._header) or _CHECKSUM.pack(self._crc32c(path, content)) != checksum:
            raise FlairError(f"{path}: is damaged, or another run's; restore it, or add --overwrite")
        return np.frombuffer(content, "<f4", offset=len(self._header))

    def _crc32c(self, path: Path, data: bytes) -> int:
        """Of the content, the store and the name, so that no file can stand for another."""
        return int(google_crc32c.extend(google_crc32c.value(data), self._token + path.name.encode()))

    def _path(self, index: int, round_number: int) -> Path:
        return self._folder / f"{index:08d}-{round_number:010d}.npy"


def remove(folder: Path, run_dir: Path) -> None:
    """Removes what a run that starts over kept in this folder; one that is not this run's stays as it is."""
    try:
        if _read_facts(folder).get("run") != _name_of(run_dir, folder):
            return
    except FlairError:
        return  # nobody knows whose it is
    _remove_vectors(folder)
    (folder / STORE_FILE).unlink()


def bytes_on_disk(size: int) -> int:
    """Of the file of one vector of so many numbers.

    >>> bytes_on_disk(18_545)
    77824
    """
    length = len(_header(size)) + 4 * size + _CHECKSUM.size
    return -(-length // _BLOCK) * _BLOCK


def versions_at_most(num_users: int, cohort: int, rounds: int, rounds_per_checkpoint: int) -> int:
    """Files that a run can have at once: one for each user that has taken part, and what two checkpoints still mean.

    >>> versions_at_most(41_131, cohort=200, rounds=5000, rounds_per_checkpoint=10)
    45131
    """
    users = min(num_users, rounds * cohort)
    return users + min(2 * users, 2 * min(rounds_per_checkpoint, rounds) * cohort)


def _name_of(run_dir: Path, folder: Path) -> str:
    """By which a folder knows its run, wherever both are moved together."""
    return os.path.relpath(os.path.realpath(run_dir), os.path.realpath(folder))


def _versions(folder: Path) -> dict[int, list[int]]:
    """The rounds of each user's vectors that are there, in order."""
    found: dict[int, list[int]] = {}
    for entry in os.scandir(folder):
        match = _NAME.fullmatch(entry.name)
        if match is not None:
            found.setdefault(int(match[1]), []).append(int(match[2]))
    return {index: sorted(rounds) for index, rounds in found.items()}


def _remove_vectors(folder: Path) -> None:
    for path in list(folder.iterdir()):
        if _NAME.fullmatch(path.name):
            path.unlink()


def _read_facts(folder: Path) -> dict[str, object]:
    try:
        return checked_json.read(folder / STORE_FILE)
    except FileNotFoundError:
        return {}
    except checked_json.DamagedIndex:
        raise FlairError(f"{folder / STORE_FILE}: is damaged; restore it, or add --overwrite") from None


def _header(size: int) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": (size,)})
    return file.getvalue()
