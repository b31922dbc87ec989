"""Federated training from the command line: the published commands, resuming after kills, refusals, statements."""

from __future__ import annotations

import collections
import contextlib
import hashlib
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
from functools import partial

import numpy as np
import psutil
import pytest
import tensorflow as tf

from benchmark.privacy.noise import standard_normals
from benchmark.privacy.noise_key import NoiseKey
from benchmark.rounds.inprocess import InProcessRuntime
from benchmark.run.checkpoint import Checkpoints
from benchmark.run.seeds import derive_seed
from flair.records.tfrecord import example, frames
from tests.support.commands import (
    ROOT,
    assert_equal_weights,
    newest_checkpoint,
    read_csv,
    read_weights,
    refused,
    run,
    run_process,
    start,
    wait_for_checkpoint,
)
from tests.support.published_records import write_published_records
from tests.support.tiny_network import TINY

FEDERATED = "benchmark.federated_main"
_run, _refused = partial(run, FEDERATED), partial(refused, FEDERATED)
SMALL = (f"--model={TINY}", "--image_height=32", "--image_width=32", "--clients_per_round=4", "--client_batch_size=8")


def _places(tfrecords, out):
    return f"--tfrecords_dir={tfrecords}", f"--save_model_dir={out}", f"--run_dir={out / 'run'}"


def _saved_model(out):
    (path,) = out.glob("*_federated_*labels.h5")
    return path


def _final_state(run_dir):
    checkpoint = Checkpoints(run_dir / "checkpoints").latest()
    return checkpoint.arrays


def _assert_same_run(one, other):
    assert (one / "metrics.csv").read_text() == (other / "metrics.csv").read_text()
    first, second = _final_state(one), _final_state(other)
    assert first.keys() == second.keys()
    for name in first:
        np.testing.assert_array_equal(first[name], second[name])
    for name in ("privacy.json", "privacy.txt"):
        assert (one / name).read_text() == (other / name).read_text()
    clients = [(run / "clients.csv.gz") for run in (one, other)]
    assert clients[0].exists() == clients[1].exists()
    assert not clients[0].exists() or clients[0].read_bytes() == clients[1].read_bytes()
    assert {path.name for path in one.glob("*.h5")} == {path.name for path in other.glob("*.h5")}
    for path in one.glob("*.h5"):
        assert_equal_weights(path, other / path.name)
    summaries = [json.loads((run / "summary.json").read_text()) for run in (one, other)]
    for name in ("best_round", "val", "test", "epsilon", "ema"):
        assert summaries[0].get(name) == summaries[1].get(name)


ROUNDS = (*SMALL, "--total_rounds=4", "--rounds_per_eval=2", "--rounds_per_checkpoint=1")
PRIVATE = (*ROUNDS, "--epsilon=8")
GIVEN_NOISE = (*ROUNDS, "--noise_multiplier=1")  # to find it for an epsilon takes seconds


@pytest.fixture(scope="module")
def repeatable(tmp_path_factory):
    """The flags of a private run whose noise can be repeated."""
    path = tmp_path_factory.mktemp("key") / "secret"
    path.write_text("5e" * 32 + "\n")
    return (*PRIVATE, f"--noise_key_file={path}")


@pytest.fixture(scope="module")
def finished(tfrecords, repeatable, tmp_path_factory):
    """A complete private run of four rounds."""
    out = tmp_path_factory.mktemp("finished")
    done = _run(*_places(tfrecords, out), *repeatable)
    return out, out / "run", done.stdout


def test_a_private_run_leaves_model_metrics_and_statement(finished):
    out, run_dir, printed = finished
    assert _saved_model(out).is_file()
    rows = read_csv(run_dir / "metrics.csv")
    assert [row["round"] for row in rows] == ["1", "2", "3", "4"]
    assert all(np.isfinite(float(row["train_loss"])) for row in rows)
    assert rows[0]["val_loss"] == "" and float(rows[3]["val_loss"]) > 0
    statement = json.loads((run_dir / "privacy.json").read_text())
    summary = json.loads((run_dir / "summary.json").read_text())
    assert 7.9 < summary["epsilon"] <= 8.0
    assert float(rows[3]["epsilon"]) == summary["epsilon"]
    assert float(rows[1]["epsilon"]) < summary["epsilon"]
    assert statement["unit"] == "user"
    assert statement["rounds"] == {"completed": 4, "planned": 4}
    text = (run_dir / "privacy.txt").read_text()
    assert "Poisson" in text
    assert "privacy.txt" in printed
    assert "final test metrics" in printed


