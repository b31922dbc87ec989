"""Runs programs with other people's tools, which live in an environment of their own: see `make interop`."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.support.commands import ROOT

PYTHON = ROOT / ".venv-interop" / "bin" / "python"


def run_interop(program: str, *arguments: object, home: Path) -> str:
    """What a program prints, run in that environment without a network, its caches below `home`; skips without it."""
    if not PYTHON.exists():
        pytest.skip("other people's tools are not installed: `make interop` makes .venv-interop")
    offline = {"HF_HOME": str(home), "HF_HUB_OFFLINE": "1", "HOME": str(home)}
    words = [str(PYTHON), "-c", program, *map(str, arguments)]
    done = subprocess.run(words, capture_output=True, text=True, check=False, cwd=home, env={**os.environ, **offline})
    assert done.returncode == 0, done.stderr
    return done.stdout
