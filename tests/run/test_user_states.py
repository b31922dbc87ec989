"""The store of users' states, killed at every operation on files, restored from checkpoints, damaged and foreign."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from benchmark.run.folder import RunFolder
from benchmark.run.user_states import UserStates, bytes_on_disk, versions_at_most
from flair.errors import FlairError
from flair.files import atomic

USERS = [f"{number}@N0é" for number in range(5)]
SIZE, ROUNDS, EVERY, COHORT = 5, 7, 2, 2


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch):
    """Disks take their time, and a kill needs none of it."""
    monkeypatch.setattr(os, "fsync", lambda _descriptor: None)


class _Killed(BaseException):
    """Not an Exception, so that nothing is cleaned up."""


class _Killer:
    """Counts operations on files, and ends the process, as it were, at one of them."""

    def __init__(self, patch, stop_at):
        self.left = stop_at
        for owner, name in ((os, "replace"), (Path, "unlink"), (atomic, "sync"), (Path, "write_bytes")):
            self._wrap(patch, owner, name)

    def count(self):
        self.left -= 1
        if self.left == 0:
            raise _Killed

    def _wrap(self, patch, owner, name):
        real = getattr(owner, name)

        def counted(*arguments, **options):
            if name == "write_bytes":
                real(arguments[0], arguments[1][: len(arguments[1]) // 2])
            self.count()
            return real(*arguments, **options)

        patch.setattr(owner, name, counted)


def _cohort(round_number):
    return np.random.default_rng(round_number).choice(len(USERS), COHORT, replace=False)


def _store(folder, users=tuple(USERS), size=SIZE, run=None):
    return UserStates(folder, run or folder.parent, users, size)


def _work(store, checkpoints, first, count=lambda: None):
    """Rounds from `first` on, in which each user's vector becomes a function of what it was and of the round."""
    for round_number in range(first, ROUNDS):
        store.begin_round(round_number)
        for index in _cohort(round_number):
            before = store.get(USERS[index])
            store[USERS[index]] = round_number + np.arange(SIZE) + (0 if before is None else before / 2)
        if (round_number + 1) % EVERY == 0:
            arrays = store.state()
            count()
            checkpoints[round_number + 1] = arrays
            if len(checkpoints) > 2:
                del checkpoints[min(checkpoints)]
            count()
            store.forget(min(checkpoints))


def _resume(folder, checkpoints, older=False):
    """The store of another process, and the round that is next."""
    store = _store(folder)
    if older and len(checkpoints) == 2:
        del checkpoints[max(checkpoints)]  # it was damaged
    if checkpoints:
        store.restore(*checkpoints[max(checkpoints)])
    return store, max(checkpoints, default=0)


def _vectors(store):
    return {user: store.get(user) for user in USERS}


@pytest.fixture
def unbroken(tmp_path):
    folder, checkpoints = tmp_path / "unbroken" / "states", {}
    store = _store(folder)
    _work(store, checkpoints, 0)
    yield folder, checkpoints, store
    store.close()


def test_the_newest_vectors_are_those_that_were_set(unbroken):
    folder, _, store = unbroken
    expected = {}
    for round_number in range(ROUNDS):
        for index in _cohort(round_number):
            before = expected.get(USERS[index], np.zeros(SIZE, np.float32))
            expected[USERS[index]] = (round_number + np.arange(SIZE) + before / 2).astype(np.float32)
    assert len(expected) > 3
    for user, vector in _vectors(store).items():
        np.testing.assert_array_equal(vector, expected.get(user))
    # A vector is a .npy file with four bytes behind it.
    newest = max(folder.glob("*.npy"), key=lambda path: path.name[9:])
    np.testing.assert_array_equal(np.load(newest), store.get(USERS[int(newest.name[:8])]))
    assert len(list(folder.glob("*.npy"))) <= versions_at_most(len(USERS), COHORT, ROUNDS, EVERY)


