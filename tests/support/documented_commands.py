"""How the tests run what the pages say: everything in a ```sh block, on a miniature, in the order of the page.

A command is run as it is typed, but for three things, each in a table below:

* PLACES: a path of the reader's is replaced by one inside the test's folder, where a miniature lies ready as `data`,
  `tfrecords` and `flair.hdf5`, with weights to restore, `resnet18.h5`, and a federated run, `federated`. (The README
  makes its own, from a mirror.)
* SMALLER: flags added behind those of the page, so that training takes seconds; the last one given counts.
* NOT_RUN: commands that cannot run in a test, each with the reason.

Whoever adds a command to a page needs nothing here if it uses paths below /path/to and the programs below. A new
program that trains wants a line in SMALLER; one that cannot run wants a line in NOT_RUN.
"""

from __future__ import annotations

import re

from tests.support.markdown import Command
from tests.support.tiny_network import TINY

# (pattern, replacement); {work} is the test's folder.
PLACES = (
    (r"/path/to/", "{work}/"),
    (r"(?<==)(records|tfrecords|DIR|…|\.\.\.)(?=\s|$)", "{work}/tfrecords"),
    (r"(?<==)(dataset|data)(?=\s|$)", "{work}/data"),
    (r"(?<==)RUN(?=/|\s|$)", "{work}/federated/cnn_federated_17labels"),
)

_SMALL_MODEL = f"--model={TINY} --image_height=32 --image_width=32"
_SMALL_ROUNDS = "--total_rounds=2 --clients_per_round=4 --rounds_per_eval=2"
# (pattern anywhere in the command, flags added). {mirror} is a mirror on this machine, in place of Apple's server.
SMALLER = (
    (r" download_dataset\.py ", "--base_url={mirror}"),
    (r" flair\.synthetic ", "--num_images=120 --num_users=30"),
    (r" benchmark\.central_main ", f"{_SMALL_MODEL} --num_epochs=1 --train_batch_size=32"),
    (r" benchmark\.federated_main ", f"{_SMALL_MODEL} {_SMALL_ROUNDS}"),
    (r" --audit_canaries=400", "--audit_canaries=40"),  # beside so few users they would rule the clip norm
    (r" tests/planted_faults\.py", "--runs=1 --canaries=10"),
    (r" benchmark\.sweep_main ", f"--seeds=1 {_SMALL_MODEL} {_SMALL_ROUNDS}"),
    # What starts from the weights that lie ready, and what another command evaluates without being told of a module.
    (r" --restore_model_path=| --save_model_dir=/path/to/(federated|models|runs)$", "--model=cnn"),
    (r" --flagfile=benchmark/configs/", "--model=cnn"),  # presets name a normalization, which a module has itself
    (r" benchmark\.personalize_main ", "--partition=train --num_episodes=4"),
    (r" --episodes=labels ", "--label_set=train"),
    (r" flair\.duplicate_calibration ", "--num_photos=4"),
    (r" benchmark\.speed_main audit ", "--num_images=120"),
    (r" --rounds_per_client_eval=", "--rounds_per_client_eval=1"),
    (
        r" benchmark\.speed_main client_eval",
        "--model=cnn --image_size=32 --num_users=40 --num_images=120 --clients=4 --looked_at=2 --repeats=1",
    ),
    (
        r" benchmark\.speed_main few_weights",
        "--model=cnn --image_size=32 --photos=120 --num_users=200 --rounds=4 --features=8 --clients=8",
    ),
    (
        r" benchmark\.speed_main ray",
        "--model=cnn --image_size=32 --workers=1 --clients=2 --batch_size=2 --repeats=1",
    ),
)

# Program: other programs that it passes unknown flags on to.
PASSES_ON = {"benchmark.sweep_main": ("benchmark.central_main", "benchmark.federated_main")}

