"""Photos of train users put aside by prepare_tfrecords.py: which, where, and who reads them."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction
from pathlib import Path

import pytest

from flair.curation.exclusion import Exclusion
from flair.curation.heldout import hold_out
from flair.dataset.metadata import load_users
from flair.records.tfrecord.reader import TFRecords
from flair.terminal.flags import fraction
from flair.verify import run_checks
from tests.support.commands import Result, run

USERS = 40


def prepare(dataset: Path, output: Path, *flags: str, code: int = 0) -> Result:
    flags = (f"--dataset_dir={dataset}", f"--tfrecords_dir={output}", "--num_workers=1", *flags)
    return run("prepare_tfrecords.py", *flags, code=code)


def photos(folder: Path, partition: str) -> dict[str, set[str]]:
    """User -> ids of the photos that a folder of records has of that partition."""
    records = TFRecords(folder)
    return {
        user: {str(example.image_id) for example in records.read_user(span)}
        for user, span in records.users(partition).items()
    }


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("layout", ["per_user", "sharded"])
def test_a_fraction_of_each_train_user_is_put_aside(miniature: Path, tmp_path: Path, layout: str) -> None:
    result = prepare(miniature, tmp_path / "records", "--heldout_fraction=0.2", f"--layout={layout}")
    train, heldout = (photos(tmp_path / "records", partition) for partition in ("train", "heldout"))
    for user in load_users(miniature):
        ids = {record.image_id for record in user.records}
        if user.partition == "train":
            assert len(heldout.get(user.user_id, ())) == len(ids) // 5
            assert train[user.user_id] | heldout.get(user.user_id, set()) == ids
            assert train[user.user_id].isdisjoint(heldout.get(user.user_id, ()))
        else:
            assert user.user_id not in heldout
            assert photos(tmp_path / "records", user.partition)[user.user_id] == ids
    num_heldout = sum(map(len, heldout.values()))
    assert f"Put {num_heldout} of the photos of train users aside" in result.stdout
    assert all(check.ok for check in run_checks(miniature, tfrecords_dir=tmp_path / "records"))


def test_without_the_flag_nothing_changes(miniature: Path, tmp_path: Path) -> None:
    for name, flags in (("a", []), ("b", ["--heldout_fraction=0", "--seed=7"])):
        prepare(miniature, tmp_path / name, *flags)
    assert files(tmp_path / "a") == files(tmp_path / "b")
    assert not (tmp_path / "a" / "heldout").exists()


def test_records_made_again_without_the_flag_have_no_photos_aside(miniature: Path, tmp_path: Path) -> None:
    output = tmp_path / "records"
    prepare(miniature, output, "--heldout_fraction=0.3")
    refused = prepare(miniature, output, code=1)
    assert "heldout_fraction=0.3 there" in refused.stderr
    prepare(miniature, output, "--overwrite")
    assert not (output / "heldout").exists()
    assert sum(map(len, photos(output, "train").values())) == 132


def test_the_choice_depends_on_the_seed_and_the_user_alone(miniature: Path) -> None:
    users = load_users(miniature)
    whole = hold_out(users, Fraction(1, 4), seed=1)
    again = hold_out(users[::-1][:20], Fraction(1, 4), seed=1)
    assert set(again.heldout) <= set(whole.heldout)
    assert again.heldout
    assert whole.heldout != hold_out(users, Fraction(1, 4), seed=2).heldout


def test_a_near_duplicate_is_not_put_aside(miniature: Path) -> None:
    users = load_users(miniature)
    large = max((user for user in users if user.partition == "train"), key=lambda user: len(user.records))
    ids = [record.image_id for record in large.records]
    burst = Exclusion(components=[ids[: len(ids) - 3]])
    aside = [user for user in hold_out(users, Fraction(1, 2), 0, burst).heldout if user.user_id == large.user_id]
    assert {record.image_id for record in aside[0].records} == set(ids[-3:])


@pytest.mark.parametrize("text", ["1", "1.0", "-0.1", "nan", "1e9", "half", "1/2", "", "."])
def test_what_is_no_fraction_is_refused(miniature: Path, tmp_path: Path, text: str) -> None:
    result = prepare(miniature, tmp_path / "records", f"--heldout_fraction={text}", code=2)
    assert "at least 0 and below 1" in result.stderr


def test_no_user_with_enough_photos_is_told(tmp_path: Path, miniature: Path) -> None:
    result = prepare(miniature, tmp_path / "records", "--heldout_fraction=0.001", code=1)
    assert "no train user has enough photos" in result.stderr


def test_fractions_are_exact() -> None:
    counts = Counter(int(fraction("0.29") * n) for n in (100, 99))
    assert counts == {29: 1, 28: 1}  # in floating point, 0.29 * 100 is below 29


def test_a_set_of_seen_users_has_the_photos_put_aside(miniature: Path, tmp_path: Path) -> None:
    prepare(miniature, tmp_path / "records", "--heldout_fraction=0.2")
    from flair.curation.manifest import read_testset
    from flair.sample_testset import main

    flags = [f"--dataset_dir={miniature}", f"--tfrecords_dir={tmp_path / 'records'}", f"--testsets_dir={tmp_path}"]
    assert main(["seen_users", "--name=seen", *flags]) == 0
    testset = read_testset(tmp_path / "seen-0.json")
    heldout = photos(tmp_path / "records", "heldout")
    assert set(testset.image_ids) == set().union(*heldout.values())
    assert testset.partition == "heldout"
