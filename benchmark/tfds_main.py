"""Builds FLAIR as a TFDS data set from the folder that download_dataset.py wrote.

Writes TFDS_DATA_DIR/flair/1.0.0, or nothing: what is there stays until the new data set is complete. A build that was
stopped begins again. The same as `tfds build benchmark/flair_tfds.py --manual_dir=DATASET_DIR
--data_dir=TFDS_DATA_DIR`, without what the command line of TFDS itself needs (apache-beam, which has no version that
goes together with TFF).
"""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING

from benchmark.run import command
from benchmark.run.flags import Flags, Role, Table, boolean, integer, number, path
from flair.errors import FlairError
from flair.files import lock
from flair.terminal.paths import command_line
from flair.terminal.progress import duration, size

if TYPE_CHECKING:
    from benchmark.data.tfds_builder import FlairBuilder

FLAGS: Table = (
    path("dataset_dir", None, "Folder that download_dataset.py wrote.", Role.RESULT, required=True),
    path("tfds_data_dir", None, "Folder of TFDS data sets, to which FLAIR is added.", Role.DATA, required=True),
    integer("num_shards", None, "Files a partition; none: as TFDS chooses, 64 MB or more each.", Role.SPEED, least=1),
    number(
        "heldout_fraction",
        0.0,
        "Put this fraction of each train user's photos aside, in the split heldout, as prepare_tfrecords.py does.",
        Role.RESULT,
        least=0,
        most=0.99,
    ),
    integer("seed", 0, "Of which photos --heldout_fraction takes.", Role.RESULT),
    boolean("overwrite", "Build it again where it is built already.", Role.CALL),
)

_UNFINISHED = ".flair.unfinished"


def main(flags: Flags) -> None:
    """Checks the folders, builds, says what was made."""
    from benchmark.data.tfds import require_tfds
    from flair.dataset.metadata import metadata_path

    started = time.monotonic()
    metadata_path(flags.dataset_dir)
    data_dir = Path(flags.tfds_data_dir)
    if data_dir.exists() and not data_dir.is_dir():
        raise FlairError(f"--tfds_data_dir={data_dir}: is a file; expected a folder")
    require_tfds(f"--tfds_data_dir={data_dir}")
    from benchmark.data.tfds import TFDSRecords, is_tfds_data_dir

    if is_tfds_data_dir(data_dir) and not flags.overwrite:
        builder = TFDSRecords(data_dir).builder
        if builder.info.metadata.get("heldout", {}) != _heldout(flags):
            raise FlairError(
                f"{builder.data_dir}: is built with another --heldout_fraction or --seed; give the same, or --overwrite"
            )
        print(f"{builder.data_dir} is built already. To build it again, add --overwrite.")
    else:
        _build(flags, data_dir)
        builder = TFDSRecords(data_dir).builder
    _report(flags, builder, time.monotonic() - started)


def _build(flags: Flags, data_dir: Path) -> None:
    import tensorflow_datasets as tfds

    from benchmark.data.tfds_builder import FlairBuilder

    tfds.disable_progress_bar()
    config = tfds.download.DownloadConfig(
        manual_dir=os.path.abspath(flags.dataset_dir), num_shards=flags.num_shards, try_download_gcs=False
    )
    data_dir.mkdir(parents=True, exist_ok=True)
    unfinished = data_dir / _UNFINISHED
    with lock.exclusive(data_dir, f"--tfds_data_dir={data_dir}: another build is writing there; wait for it"):
        shutil.rmtree(unfinished, ignore_errors=True)  # which a killed build has left
        try:
            unfinished.mkdir()
            builder = FlairBuilder(data_dir=str(unfinished))
            builder.shows_progress, builder.heldout = True, _heldout(flags)
            with contextlib.redirect_stdout(io.StringIO()):  # TFDS would tell where the unfinished one is
                builder.download_and_prepare(download_config=config)
            final = data_dir / Path(builder.data_dir).relative_to(unfinished)
            final.parent.mkdir(exist_ok=True)
            if final.exists():
                shutil.rmtree(final)
            os.replace(builder.data_dir, final)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)


def _heldout(flags: Flags) -> dict[str, str | int]:
    return {"fraction": str(flags.heldout_fraction), "seed": flags.seed} if flags.heldout_fraction else {}


def _report(flags: Flags, builder: FlairBuilder, seconds: float) -> None:
    splits = builder.info.splits.values()
    photos, files = (sum(getattr(split, name) for split in splits) for name in ("num_examples", "num_shards"))
    users = len({user for partition in builder.info.splits for user in builder.users(partition)})  # heldout: of train
    amount = size(sum(split.num_bytes for split in splits))
    print(f"{builder.data_dir}: {photos:,} photos of {users:,} users, {amount} in {files:,} files")
    print(f"ready in {duration(seconds)}")
    print("next:", command_line("python -m benchmark.federated_main", tfds_data_dir=flags.tfds_data_dir))


if __name__ == "__main__":
    command.run(main, FLAGS)
