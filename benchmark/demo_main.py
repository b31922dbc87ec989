"""The whole toolkit once, on a miniature FLAIR, unattended: from photos on a server to a trained private model.

Makes a miniature data set, serves it on this machine, downloads it, prepares HDF5 and TFRecords; pretrains a network on
another, public miniature; and from there trains centrally, federated, and federated with differential privacy, by the
very commands of the README. Then it evaluates the models, writes a report and ends with a table. The data are synthetic
and small, so the numbers show that everything works, not how good FLAIR models are.

The public photos are of other users, and ten of the 17 labels stand for other things there: as from ImageNet's classes,
what can be taken over is how to see, not what to say. With the same labels, the public model would know all that the
demo's users can teach.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmark.model.saved import MOST_PIXELS
from benchmark.run import command
from benchmark.run.files import read_json
from benchmark.run.flags import Flags, Role, Table, integer, number, path
from benchmark.run.names import EVALUATION_FILE, PRIVACY_FILE, SUMMARY_FILE
from flair.dataset import catalog
from flair.download import server as mirror_server
from flair.errors import FlairError
from flair.terminal.progress import duration

FLAGS: Table = (
    path("output_dir", "demo", "Folder for everything that the demo makes.", Role.PLACE, was="demo_dir"),
    integer("num_images", 2000, "Photos of the miniature data set.", Role.RESULT, least=100),
    integer("public_images", 4000, "Photos of the public miniature.", Role.RESULT, least=100),
    integer("public_epochs", 12, "Epochs of the pretraining on it.", Role.LENGTH, least=1),
    integer("num_epochs", 12, "Epochs of central training.", Role.LENGTH, least=1),
    integer("total_rounds", 40, "Rounds of federated training, with and without privacy.", Role.RESULT, least=1),
    number("epsilon", 8.0, "Epsilon of the private training.", Role.RESULT, least=0),
    integer(
        "image_size", 64, "Height and width of the model's input, in pixels.", Role.RESULT, least=16, most=MOST_PIXELS
    ),
    integer("seed", 0, "Seed of the data set and of the trainings.", Role.RESULT, least=0, most=2**48),
)

_PUBLIC = "public_model"
_RUNS = ("central", "federated", "private")
_TEST = catalog.PARTITIONS[2]
_MACRO, _MICRO = "macro_averaged_precision", "micro_averaged_precision"
_OTHER_SEED = 1000  # added to --seed for what is public: other users, other photos
_MODEL = "--model=cnn --image_height={image_size} --image_width={image_size} --best_metric=macro_averaged_precision"
_CENTRAL = f"-m benchmark.central_main {_MODEL} --train_batch_size=32 --learning_rate_schedule=cosine"
_ON_USERS = (
    "--tfrecords_dir={tfrecords} --seed={seed} --restore_model_path={public_model}/cnn_central_{num_labels}labels.h5"
)
# The loss is a mean over 17 labels, so that its gradient is small and the clients' learning rate large.
_FEDERATED = (
    f"-m benchmark.federated_main {_ON_USERS} --trainable=head {_MODEL} --client_learning_rate=3"
    " --client_weighting=uniform --server_learning_rate=0.1 --server_epsilon=0.001 --total_rounds={total_rounds}"
    " --clients_per_round={cohort} --rounds_per_eval=4"
)
# Title and command of every stage. In braces are flags of the demo, and names of files and folders in it.
_STAGES = (
    (
        "Make a miniature FLAIR of {num_images:,} photos and pack it as Apple's server does",
        "-m flair.synthetic --dataset_dir={original} --num_images={num_images} --seed={seed} --archives_dir={server}"
        " --num_archives=3",
    ),
    (
        "Make a public miniature of {public_images:,} photos: other users, and ten of the 17 labels mean other things",
        "-m flair.synthetic --dataset_dir={public} --num_images={public_images} --seed={public_seed} --dialect=1",
    ),
    ("Download the first, as from Apple's server", "download_dataset.py --dataset_dir={dataset} --base_url={url}"),
    ("Prepare HDF5", "prepare_dataset.py --dataset_dir={dataset} --output_file={hdf5}"),
    ("Prepare TFRecords", "prepare_tfrecords.py --dataset_dir={dataset} --tfrecords_dir={tfrecords}"),
    ("Verify all of it", "-m flair.verify --dataset_dir={dataset} --tfrecords_dir={tfrecords} --hdf5_file={hdf5}"),
    ("Prepare the public photos", "prepare_tfrecords.py --dataset_dir={public} --tfrecords_dir={public_tfrecords}"),
    (
        "Train a network on them, which all further trainings start from",
        f"{_CENTRAL} --tfrecords_dir={{public_tfrecords}} --seed={{public_seed}} --num_epochs={{public_epochs}}"
        " --learning_rate=0.003 --save_model_dir={public_model}",
    ),
    (
        "Train centrally on the users' photos, all weights",
        f"{_CENTRAL} {_ON_USERS} --num_epochs={{num_epochs}} --learning_rate=0.002 --save_model_dir={{central}}",
    ),
    (
        "Train federated: the classifier alone, on what the public network sees in each photo",
        f"{_FEDERATED} --debug_measurements --save_model_dir={{federated}}",
    ),
    (
        "Train federated with differential privacy, epsilon {epsilon:g}: the same, and few weights take little noise",
        f"{_FEDERATED} --epsilon={{epsilon:g}} --l2_norm_clip=0.5 --save_model_dir={{private}}",
    ),
    (
        "Evaluate the four models on the users' photos, with intervals over users",
        "-m benchmark.evaluate_main --tfrecords_dir={tfrecords} --models={public_model},{central},{federated},{private}"
        " --output_dir={evaluation} --seed={seed} --compare=private,public_model --compare=central,federated"
        " --compare=federated,private",
    ),
    (
        "Write the report",
        "-m benchmark.report_main {public_model} {central} {federated} {private} --output_dir={report}"
        ' --evaluation={evaluation} "--title=The demo\'s four runs"',
    ),
)


def main(flags: Flags) -> None:
    """Runs all stages, then prints the table."""
    started = time.monotonic()
    folder = Path(flags.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    shared = ("original", "server", "dataset", "tfrecords", "public", "public_tfrecords")
    folders = (*shared, _PUBLIC, *_RUNS, "evaluation", "report")
    values = {flag.name: flags[flag.name] for flag in FLAGS} | {name: folder / name for name in folders}
    values |= {"hdf5": folder / "flair.hdf5", "public_seed": flags.seed + _OTHER_SEED}
    make, make_public, download, *others = _STAGES
    for stage in (make, make_public):
        _run(*stage, values)
    values |= _what_was_made(folder / "original", folder / "public")
    with mirror_server.serve(folder / "server") as server:
        _run(*download, {**values, "url": server.url})
    for stage in others:
        _run(*stage, values)
    _print_table(folder, time.monotonic() - started)


def _what_was_made(dataset_dir: Path, public_dir: Path) -> dict[str, int]:
    """How many labels the photos have, and a cohort of nearly all train users, because it shares a round's noise."""
    from flair.dataset.metadata import load_records

    records, public = load_records(dataset_dir), load_records(public_dir)
    labels, known = ({label for record in found for label in record.labels} for found in (records, public))
    if labels != known:
        raise FlairError(
            f"the photos of one miniature show labels that the other's do not ({', '.join(sorted(labels ^ known))}); "
            "give a larger --num_images or --public_images"
        )
    users = {record.user_id for record in records if record.partition == catalog.PARTITIONS[0]}
    return {"num_labels": len(labels), "cohort": max(1, len(users) * 19 // 20)}


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
    from benchmark.privacy.rounding import rounded_up

    content = read_json(folder / "evaluation" / EVALUATION_FILE, {}) or {}
    tested = {each["model"]: each["metrics"] for each in content["results"] if each["partition"] == _TEST}
    macro, micro = ({name: tested[name][metric]["value"] for name in tested} for metric in (_MACRO, _MICRO))
    nothing = _know_nothing(folder / "dataset")
    print(f"\n{'model':<30}{'trained':>12}{'macro AP':>10}{'micro AP':>10}{'epsilon':>9}{'time':>14}")
    print(f"{'knowing nothing':<30}{'-':>12}{nothing[0]:>10.3f}{nothing[1]:>10.3f}{'-':>9}{'-':>14}")
    for name in (_PUBLIC, *_RUNS):
        summary = _read_only(folder / name, SUMMARY_FILE)
        trained = f"{summary['epochs']} epochs" if "epochs" in summary else f"{summary['rounds']} rounds"
        epsilon = rounded_up(summary["epsilon"]) if "epsilon" in summary else "-" if name == _PUBLIC else "none"
        title = "the public model as it is" if name == _PUBLIC else summary["setting"]
        print(
            f"{title:<30}{trained:>12}{macro[name]:>10.3f}{micro[name]:>10.3f}{epsilon:>9}"
            f"{duration(summary['training_seconds']):>14}"
        )
    print(
        "Averaged precision on the test partition, whose users no training saw. Knowing nothing is a scorer that\n"
        "ignores the photo: macro AP is the mean frequency of the labels there, micro AP that of sorting labels by\n"
        "their frequency in training. The public photos show ten of the 17 labels by what stands for others here.\n"
        "Time is that of training, without the seconds in which the public network runs once per photo.\n\n"
        f"{_gains(content, *(macro[name] - nothing[0] for name in _RUNS))}\n{_noise(folder / 'private')}\n"
    )
    print(f"Everything is in {folder}{os.sep}: server/ (archives), dataset/, flair.hdf5, tfrecords/, public/ and")
    print("public_tfrecords/ (the public photos), the runs public_model/, central/, federated/ and private/ (models,")
    print("metrics.csv, TensorBoard events; privacy.txt in private/), and evaluation/ (intervals, predictions).")
    print(f"The demo took {duration(seconds)}.")
    print(f"report: {folder / 'report' / 'index.html'}")
    print("next: open the report in a browser, then the README's steps for the real data")


def _read_only(folder: Path, name: str) -> dict[str, Any]:
    """What is in the one file of this name, in the one run folder in `folder`."""
    (path,) = folder.glob(f"*/{name}")
    return read_json(path, {}) or {}


def _gains(content: dict[str, Any], central: float, federated: float, private: float) -> str:
    """What each training gains in macro AP, and how sure an evaluation is of what privacy costs."""
    (users,) = (each["users"] for each in content["partitions"] if each["name"] == _TEST)
    pair = ("federated", "private", _TEST)
    (cost,) = (each for each in content["comparisons"] if (each["a"], each["b"], each["partition"]) == pair)
    less = cost["metrics"][_MACRO]
    return (
        f"Over knowing nothing, central training gains {central:.3f} of macro AP, federated training {federated:.3f}"
        f"{_share(federated, central)},\nprivate training {private:.3f}{_share(private, central)}. On the {users:,} "
        f"test users, federated less private is {less['value']:.3f}; 95% interval\nover users: [{less['low']:.3f}, "
        f"{less['high']:.3f}], a little too narrow for so few (docs/evaluation.md)."
    )


def _share(part: float, whole: float) -> str:
    return f" ({part / whole:.0%} of that)" if whole > 0 else ""


def _noise(folder: Path) -> str:
    statement = _read_only(folder, PRIVACY_FILE)
    return (
        f"With {statement['users']:,} users and {statement['trainable_weights']:,} weights that train, the noise on a "
        f"round's mean update is {statement['noise']['norm_on_mean']:.2f} times as\nlong as the clip norm, which no "
        "update exceeds. It follows from a secret key, so that the private numbers\nchange from demo to demo."
    )


def _know_nothing(dataset_dir: Path) -> tuple[float, float]:
    """Macro and micro AP on the test partition of a scorer that knows how frequent labels are, and nothing else."""
    import numpy as np

    from benchmark.metrics.histogram import know_nothing_macro_precision, pooled_average_precision
    from flair.dataset.metadata import count_labels, load_records

    records = load_records(dataset_dir)
    labels = sorted({label for record in records for label in record.labels})
    train, test = ([r for r in records if r.partition == partition] for partition in (catalog.PARTITIONS[0], _TEST))
    frequency, counts = (np.array([count_labels(of)[0][label] for label in labels]) for of in (train, test))
    truth = np.array([[label in record.labels for label in labels] for record in test])
    macro = know_nothing_macro_precision(counts, len(test))
    return macro, pooled_average_precision(np.broadcast_to(frequency, truth.shape), truth)


if __name__ == "__main__":
    command.run(main, FLAGS, stopped=command.CONTINUES)
