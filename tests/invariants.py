"""Holds the working tree against an earlier revision: the same commands must leave the same files and print the same.

Usage: python tests/invariants.py [--before=REV] [ONLY...]

REV is checked out into a temporary worktree of its own. Every command runs with the code of before and with the code of
the working tree, side by side, on the same inputs: those that the code of before made. What they leave is compared file
by file, and numbers bit by bit. ONLY are names of invariants; those whose files they need are held, too. Prints a line
an invariant and exits 1 if any differs.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np

ROOT = Path(__file__).resolve().parents[1]
BEFORE = "e5b9ac3"  # the last revision in which `flair` and `benchmark` have no subpackages

# What is never compared: the clock, which revision it was, and which process at which time (`evaluation`).
TIMED_FILES = ("times.csv", "events.out.tfevents.*")
OWN_FACTS = ("started", "continued", "time", "seconds", "training_seconds", "git_revision", "evaluation")
CHECKSUM = "crc32c"  # of a JSON file; left out where one of these facts is
# What changed on purpose in what is printed: h5py lays groups out with other gaps, so that a file's size differs.
HDF5_SIZE = re.compile(rb"\b[\d.]+ MB to (?=\S+\.hdf5)")
TIMES = re.compile(rb"\b(\d+ h \d+ min|\d+ min \d+ s|\d+\.\d s|[\d,.]+ photos/s)(?!\w)")
ERRORS = ".errors"  # standard error, with its progress bars
# What a run that was stopped and continued has in common with one that was not.
RESULTS = ("metrics.csv", "privacy.json", "privacy.txt", "summary.json", "*.h5", "*.npz")

DOORS = ("*.py", "flair/*.py", "benchmark/*_main.py", "benchmark/convert_torchvision.py")
SPEED_SUBJECTS = ("data", "step", "central", "federated", "audit", "ray")

_TRAINING = (
    "--tfrecords_dir={tfrecords}/per_user --save_model_dir={out} --run_dir={out}/run"
    " --model=cnn --image_height=32 --image_width=32"
)
_CENTRAL = (
    f"-m benchmark.central_main {_TRAINING} --num_epochs=2 --train_batch_size=16 --learning_rate=0.01"
    " --minutes_per_checkpoint=0"
)
_FEDERATED = (
    f"-m benchmark.federated_main {_TRAINING} --client_batch_size=4 --rounds_per_eval=2 --rounds_per_checkpoint=1"
)
_PUBLIC = f"{_FEDERATED} --clients_per_round=4"
_PRIVATE = f"{_FEDERATED} --clients_per_round=6 --total_rounds=4 --epsilon=8 --noise_key_file={{key}}"
_HDF5 = "prepare_dataset.py --dataset_dir={synthetic}/data --num_workers=2"
_TFRECORDS = "prepare_tfrecords.py --dataset_dir={synthetic}/data --num_workers=2"
# Invariant -> its commands. {out} is the folder that is compared; other names are those of inputs.
COMMANDS = {
    "synthetic": (
        "-m flair.synthetic --dataset_dir={out}/data --archives_dir={out}/archives --num_archives=3 --num_users=40"
        " --num_images=160 --seed=1 --num_workers=2",
    ),
    "tfrecords": (
        f"{_TFRECORDS} --tfrecords_dir={{out}}/per_user",
        f"{_TFRECORDS} --tfrecords_dir={{out}}/sharded --layout=sharded --images_per_shard=40 --heldout_fraction=0.2",
        f"{_TFRECORDS} --tfrecords_dir={{out}}/tff --feature_names=tff --limit_users=6",
    ),
    "hdf5": (
        f"{_HDF5} --output_file={{out}}/raw.hdf5",
        f"{_HDF5} --output_file={{out}}/jpeg.hdf5 --image_format=jpeg",
        f"{_HDF5} --output_file={{out}}/by_photo.hdf5 --not_group_data_by_user --limit_users=6",
        f"{_HDF5} --output_file={{out}}/indices.hdf5 --label_format=indices --limit_users=6",
    ),
    "stats": ("-m flair.stats --dataset_dir={synthetic}/data --output_dir={out}",),
    "verify": (
        "-m flair.verify --dataset_dir={synthetic}/data --tfrecords_dir={tfrecords}/per_user"
        " --hdf5_file={hdf5}/raw.hdf5 --report={out}/report.json --num_workers=2",
    ),
    "central": (_CENTRAL,),
    "federated": (f"{_PUBLIC} --total_rounds=4 --federated_eval",),
    "private": (_PRIVATE,),
    "ray": (f"{_PUBLIC} --total_rounds=2 --runtime=ray --num_workers=2",),
    "tff": (f"{_PUBLIC} --total_rounds=2 --runtime=tff",),
    "evaluate": (
        "-m benchmark.evaluate_main --tfrecords_dir={tfrecords}/per_user --models={central} --output_dir={out}"
        " --num_resamples=100",
    ),
    "personalize": (
        "-m benchmark.personalize_main --tfrecords_dir={tfrecords}/per_user --model={central}/run/best.h5"
        " --run_dir={out} --partition=train --num_episodes=6 --steps=3",
    ),
}
# Invariant -> the unbroken run, and the checkpoint at whose writing the code of before is killed.
CONTINUED = {
    "central_continued": ("central", "checkpoint-0000000012.npz"),
    "private_continued": ("private", "checkpoint-0000000003.npz"),
}
# Commands whose --help was changed on purpose since BEFORE, and what changed.
CHANGED_HELP = {
    "-m flair.sample_testset": "--models is gone; benchmark.agreement_main writes what --scores reads",
    "prepare_dataset.py": "a run that was stopped starts over, where it was continued before",
}
NAMES = ("help", *COMMANDS, *CONTINUED)
# Two clusters of Ray at a time would look for free ports at the same time.
ONE_AFTER_THE_OTHER = ("ray",)

# Runs a module and kills the process before the file of this name gets its name.
KILLED_AT = """
import os, runpy, signal, sys
wanted, module, *flags = sys.argv[1:]
def strike(event, arguments):
    if event == "os.rename" and os.path.basename(arguments[1]) == wanted:
        os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(strike)