# (pattern, replacement, reason): a command that is run in another form.
REPLACED = (
    (r"(?<= )--sets=\S+", "--sets=train,train", "a miniature has too few users in test and val for a classifier"),
    (r" --expected=flair", "", "a miniature has not FLAIR's numbers"),
    (r"(?<= server_learning_rate=)[\d.]+,[\d.]+", "0.1", "a sweep of two settings shows what one of four does"),
    (r" --worker_cpus=4", " --worker_cpus=1", "the machine of a test may have fewer cores"),
)

# (pattern of the whole command, reason).
NOT_RUN = (
    (r"make demo", "takes minutes; tests/commands/test_demo_main.py runs it at a small size"),
    (r"make (test|slow|long|check|format)", "would run these tests inside themselves"),
    (r"make lock.*", "asks a package index for newer versions; tests/pages/test_packaging.py tests the lock itself"),
    (
        r"make( environment.*)?",
        "installs gigabytes; tests/pages/test_environment.py has a stand-in for the index",
    ),
    (r"python3 -m venv \.venv", "makes an environment; the tests run in one already"),
    (r"source \.venv/bin/activate", "changes only the shell that types it"),
    (r"export .*", "changes only the shell that types it"),
    (
        r"python3 -m pip install .*",
        "installs gigabytes; tests/pages/test_packaging.py checks the pins",
    ),
    (
        r"(FLAIR_\w+=\S+ )?(\.venv/bin/)?jupyter notebook.*",
        "a server that does not end; tests/pages/test_notebooks.py runs the notebooks",
    ),
    (r"tensorboard --logdir=.*", "a server that does not end"),
    (r"python3 -m flair\.review .*", "a server that does not end; tests/commands/test_review.py opens it in a browser"),
    (
        r".* --reviews=.*",
        "needs what people mark on the page; tests/commands/test_sample_testset.py makes marks",
    ),
    (r".* benchmark\.privacy_main .*--also_spent=.*", "needs a result about all of FLAIR's users"),
    (r".* --worker_gpus=1 .*", "needs a GPU"),
    (
        r".* --grid algorithm=fed_avg,scaffold .*",
        "six runs; tests/commands/test_federated_main.py trains by SCAFFOLD, test_sweep_main.py sweeps",
    ),
    (r".* --model=keras:.*", "fetches ImageNet weights; tests/commands/test_central_main.py trains without"),
    (
        r".* --model=benchmark\.model\.(efficientnet_lite|vision_transformer):.*",
        "needs a file of weights; tests/model has one in its place",
    ),
    (r".* --(model|network)=my_network:.*", "needs a file of the page; tests/pages/test_networks_page.py trains it"),
    (
        r".*/path/to/few_shot/.*",
        "trains on 2,000 episodes, twice; tests/commands/test_personalize_main.py has the flags",
    ),
    (
        r".*/path/to/long_tail/.*",
        "trains 26 models; test_loss_flags.py in tests/commands has the flags, and test_evaluate_main.py the table",
    ),
    (r"tfds build .*", "starts only with apache-beam; tests/data/test_flair_tfds.py runs it behind TFDS's front door"),
    (r".*\bray (start|get-auth-token) .*", "starts servers that outlive it, or writes to the reader's home"),
    (r".* --ray_address=.*", "needs a running cluster; tests/commands/test_ray_main.py makes one and trains on it"),
)


def reason_not_to_run(command: Command) -> str | None:
    """Why the command is not run; None if it is."""
    return next((reason for pattern, reason in NOT_RUN if re.fullmatch(pattern, command.text)), None)


def as_run(command: Command, work: str, mirror: str) -> str:
    """The command line that stands for `command` in a test."""
    text = command.text
    for pattern, replacement, _reason in REPLACED:
        text = re.sub(pattern, replacement, text)
    for pattern, place in PLACES:
        text = re.sub(pattern, place.format(work=work), text)
    added = [flags.format(mirror=mirror) for pattern, flags in SMALLER if re.search(pattern, command.text)]
    return " ".join([text, *added])