def test_a_private_run_repeated_from_its_folder_alone_gives_the_same_numbers(finished, tmp_path):
    out, run_dir, _ = finished
    # flags.txt names the folder of the run; a --save_model_dir on the command line leads away from it.
    assert f"--run_dir={run_dir}" in (run_dir / "flags.txt").read_text()
    _run(f"--flagfile={run_dir / 'flags.txt'}", f"--save_model_dir={tmp_path}")
    _assert_same_run(tmp_path / _saved_model(out).stem, run_dir)
    facts = json.loads((run_dir / "run.json").read_text())
    assert (facts["seed"], facts["cohort_seed"], facts["restored_model"]) == (0, None, None)


def test_the_clip_norm_of_the_statement_is_the_one_in_force(finished):
    _, run_dir, _ = finished
    rows = read_csv(run_dir / "metrics.csv")
    assert float(rows[0]["clip_norm"]) == pytest.approx(0.1)
    for before, after in itertools.pairwise(rows):
        assert float(after["clip_norm"]) == float(before["dp_query_metrics/clip"])


def test_a_complete_run_is_not_repeated(tfrecords, repeatable, finished):
    out, run_dir, _ = finished
    before = [(run_dir / name).read_bytes() for name in ("metrics.csv", "flags.txt", "run.json")]
    done = _run(*_places(tfrecords, out), *repeatable)
    assert "complete already" in done.stdout
    elsewhere = [f"--tfrecords_dir={tfrecords}", f"--save_model_dir={out / 'elsewhere'}", f"--run_dir={run_dir}"]
    assert f"best model: {_saved_model(out)}\n" in _run(*elsewhere, *repeatable).stdout
    other = _refused(*_places(tfrecords, out), *repeatable, f"--restore_model_path={_saved_model(out)}")
    assert "begun with other restored weights" in other
    assert [(run_dir / name).read_bytes() for name in ("metrics.csv", "flags.txt", "run.json")] == before


def test_other_flags_in_the_same_folder_are_refused(tfrecords, repeatable, finished):
    out, _, _ = finished
    line = _refused(*_places(tfrecords, out), *repeatable, "--client_learning_rate=0.5")
    assert "client_learning_rate" in line and "--overwrite" in line


def _kill_after(flags, run_dir, round_number, number):
    """Starts a run and signals it when it has made a checkpoint of its own, of that round or a later one."""
    before = newest_checkpoint(run_dir)
    process = start(FEDERATED, *flags)
    wait_for_checkpoint(process, run_dir, max(before + 1, round_number))
    process.send_signal(number)
    process.communicate(timeout=120)
    return process.returncode


# Killed five times: test_kills_change_nothing; by SIGTERM, in this process: test_a_private_run_draws_a_secret_key.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.long)]
)
def test_a_stopped_run_continues_to_the_same_result(tfrecords, repeatable, finished, tmp_path, number, code):
    run_dir = tmp_path / "run"
    flags = (*_places(tfrecords, tmp_path), *repeatable)
    assert _kill_after(flags, run_dir, 1, number) == code
    done = _run(*flags)
    assert "continuing after round" in done.stdout
    _assert_same_run(run_dir, finished[1])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("more", "kills"),
    [(("--audit_canaries=20",), 5), (("--trainable=head", "--aggregator=banded", "--bands=3", "--ema_decay=0.9"), 3)],
    ids=["all weights and canaries", "features, banded noise and an average"],
)
def test_kills_change_nothing(tfrecords, repeatable, tmp_path, more, kills):
    """SIGKILL at seeded places of a twelve-round private run that looks at clients, resumed each time."""
    looks = "--rounds_per_client_eval=1", "--clients_per_client_eval=2"
    flags = (*GIVEN_NOISE, repeatable[-1], "--total_rounds=12", *looks, *more)
    unbroken, broken = tmp_path / "unbroken", tmp_path / "broken"
    _run(*flags, *_places(tfrecords, unbroken))
    for round_number in range(1, kills + 1):
        assert _kill_after((*flags, *_places(tfrecords, broken)), broken / "run", round_number, signal.SIGKILL) == -9
    _run(*flags, *_places(tfrecords, broken))
    _assert_same_run(broken / "run", unbroken / "run")


