"""The rows of a run as a run of Weights & Biases (https://docs.wandb.ai)."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from benchmark.run import names
from flair.errors import FlairError
from flair.files import atomic, regular_file

_OFFLINE = ("offline", "dryrun")  # two names of one mode


class WandbLogger:
    """Offline unless WANDB_MODE says otherwise: files in the run folder, which `wandb sync` sends.

    WANDB_PROJECT and its other variables hold. It is told rows and flags, and nothing of console, code or machine; and
    it reports no errors to its makers, unless WANDB_ERROR_REPORTING asks for that.
    """

    package: str | None = "wandb"
    leaves = (names.WANDB_DIR, names.WANDB_ID_FILE)

    def __init__(self, folder: Path, step_name: str, flags: Mapping[str, str]) -> None:
        self._folder, self._flags = folder, dict(flags)
        self._run: Any = None

    def start(self, rows: Mapping[int, Mapping[str, float]]) -> None:
        """Continues the run of the id that the folder keeps; a FlairError where W&B refuses."""
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # read once, when it is imported
        import wandb

        path = self._folder / names.WANDB_ID_FILE
        if not path.exists():
            atomic.write_text(path, secrets.token_hex(8) + "\n")
        run_id, mode = regular_file.read_bytes(path).decode().strip(), os.environ.get("WANDB_MODE", _OFFLINE[0])
        if mode in _OFFLINE:
            # Offline, each process writes a file of its own: one with all rows takes the place of those before it.
            for earlier in (self._folder / names.WANDB_DIR).glob(f"offline-run-*-{run_id}"):
                shutil.rmtree(earlier)
        settings = wandb.Settings(
            console="off",
            silent=True,
            disable_git=True,
            save_code=False,
            x_disable_stats=True,
            x_disable_meta=True,
            x_save_requirements=False,
        )
        try:
            self._run = wandb.init(
                id=run_id,
                name=self._folder.name,
                dir=str(self._folder),
                config=self._flags,
                mode=cast(Any, mode),  # wandb refuses others itself
                resume=None if mode in _OFFLINE else "allow",
                settings=settings,
            )
        except (wandb.Error, ValueError) as error:
            reason = " ".join(str(error).split())
            raise FlairError(f"--loggers=wandb: {reason} (WANDB_MODE={mode}; offline needs no account)") from None
        for step, values in rows.items():
            self.add(step, values)

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Adds a row, unless W&B has one of this step or a later one, as after a run was stopped."""
        if step >= self._run.step:
            self._run.log(dict(values), step=step, commit=True)

    def close(self, is_complete: bool) -> None:
        """Writes or sends what is left."""
        if self._run is None:
            return
        import wandb

        self._run.finish(exit_code=0 if is_complete else 1)
        wandb.teardown()  # its own process may write after `finish` has returned