@pytest.mark.parametrize("older", [False, True])
def test_killed_at_any_operation_it_goes_on_to_the_same_vectors(unbroken, tmp_path, monkeypatch, older):
    """Every second operation; the process after it is killed as many operations later, and the third one ends."""
    kills = 0
    for stop_at in range(1 + older, 200, 2):
        folder, checkpoints = tmp_path / f"{stop_at}" / "states", {}
        for _ in range(2):
            store, first = _resume(folder, checkpoints, older)
            with monkeypatch.context() as patch:
                killer = _Killer(patch, stop_at)
                try:
                    _work(store, checkpoints, first, killer.count)
                except _Killed:
                    kills += 1
            store.close()
        if killer.left > 0 and first == 0:
            break  # there are not so many operations
        store, first = _resume(folder, checkpoints, older)
        _work(store, checkpoints, first)
        for user, vector in _vectors(store).items():
            np.testing.assert_array_equal(vector, unbroken[2].get(user))
        for mine, theirs in zip(store.state()[:1], unbroken[2].state()[:1], strict=True):
            np.testing.assert_array_equal(mine, theirs)
        assert not list(folder.glob(".*.tmp"))
        assert len(list(folder.glob("*.npy"))) <= versions_at_most(len(USERS), COHORT, ROUNDS, EVERY)
        store.close()
    assert kills > 25


def _restored(folder, arrays, **other):
    _store(folder, **other).restore(*arrays)


@pytest.mark.parametrize("other", [{"users": USERS[:-1]}, {"users": USERS[::-1]}, {"size": SIZE + 1}])
def test_states_of_other_users_or_another_model_are_refused(unbroken, other):
    folder, checkpoints, store = unbroken
    store.close()
    with pytest.raises(FlairError, match="another run, model or users"):
        _restored(folder, checkpoints[ROUNDS - 1], **other)


def test_states_of_another_run_are_refused_and_those_of_this_one_begin_anew(unbroken, tmp_path):
    folder, checkpoints, store = unbroken
    with pytest.raises(FlairError, match="another run keeps its user states there"):
        _store(folder).begin_round(0)
    store.close()
    with pytest.raises(FlairError, match="not of this run"):
        _store(folder, run=tmp_path / "elsewhere").begin_round(0)
    assert list(folder.glob("*.npy"))
    again = _store(folder)
    again.begin_round(0)
    assert _vectors(again) == dict.fromkeys(USERS)
    again.close()
    with pytest.raises(FlairError, match="another run, model or users"):
        _restored(folder, checkpoints[ROUNDS - 1])
    with pytest.raises(FlairError, match="is missing, and the checkpoint needs its user states"):
        _restored(tmp_path / "nowhere", checkpoints[ROUNDS - 1])


def test_damaged_exchanged_and_missing_vectors_are_refused(unbroken):
    folder, checkpoints, store = unbroken
    newest = {int(path.name[:8]): path for path in sorted(folder.glob("*.npy"))}
    (index, path), (_, other) = list(newest.items())[:2]
    data = path.read_bytes()
    for place in range(0, len(data), 7):
        path.write_bytes(data[:place] + bytes([data[place] ^ 4]) + data[place + 1 :])
        with pytest.raises(FlairError, match=f"{path.name}: is damaged"):
            store.get(USERS[index])
    for wrong in (data[:-1], b"", other.read_bytes()):
        path.write_bytes(wrong)
        with pytest.raises(FlairError, match=f"{path.name}: is damaged, or another run's"):
            store.get(USERS[index])
    path.unlink()
    store.close()
    with pytest.raises(FlairError, match=f"{path.name}: is missing, and the checkpoint needs it"):
        _restored(folder, checkpoints[ROUNDS - 1])


def test_a_disk_that_is_too_small_is_refused_before_the_first_round(tmp_path):
    store = UserStates(tmp_path / "states", tmp_path, USERS, SIZE, 10**18)
    with pytest.raises(FlairError, match=r"user states may need 1e\+09 GB"):
        store.claim()
    store.close()


@pytest.mark.parametrize("is_ours", [True, False])
def test_a_run_that_starts_over_leaves_no_states_elsewhere(unbroken, is_ours):
    """With another algorithm nobody would open their folder again."""
    folder, _, store = unbroken
    store.close()
    run_dir = folder.parent if is_ours else folder.parent / "another"
    run_dir.mkdir(exist_ok=True)
    (run_dir / "flags.txt").write_text(f"--algorithm=scaffold\n--user_state_dir={folder}\n")
    with RunFolder(run_dir, ["--algorithm=fed_avg"], "round", overwrite=True):
        pass
    left = {path.suffix for path in folder.iterdir()}
    assert left == ({".lock"} if is_ours else {".lock", ".json", ".npy"})


def test_the_predicted_size_is_what_a_file_takes(unbroken):
    folder = unbroken[0]
    assert {path.stat().st_blocks * 512 for path in folder.glob("*.npy")} <= {bytes_on_disk(SIZE)}