@pytest.mark.slow
def test_kills_change_no_state_of_a_user(tfrecords, tmp_path):
    """SIGKILL in a run of SCAFFOLD whose user states lie elsewhere; at every operation: test_user_states.py."""
    flags = (*SMALL, "--algorithm=scaffold", "--trainable=head", "--total_rounds=12", "--rounds_per_checkpoint=2")
    runs, states = [], []
    for name, kills in (("unbroken", 0), ("broken", 2)):
        folder = tmp_path / f"{name} states"
        places = (*_places(tfrecords, tmp_path / name), f"--user_state_dir={folder}")
        for number in range(1, kills + 1):
            assert _kill_after((*flags, *places), tmp_path / name / "run", 4 * number, signal.SIGKILL) == -9
        _run(*flags, *places)
        runs.append(tmp_path / name / "run")
        *arrays, newest, _ = [array for _, array in sorted(_final_state(runs[-1]).items())]
        taken = [(index, number) for index, number in enumerate(newest) if number]
        states.append([*arrays, *(np.load(folder / f"{user:08d}-{number:010d}.npy") for user, number in taken)])
    assert len(states[0]) > 20
    for one, other in zip(*states, strict=True):
        np.testing.assert_array_equal(one, other)
    assert len({(run / "metrics.csv").read_text() for run in runs}) == 1
    assert_equal_weights(runs[0] / "last.h5", runs[1] / "last.h5")


def _key_in(run_dir):
    path = run_dir / "noise.key"
    return NoiseKey.read(path).derive("run", *path.read_text().split()[1:])


def _every_byte(run_dir):
    return b"".join(path.read_bytes() for path in sorted(run_dir.rglob("*")) if path.is_file())


