"""The flags of `benchmark.speed_main`, by subject; imports nothing heavy, so that --help is quick."""

from __future__ import annotations

import argparse
import functools
import os
from collections.abc import Callable, Sequence
from typing import Any

from flair.terminal.flags import Number, Parser, TellsBounds, Whole, positive_int, seed_number
from flair.terminal.paths import path_flag

_Add = Callable[..., Any]
_SIDE_BY_SIDE = "so that a busy machine slows them alike; medians are over repetitions."
# What a subject measures in a process of its own, which is how it starts itself again.
STEP_VARIANTS, FEDERATED_STAGES = 8, ("bare", "loaded", "inprocess")


class _Defaults(TellsBounds, argparse.ArgumentDefaultsHelpFormatter):
    """Help that tells bounds and defaults."""


class _Wholes(Whole):
    what = "whole numbers, separated by commas,"

    def __call__(self, text: str) -> list[int]:
        return [super(_Wholes, self).__call__(part) for part in text.split(",")]


positive_ints = _Wholes(least=1)


def parse(subject: str, argv: Sequence[str]) -> argparse.Namespace:
    """The flags of a subject; ends the process with usage and reason if they are wrong."""
    add_flags, description = _SUBJECTS[subject]
    shows_defaults = subject in ("step", "central")
    parser = Parser(
        f"python -m benchmark.speed_main {subject}",
        description,
        formatter_class=_Defaults if shows_defaults else TellsBounds,
    )
    # The second one adds a flag that is a whole number of at least 1.
    add_flags(parser.add_argument, functools.partial(parser.add_argument, type=positive_int))
    parser.add_argument(
        "--output_file", was="json", type=path_flag, metavar="FILE.json", help="also write the numbers to this file"
    )
    return parser.parse_args(argv)


def _data(flag: _Add, count: _Add) -> None:
    flag("--work_dir", type=path_flag, required=True, help="folder for the dataset, which stays, and for output")
    count("--num_images", default=20_000, help="photos (default: 20000)")
    count("--distinct_photos", help="draw so many photos, hard-link the others (default: draw all)")
    flag("--seed", type=seed_number, default=0, help="seed of the dataset (default: 0)")
    count("--repeats", default=3, help="repetitions (default: 3)")
    count("--num_workers", default=os.cpu_count() or 1, help="processes of a step (default: all cores)")
    flag("--steps", help="only steps whose names contain one of these words, comma-separated")


def _step(flag: _Add, count: _Add) -> None:
    flag("--model", default="resnet18", help="network, resnet18 or cnn")
    count("--batch_size", default=16, help="photos a step")
    count("--image_size", default=224, help="height and width of the input, in pixels")
    count("--repeats", default=15, help="repetitions, of which medians are taken")
    flag(
        "--clock", choices=("wall", "cpu"), default="wall", help="cpu: seconds of all cores, steadier on a busy machine"
    )
    flag("--memory_of", type=int, choices=range(STEP_VARIANTS), help=argparse.SUPPRESS)


def _central(flag: _Add, count: _Add) -> None:
    flag("--tfrecords_dir", type=path_flag, help="records to read; a synthetic dataset without it")
    count("--num_images", default=1500, help="photos of the synthetic dataset")
    flag("--model", default="resnet18", help="network, resnet18 or cnn")
    flag("--compute_dtype", choices=("float32", "bfloat16"), default="float32", help="of the layers")
    count("--batch_size", default=16, help="photos a training step")
    count("--memory_batch_size", default=512, help="photos a batch for the memory of the pipeline")
    count("--eval_batch_size", default=512, help="photos a batch in evaluation")
    flag("--eval_partition", choices=("val", "test"), default="val", help="photos to evaluate")
    count("--image_size", default=224, help="height and width of the input, in pixels")
    count("--steps", default=10, help="training steps a repetition")
    count("--repeats", default=5, help="repetitions, of which medians are taken")
    flag("--memory_of", choices=("pipeline",), help=argparse.SUPPRESS)


def _federated(flag: _Add, count: _Add) -> None:
    flag("--model", choices=("resnet18", "cnn"), default="resnet18", help="network (default: resnet18)")
    count("--image_size", default=224, help="input pixels (default: 224)")
    flag("--compute_dtype", choices=("float32", "bfloat16"), default="float32", help="default: float32")
    flag("--photos", type=positive_ints, default=[16, 2], help="photos a client (default: 16,2)")
    count("--clients", default=24, help="clients a round (default: 24)")
    flag("--fit_clients", type=positive_ints, default=[2, 8, 16], help="cohorts to fit (default: 2,8,16)")
    count("--batch_size", default=16, help="photos a step (default: 16)")
    count("--epochs", default=1, help="passes a client a round (default: 1)")
    flag("--runtimes", type=_runtimes, default="inprocess", help="inprocess, or inprocess,tff (default: inprocess)")
    count("--repeats", default=5, help="repetitions (default: 5)")
    reads = "also measure opening these records, reading a cohort of 200, and the start of a run"
    flag("--tfrecords_dir", type=path_flag, help=reads)
    flag("--memory_of", choices=FEDERATED_STAGES, help=argparse.SUPPRESS)


