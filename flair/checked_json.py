"""JSON objects whose file notices any changed byte: one spelling for each value, and a checksum in its last field."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import google_crc32c

from flair import json_text
from flair.atomic import write_bytes
from flair.errors import FlairError

_CHECKSUM = "crc32c"


class DamagedIndex(FlairError):
    """An index or parameter file is not what was written."""


def encode(value: Mapping[str, Any]) -> bytes:
    """The bytes of `value`, its field `crc32c` added: CRC-32C, in hexadecimal, of the same spelling without that field.

    >>> encode({"a": [1, 2]})
    b'{\\n"a": [1,2],\\n"crc32c": "c02dff80"\\n}\\n'
    """
    body = _spell(value)
    return _spell({**value, _CHECKSUM: f"{google_crc32c.value(body):08x}"})


def write(path: str | Path, value: Mapping[str, Any]) -> None:
    """Writes `value` to `path`, whole or not at all."""
    write_bytes(path, encode(value))


def read(path: str | Path) -> dict[str, Any]:
    """Reads what `write` wrote, without the checksum.

    Raises:
      DamagedIndex: the file was changed in any byte; one line naming it.
      FileNotFoundError: there is no such file.
    """
    data = Path(path).read_bytes()
    try:
        value = json_text.parse(data)
        value.pop(_CHECKSUM)
        intact = encode(value) == data
    except (ValueError, KeyError, AttributeError, TypeError):
        intact = False
    if not intact:
        raise DamagedIndex(f"{path}: damaged: its checksum does not fit its content; prepare it again with --overwrite")
    return dict(value)


def _spell(value: Mapping[str, Any]) -> bytes:
    lines = (f"{json.dumps(key)}: {json.dumps(item, separators=(',', ':'))}" for key, item in value.items())
    return ("{\n" + ",\n".join(lines) + "\n}\n").encode()
