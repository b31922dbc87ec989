"""The secret key of a private run, from which its noise and its cohorts follow.

Guarantee: what is drawn for (key, purpose, round) is the output of AES-256 in counter mode, under a key that BLAKE2b
makes of all three. Somebody who knows any number of draws, and everything else about a run, can compute neither the key
nor another draw without breaking one of the two. A round's draws need no earlier ones, so that a continued run draws
what an unbroken one would have drawn.
Edge cases: a key that is drawn is 32 bytes of the operating system (`os.urandom`), never of a seed; one that is given
is as secret as its file. A key lies in the run folder, readable by its owner alone, from before the first round until
the run is complete; deleting its file does not wipe the disk under it. Two models with the same noise differ by clean
updates, so runs from one key file have noise of their own unless they are equal in everything that their rounds depend
on (`key_of_run`). With --runtime=tff the noise is TFF's own, and only cohorts follow from the key.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmark.run.files import read_json
from benchmark.run.names import KEY_FILE, RUN_FILE
from flair.errors import FlairError
from flair.files import atomic, regular_file

_BYTES = 32
_MOST_TEXT = 1024
_TEXT = re.compile(rb"[0-9a-f]{64}(\s+[0-9a-f]{64}){0,2}\s*")
# The counter of a block's cipher begins at its number times 2^64: streams of different blocks never meet.
_BLOCK_BITS = 64


class NoiseKey:
    """256 secret bits, and the streams that follow from them.

    >>> key = NoiseKey(bytes(32))
    >>> key.stream("noise", 7).uint64(0, 2).tolist()
    [15247794028208604819, 14660125670369364023]
    """

    def __init__(self, secret: bytes) -> None:
        if len(secret) != _BYTES:
            raise ValueError(f"expected a key of {_BYTES} bytes, got {len(secret)}")
        self._secret = secret

    def __repr__(self) -> str:
        return f"NoiseKey(sha256={self.sha256})"

    @classmethod
    def draw(cls) -> NoiseKey:
        """A new key from the operating system."""
        return cls(os.urandom(_BYTES))

    @classmethod
    def read(cls, path: str | Path) -> NoiseKey:
        """The key in a file of 64 hexadecimal digits, or the first one in a run's noise.key.

        Raises:
          FlairError: there is no such file, or it holds something else.
        """
        try:
            with open(path, "rb") as file:  # or a pipe, from a tool that decrypts it
                text = file.read(_MOST_TEXT)
        except FileNotFoundError:
            raise FlairError(f"{path}: no such file; expected a noise key of 64 hexadecimal digits") from None
        return cls(bytes.fromhex(_parse(path, text)[0]))

    def hex(self) -> str:
        """The secret itself, as a key file has it."""
        return self._secret.hex()

    @property
    def sha256(self) -> str:
        """A name of the key that does not help to guess it."""
        return hashlib.sha256(b"noise key " + self._secret).hexdigest()

    def derive(self, *names: str | int) -> NoiseKey:
        """The key that belongs to `names` alone."""
        message = repr(names).encode()
        return NoiseKey(
            hashlib.blake2b(message, key=self._secret, digest_size=_BYTES, person=b"flair noise key").digest()
        )

    def stream(self, *names: str | int) -> KeyStream:
        """The random numbers called `names`."""
        return KeyStream(self.derive(*names)._secret)


class KeyStream:
    """Random numbers of one purpose: `fill` any block of them, or draw a cohort as from `numpy.random.Generator`.

    Edge cases: a drawing method starts from the same block at every call, `random` from block 0 and the others from
    block 1. For independent numbers call `random` once, and one of the others once.
    """

    def __init__(self, key: bytes) -> None:
        from cryptography.hazmat.primitives.ciphers import algorithms

        self._algorithm = algorithms.AES(key)

    def fill(self, block: int, buffer: bytearray, zeros: bytes) -> None:
        """Writes the first len(zeros) bytes of a block into `buffer`, which is 15 bytes longer.

        The caller brings both, because megabytes from the kernel take six times as long as the cipher.
        """
        from cryptography.hazmat.primitives.ciphers import Cipher, modes

        counter = (block << _BLOCK_BITS).to_bytes(16, "big")
        Cipher(self._algorithm, modes.CTR(counter)).encryptor().update_into(zeros, buffer)

    def uint64(self, block: int, count: int) -> np.ndarray:
        """The first `count` numbers of a block: uint64 [count], uniform."""
        zeros = bytes(8 * count)
        buffer = bytearray(len(zeros) + 15)
        self.fill(block, buffer, zeros)
        return np.frombuffer(buffer, "<u8", count)

    def random(self, size: int) -> np.ndarray:
        """float64 [size], uniform on [0, 1), as `numpy.random.Generator.random`."""
        return (self.uint64(0, size) >> np.uint64(11)) * 2.0**-53

    def permutation(self, size: int) -> np.ndarray:
        """int64 [size]: 0 to size - 1 in random order, that of 64-bit numbers, among which ties do not happen."""
        return np.argsort(self.uint64(1, size), kind="stable")

    def choice(self, among: int, size: int, replace: bool = False) -> np.ndarray:
        """int64 [size]: distinct numbers below `among`."""
        assert not replace
        return self.permutation(among)[:size]

    def shuffle(self, values: np.ndarray) -> None:
        """Puts `values` in random order, in place."""
        values[:] = values[self.permutation(len(values))]


def key_of_run(folder: Path, given: str | None, settings: Sequence[str], content: str, has_begun: bool) -> NoiseKey:
    """The key of the run in `folder`: the one that lies there, or for a new run a new one, written before it is used.

    Its file holds three lines: the key that was drawn or given, a hash of `settings`, a hash of `content`. The run's
    own key follows from all three, so that runs from one key file have different keys unless all else is equal.

    Args:
      given: --noise_key_file, from which a new run's key follows; None draws one.
      settings: what the rounds depend on beside the key, compared again when the run goes on.
      content: the rest of what they depend on; used for a new run only.
      has_begun: a model of this run may have been seen already. If its key is gone then, this returns a key that raises
        FlairError as soon as a number is drawn from it.

    Raises:
      FlairError: the key is a link, or of another run or other settings; `given` is not a key; run.json names no key.
    """
    path = folder / KEY_FILE
    if path.is_symlink():
        raise FlairError(
            f"{path}: is a link, which would outlive the key; put the file itself here, or remove the link"
        )
    described = _hash(settings)
    if not has_begun:
        first = NoiseKey.draw() if given is None else NoiseKey.read(given)
        rest = [described, _hash([content])]
        _write(path, "".join(f"{line}\n" for line in (first.hex(), *rest)))
        return first.derive("run", *rest)
    recorded = (read_json(folder / RUN_FILE, {}) or {}).get("noise_key_sha256")
    if not recorded:
        raise FlairError(
            f"{folder / RUN_FILE}: names no noise key; an older version, whose noise followed from --seed, began this "
            "run, or the file is not its own: restore it, or start over: --overwrite"
        )
    try:
        secret, *rest = _parse(path, regular_file.read_bytes(path))
    except FileNotFoundError:
        return _LostKey(path, str(recorded))
    key = NoiseKey(bytes.fromhex(secret)).derive("run", *rest)
    if recorded != key.sha256:
        raise FlairError(f"{path}: is the noise key of another run; put this run's back, or start over: --overwrite")
    if not rest or rest[0] != described:
        raise FlairError(f"{path}: is the noise key of this run with other settings; give the same ones to continue it")
    return key


def forget_key(folder: Path) -> None:
    """Deletes the key in `folder`, if there is one, and what it is a link to."""
    path = folder / KEY_FILE
    path.resolve().unlink(missing_ok=True)
    path.unlink(missing_ok=True)


class _LostKey(NoiseKey):
    """In place of a key that is gone: a run whose rounds are all done can still be evaluated."""

    def __init__(self, path: Path, sha256: str) -> None:
        super().__init__(bytes(_BYTES))
        self._path, self._recorded = path, sha256

    @property
    def sha256(self) -> str:
        return self._recorded

    def derive(self, *names: str | int) -> NoiseKey:
        return self

    def stream(self, *names: str | int) -> KeyStream:
        raise FlairError(
            f"{self._path}: no such file; noise and cohorts of a private run follow from it, so that this run cannot "
            "be continued; put it back, or start over: --overwrite"
        )


def _parse(path: str | Path, text: bytes) -> list[str]:
    if _TEXT.fullmatch(text) is None:
        raise FlairError(f"{path}: is not a noise key; expected 64 hexadecimal digits (0-9, a-f) and nothing else")
    return text.decode("ascii").split()


def _write(path: Path, text: str) -> None:
    """Writes a file for its owner alone, whole or not at all, and waits until the disk has it and its name."""
    with atomic.replacing(path) as temporary:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(descriptor, "w", encoding="ascii") as file:
            os.fchmod(descriptor, 0o600)  # a umask or an access list may say otherwise
            file.write(text)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        atomic.sync(folder)
    finally:
        os.close(folder)


def _hash(texts: Sequence[str]) -> str:
    return hashlib.sha256(repr(list(texts)).encode()).hexdigest()