def test_a_private_run_draws_a_secret_key_needs_it_to_continue_and_deletes_it(tfrecords, tmp_path, monkeypatch):
    # With the noise of `finished`, whose round this process has compiled.
    flags, key = (*_places(tfrecords, tmp_path), *PRIVATE), tmp_path / "run" / "noise.key"
    run_round = InProcessRuntime.run_round

    def terminated(*arguments):
        signal.raise_signal(signal.SIGTERM)
        return run_round(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(InProcessRuntime, "run_round", terminated)
        _run(*flags, code=143)
    assert newest_checkpoint(tmp_path / "run") == 1
    assert key.stat().st_mode & 0o777 == 0o600
    run_key = _key_in(tmp_path / "run")
    secrets = [bytes.fromhex(text) for text in (NoiseKey.read(key).hex(), run_key.hex())]
    assert json.loads((tmp_path / "run" / "run.json").read_text())["noise_key_sha256"] == run_key.sha256
    statement = " ".join((tmp_path / "run" / "privacy.txt").read_text().split())
    assert "HOLDS ONLY WHILE noise.key in the run's folder IS SECRET" in statement
    moved = key.rename(tmp_path / "elsewhere")
    line = _refused(*flags)
    assert "noise.key" in line and "--overwrite" in line
    assert not key.exists()
    key.write_text("00" * 32)
    assert "another run" in _refused(*flags)
    moved.rename(key)
    _run(*flags)
    assert not key.exists()
    statement = " ".join((tmp_path / "run" / "privacy.txt").read_text().split())
    assert statement.startswith("PRIVACY STATEMENT After 4 of 4 rounds the models have (")
    published = _every_byte(tmp_path / "run")
    for secret in secrets:
        assert secret not in published and secret.hex().encode() not in published


# The updates are zero and the server adds what it gets, so that a released model's change is its noise.
ONLY_NOISE = (
    *("--client_learning_rate=0", "--server_optimizer=sgd", "--server_learning_rate=1", "--rounds_per_checkpoint=1"),
    *("--target_unclipped_quantile=0", "--total_rounds=3", "--rounds_per_eval=3", "--noise_multiplier=1"),
)


def _noise_of_last_round(run_dir):
    """What the last round added to the weights, in units of its deviation."""
    states = [np.load(path) for path in sorted((run_dir / "checkpoints").glob("*.npz"))[-2:]]
    weights = [name for name in states[0].files if name.startswith("array/") and states[0][name].ndim >= 1]
    moved = np.concatenate([np.ravel(states[0][name] - states[1][name]) for name in weights])
    return moved / moved.std()


def _predictions(run_dir, count):
    """What somebody with the folder and the source code could take for the noise of its last round."""
    texts = [path.read_text() for path in (run_dir / "run.json", run_dir / "flags.txt")]
    facts = json.loads(texts[0])
    found = [bytes(32), bytes.fromhex(facts["noise_key_sha256"]), bytes.fromhex(facts["data"]["digest"])]
    found += [hashlib.sha256(text.encode()).digest() for text in (*texts, facts["started"])]
    found += [derive_seed(0, *names).tobytes() * 2 for names in (("noise",), ("noise", 2), ("tree noise",))]
    for secret in found:
        for key in (NoiseKey(secret), NoiseKey(secret).derive("run")):
            yield standard_normals(key.stream("noise", 2), count)
    for seed in (derive_seed(0, "noise", "", 2), derive_seed(0, "noise", facts["data"]["digest"], 2)):
        yield tf.random.stateless_normal([count], seed).numpy()


@pytest.mark.slow
def test_the_noise_of_a_published_run_cannot_be_taken_away_but_by_who_has_its_key(tfrecords, repeatable, tmp_path):
    _run(*_places(tfrecords, tmp_path / "published"), *SMALL, *ONLY_NOISE)
    noise = _noise_of_last_round(tmp_path / "published" / "run")
    assert len(noise) > 10_000
    for predicted in _predictions(tmp_path / "published" / "run", len(noise)):
        assert abs(np.corrcoef(noise, predicted)[0, 1]) < 5 / np.sqrt(len(noise))

    given = tmp_path / "given" / "run"
    _run(*_places(tfrecords, given.parent), *SMALL, *ONLY_NOISE, repeatable[-1], "--keep_noise_key")
    noise = _noise_of_last_round(given)
    key = _key_in(given)
    predicted = standard_normals(key.stream("noise", 2), len(noise))
    # Number by number the same; the aggregator draws for one tensor after the other, in an order of its own.
    np.testing.assert_allclose(np.sort(noise), np.sort(predicted / predicted.std()), atol=1e-3)
    statement = " ".join((given / "privacy.txt").read_text().split())
    assert "HOLDS ONLY WHILE the file given as --noise_key_file IS SECRET" in statement.split("After")[0]


def _processes_with(name, value):
    """The processes that inherited this environment variable; a zombie has none."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
            if process.environ().get(name) == value:
                found.append(process)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, pytest.param(signal.SIGTERM, marks=pytest.mark.long)])
def test_no_worker_of_tff_outlives_the_run(tfrecords, tmp_path, monkeypatch, number):
    monkeypatch.setenv("RUN_UNDER_TEST", str(tmp_path))
    flags = (*_places(tfrecords, tmp_path), *GIVEN_NOISE, "--runtime=tff")
    _kill_after(flags, tmp_path / "run", 1, number)
    _, alive = psutil.wait_procs(_processes_with("RUN_UNDER_TEST", str(tmp_path)), timeout=20)
    assert not alive


@pytest.mark.slow
@pytest.mark.parametrize("runtime", ["inprocess", "tff"])
def test_the_published_commands_as_written(tfrecords, tmp_path, runtime):
    # TFF's worker lives as long as the process that started it.
    _run = partial(run if runtime == "inprocess" else run_process, FEDERATED)
    network = "cnn" if runtime == "inprocess" else TINY  # `cnn` on TFF: tests/rounds/test_runtimes.py
    shared = (f"--tfrecords_dir={tfrecords}", "--total_rounds=2", f"--runtime={runtime}", *SMALL, f"--model={network}")
    _run(*shared, "--epsilon=2.0", "--l2_norm_clip=0.1", f"--save_model_dir={tmp_path / 'private'}")
    model = _saved_model(tmp_path / "private")
    restored = _run(*shared, f"--restore_model_path={model}", f"--save_model_dir={tmp_path / 'restored'}")
    assert "loaded" in restored.stdout
    _run(*shared, "--binary_label=structure", f"--save_model_dir={tmp_path / 'binary'}")
    summary = json.loads((_saved_model(tmp_path / "binary").with_suffix("") / "summary.json").read_text())
    assert set(summary["test"]) == {"loss", "precision", "recall", "f1", "averaged_precision"}


@pytest.mark.long  # that they are read: test_the_published_layout_is_read
def test_records_of_the_published_code_train(miniature, tmp_path):
    write_published_records(miniature, tmp_path / "published")
    out = tmp_path / "out"
    _run(f"--tfrecords_dir={tmp_path / 'published'}", f"--save_model_dir={out}", *SMALL, "--total_rounds=1")
    assert _saved_model(out).is_file()


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (("--epsilon=2", "--clients_per_round=1000"), "--clients_per_round"),
        (("--epsilon=2", "--noise_multiplier=1"), "--noise_multiplier"),
        (("--epsilon=2", "--simulated_clients_per_round=2"), "--simulated_clients_per_round"),
        (("--noise_multiplier=1", "--clipped_count_stddev=0.1"), "--clipped_count_stddev"),
        (("--epsilon=2", "--algorithm=mime_lite"), "--algorithm"),
        (("--epsilon=2", "--client_datasets_random_seed=3"), "--client_datasets_random_seed"),
        (("--keep_noise_key",), "--keep_noise_key"),
        (("--noise_key_file=/nowhere/key",), "--noise_key_file"),
        (("--epsilon=2", "--noise_key_file=/nowhere/key"), "/nowhere/key"),
        (("--epsilon=2", f"--noise_key_file={ROOT / 'README.md'}"), "README.md"),
        (("--epsilon=2", "--runtime=tff", "--noise_key_file=/nowhere/key"), "--runtime"),
        (("--epsilon=2", "--runtime=tff", "--aggregator=tree"), "--runtime"),
        (("--aggregator=tree",), "--aggregator"),
        (("--aggregator=banded",), "--aggregator"),
        (("--aggregator=banded", "--epsilon=2", "--target_unclipped_quantile=0.5"), "--target_unclipped_quantile"),
        (("--aggregator=banded", "--epsilon=2", "--bands=4.5"), "--bands"),
        (("--aggregator=banded", "--epsilon=2", "--bands=9", "--total_rounds=8"), "--bands"),
        (("--aggregator=banded", "--epsilon=2", "--bands=20"), "--bands"),
        (("--aggregator=banded", "--noise_multiplier=1"), "--bands"),
        (("--epsilon=2", "--bands=4"), "--bands"),
        (("--aggregator=tree", "--epsilon=2", "--client_sampling=poisson"), "--client_sampling"),
        (("--algorithm=fed_prox",), "--proximal_strength"),
        (("--proximal_strength=1",), "--proximal_strength"),
        (("--mean_datapoints_per_user=5",), "--mean_datapoints_per_user"),
        (("--fresh_photos",), "--fresh_photos"),
        (("--iid", "--datapoints_per_user_distribution=poisson"), "--datapoints_per_user_distribution"),
        (
            ("--iid", "--mean_datapoints_per_user=5", "--fresh_photos", "--minimum_num_datapoints_per_user=2"),
            "--minimum_num_datapoints_per_user",
        ),
        (
            (
                *("--iid", "--mean_datapoints_per_user=5", "--fresh_photos", "--minimum_num_datapoints_per_user=6"),
                "--datapoints_per_user_distribution=poisson",
            ),
            "--minimum_num_datapoints_per_user",
        ),
        (("--reuse_clients", "--client_sampling=uniform"), "--reuse_clients"),
        (("--best_metric=accuracy",), "--best_metric"),
        (("--binary_label=dragon",), "structure"),
        (("--restore_model_path=/nowhere.h5",), "--restore_model_path"),
    ],
)
def test_what_cannot_work_is_refused_in_one_line(tfrecords, tmp_path, flags, named):
    line = _refused(f"--tfrecords_dir={tfrecords}", f"--save_model_dir={tmp_path}", *SMALL, *flags)
    assert named in line


def test_a_refusal_comes_before_any_heavy_import(tfrecords, tmp_path):
    program = (
        "import sys, benchmark.federated_main as m\n"
        "from benchmark.run import command\n"
        "try: command.run(m.main, m.FLAGS)\n"
        "finally: assert 'tensorflow' not in sys.modules, 'tensorflow was imported'\n"
    )
    flags = [f"--tfrecords_dir={tfrecords}", f"--save_model_dir={tmp_path}", "--epsilon=2", "--noise_multiplier=2"]
    done = subprocess.run(
        [sys.executable, "-c", program, *flags], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 1
    assert "--noise_multiplier" in done.stderr and "imported" not in done.stderr


def test_an_empty_partition_is_refused(tfrecords, tmp_path):
    copied = tmp_path / "records"
    shutil.copytree(tfrecords, copied, symlinks=True)
    for path in (copied / "dev").iterdir():
        os.unlink(path)
    line = _refused(f"--tfrecords_dir={copied}", f"--save_model_dir={tmp_path}", *SMALL)
    assert "val" in line and "empty" in line


@pytest.mark.slow
def test_federated_evaluation_scores_every_test_client(tfrecords, miniature, tmp_path):
    _run(
        *_places(tfrecords, tmp_path),
        *SMALL,
        "--total_rounds=1",
        "--federated_eval",
        "--federated_eval_local_training",
    )
    records = json.loads((miniature / "labels_and_metadata.json").read_text())
    photos = collections.Counter(record["user_id"] for record in records if record["partition"] == "test")
    rows = read_csv(tmp_path / "run" / "clients.csv")
    assert {row["client_id"]: int(row["photos"]) for row in rows} == photos
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    total = sum(photos.values())
    pooled = sum(float(row["loss"]) * int(row["photos"]) for row in rows) / total
    assert pooled == pytest.approx(summary["test"]["loss"], abs=1e-6)
    mean = sum(float(row["loss"]) for row in rows) / len(rows)
    assert summary["clients"]["test"]["loss"]["mean"] == pytest.approx(mean)
    for name in ("before", "after"):
        assert summary["clients"][f"{name}_local_training"]["count"] == sum(count > 1 for count in photos.values())


def test_a_run_that_starts_over_leaves_no_old_statement(tfrecords, finished, tmp_path):
    shutil.copytree(finished[1], tmp_path / "run")
    assert (tmp_path / "run" / "privacy.txt").is_file()
    _run(*_places(tfrecords, tmp_path), *SMALL, "--total_rounds=1", "--overwrite")
    assert not list((tmp_path / "run").glob("privacy.*"))


@pytest.mark.slow
def test_the_statement_says_what_the_flags_asked_for(tfrecords, tmp_path):
    done = _run(
        *_places(tfrecords, tmp_path),
        *(*SMALL, "--total_rounds=2", "--rounds_per_eval=1", "--epsilon=8", "--simulated_clients_per_round=10"),
        *("--delta=0.01", "--accountant=rdp", "--iid", "--fresh_photos", "--mean_datapoints_per_user=5"),
        *("--datapoints_per_user_distribution=poisson", "--minimum_num_datapoints_per_user=2"),
    )
    statement = json.loads((tmp_path / "run" / "privacy.json").read_text())
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert statement["delta"] == 0.01
    assert statement["accountant"]["name"] == "rdp"
    assert statement["unit"] == "artificial user"
    assert statement["simulated_clients_per_round"] == 10
    # The run has 4 clients a round, not 10: its own epsilon is the one shown, and it is larger.
    assert summary["simulated_epsilon"] == pytest.approx(8, rel=1e-3)
    assert summary["epsilon"] > 8
    assert float(read_csv(tmp_path / "run" / "metrics.csv")[-1]["epsilon"]) == summary["epsilon"]
    assert "simulated cohort of 10" in done.stdout


@pytest.mark.slow
def test_a_clip_without_noise_is_a_run_that_claims_no_privacy_and_has_no_key(tfrecords, tmp_path):
    flags = *SMALL, "--total_rounds=2", "--rounds_per_eval=1", "--noise_multiplier=0", "--l2_norm_clip=0.3"
    done = _run(*_places(tfrecords, tmp_path), *flags, "--client_datasets_random_seed=7")
    facts, summary = (json.loads((tmp_path / "run" / name).read_text()) for name in ("run.json", "summary.json"))
    assert not (tmp_path / "run" / "noise.key").exists()
    assert (facts["noise_key_sha256"], facts["cohort_seed"]) == (None, 7)
    assert (summary["setting"], summary["epsilon"]) == ("federated, clipped without noise", None)
    rows = read_csv(tmp_path / "run" / "metrics.csv")
    assert "epsilon" not in rows[0] and "not_private/cosine" not in rows[0]
    assert [float(row["clip_norm"]) for row in rows] == pytest.approx([0.3, 0.3])
    assert 0 <= float(rows[0]["not_private/fraction_clipped"]) <= 1 and float(rows[0]["not_private/update_norm"]) > 0
    assert "NO PRIVACY: epsilon is infinite" in done.stdout and "epsilon: infinite" in done.stdout
    assert "NO PRIVACY" in (tmp_path / "run" / "privacy.txt").read_text()


@pytest.mark.slow
def test_a_locally_private_run_states_what_each_client_has_and_deletes_its_key(tfrecords, tmp_path):
    flags = *SMALL, "--total_rounds=2", "--rounds_per_eval=1", "--local_noise_multiplier=10", "--l2_norm_clip=0.3"
    # A round without clients was once called diverged.
    rare = "--client_sampling=poisson", "--clients_per_round=1", "--client_datasets_random_seed=0"
    done = _run(*_places(tfrecords, tmp_path), *flags, *rare, "--delta=1e-5")
    clients = [float(row["clients"]) for row in read_csv(tmp_path / "run" / "metrics.csv")]
    assert min(clients) == 0 < max(clients)
    files = "run.json", "summary.json", "privacy.json"
    facts, summary, statement = (json.loads((tmp_path / "run" / name).read_text()) for name in files)
    assert not (tmp_path / "run" / "noise.key").exists()
    assert facts["noise_key_sha256"] and facts["cohort_seed"] == 0
    assert statement["epsilon"]["completed"]["pld"] == summary["local_epsilon"]["of_all_rounds"]
    assert 0 < summary["local_epsilon"]["of_a_round"] < summary["local_epsilon"]["of_all_rounds"] < 2
    assert "epsilon" not in summary and "epsilon" not in read_csv(tmp_path / "run" / "metrics.csv")[0]
    assert statement["noise_key"] == "deleted" and statement["participations"] == {"completed": 2, "planned": 2}
    assert "no central epsilon is claimed" in done.stdout and "local epsilon: " in done.stdout
    assert "LOCAL PRIVACY" in (tmp_path / "run" / "privacy.txt").read_text()
    page = tmp_path / "page"
    run("benchmark.report_main", str(tmp_path / "run"), f"--output_dir={page}")
    assert "LOCAL PRIVACY" in (page / "index.html").read_text()


@pytest.mark.slow
def test_a_secure_sum_says_that_it_is_simulated_and_what_a_client_would_send(tfrecords, tmp_path):
    done = _run(*_places(tfrecords, tmp_path), *SMALL, "--total_rounds=2", "--rounds_per_eval=1", "--aggregator=secure")
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    secure, weights = summary["secure_aggregation"], summary["trainable_weights"]
    assert secure["simulated"] and secure["plain_bits_per_client"] == 32 * weights
    # 32 bits a weight, and 2 so that the sum of four does not wrap around; a few hundred for what else is counted.
    assert 0 < secure["bits_per_client"] - 34 * weights < 500
    assert "secure aggregation is SIMULATED" in done.stdout and f"{secure['bits_per_client']:,} bits" in done.stdout
    assert read_csv(tmp_path / "run" / "metrics.csv")[0]["mean_value/secure_upper_clipped_count"] == "0.0"


@pytest.mark.parametrize("complete", [True, False])
def test_a_run_is_not_continued_on_other_data(tfrecords, repeatable, finished, tmp_path, complete):
    copied, run_dir = tmp_path / "records", tmp_path / "run"
    shutil.copytree(tfrecords, copied, symlinks=True)
    shutil.copytree(finished[1], run_dir)
    flags = run_dir / "flags.txt"
    flags.write_text(flags.read_text().replace(str(tfrecords), str(copied)).replace(str(finished[0]), str(tmp_path)))
    if not complete:
        (run_dir / "summary.json").unlink()
    user = sorted((copied / "train").iterdir())[0]
    user.write_bytes(2 * user.read_bytes())  # as many users, so that the plan of `finished` is found again
    assert "other data" in _refused(*_places(copied, tmp_path), *repeatable)


def test_a_photo_that_cannot_be_decoded_is_named(tfrecords, tmp_path):
    copied = tmp_path / "records"
    shutil.copytree(tfrecords, copied, symlinks=True)
    user = sorted((copied / "train").iterdir())[0]
    broken = example.Example(b"no photo", (0,), (0,), "4711", user.stem)
    user.write_bytes(frames.frame(example.encode(broken)))
    done = _run(*_places(copied, tmp_path), *SMALL, "--total_rounds=1", "--clients_per_round=32", code=1)
    assert "Traceback" not in done.stderr
    line = done.stderr.strip().splitlines()[-1]  # libjpeg has its say before
    assert "4711" in line and user.stem in line


@pytest.mark.parametrize("which", ["head", pytest.param("film", marks=pytest.mark.slow)])
def test_few_weights_train_from_restored_ones_and_the_others_stay_bit_for_bit(tfrecords, task, tmp_path, which):
    from benchmark.model import loading, networks
    from benchmark.model.trainable import choose, num_weights

    start, out = tmp_path / "start.h5", tmp_path / "out"
    model = networks.build_model(TINY, (32, 32, 3), task.num_outputs, seed=9)
    loading.save_model(model, start)
    choose(model, which)
    flags = (*_places(tfrecords, out), *PRIVATE, f"--trainable={which}", f"--restore_model_path={start}")
    done = _run(*flags)
    assert f"{num_weights(model):,} weights train: the noise on a round's mean update is" in done.stdout
    before = {variable.name: variable.numpy() for variable in model.variables}
    chosen = {variable.name for variable in model.trainable_variables}
    loading.load_by_name(model, out / "run" / "last.h5")
    after = {variable.name: variable.numpy() for variable in model.variables}
    assert {name for name, value in after.items() if not np.array_equal(value, before[name])} == chosen
    statement = json.loads((out / "run" / "privacy.json").read_text())
    assert statement["trainable_weights"] == num_weights(model)
    noise = statement["noise"]["sum_noise_multiplier"] / 4 * num_weights(model) ** 0.5
    assert statement["noise"]["norm_on_mean"] == pytest.approx(noise)
    # Sigma does not depend on how many weights there are.
    assert f"noise multiplier {statement['noise']['noise_multiplier']:.4g}" in done.stdout
    refusal = _refused(*flags[:-2], f"--restore_model_path={start}", "--trainable=all")
    assert f"--trainable was {which} and is all" in refusal


@pytest.mark.long  # minutes of tracing by TFF; one runtime: test_central_main, few weights on TFF: test_trainable
def test_a_network_of_keras_trains_alike_on_both_runtimes(tfrecords, tmp_path):
    for runtime in ("inprocess", "tff"):
        _run(
            f"--tfrecords_dir={tfrecords}",
            "--model=keras:MobileNetV3Small",
            "--backbone_weights=none",
            "--total_rounds=2",
            "--rounds_per_eval=2",
            f"--runtime={runtime}",
            *SMALL[1:],
            f"--save_model_dir={tmp_path / runtime}",
        )
    runs = [next(path for path in (tmp_path / name).iterdir() if path.is_dir()) for name in ("inprocess", "tff")]
    rows = [read_csv(run / "metrics.csv")[-1] for run in runs]
    assert float(rows[0]["val_loss"]) == pytest.approx(float(rows[1]["val_loss"]), rel=1e-3)
    weights = [read_weights(run / "last.h5") for run in runs]
    for name, array in weights[0].items():
        np.testing.assert_allclose(array, weights[1][name], atol=2e-3, err_msg=name)
        if name.endswith(("moving_mean:0", "moving_variance:0")):  # those of batch normalization never move
            assert len(set(array.tolist())) == 1, name


def test_runs_that_start_from_one_file_in_two_ways_share_no_noise(tfrecords, task, tmp_path, repeatable, monkeypatch):
    from benchmark.federated import loop
    from benchmark.model import loading, networks

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(loop, "train", interrupted)  # the key is there before the first round
    path = tmp_path / "start.h5"
    loading.save_model(networks.build_model(TINY, (32, 32, 3), task.num_outputs, seed=9), path)
    keys = []
    for name in ("restore_model_path", "backbone_weights"):
        out = tmp_path / name
        _run(*_places(tfrecords, out), *GIVEN_NOISE, repeatable[-1], f"--{name}={path}", code=130)
        keys.append(json.loads((out / "run" / "run.json").read_text())["noise_key_sha256"])
    assert keys[0] != keys[1]
