"""`federated_main --runtime=ray` from the command line: same results, no leftovers, clear refusals."""

from __future__ import annotations

import contextlib
import csv
import gzip
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
import psutil
import pytest

from benchmark.run.checkpoint import Checkpoints
from tests.support.commands import (
    ROOT,
    only_line,
    read_csv,
    refused,
    run,
    run_process,
    run_program,
    start,
    wait_for_checkpoint,
)
from tests.support.ports import free_port
from tests.support.tiny_network import TINY

needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="the extra 'ray' is not installed")
FEDERATED = "benchmark.federated_main"
# Ray's processes end with the process that started them.
_run = partial(run_process, FEDERATED)
SMALL = (f"--model={TINY}", "--image_height=32", "--image_width=32", "--clients_per_round=6", "--client_batch_size=8")
PRIVATE = (*SMALL, "--rounds_per_eval=2", "--rounds_per_checkpoint=1", "--noise_multiplier=1")
LOOKS = ("--rounds_per_client_eval=2", "--clients_per_client_eval=4")
RAY = ("--runtime=ray", "--num_workers=2")


@pytest.fixture(scope="module")
def private(tmp_path_factory):
    """The flags of a private run whose noise can be repeated."""
    path = tmp_path_factory.mktemp("key") / "key"
    path.write_text("5e" * 32)
    return (*PRIVATE, f"--noise_key_file={path}")


def _places(tfrecords, out):
    return f"--tfrecords_dir={tfrecords}", f"--save_model_dir={out}", f"--run_dir={out / 'run'}"


@pytest.fixture(scope="module")
def unbroken(tfrecords, private, tmp_path_factory):
    """The run folder of a run of twelve rounds that nobody stopped."""
    out = tmp_path_factory.mktemp("unbroken")
    _run(*private, *RAY, "--total_rounds=12", *_places(tfrecords, out))
    return out / "run"


def _final_state(run_dir):
    return Checkpoints(run_dir / "checkpoints").latest().arrays


def _assert_equal_states(one, other, atol):
    first, second = _final_state(one), _final_state(other)
    assert first.keys() == second.keys()
    for name in first:
        if first[name].dtype.kind in "fiu":
            np.testing.assert_allclose(first[name], second[name], atol=atol, rtol=0)
        else:
            assert first[name].tolist() == second[name].tolist()


def _assert_equal_metrics(one, other):
    rows = [
        [{name: float(value) for name, value in row.items() if value} for row in read_csv(run_dir / "metrics.csv")]
        for run_dir in (one, other)
    ]
    assert len(rows[0]) == len(rows[1])
    for mine, expected in zip(*rows, strict=True):
        assert mine == pytest.approx(expected, abs=1e-5)


def _looks(run_dir):
    """Round, client and kind -> the numbers of the row, NaN where there is none."""
    with gzip.open(run_dir / "clients.csv.gz", "rt") as file:
        _, *rows = csv.reader(file)
    return {tuple(row[:3]): [float(cell or "nan") for cell in row[3:]] for row in rows}


@needs_ray
@pytest.mark.slow
def test_the_command_on_ray_leaves_what_it_leaves_in_process(tfrecords, private, tmp_path):
    flags = (*private, "--total_rounds=3", "--federated_eval", "--federated_eval_local_training", *LOOKS)
    ray, local = tmp_path / "ray", tmp_path / "local"
    done = _run(*flags, *RAY, *_places(tfrecords, ray))
    run(FEDERATED, *flags, *_places(tfrecords, local))
    assert "Ray workers of 1 CPU each: 2 on" in done.stdout
    _assert_equal_states(ray / "run", local / "run", 1e-5)
    _assert_equal_metrics(ray / "run", local / "run")
    assert (ray / "run" / "privacy.json").read_text() == (local / "run" / "privacy.json").read_text()
    names = [{path.name for path in (out / "run").iterdir()} for out in (ray, local)]
    assert {name for name in names[0] if "events" not in name} == {name for name in names[1] if "events" not in name}
    for name in ("clients.csv", "clients_after_local_training.csv"):
        scores = [np.genfromtxt(out / "run" / name, delimiter=",", skip_header=1)[:, 1:] for out in (ray, local)]
        np.testing.assert_allclose(scores[0], scores[1], atol=1e-5)
    rows = [_looks(out / "run") for out in (ray, local)]
    assert rows[0].keys() == rows[1].keys()
    assert {kind for _, _, kind in rows[0]} == {"val", "val_before", "val_after", "cohort"}
    for row, numbers in rows[0].items():
        np.testing.assert_allclose(numbers, rows[1][row], atol=1e-5, err_msg=str(row))


