"""The whole toolkit once, on a miniature FLAIR, unattended: from photos on a server to a trained private model.

Makes a miniature data set, serves it on this machine, downloads it, prepares HDF5 and TFRecords, and trains centrally,
federated, and federated with differential privacy, by the very commands of the README. Then it evaluates the three
models, writes a report and ends with a table. The data are synthetic and small, so the numbers show that everything
works, not how good FLAIR models are.
"""

from __future__ import annotations

import math
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmark.run import command
from benchmark.run.files import read_json
from benchmark.run.flags import Flags, Role, Table, integer, number, path
from benchmark.run.names import PRIVACY_FILE, SUMMARY_FILE
from flair.dataset import catalog
from flair.download import server as mirror_server
from flair.errors import FlairError
from flair.terminal.progress import duration

FLAGS: Table = (
    path("demo_dir", "demo", "Folder for everything that the demo makes.", Role.PLACE),
    integer("num_images", 2000, "Photos of the miniature data set.", Role.RESULT, least=100),
    integer("num_epochs", 12, "Epochs of central training.", Role.LENGTH, least=1),
    integer("total_rounds", 240, "Rounds of the federated training.", Role.RESULT, least=1),
    integer("clients_per_round", 5, "Clients a round of the federated training.", Role.RESULT, least=1),
    number("epsilon", 8.0, "Epsilon of the private training.", Role.RESULT, least=0),
    integer("private_rounds", 20, "Rounds of the private training.", Role.RESULT, least=1),
    integer("private_clients_per_round", 60, "Clients a round of the private training.", Role.RESULT, least=1),
    integer("image_size", 64, "Height and width of the model's input, in pixels.", Role.RESULT, least=16),
    integer("seed", 0, "Seed of the data set and of the trainings.", Role.RESULT),
)

_RUNS = ("central", "federated", "private")
_TRAINING = (
    "--tfrecords_dir={tfrecords} --model=cnn --seed={seed} --image_height={image_size} --image_width={image_size}"
)
_FEDERATED = (
    f"-m benchmark.federated_main {_TRAINING} --client_batch_size=2 --client_learning_rate=0.3"
    " --server_learning_rate=0.01 --server_epsilon=0.001 --best_metric=macro_averaged_precision"
)
# Title and command of every stage. In braces are flags of the demo, and names of files and folders in it.
_STAGES = (
    (
        "Make a miniature FLAIR of {num_images:,} photos and pack it as Apple's server does",
        "-m flair.synthetic --dataset_dir={original} --num_images={num_images} --seed={seed} --archives_dir={server}"
        " --num_archives=3",
    ),
    ("Download it, as from Apple's server", "download_dataset.py --dataset_dir={dataset} --base_url={url}"),
    ("Prepare HDF5", "prepare_dataset.py --dataset_dir={dataset} --output_file={hdf5}"),
    ("Prepare TFRecords", "prepare_tfrecords.py --dataset_dir={dataset} --tfrecords_dir={tfrecords}"),
    ("Verify all of it", "-m flair.verify --dataset_dir={dataset} --tfrecords_dir={tfrecords} --hdf5_file={hdf5}"),
    (
        "Train centrally",
        f"-m benchmark.central_main {_TRAINING} --num_epochs={{num_epochs}} --train_batch_size=32"
        " --learning_rate=0.002 --save_model_dir={central}",
    ),
    (
        "Train federated: many rounds of few clients, because the server learns once a round",
        f"{_FEDERATED} --total_rounds={{total_rounds}} --clients_per_round={{clients_per_round}} --rounds_per_eval=20"
        " --rounds_per_checkpoint=20 --debug_measurements --save_model_dir={federated}",
    ),
    (
        "Train federated with differential privacy, epsilon {epsilon:g}: few rounds of many clients, who share a "
        "round's noise",
        f"{_FEDERATED} --epsilon={{epsilon:g}} --total_rounds={{private_rounds}}"
        " --clients_per_round={private_clients_per_round} --rounds_per_eval=4 --save_model_dir={private}",
    ),
    (
        "Evaluate the three models, with intervals over users",
        "-m benchmark.evaluate_main --tfrecords_dir={tfrecords} --models={central},{federated},{private}"
        " --output_dir={evaluation} --seed={seed} --compare=central,federated --compare=federated,private",
    ),
    (
        "Write the report",
        "-m benchmark.report_main {central} {federated} {private} --output_dir={report} --evaluation={evaluation}"
        ' "--title=The demo\'s three runs"',
    ),
)


