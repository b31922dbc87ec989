"""Tells two sets of photos apart by frozen features: an AUC of 0.5 says that nothing here can.

A logistic regression on features of benchmark.features_main, which no user's photos teach about that user, separates
val from a re-sampled set, or seen users from unseen ones. --sets=val,val is the control: the users of val in two halves
by chance, whose interval should hold 0.5. docs/testsets.md says what follows.
"""

from __future__ import annotations

import time

import numpy as np

from benchmark.evaluation import discriminator
from benchmark.run import command
from benchmark.run.flags import Flags, Role, Table, integer, path, paths
from benchmark.run.seeds import derive_generator
from flair.curation.manifest import manifest_path, read_valid_testset
from flair.dataset.catalog import PARTITIONS
from flair.dataset.metadata import Record, load_records
from flair.duplicates.features import read_features
from flair.errors import FlairError
from flair.files import atomic
from flair.terminal.counted import counted
from flair.terminal.paths import command_line
from flair.terminal.progress import duration

FLAGS: Table = (
    path("dataset_dir", None, "Folder with labels_and_metadata.json.", Role.DATA, required=True),
    path("features", None, "Features of the photos: FILE.npy of benchmark.features_main.", Role.DATA, required=True),
    paths(
        "sets",
        None,
        "Two of train, val, test and test sets, as val,flair-b-0; one of them twice is the control.",
        Role.RESULT,
        required=True,
    ),
    path("testsets_dir", "testsets", "Folder of the test sets that flair.sample_testset wrote.", Role.RESULT),
    path("output_file", None, "JSON file for the result; none: it is only printed.", Role.PLACE),
    integer("num_resamples", 1000, "Resamples of the bootstrap over users.", Role.RESULT, least=100),
    integer("seed", 0, "Seed of folds, halves and bootstrap.", Role.RESULT, least=0, most=2**48),
)


def main(flags: Flags) -> None:
    """Reads both sets and their features, trains, prints and writes the AUC."""
    started = time.monotonic()
    if len(flags.sets) != 2:
        raise FlairError(f"--sets={','.join(flags.sets)}: expected two, as val,flair-b-0, or val,val for the control")
    if flags.output_file is not None:
        atomic.destination(flags.output_file)  # refused before the work, not after it
    first, second = flags.sets
    records = load_records(flags.dataset_dir)
    names, members = flags.sets, [_members(name, records, flags.testsets_dir) for name in flags.sets]
    if first == second:
        names, members = [f"a half of {first}"] * 2, _halves(members[0], flags.seed)
    else:
        others = {record.image_id for record in members[1]}
        rest = [record for record in members[0] if record.image_id not in others]
        shared, members[0] = len(members[0]) - len(rest), rest
        if shared:
            print(f"{counted(shared, 'photo')} of {first} that {second} has, too, count for {second} only", flush=True)
    users = [len({record.user_id for record in some}) for some in members]
    for name, some, number in zip(names, members, users, strict=True):
        if number < discriminator.NUM_FOLDS:
            raise FlairError(
                f"--sets: {name} has {counted(number, 'user')} to train and to test on; expected "
                f"{discriminator.NUM_FOLDS} at least"
            )
        print(f"{name}: {counted(len(some), 'photo')} of {counted(number, 'user')}", flush=True)
    found = discriminator.discriminate(_with_features(members, flags.features), flags.num_resamples, flags.seed)
    print(f"AUC {first} against {second}: {found.auc:.4f} [{found.low:.4f}, {found.high:.4f}], 95% over users")
    if found.low <= 0.5 <= found.high:
        print("The interval holds 0.5: nothing here tells the sets apart.")
    else:
        print("The interval does not hold 0.5: these features tell the sets apart.")
    if flags.output_file is not None:
        facts = {"sets": flags.sets, "photos": list(map(len, members)), "users": users, **found._asdict()}
        how = {"features": flags.features, "resamples": flags.num_resamples, "seed": flags.seed}
        atomic.write_json(flags.output_file, {**facts, **how})
        print(f"result: {flags.output_file}")
    print(f"compared {counted(sum(map(len, members)), 'photo')} in {duration(time.monotonic() - started)}")
    place = {"testsets_dir": flags.testsets_dir} if flags.is_changed("testsets_dir") else {}
    if first != second:
        control = {"dataset_dir": flags.dataset_dir, "features": flags.features, "sets": f"{first},{first}", **place}
        print("next, the control:", command_line("python -m benchmark.discriminator_main", **control))
    else:
        evaluate = {"tfrecords_dir": "TFRECORDS", "models": "MODEL.h5", "partitions": first, **place}
        print("next:", command_line("python -m benchmark.evaluate_main", **evaluate))


def _members(name: str, records: list[Record], testsets_dir: str) -> list[Record]:
    if name in PARTITIONS:
        found = [record for record in records if record.partition == name]
    else:
        file = manifest_path(name, testsets_dir)
        if not file.is_file():
            raise FlairError(f"--sets={name}: is none of {', '.join(PARTITIONS)}, and there is no test set {file}")
        chosen = set(read_valid_testset(file).image_ids)
        found = [record for record in records if record.image_id in chosen]
        if len(found) < len(chosen):
            raise FlairError(f"{file}: {len(chosen) - len(found):,} of its photos are not in --dataset_dir")
    if not found:
        raise FlairError(f"--sets={name}: has no photo in --dataset_dir")
    return found


def _halves(members: list[Record], seed: int) -> list[list[Record]]:
    users = sorted({record.user_id for record in members})
    chosen = derive_generator(seed, "halves").permutation(len(users))[: len(users) // 2]
    second = {users[user] for user in chosen}
    return [[record for record in members if (record.user_id in second) == side] for side in (False, True)]


def _with_features(members: list[list[Record]], file: str) -> discriminator.TwoSets:
    photos = [record for some in members for record in some]
    features = read_features(file, [record.image_id for record in photos]).block(range(len(photos)))
    number_of = {user: number for number, user in enumerate(sorted({record.user_id for record in photos}))}
    users = np.array([number_of[record.user_id] for record in photos], np.int64)
    return discriminator.TwoSets(features, np.repeat([False, True], list(map(len, members))), users)


if __name__ == "__main__":
    command.run(main, FLAGS)