def _start(flags, run_dir, round_number, **options):
    """A run that has come as far as that checkpoint."""
    process = start(FEDERATED, *flags, **options)
    wait_for_checkpoint(process, run_dir, round_number)
    assert process.poll() is None, process.communicate()
    return process


def _descendants(*processes):
    return [child for process in processes for child in psutil.Process(process.pid).children(recursive=True)]


def _workers(processes):
    return [process for process in processes if "ray::FederatedWorker" in " ".join(process.cmdline())]


def _ending(children):
    """Those of them that live on 20 seconds later."""
    return psutil.wait_procs(children, timeout=20)[1]


@needs_ray
@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "code", "group"),
    [
        (signal.SIGKILL, -9, False),
        pytest.param(signal.SIGTERM, 143, False, marks=pytest.mark.long),
        (signal.SIGINT, 130, True),
    ],
)
def test_a_stopped_run_leaves_no_process_and_continues_to_the_same_result(
    tfrecords, private, unbroken, tmp_path, number, code, group
):
    flags = (*private, *RAY, "--total_rounds=12", *_places(tfrecords, tmp_path))
    process = _start(flags, tmp_path / "run", 2, start_new_session=True)
    children = _descendants(process)
    assert any("raylet" in " ".join(child.cmdline()) for child in children)
    assert len(_workers(children)) == 2
    if group:
        os.killpg(process.pid, number)  # as a terminal does
    else:
        process.send_signal(number)
    _, errors = process.communicate(timeout=120)
    assert not _ending(children)
    assert process.returncode == code
    assert "Traceback" not in errors
    done = _run(*flags)
    assert "continuing after round" in done.stdout
    _assert_equal_states(tmp_path / "run", unbroken, 0)
    assert (tmp_path / "run" / "metrics.csv").read_text() == (unbroken / "metrics.csv").read_text()


@contextlib.contextmanager
def _two_nodes(tfrecords):
    """Two Ray nodes of one CPU on loopback, started as docs/scale.md says; yields the address."""
    ray = str(Path(sys.executable).parent / "ray")
    address = f"127.0.0.1:{free_port()}"
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(tfrecords / "token"),
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    }
    (tfrecords / "token").write_text("0123456789abcdef" * 4)
    common = ["--node-ip-address=127.0.0.1", "--num-cpus=1", "--disable-usage-stats", "--block"]
    head = ["--head", f"--port={address.rpartition(':')[2]}", "--include-dashboard=false"]
    agents = ["--dashboard-agent-listen-port=0"]
    started = []
    # Sockets of Ray lie below its folder, and their paths may have 107 bytes.
    temporary = tempfile.mkdtemp(prefix="ray-", dir="/tmp")
    try:
        for role in ([*head, f"--temp-dir={temporary}"], [f"--address={address}", *agents]):
            started.append(
                subprocess.Popen(
                    [ray, "start", *role, *common],
                    env=environment,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    text=True,
                    start_new_session=True,
                )
            )
            deadline = time.monotonic() + 60
            while time.monotonic() < deadline and started[-1].poll() is None:
                if "Ray runtime started" in started[-1].stdout.readline():
                    break
            assert started[-1].poll() is None, started[-1].stdout.read()
        yield address, environment, started
    finally:
        for node in started:
            children = psutil.Process(node.pid).children(recursive=True) if node.poll() is None else []
            node.terminate()
            node.wait(30)
            _, alive = psutil.wait_procs(children, timeout=20)
            for child in alive:
                child.kill()
        shutil.rmtree(temporary)