sys.argv = [module, *flags]
runpy.run_module(module, run_name="__main__", alter_sys=True)
"""


class Failed(Exception):
    """A command did not end as it should; the text names it and has its last line."""


class Content(NamedTuple):
    """A file, or a value in one: its size in bytes and its SHA-256."""

    size: int
    digest: str


class Side(NamedTuple):
    """The code of before or of now, and the folder for what it leaves."""

    tree: Path
    folder: Path

    def start(self, arguments: Sequence[str], printed: Path) -> subprocess.Popen[bytes]:
        with open(printed, "wb") as out, open(f"{printed}{ERRORS}", "wb") as errors:
            command = [sys.executable, *arguments]
            return subprocess.Popen(command, cwd=self.tree, stdin=subprocess.DEVNULL, stdout=out, stderr=errors)


class Comparison:
    """Runs commands on both sides and compares what they leave below `work`."""

    def __init__(self, tree_of_before: Path, work: Path) -> None:
        self.work = work
        # Names of the same length, so that lines break at the same place.
        self.old, self.new = Side(tree_of_before, work / "old"), Side(ROOT, work / "new")
        self.key = work / "key"
        self.key.write_text("5e" * 32 + "\n")

    def hold(self, name: str) -> tuple[dict[str, Content], dict[str, Content]]:
        """Every file and value of an invariant, by name: of before and of now."""
        for side in (self.old, self.new):
            (side.folder / name).mkdir(parents=True)
        if name == "help":
            self._help()
        elif name in CONTINUED:
            return self._continue(name)
        else:
            for number, command in enumerate(COMMANDS[name]):
                sides = [[side] for side in (self.old, self.new)]
                for together in sides if name in ONE_AFTER_THE_OTHER else [[self.old, self.new]]:
                    self._run({s: self._arguments(command, s, name) for s in together}, name, f"printed-{number}")
        return self._contents(self.old, name), self._contents(self.new, name)

    def _help(self) -> None:
        for door in find_doors(self.old.tree):
            if " ".join(door) in CHANGED_HELP:
                print(f"left out: --help of {' '.join(door)}: {CHANGED_HELP[' '.join(door)]}")
                continue
            self._run({side: [*door, "--help"] for side in (self.old, self.new)}, "help", " ".join(door))

    def _continue(self, name: str) -> tuple[dict[str, Content], dict[str, Content]]:
        unbroken, checkpoint = CONTINUED[name]
        (command,) = COMMANDS[unbroken]
        option, module, *flags = self._arguments(command, self.new, name)
        # The code of before begins in the folder in which the present one is to continue.
        begun = self.old._replace(folder=self.new.folder)
        self._run({begun: ["-c", KILLED_AT, checkpoint, module, *flags]}, name, "begun", code=-signal.SIGKILL)
        self._run({self.new: [option, module, *flags]}, name, "continued")
        if b"continuing after" not in (self.new.folder / name / "continued").read_bytes():
            raise Failed(f"{module} began anew instead of continuing")
        both = self._contents(self.old, unbroken), self._contents(self.new, name)
        first, second = ({key: found[key] for key in found if _is_result(key)} for found in both)
        return first, second

    def _arguments(self, command: str, side: Side, name: str) -> list[str]:
        inputs = {name: self.old.folder / name for name in COMMANDS}
        return [part.format(out=side.folder / name, key=self.key, **inputs) for part in shlex.split(command)]

    def _run(self, arguments: Mapping[Side, Sequence[str]], name: str, printed: str, code: int = 0) -> None:
        """Runs one command a side at the same time.

        Raises:
          Failed: one of them did not exit with `code`.
        """
        processes = {side: side.start(args, side.folder / name / printed) for side, args in arguments.items()}
        try:
            for process in processes.values():
                process.wait()
        finally:
            for process in processes.values():
                process.kill()
                process.wait()
        for side, process in processes.items():
            if process.returncode != code:
                errors = (side.folder / name / f"{printed}{ERRORS}").read_text(errors="replace")
                whose = "before" if side.tree == self.old.tree else "now"
                last = errors.strip().rpartition("\n")[2]
                raise Failed(f"{whose}: {' '.join(arguments[side][:2])} exits {process.returncode}: {last}")

    def _contents(self, side: Side, name: str) -> dict[str, Content]:
        folder = side.folder / name
        found: dict[str, Content] = {}
        for path in sorted(folder.rglob("*")):
            relative = str(path.relative_to(folder))
            if path.is_symlink():
                found[relative] = _content(os.readlink(path).encode())
            elif path.is_file() and path.suffix != ERRORS and not _fits(path.name, TIMED_FILES):
                values = _values(path)
                if values is None:
                    values = {"": self._without_places(path.read_bytes(), folder)}
                found |= {f"{relative}{value}": _content(data) for value, data in values.items()}
        return found

    def _without_places(self, data: bytes, folder: Path) -> bytes:
        """A file without what differs because two trees cannot have one place, nor two runs one time."""
        data = data.replace(os.fsencode(folder), b"FOLDER")
        for side in (self.old, self.new):
            data = data.replace(os.fsencode(side.folder), b"INPUT").replace(os.fsencode(side.tree), b"TREE")
        data = data.replace(os.fsencode(self.work), b"WORK")
        with contextlib.suppress(ValueError):
            value = json.loads(data)
            if isinstance(value, dict) and not value.keys().isdisjoint(OWN_FACTS):
                return json.dumps(_without_own_facts(value)).encode()
        return HDF5_SIZE.sub(b"SIZE to ", TIMES.sub(b"TIME", data))


def find_doors(tree: Path) -> list[list[str]]:
    """Arguments of Python for every command of a tree, without flags."""
    found = []
    for path in sorted(path for pattern in DOORS for path in tree.glob(pattern)):
        if re.search(r'^if __name__ == "__main__":', path.read_text(encoding="utf-8"), re.MULTILINE):
            relative = path.relative_to(tree)
            is_script = len(relative.parts) == 1
            found.append([str(relative)] if is_script else ["-m", ".".join(relative.with_suffix("").parts)])
    return [*found, *(["-m", "benchmark.speed_main", subject] for subject in SPEED_SUBJECTS)]


def _values(path: Path) -> dict[str, bytes] | None:
    """The values in a file whose own bytes say when it was written; None of any other."""
    if path.suffix in (".h5", ".hdf5"):
        with h5py.File(path) as file:
            return dict(_hdf5_values(file))
    if path.suffix == ".npz":
        with np.load(path) as archive:
            arrays: dict[str, np.ndarray] = {name: archive[name] for name in archive.files}
        state = _without_own_facts(json.loads(arrays.pop("state.json").tobytes()))
        return {"[state]": json.dumps(state).encode()} | {f"[{name}]": _bytes(array) for name, array in arrays.items()}
    return None


def _hdf5_values(file: h5py.File) -> Iterator[tuple[str, bytes]]:
    names = ["/"]
    file.visit(names.append)
    for name in names:
        item = file[name]
        yield f"[{name}]", item.id.get_type().encode() + _bytes(item[()]) if isinstance(item, h5py.Dataset) else b""
        for key, value in item.attrs.items():
            yield f"[{name}@{key}]", item.attrs.get_id(key).get_type().encode() + _bytes(value)


def _bytes(value: Any) -> bytes:
    """Type, shape and every bit of an array, or of an array of arrays or texts."""
    array = np.asarray(value)
    if array.dtype.hasobject:
        data = b"\0".join(_bytes(x) if isinstance(x, np.ndarray) else repr(x).encode() for x in array.flat)
    else:
        data = array.tobytes()
    return f"{array.dtype} {array.shape} ".encode() + data


def _content(data: bytes) -> Content:
    return Content(len(data), hashlib.sha256(data).hexdigest())


def _without_own_facts(value: Mapping[str, Any]) -> dict[str, Any]:
    return {key: item for key, item in value.items() if key not in (*OWN_FACTS, CHECKSUM)}


def _is_result(key: str) -> bool:
    return _fits(key.partition("[")[0].rpartition("/")[2], RESULTS)


def _fits(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch(name, pattern) for pattern in patterns)


def compare(old: Mapping[str, Content], new: Mapping[str, Content]) -> tuple[bool, str]:
    """Whether both are the same, and a short fact about them."""
    different = [name for name in sorted(old.keys() | new.keys()) if old.get(name) != new.get(name)]
    if different or not old:
        more = f" and {len(different) - 4} more" if len(different) > 4 else ""
        return False, f"{len(different)} of {len(old)}: {', '.join(different[:4])}{more}"
    digest = hashlib.sha256(repr(sorted(old.items())).encode()).hexdigest()
    files = len({name.partition("[")[0] for name in old})
    size = sum(content.size for content in old.values())
    return True, f"{files} files, {len(old)} contents, {size:,} bytes, {digest[:12]}"


def needed(names: Sequence[str]) -> list[str]:
    """The invariants of these names and those whose files they need, in the order in which they can be held."""
    found = set(names)
    for name in reversed(NAMES):
        if name in found:
            found |= {CONTINUED[name][0]} if name in CONTINUED else set()
            found |= set(re.findall(r"\{(\w+)\}", " ".join(COMMANDS.get(name, ())))) & set(NAMES)
    return [name for name in NAMES if name in found]


@contextlib.contextmanager
def worktree(revision: str, path: Path) -> Iterator[Path]:
    """Checks a revision of this repository out to `path`, for as long as this is entered."""
    git = ["git", "-C", str(ROOT), "worktree"]
    subprocess.run([*git, "add", "--quiet", "--detach", str(path), revision], check=True)
    try:
        yield path
    finally:
        subprocess.run([*git, "remove", "--force", str(path)], check=True)


def main() -> int:
    description = "Compares what commands leave, before and now."
    parser = argparse.ArgumentParser(description=description, allow_abbrev=False)
    parser.add_argument(
        "--before", metavar="REV", default=BEFORE, help="revision to compare with (default: %(default)s)"
    )
    parser.add_argument("only", metavar="ONLY", nargs="*", help=f"of {', '.join(NAMES)} (default: all)")
    flags = parser.parse_args()
    unknown = set(flags.only) - set(NAMES)
    if unknown:
        parser.error(f"no invariant is called {', '.join(sorted(unknown))}; there are {', '.join(NAMES)}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the worktree goes
    names = needed(flags.only or NAMES)
    num_held = 0
    with tempfile.TemporaryDirectory() as folder, worktree(flags.before, Path(folder) / "tree") as tree:
        comparison = Comparison(tree, Path(folder))
        for name in names:
            try:
                is_equal, fact = compare(*comparison.hold(name))
            except Failed as error:
                is_equal, fact = False, str(error)
            num_held += is_equal
            print(f"{name:18} {'equal' if is_equal else 'DIFFERENT':10} {fact}", flush=True)
    print(f"{num_held} of {len(names)} hold")
    return 0 if num_held == len(names) else 1


if __name__ == "__main__":
    sys.exit(main())
