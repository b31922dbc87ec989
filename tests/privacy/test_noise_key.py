"""The secret key of a private run: its file, its streams, and which runs may share it."""

from __future__ import annotations

import json
import os
import stat

import numpy as np
import pytest

from benchmark.privacy import noise_key
from benchmark.privacy.noise_key import NoiseKey, forget_key, key_of_run
from flair.errors import FlairError


@pytest.fixture
def given(tmp_path):
    path = tmp_path / "given"
    path.write_text("0f" * 32 + "\n")
    return str(path)


def _describe(folder, key):
    (folder / "run.json").write_text(json.dumps({"started": "now", "noise_key_sha256": key.sha256}))


def test_a_new_run_draws_a_key_of_the_operating_system_for_its_owner_alone(tmp_path):
    os.umask(0o022)
    first, second = (key_of_run(tmp_path / name, None, ["same"], "", False) for name in "ab")
    assert first.sha256 != second.sha256
    path = tmp_path / "a" / noise_key.KEY_FILE
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    drawn = NoiseKey.read(path)
    assert drawn.sha256 != first.sha256  # whose base it is
    assert sorted(os.listdir(tmp_path / "a")) == [noise_key.KEY_FILE]


def test_runs_of_one_key_file_share_a_key_only_if_they_are_the_same_run(tmp_path, given):
    """Two models with the same noise differ by clean updates."""
    same, again, other, elsewhere = (
        key_of_run(tmp_path / name, given, [settings], content, False).sha256
        for name, settings, content in ("axp", "bxp", "cyp", "dxq")
    )
    assert same == again
    assert len({same, other, elsewhere}) == 3


def test_a_kept_key_repeats_its_run(tmp_path):
    key = key_of_run(tmp_path / "a", None, ["run"], "", False)
    kept = str(tmp_path / "a" / noise_key.KEY_FILE)
    assert key_of_run(tmp_path / "b", kept, ["run"], "", False).sha256 == key.sha256


def test_a_run_that_has_begun_keeps_its_key_and_a_new_one_takes_none_over(tmp_path):
    key = key_of_run(tmp_path, None, ["run"], "", False)
    _describe(tmp_path, key)
    assert key_of_run(tmp_path, None, ["run"], "", True).sha256 == key.sha256
    with pytest.raises(FlairError, match="with other settings"):
        key_of_run(tmp_path, None, ["another"], "", True)
    assert key_of_run(tmp_path, None, ["run"], "", False).sha256 != key.sha256


def test_a_run_whose_key_is_gone_draws_nothing_more(tmp_path):
    key = key_of_run(tmp_path, None, ["run"], "", False)
    _describe(tmp_path, key)
    forget_key(tmp_path)
    forget_key(tmp_path)
    lost = key_of_run(tmp_path, None, ["run"], "", True)
    assert lost.sha256 == key.sha256  # for run.json, when nothing is left but to evaluate
    with pytest.raises(FlairError, match=r"noise\.key: no such file.*--overwrite"):
        lost.stream("noise", 3)
    assert not (tmp_path / noise_key.KEY_FILE).exists()


def test_the_key_of_another_run_is_refused(tmp_path):
    _describe(tmp_path, key_of_run(tmp_path, None, ["run"], "", False))
    (tmp_path / noise_key.KEY_FILE).write_text("ab" * 32)
    with pytest.raises(FlairError, match="another run"):
        key_of_run(tmp_path, None, ["run"], "", True)


@pytest.mark.parametrize("described", [None, {"started": "now"}, {"started": "now", "noise_key_sha256": ""}])
def test_a_run_of_an_older_version_whose_noise_followed_from_its_seed_is_not_finished(tmp_path, described):
    """It had no key that could be missing, and its statement said that the key was deleted."""
    if described is not None:
        (tmp_path / "run.json").write_text(json.dumps(described))
    with pytest.raises(FlairError, match=r"run\.json: names no noise key; an older version"):
        key_of_run(tmp_path, None, ["run"], "", True)


@pytest.mark.parametrize("has_begun", [True, False])
def test_a_key_is_no_link_whose_target_would_stay(tmp_path, has_begun):
    key = key_of_run(tmp_path, None, ["run"], "", False)
    _describe(tmp_path, key)
    path = tmp_path / noise_key.KEY_FILE
    path.symlink_to(path.rename(tmp_path / "elsewhere"))
    with pytest.raises(FlairError, match=r"noise\.key: is a link"):
        key_of_run(tmp_path, None, ["run"], "", has_begun)
    forget_key(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]


@pytest.mark.parametrize(
    "text", [b"", b"0f" * 31, b"0F" * 32, b"0g" * 32, b"\xff" * 64, b"0f" * 33, b"0f" * 500, b"00\n" * 32]
)
def test_a_file_that_holds_no_key_is_refused(tmp_path, text):
    path = tmp_path / "key"
    path.write_bytes(text)
    with pytest.raises(FlairError, match="64 hexadecimal digits"):
        NoiseKey.read(path)


def test_a_key_is_shown_by_its_hash_only():
    key = NoiseKey(b"s" * 32)
    assert key.hex() not in repr(key) and key.sha256 in repr(key)


def test_uniform_numbers_and_permutations_are_uniform():
    stream = NoiseKey(bytes(32)).stream("cohort", 1)
    numbers = stream.random(200_000)
    assert numbers.min() >= 0 and numbers.max() < 1
    assert abs(numbers.mean() - 0.5) < 5 * np.sqrt(1 / 12 / 200_000)
    assert sorted(stream.permutation(1000)) == list(range(1000))
    places = [NoiseKey(bytes(32)).stream("order", trial).permutation(10)[0] for trial in range(2000)]
    assert np.abs(np.bincount(places, minlength=10) - 200).max() < 5 * np.sqrt(2000 * 0.09)