def _client_eval(flag: _Add, count: _Add) -> None:
    flag("--tfrecords_dir", type=path_flag, help="records to train on; a synthetic dataset without it")
    count("--num_users", default=500, help="users of the synthetic dataset (default: 500)")
    count("--num_images", default=4200, help="its photos (default: 4200)")
    flag("--model", default="resnet18", help="network (default: resnet18)")
    count("--image_size", default=224, help="input pixels (default: 224)")
    flag("--features", action="store_true", help="train the head alone, on cached features")
    count("--clients", default=200, help="clients a round (default: 200)")
    count("--looked_at", default=50, help="validation users, and clients of the round, looked at (default: 50)")
    count("--rounds", default=10, help="rounds between two looks (default: 10)")
    count("--repeats", default=3, help="repetitions (default: 3)")


def _few_weights(flag: _Add, count: _Add) -> None:
    count("--num_users", default=41_131, help="training users (default: FLAIR's 41131)")
    flag("--features", type=positive_ints, default=[512, 1280], help="features a photo (default: 512,1280)")
    count("--rounds", default=5000, help="rounds (default: 5000)")
    count("--clients", default=200, help="clients a round (default: 200)")
    count("--rounds_per_eval", default=100, help="rounds between validations (default: 100)")
    flag("--model", default="resnet18", help="network that computes features (default: resnet18)")
    count("--image_size", default=224, help="input of that network, in pixels (default: 224)")
    count("--photos", default=1200, help="photos to compute features of (default: 1200)")
    count("--repeats", default=3, help="repetitions of that (default: 3)")
    flag("--epsilon", type=Number(above=0), default=2.0, help="epsilon of all rounds (default: 2)")
    flag("--work_dir", type=path_flag, help="folder for features while it runs, 2 GB (default: the temporary one)")


def _audit(flag: _Add, count: _Add) -> None:
    flag("--work_dir", type=path_flag, required=True, help="folder for the photos, which stay, and for output")
    count("--num_images", default=20_000, help="photos; FLAIR: 429078 (default: 20000)")
    flag("--partitions", default="train,test", help="compared with each other (default: train,test)")
    flag("--seed", type=seed_number, default=0, help="seed of the photos (default: 0)")
    count("--num_workers", default=os.cpu_count() or 1, help="processes (default: all cores)")


def _ray(flag: _Add, count: _Add) -> None:
    flag("--model", choices=("resnet18", "cnn"), default="resnet18", help="network (default: resnet18)")
    count("--image_size", default=224, help="input pixels (default: 224)")
    flag("--workers", type=positive_ints, default=[1, 2], help="numbers of workers (default: 1,2)")
    count("--clients", default=20, help="clients a round (default: 20)")
    count("--batch_size", default=16, help="photos a step (default: 16)")
    count("--epochs", default=1, help="passes a client a round (default: 1)")
    count("--repeats", default=3, help="repetitions (default: 3)")


def _runtimes(text: str) -> list[str]:
    unknown = set(text.split(",")) - {"inprocess", "tff"}
    if unknown:
        raise argparse.ArgumentTypeError(f"expected some of inprocess, tff, found {', '.join(sorted(unknown))}")
    return text.split(",")


_SUBJECTS: dict[str, tuple[Callable[[_Add, _Add], None], str]] = {
    "data": (_data, "Measures the data path on a synthetic dataset, beside plain-Python copying of the same bytes."),
    "step": (
        _step,
        "How fast one training step is: forward, backward and a plain gradient step, on photos that are in memory "
        f"already. All variants take turns within a repetition, {_SIDE_BY_SIDE}",
    ),
    "central": (
        _central,
        "How fast central training is from JPEG records to the step, and evaluation, beside the bare step on photos "
        "in memory. The bare step is central training's own: forward, backward, clipping, Adam, metrics. Bare steps, "
        f"training and evaluation take turns within a repetition, {_SIDE_BY_SIDE}",
    ),
    "federated": (_federated, "Measures federated rounds beside the bare training steps on the same photos."),
    "client_eval": (
        _client_eval,
        "What looking at clients (--rounds_per_client_eval) costs: a round without and with it, and the scores, which "
        f"take turns within a repetition, {_SIDE_BY_SIDE}",
    ),
    "few_weights": (_few_weights, "Trains a head on made-up features of FLAIR's size, with privacy, all rounds."),
    "audit": (_audit, "Measures the audit for near duplicates on generated photos, copies planted among them."),
    "ray": (
        _ray,
        "Measures federated rounds by number of Ray workers, beside inprocess, and computes cluster sizes.",
    ),
}
