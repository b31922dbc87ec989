"""Random damage to files: what disks, tools and people do to them, the same for the same seed."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

from flair.errors import FlairError
from flair.terminal.command import explain_os_error

_OTHER_CONTENTS = (
    b"",
    b"\n",
    b"null",
    b"[]",
    b"{}",
    b"[" * 100_000,
    b'{"a":' * 100_000,
    b"1" * 5_000,
    b'{"started": 1e999}',
    b"\x00" * 300,
    b"\xff\xfe{\x00}\x00",
    b"PK\x03\x04 and no more",
    b"\x93NUMPY\x01\x00\x76\x00{'descr': '<f4', 'fortran_order': False, 'shape': (99999999999999, 9), }"
    + b" " * 43
    + b"\n",
    b"\x89HDF\r\n\x1a\n" + b"\x00" * 100,
    b"epoch,loss,loss\n1,0.5,0.5\n1,0.5,0.5\n",
    b"epoch,loss\n-1,nan\n",
    b"epoch,loss\n1," + b"9" * 140_000 + b"\n",
    b"epoch,seconds\n1,-1e999\n",
)


class Damage(NamedTuple):
    """What happens to a file: `name` tells it to a person, `apply(path)` does it."""

    name: str
    apply: Callable[[Path], None]


def damages(seed: str, count: int) -> Iterator[Damage]:
    """`count` damages: three in four change some bytes, the others put something else in the file's place."""
    for number in range(count):
        rng = random.Random(f"{seed} {number}")
        kind = rng.choice(_CHANGES if rng.random() < 0.75 else _REPLACEMENTS)
        yield Damage(f"{kind.__name__.strip('_')} {number}", _bound(kind, rng))


def _bound(kind: Callable[[Path, random.Random], None], rng: random.Random) -> Callable[[Path], None]:
    return lambda path: kind(path, rng)


def _flip_bit(path: Path, rng: random.Random) -> None:
    data = bytearray(path.read_bytes())
    if data:
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(data)


def _change_byte(path: Path, rng: random.Random) -> None:
    data = bytearray(path.read_bytes())
    if data:
        data[rng.randrange(len(data))] = rng.choice([0, 10, 32, 34, 44, 48, 57, 255, rng.randrange(256)])
    path.write_bytes(data)


def _truncate(path: Path, rng: random.Random) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: rng.randrange(len(data) + 1)])


def _insert(path: Path, rng: random.Random) -> None:
    data, place = path.read_bytes(), rng.randrange(path.stat().st_size + 1)
    new = rng.choice([b"\x00", b"\n", b"9", b",", b"\xef\xbb\xbf", rng.randbytes(rng.randrange(1, 40))])
    path.write_bytes(data[:place] + new + data[place:])


def _delete_range(path: Path, rng: random.Random) -> None:
    data, place = path.read_bytes(), rng.randrange(path.stat().st_size + 1)
    path.write_bytes(data[:place] + data[place + rng.choice([1, 4, 30, 200]) :])


def _zero_range(path: Path, rng: random.Random) -> None:
    data, place = bytearray(path.read_bytes()), rng.randrange(path.stat().st_size + 1)
    end = min(len(data), place + rng.choice([1, 8, 100, 512]))
    data[place:end] = bytes(end - place)
    path.write_bytes(data)


def _swap_blocks(path: Path, rng: random.Random) -> None:
    data = path.read_bytes()
    size = max(1, min(rng.choice([4, 16, 64, 512]), len(data) // 3))
    first = rng.randrange(max(1, len(data) - 2 * size))
    second = rng.randrange(first + size, max(first + size + 1, len(data) - size + 1))
    parts = data[:first], data[first : first + size], data[first + size : second], data[second : second + size]
    path.write_bytes(parts[0] + parts[3] + parts[2] + parts[1] + data[second + size :])


def _repeat_line(path: Path, rng: random.Random) -> None:
    lines = path.read_bytes().split(b"\n")
    lines.insert(rng.randrange(len(lines)), rng.choice(lines))
    path.write_bytes(b"\n".join(lines))


def _other_content(path: Path, rng: random.Random) -> None:
    path.write_bytes(rng.choice(_OTHER_CONTENTS))


def _folder(path: Path, _rng: random.Random) -> None:
    path.unlink()
    path.mkdir()


def _pipe(path: Path, _rng: random.Random) -> None:
    path.unlink()
    os.mkfifo(path)


def _link_to_nothing(path: Path, _rng: random.Random) -> None:
    path.unlink()
    path.symlink_to("nothing")


_CHANGES = (
    _flip_bit,
    _flip_bit,
    _change_byte,
    _truncate,
    _insert,
    _delete_range,
    _zero_range,
    _swap_blocks,
    _repeat_line,
)
_REPLACEMENTS = (_other_content, _other_content, _other_content, _folder, _pipe, _link_to_nothing)


class Hangs(BaseException):
    """A reader waits for something that never comes."""


@contextmanager
def time_limit(busy: float, waiting: float = 60) -> Iterator[None]:
    """Raises `Hangs` in what takes so many seconds of processor time, or waits for so long."""

    def stop(_signum: int, _frame: FrameType | None) -> None:
        raise Hangs

    limits = ((signal.ITIMER_PROF, signal.SIGPROF, busy), (signal.ITIMER_REAL, signal.SIGALRM, waiting))
    handlers = [signal.signal(number, stop) for _, number, _ in limits]
    timers = [signal.setitimer(timer, seconds) for timer, _, seconds in limits]
    try:
        yield
    finally:
        for (timer, number, _), before, handler in zip(limits, timers, handlers, strict=True):
            signal.setitimer(timer, *before)
            signal.signal(number, handler)


def outcome(read: Callable[[Path], Any], folder: Path, accepts: Callable[[Any], bool]) -> str | None:
    """What is wrong with what `read(folder)` does with a damaged file; None where it is right.

    Right is an error that every command prints as one line, or a value that `accepts` takes.
    """
    try:
        with time_limit(3):
            found = read(folder)
    except (FlairError, OSError) as error:
        if isinstance(error, OSError) and not error.errno:
            return f"{type(error).__name__} without a file: {error}"
        line = explain_os_error(error) if isinstance(error, OSError) else str(error)
        return None if line.isprintable() else f"more than a line: {line!r}"
    except Hangs:
        return "waits without an end"
    except BaseException as error:  # noqa: BLE001 - it is what the test counts
        return f"traceback of {type(error).__name__}: {str(error)[:80]}"
    return None if accepts(found) else f"accepted: {str(found)[:200]}"


def restored(source: Path, target: Path) -> Path:
    """A fresh copy of the folder `source` at `target`."""
    if target.exists():
        shutil.rmtree(target)
    return Path(shutil.copytree(source, target, symlinks=True))


def plain(value: Any) -> Any:
    """A value that compares as what it says, NaN and arrays included."""
    return json.dumps(value, default=lambda one: one.tolist() if hasattr(one, "tolist") else repr(one))