def main(flags: Flags) -> None:
    """Runs all stages, then prints the table."""
    started = time.monotonic()
    folder = Path(flags.demo_dir)
    folder.mkdir(parents=True, exist_ok=True)
    folders = ("original", "server", "dataset", "tfrecords", *_RUNS, "evaluation", "report")
    values = {flag.name: flags[flag.name] for flag in FLAGS} | {name: folder / name for name in folders}
    values["hdf5"] = folder / "flair.hdf5"
    make, download, *others = _STAGES
    _run(*make, values)
    with mirror_server.serve(folder / "server") as server:
        _run(*download, {**values, "url": server.url})
    for stage in others:
        _run(*stage, values)
    _print_table(folder, time.monotonic() - started)


def _run(title: str, template: str, values: dict[str, Any]) -> None:
    arguments = [part.format(**values) for part in shlex.split(template)]
    print(f"\n=== {title.format(**values)}\n$ {shlex.join(['python', *arguments])}", flush=True)
    started = time.monotonic()
    code = subprocess.run([sys.executable, *arguments], check=False).returncode
    if code < 0 or code == 130:
        raise KeyboardInterrupt
    if code:
        raise FlairError(f"the command above failed with exit code {code}; run it by itself to look into it")
    print(f"({duration(time.monotonic() - started)})", flush=True)


def _print_table(folder: Path, seconds: float) -> None:
    from benchmark.privacy.accounting import rounded_up

    summaries = {name: _read_only(folder / name, SUMMARY_FILE) for name in _RUNS}
    precision = {name: summary["test"]["macro_averaged_precision"] for name, summary in summaries.items()}
    nothing = _know_nothing(folder / "dataset")
    print(f"\n{'setting':<22}{'trained':>12}{'macro AP':>10}{'micro AP':>10}{'epsilon':>9}{'time':>14}")
    print(f"{'know nothing':<22}{'-':>12}{nothing:>10.3f}{'-':>10}{'-':>9}{'-':>14}")
    for summary in summaries.values():
        trained = f"{summary['epochs']} epochs" if "epochs" in summary else f"{summary['rounds']} rounds"
        epsilon = rounded_up(summary["epsilon"]) if "epsilon" in summary else "none"
        test = summary["test"]
        print(
            f"{summary['setting']:<22}{trained:>12}{test['macro_averaged_precision']:>10.3f}"
            f"{test['micro_averaged_precision']:>10.3f}{epsilon:>9}{duration(summary['training_seconds']):>14}"
        )
    print(
        "Averaged precision on the test partition, whose users no training saw. 'know nothing' is the macro AP of a\n"
        "scorer that ignores the photo: the mean frequency of the labels there.\n\n"
        f"{_cost_of_privacy(folder / 'private', precision['private'] - nothing, precision['federated'] - nothing)}\n"
    )
    print(f"Everything is in {folder}{os.sep}: server/ (archives), dataset/, flair.hdf5, tfrecords/, and the runs")
    print("central/, federated/ and private/ (models, metrics.csv, TensorBoard events; privacy.txt in private/), and")
    print("evaluation/ (intervals, predictions).")
    print(f"The demo took {duration(seconds)}.")
    print(f"report: {folder / 'report' / 'index.html'}")
    print("next: open the report in a browser, then the README's steps for the real data")


def _read_only(folder: Path, name: str) -> dict[str, Any]:
    """What is in the one file of this name, in the one run folder in `folder`."""
    (path,) = folder.glob(f"*/{name}")
    return read_json(path, {}) or {}


def _cost_of_privacy(folder: Path, kept: float, gained: float) -> str:
    statement = _read_only(folder, PRIVACY_FILE)
    clients, sigma = statement["clients_per_round"], statement["noise"]["sum_noise_multiplier"]
    weights = _read_only(folder, SUMMARY_FILE)["parameters"]
    return (
        f"Privacy leaves {kept:.3f} of the {gained:.3f} of macro AP that federated training gains over knowing "
        f"nothing.\nWith {statement['users']:,} users the noise on a round's mean update is "
        f"{sigma / clients * math.sqrt(weights):.2f} times as long as the clip norm, which no\nupdate exceeds "
        f"({sigma:.3f} / {clients:,} clients x sqrt({weights:,} weights)). It follows from a secret key, so that\n"
        "the private numbers change from demo to demo."
    )


def _know_nothing(dataset_dir: Path) -> float:
    import numpy as np

    from benchmark.metrics.histogram import know_nothing_macro_precision
    from flair.dataset.metadata import count_labels, load_records

    records = load_records(dataset_dir)
    labels = sorted({label for record in records for label in record.labels})
    test = [record for record in records if record.partition == catalog.PARTITIONS[2]]
    counts, _ = count_labels(test)
    return know_nothing_macro_precision(np.array([counts[label] for label in labels]), len(test))


if __name__ == "__main__":
    command.run(main, FLAGS, stopped=command.CONTINUES)
