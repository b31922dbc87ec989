"""The audit from the command line: beside the claim, again from the folder, loud where a fault is planted."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.canaries import FAULTS, planted
from tests.support.commands import Result, refused, run

AUDIT, FEDERATED = "benchmark.audit_main", "benchmark.federated_main"
SMALL = ("--model=cnn", "--image_height=32", "--image_width=32", "--trainable=head", "--clients_per_round=4")
POISSON = "--client_sampling=poisson"
PRIVATE = ("--epsilon=4", "--delta=1e-5", "--rounds_per_eval=30", "--rounds_per_checkpoint=30")


@pytest.fixture(scope="module")
def train(tfrecords: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., tuple[Path, Result]]:
    """Trains a head with canaries on features that all runs share, with the noise of key number `seed`."""
    features = tmp_path_factory.mktemp("features")

    def start(seed: int, *more: str) -> tuple[Path, Result]:
        out = tmp_path_factory.mktemp("audited")
        (out / "key").write_text(f"{seed:064x}\n")
        places = (f"--tfrecords_dir={tfrecords}", f"--save_model_dir={out}", f"--run_dir={out / 'run'}")
        done = run(
            FEDERATED, *places, f"--noise_key_file={out / 'key'}", f"--feature_dir={features}", *SMALL, *PRIVATE, *more
        )
        return out / "run", done

    return start


@pytest.mark.slow
def test_an_honest_run_states_its_audit_and_audit_main_repeats_it(train):
    run_dir, done = train(0, "--total_rounds=12", "--audit_canaries=40")
    statement, summary = (json.loads((run_dir / f"{name}.json").read_text()) for name in ("privacy", "summary"))
    audit = statement["audit"]
    assert summary["audit"] == audit
    assert (audit["canaries"], audit["rounds"], audit["contradicted_by"]) == (40, 12, [])
    assert audit["claimed"] == statement["epsilon"]["completed"]["pld"]
    assert 0 <= audit["bound"] < audit["claimed"]
    assert audit["noise"]["claimed"] == statement["noise"]["sum_noise_multiplier"]
    assert audit["noise"]["at_most"] == pytest.approx(audit["noise"]["claimed"], rel=0.1)
    # An expected cohort of 4 of 32 users: each canary that is in takes part with odds of 1 to 7.
    assert audit["cost"]["part_of_cohort"] == pytest.approx(audit["included"] / 32)
    assert "audit: 40 canaries, half of them in: 62.5% of the cohort" in done.stdout
    assert "audit: the audit does not contradict epsilon" in done.stdout
    text = (run_dir / "privacy.txt").read_text()
    again = run(AUDIT, f"--run_dir={run_dir}")
    for line in again.stdout.splitlines()[:-2]:
        label, _, value = line.partition(":")
        assert f"{label.strip()}:" in text and value.split("  ")[-1].strip() in text
    assert again.stdout.splitlines()[-1] == f"next: python -m benchmark.report_main {run_dir}"
    surer = run(AUDIT, f"--run_dir={run_dir}", "--confidence=0.999")
    assert "epsilon, at least (99.9%)" in surer.stdout


@pytest.mark.slow
def test_a_fault_is_said_aloud_everywhere(train):
    with planted(FAULTS[0], noise_multiplier=0.0):
        run_dir, done = train(1, "--total_rounds=6", "--audit_canaries=10")
    loud = "THE AUDIT CONTRADICTS EPSILON"
    assert f"audit: {loud}" in done.stderr
    statement = json.loads((run_dir / "privacy.json").read_text())
    assert statement["audit"]["contradicted_by"] == ["noise"]
    critical = [caveat["name"] for caveat in statement["caveats"] if caveat["severity"] == "critical"]
    assert "contradicted by the audit" in critical
    assert (run_dir / "privacy.txt").read_text().splitlines()[2].startswith(loud)
    assert f"audit: {loud}" in run(AUDIT, f"--run_dir={run_dir}", code=3).stdout


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (("--audit_canaries=100",), "--audit_canaries=100 has no effect without --epsilon or --noise_multiplier"),
        (("--epsilon=2", "--audit_canaries=9"), "--audit_canaries=9: so few prove nothing"),
        (("--noise_multiplier=1", "--audit_canaries=600"), "so many, beside "),
        (("--epsilon=2", "--audit_canaries=20", "--runtime=tff"), "TFF's own runtime takes no canaries"),
        (("--epsilon=2", "--audit_canaries=20", "--client_sampling=uniform"), "use --client_sampling=poisson"),
        (("--epsilon=2", "--audit_canaries=20", "--reuse_clients"), "use --client_sampling=poisson"),
        (("--epsilon=2", "--audit_canaries=20", "--aggregator=tree", POISSON), "and --aggregator=mean"),
        (("--epsilon=2", "--audit_canaries=20", "--aggregator=banded", POISSON), "and --aggregator=mean"),
    ],
)
def test_canaries_where_they_prove_nothing_are_refused_in_one_line(tfrecords, tmp_path, flags, named):
    places = f"--tfrecords_dir={tfrecords}", f"--save_model_dir={tmp_path}", f"--feature_dir={tmp_path / 'features'}"
    assert named in refused(FEDERATED, *places, *SMALL, *flags)
    _assert_nothing_was_begun(tmp_path)
    assert named in refused(FEDERATED, *places, *SMALL, *flags, "--dry_run")


def _assert_nothing_was_begun(folder):
    assert not (folder / "features").exists()  # of a large data set they take hours
    assert not list(folder.rglob("noise.key"))


def test_noise_without_room_in_memory_is_refused_before_anything_is_begun(tfrecords, tmp_path, monkeypatch):
    asked = os.sysconf
    monkeypatch.setattr(os, "sysconf", lambda name: 5 if name == "SC_PHYS_PAGES" else asked(name))
    flags = (*SMALL, "--noise_multiplier=1", "--aggregator=banded", "--bands=3", "--total_rounds=6")
    places = f"--tfrecords_dir={tfrecords}", f"--save_model_dir={tmp_path}", f"--feature_dir={tmp_path / 'features'}"
    for more in ((), ("--dry_run",)):
        assert "3 bands: the noise of 2 rounds" in refused(FEDERATED, *places, *flags, *more)
    _assert_nothing_was_begun(tmp_path)


def test_what_cannot_be_audited_is_refused_in_one_line(tmp_path):
    assert "has no audit.json; scores are taken in training" in refused(AUDIT, f"--run_dir={tmp_path}")
    line = refused(AUDIT, f"--run_dir={tmp_path}", "--confidence=0.3", code=2)
    assert "--confidence=0.3: expected a number above 0.5 and below 1" in line


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_the_bound_is_below_the_claim_in_95_of_100_honest_runs(train):
    audits = []
    for seed in range(100):
        run_dir, _ = train(seed, "--total_rounds=30", "--audit_canaries=100")
        audits.append(json.loads((run_dir / "privacy.json").read_text())["audit"])
    contradicted = sum(bool(audit["contradicted_by"]) for audit in audits)
    largest = max(audit["bound"] / audit["claimed"] for audit in audits)
    print(f"{contradicted} of 100 honest runs are contradicted; the largest bound is {largest:.2f} of its claim")
    assert largest < 1
    assert contradicted <= 5