@needs_ray
@pytest.mark.long
def test_two_nodes_give_the_result_of_one_machine_and_outlive_a_killed_run(tfrecords, private, tmp_path):
    flags = (*private, *RAY, "--total_rounds=4")
    both, one = tmp_path / "both", tmp_path / "one"
    with _two_nodes(tmp_path) as (address, environment, nodes):
        shared = (*flags, f"--ray_address={address}", *_places(tfrecords, both))
        run = _start(shared, both / "run", 1, env=environment)
        workers = _workers(_descendants(*nodes))
        assert len(workers) == 2
        assert len({worker.ppid() for worker in workers}) == 2, "one worker on each node"
        run.kill()
        run.communicate()
        assert not _ending(workers)
        done = _run(*shared, env=environment)
        assert "continuing after round" in done.stdout
        # The cluster is the user's: it goes on, without our workers.
        assert all(node.poll() is None for node in nodes)
        assert not _ending(_workers(_descendants(*nodes)))
    _run(*flags, *_places(tfrecords, one))
    _assert_equal_states(both / "run", one / "run", 0)
    assert (both / "run" / "privacy.json").read_text() == (one / "run" / "privacy.json").read_text()


def test_without_ray_the_extra_is_named(tfrecords, tmp_path):
    program = (
        "import sys; sys.modules['ray'] = None\n"
        "import benchmark.federated_main as m; from benchmark.run import command; command.run(m.main, m.FLAGS)"
    )
    flags = (f"--tfrecords_dir={tfrecords}", f"--save_model_dir={tmp_path}", "--runtime=ray")
    done = run_program(program, *flags, code=1)
    assert "make environment EXTRAS=ray" in only_line(done)


@needs_ray
@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (("--num_workers=2",), "--num_workers has no effect without --runtime=ray"),
        (("--worker_gpus=1",), "--worker_gpus has no effect"),
        (("--runtime=ray", "--worker_gpus=1.5"), "--worker_gpus=1.5"),
        (("--runtime=ray", "--ray_address=ray://here:10001"), "--ray_address"),
        (("--runtime=ray", "--ray_address=here"), "host:port"),
    ],
)
def test_what_cannot_work_is_refused_in_one_line(tfrecords, tmp_path, flags, named):
    line = refused(FEDERATED, f"--tfrecords_dir={tfrecords}", f"--save_model_dir={tmp_path}", *SMALL, *flags)
    assert named in line


@needs_ray
@pytest.mark.slow
def test_an_address_without_a_cluster_is_refused_in_one_line(tfrecords, tmp_path):
    address = f"127.0.0.1:{free_port()}"
    flags = (*_places(tfrecords, tmp_path), *SMALL, "--total_rounds=1", *RAY, f"--ray_address={address}")
    line = only_line(_run(*flags, code=1))
    assert address in line and "ray start --head" in line


@needs_ray
@pytest.mark.long
def test_speed_main_prints_rates_and_imbalance(tmp_path):
    path = tmp_path / "ray.json"
    flags = ["--model=cnn", "--image_size=32", "--clients=8", "--repeats=2", f"--output_file={path}"]
    done = run_process("benchmark.speed_main", "ray", *flags)
    report = json.loads(path.read_text())
    assert [row["name"] for row in report["rounds"]] == ["inprocess", "ray, 1", "ray, 2"]
    for row in report["rounds"]:
        assert row["seconds"] > 0
        assert f"{row['seconds']:.2f}" in done.stdout
    assert 0 <= report["rounds"][2]["planned_imbalance"] < 0.15
    assert report["rounds"][1]["imbalance"] == 0
    assert all(row["overhead"] > 0 for row in report["rounds"][1:])
    assert 0.1e9 < report["parts"]["worker_bytes"] < 3e9
    assert {(size["clients"], size["machines"]) for size in report["sizes"]} >= {(200, 10), (5000, 100)}
