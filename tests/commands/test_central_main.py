"""Central training: the step against Keras, the command line, resuming, stopping, refusing."""

from __future__ import annotations

import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import tensorflow as tf

from benchmark.central.loop import LoopConfig, train
from benchmark.central.step import CentralTrainer
from benchmark.data.opening import make_task, open_records
from benchmark.data.pipeline import TrainingData, evaluation_dataset
from benchmark.evaluation import passes
from benchmark.model import loading, networks, specs
from benchmark.run.devices import Devices
from benchmark.run.folder import RunFolder
from benchmark.run.interruption import SafePoints
from flair.errors import FlairError
from flair.miniature.dataset import make_dataset
from flair.records.tfrecord.writer import write_tfrecords
from tests.support.commands import (
    ROOT,
    assert_equal_weights,
    newest_checkpoint,
    only_line,
    read_csv,
    run,
    run_process,
    start,
    wait_for_checkpoint,
)
from tests.support.ports import free_port
from tests.support.tiny_network import TINY

SIZE = (32, 32)
CENTRAL = "benchmark.central_main"
_run = functools.partial(run, CENTRAL)


@pytest.fixture(scope="module")
def finished(tfrecords, tmp_path_factory):
    """A complete run of two epochs through the command line, and what it printed."""
    out = tmp_path_factory.mktemp("finished")
    done = _run(
        f"--tfrecords_dir={tfrecords}",
        f"--save_model_dir={out}",
        f"--model={TINY}",
        "--image_height=32",
        "--image_width=48",
        "--train_batch_size=16",
        "--num_epochs=2",
        "--learning_rate=0.01",
        "--seed=3",
    )
    return out, done


def test_a_run_leaves_a_model_and_a_complete_run_folder(finished, tfrecords, records, task):
    out, done = finished
    name = f"{specs.file_name(TINY)}_central_{task.num_outputs}labels"
    run = out / name
    assert sorted(path.name for path in out.iterdir()) == [name, f"{name}.h5", f"{name}.keras"]
    rows = read_csv(run / "metrics.csv")
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert {"train_loss", "val_loss", "val_macro_averaged_precision", "learning_rate"} <= set(rows[0])
    assert float(rows[1]["train_loss"]) < float(rows[0]["train_loss"])
    summary = json.loads((run / "summary.json").read_text())
    assert summary["epochs"] == 2
    assert summary["val"]["loss"] == pytest.approx(min(float(row["val_loss"]) for row in rows))
    described = json.loads((run / "run.json").read_text())
    assert described["data"]["digest"] == records.digest()
    assert described["data"]["photos"]["train"] == records.num_photos("train")
    assert described["seed"] == 3
    for text in (str(out / f"{name}.h5"), str(run), "next: "):
        assert text in done.stdout
    assert "Traceback" not in done.stderr

    model = networks.build_model(TINY, (32, 48, 3), task.num_outputs, seed=9)
    assert not loading.load_by_name(model, out / f"{name}.h5").skipped
    again = passes.evaluate(model, evaluation_dataset(records, "test", task, (32, 48), 8), task)
    assert again == pytest.approx(summary["test"], abs=1e-6)


def test_the_same_command_again_changes_nothing(finished, tfrecords):
    out, _ = finished
    run = next(path for path in out.iterdir() if path.is_dir())
    before = {path: path.stat().st_mtime_ns for path in out.glob("**/*.h5")}
    done = _run(f"--flagfile={run / 'flags.txt'}")
    assert "complete already" in done.stdout
    assert "final test metrics" in done.stdout
    assert {path: path.stat().st_mtime_ns for path in out.glob("**/*.h5")} == before
    other = _run(f"--flagfile={run / 'flags.txt'}", f"--restore_model_path={run / 'best.h5'}", code=1)
    assert "begun with other restored weights" in other.stderr
    other = _run(f"--flagfile={run / 'flags.txt'}", "--learning_rate=0.5", code=1)
    assert "--learning_rate was 0.01 and is 0.5" in other.stderr


def test_a_run_repeated_from_its_folder_alone_gives_the_same_numbers(finished, tmp_path):
    out, _ = finished
    run = next(path for path in out.iterdir() if path.is_dir())
    _run(f"--flagfile={run / 'flags.txt'}", f"--save_model_dir={tmp_path}")
    repeated = tmp_path / run.name
    assert (repeated / "metrics.csv").read_bytes() == (run / "metrics.csv").read_bytes()
    for name in ("best.h5", "last.h5"):
        assert_equal_weights(repeated / name, run / name)
    facts = [json.loads((tfrecords / "run.json").read_text()) for tfrecords in (run, repeated)]
    for name in ("data", "seed", "versions", "restored_model"):
        assert facts[0][name] == facts[1][name]
    assert {"python", "tensorflow", "numpy"} <= facts[0]["versions"].keys()
    assert len(facts[0]["data"]["digest"]) == 64


@pytest.mark.slow
def test_killed_at_any_time_and_continued_it_equals_the_unbroken_run(finished, tmp_path):
    out, _ = finished
    unbroken = next(path for path in out.iterdir() if path.is_dir())
    flags = [f"--flagfile={unbroken / 'flags.txt'}", f"--run_dir={tmp_path / 'run'}", "--minutes_per_checkpoint=0"]
    flags.append(f"--save_model_dir={tmp_path}")
    process = start(CENTRAL, *flags, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for_checkpoint(process, tmp_path / "run", 2)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "run" / "summary.json").exists()
    done = _run(*flags)
    assert "continuing after" in done.stdout
    assert (tmp_path / "run" / "metrics.csv").read_text() == (unbroken / "metrics.csv").read_text()
    for name in ("best.h5", "last.h5"):
        assert_equal_weights(tmp_path / "run" / name, unbroken / name)
    assert_equal_weights(next(tmp_path.glob("*.h5")), next(out.glob("*.h5")))


@pytest.mark.parametrize(
    ("flags", "code", "message"),
    [
        ([], 2, "--tfrecords_dir"),
        (["--tfrecords_dir={tfrecords}", "--nonsense=1"], 2, "nonsense"),
        (["--tfrecords_dir={tfrecords}", "--num_epochs=0"], 2, "num_epochs"),
        (["--tfrecords_dir={tfrecords}", "--compute_dtype=float16"], 2, "compute_dtype"),
        (["--tfrecords_dir={tfrecords}", "extra"], 2, "takes flags only, found 'extra'"),
        (["--tfrecords_dir={tfrecords}", "--nooverwrite=true"], 2, "--nooverwrite=true does not take an argument"),
        (["--tfrecords_dir={tfrecords}/train"], 1, "has no label_index.json"),
        (["--tfrecords_dir={tfrecords}", "--binary_label=dragon"], 1, "the labels are animal"),
        (["--tfrecords_dir={tfrecords}", "--best_metric=accuracy"], 1, "the metrics are loss, macro_precision"),
        (["--tfrecords_dir={tfrecords}", "--restore_model_path=/none.h5"], 1, "--restore_model_path=/none.h5: no such"),
        (["--tfrecords_dir={tfrecords}", "--save_model_dir=/proc/none"], 1, "/proc/none"),
    ],
)
def test_refusals_are_one_line_and_come_before_tensorflow(tfrecords, tmp_path, flags, code, message):
    # A TensorFlow that fails on import proves that none is imported.
    (tmp_path / "tensorflow.py").write_text("raise RuntimeError('imported')")
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    flags = [flag.format(tfrecords=tfrecords) for flag in flags]
    done = run_process(CENTRAL, *flags, code=code, cwd=tmp_path, env={"PYTHONPATH": path})
    assert message in only_line(done)
    assert done.stdout == ""


def test_help_shows_every_flag_with_its_default():
    done = _run("--help")
    for flag, default in (("learning_rate", "0.0001"), ("train_batch_size", "512"), ("image_height", "224")):
        text = done.stdout.split(f"--{flag}=")[1]
        assert f"default: {default})" in " ".join(text.split())[:250]
    for flag in ("clipnorm", "restore_model_path", "binary_label", "compute_dtype", "seed", "early_stopping"):
        assert f"--{flag}" in done.stdout


def test_one_step_equals_keras_adam(task):
    pixels = np.random.default_rng(0).integers(0, 256, (6, *SIZE, 3)).astype(np.uint8)
    labels = (np.random.default_rng(1).random((6, task.num_outputs)) < 0.3).astype(np.float32)
    ours, keras = (networks.build_model(TINY, (*SIZE, 3), task.num_outputs, seed=2) for _ in range(2))
    trainer = CentralTrainer(ours, task, 0.05, Devices())
    keras.compile(
        optimizer=tf.keras.optimizers.Adam(0.01, clipnorm=0.05),
        loss=tf.keras.losses.BinaryCrossentropy(from_logits=True),
    )
    for _ in range(3):
        loss = keras.train_on_batch(pixels, labels)
        found, _ = trainer.step([(tf.constant(pixels), tf.constant(labels))], 0.01)
        assert found == pytest.approx(loss, rel=1e-5)
    for found, wanted in zip(ours.get_weights(), keras.get_weights(), strict=True):
        np.testing.assert_allclose(found, wanted, atol=2e-5)


def test_a_batch_in_parts_is_the_same_step(task):
    pixels = tf.constant(np.random.default_rng(0).integers(0, 256, (10, *SIZE, 3)), tf.uint8)
    labels = tf.constant(np.random.default_rng(1).random((10, task.num_outputs)) < 0.3, tf.float32)
    whole, split = (
        CentralTrainer(networks.build_model(TINY, (*SIZE, 3), task.num_outputs), task, 0.05, Devices(), microbatch)
        for microbatch in (64, 4)
    )
    for _ in range(3):
        losses = [trainer.step([(pixels, labels)], 0.001)[0] for trainer in (whole, split)]
        assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    for found, wanted in zip(split.model.get_weights(), whole.model.get_weights(), strict=True):
        np.testing.assert_allclose(found, wanted, atol=1e-5)
    assert split.num_photos == whole.num_photos == 30
    assert split.metrics() == pytest.approx(whole.metrics(), rel=1e-5)
    assert split.arrays().keys() == whole.arrays().keys()


# One graph serves all runs, as it does all epochs.
_training_data, _validation_data = functools.cache(TrainingData), functools.cache(evaluation_dataset)


def _train(
    records,
    task,
    run_dir,
    seed=0,
    num_epochs=2,
    learning_rate=0.01,
    safe_points=None,
    size=SIZE,
    devices=None,
    **options,
):
    devices = devices or Devices()
    shape = (*size, 3)
    with devices.scope():
        model = networks.build_model(TINY, shape, task.num_outputs, seed=seed)
    trainer = CentralTrainer(model, task, 10.0, devices)
    training = _training_data(records, "train", task, 16, size, seed, devices.replicas, devices.num_replicas)
    validation = _validation_data(records, "val", task, size, 16)
    rates = np.full(num_epochs * training.steps_per_epoch, learning_rate, np.float32)
    with RunFolder(run_dir, [], "epoch") as run:
        state = train(
            trainer,
            training,
            validation,
            run,
            LoopConfig(num_epochs, rates, **options),
            safe_points or SafePoints("step"),
        )
    return trainer.model, state


@pytest.mark.long  # the whole command: test_a_run_repeated_from_its_folder_alone_gives_the_same_numbers
def test_the_same_seed_twice_gives_the_same_weights(records, task, tmp_path):
    models = []
    for name, seed in enumerate((5, 5, 6)):
        _training_data.cache_clear()
        models.append(_train(records, task, tmp_path / str(name), seed, num_epochs=1)[0])
    one, same, other = models
    for a, b in zip(one.get_weights(), same.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    assert not np.array_equal(one.get_weights()[0], other.get_weights()[0])


@pytest.fixture(scope="module")
def interrupted(records, task, tmp_path_factory):
    """The folder of a run that Ctrl-C stopped in its first step."""
    folder = tmp_path_factory.mktemp("interrupted") / "run"
    with SafePoints("step") as safe_points:
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            _train(records, task, folder, safe_points=safe_points)
    return folder


def test_ctrl_c_saves_after_the_running_step_and_the_run_goes_on(records, task, interrupted, tmp_path):
    unbroken, _ = _train(records, task, tmp_path / "unbroken")
    assert len(list((interrupted / "checkpoints").iterdir())) == 1
    shutil.copytree(interrupted, tmp_path / "run")
    _training_data.cache_clear()  # the order of photos follows from the seed, not from what the run before drew
    continued, state = _train(records, task, tmp_path / "run")
    assert state.epoch == 2
    for a, b in zip(unbroken.get_weights(), continued.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    assert (tmp_path / "run" / "metrics.csv").read_text() == (tmp_path / "unbroken" / "metrics.csv").read_text()


def test_a_loss_that_is_no_number_stops_training(records, task, tmp_path):
    with pytest.raises(FlairError, match=r"epoch 1, step .*the loss is (nan|inf).*--learning_rate"):
        _train(records, task, tmp_path, learning_rate=1e38)


def test_scores_that_are_no_numbers_give_a_loss_that_is_none(records, task):
    model = networks.build_model(TINY, (*SIZE, 3), task.num_outputs)
    model.trainable_variables[-1].assign(np.full(model.trainable_variables[-1].shape, np.nan))
    metrics = passes.evaluate(model, evaluation_dataset(records, "val", task, SIZE, 16), task)
    assert np.isnan(metrics["loss"])


def test_a_run_past_fewer_epochs_is_not_ended_in_the_middle_of_one(records, task, interrupted, tmp_path):
    shutil.copytree(interrupted, tmp_path / "run")
    with pytest.raises(FlairError, match=r"--num_epochs=0: .* is past that already, 1 steps into epoch 1"):
        _train(records, task, tmp_path / "run", num_epochs=0)


def test_early_stopping_keeps_the_best_epoch(records, task, tmp_path):
    _, state = _train(
        records, task, tmp_path, num_epochs=12, learning_rate=0.3, early_stopping=1, best_metric="micro_recall"
    )
    assert state.epoch < 12
    assert state.best_epoch == state.epoch - 1
    values = [float(row["val_micro_recall"]) for row in read_csv(tmp_path / "metrics.csv")]
    assert max(values) == values[state.best_epoch - 1] == -state.best_value


def test_the_learning_rate_of_every_step_is_followed(records, task, tmp_path):
    model, _ = _train(records, task, tmp_path / "none", num_epochs=1, learning_rate=0.0)
    untrained = networks.build_model(TINY, (*SIZE, 3), task.num_outputs, seed=0)
    for found, wanted in zip(model.get_weights(), untrained.get_weights(), strict=True):
        np.testing.assert_array_equal(found, wanted)


@pytest.mark.slow
def test_real_photos_train(flair_sample, tmp_path):
    write_tfrecords(flair_sample, tmp_path / "records")
    flags = [f"--tfrecords_dir={tmp_path / 'records'}", "--num_epochs=1", "--model=cnn"]
    flags += ["--train_batch_size=8", "--image_height=64", "--image_width=64"]
    done = _run(*flags, f"--save_model_dir={tmp_path}", "--use_fine_grained_labels")
    assert "23 photos of 11 users to train, 6 of 2 to validate, 6 of 2 to test" in done.stdout
    (model,) = tmp_path.glob("cnn_central_*labels.h5")
    flags += [f"--restore_model_path={model}", f"--save_model_dir={tmp_path / 'binary'}", "--compute_dtype=bfloat16"]
    done = _run(*flags, "--binary_label=structure")
    assert "loaded 8 layers; skipped classifier" in done.stdout
    assert (tmp_path / "binary" / "cnn_central_1labels.h5").is_file()
    assert "    averaged_precision " in done.stdout


TWO_DEVICES = """
import sys
import numpy as np
import tensorflow as tf
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
)
from tests.commands.test_central_main import Devices, _train, make_task, open_records
folder, run_dir = sys.argv[1:]
records = open_records(folder)
names = ["CPU:0", "CPU:1"]
strategy = tf.distribute.MirroredStrategy(names)
model, _ = _train(records, make_task(records, False, None), run_dir, devices=Devices(strategy))
np.savez(run_dir + "/weights.npz", *model.get_weights())
"""


@pytest.mark.slow
def test_two_devices_train_like_one(records, task, tfrecords, tmp_path):
    one, _ = _train(records, task, tmp_path / "1")
    subprocess.run([sys.executable, "-c", TWO_DEVICES, str(tfrecords), str(tmp_path / "2")], cwd=str(ROOT), check=True)
    _assert_nearly_equal_runs(tmp_path / "1", tmp_path / "2")
    two = np.load(tmp_path / "2" / "weights.npz")
    for found, wanted in zip(two.values(), one.get_weights(), strict=True):
        np.testing.assert_allclose(found, wanted, atol=1e-3)


def _assert_nearly_equal_runs(one, other):
    rows = [read_csv(path / "metrics.csv") for path in (one, other)]
    assert len(rows[0]) == len(rows[1]) == 2
    for a, b in zip(*rows, strict=True):
        for name in ("train_loss", "val_loss"):
            assert float(a[name]) == pytest.approx(float(b[name]), abs=1e-4)


def _two_machines(flags, directory, *flags_of_the_second):
    """The processes of a job of two machines, and the files they print to."""
    workers = [f"localhost:{free_port()}" for _ in range(2)]
    printed = [directory / f"printed{index}" for index in range(2)]
    processes = []
    for index in range(2):
        config = json.dumps({"cluster": {"worker": workers}, "task": {"type": "worker", "index": index}})
        with open(printed[index], "w") as file:
            processes.append(
                start(
                    CENTRAL,
                    *(*flags, *(flags_of_the_second if index else ())),
                    env={"TF_CONFIG": config},
                    stdout=file,
                    stderr=subprocess.STDOUT,
                )
            )
    return processes, printed


@pytest.mark.slow
def test_two_machines_train_like_one(finished, tmp_path):
    out, _ = finished
    alone = next(path for path in out.iterdir() if path.is_dir())
    flags = [f"--flagfile={alone / 'flags.txt'}", f"--run_dir={tmp_path / 'run'}", f"--save_model_dir={tmp_path}"]
    processes, printed = _two_machines(flags, tmp_path)
    for process, path in zip(processes, printed, strict=True):
        assert process.wait(timeout=300) == 0, path.read_text()
        assert "WARNING" not in path.read_text()
    _assert_nearly_equal_runs(alone, tmp_path / "run")
    assert (tmp_path / "run" / "summary.json").exists()
    assert len(list(tmp_path.glob("*.h5"))) == 1


@pytest.mark.slow
def test_ctrl_c_on_one_of_two_machines_stops_both_and_a_lost_one_is_one_line(finished, tmp_path):
    out, _ = finished
    alone = next(path for path in out.iterdir() if path.is_dir())
    flags = [f"--flagfile={alone / 'flags.txt'}", f"--run_dir={tmp_path / 'run'}", f"--save_model_dir={tmp_path}"]
    flags.append("--minutes_per_checkpoint=0")
    lost = "benchmark.central_main: another machine of TF_CONFIG has failed or cannot be reached; "
    for signalled, number in ((1, signal.SIGINT), (0, signal.SIGTERM), (1, signal.SIGKILL)):
        before = newest_checkpoint(tmp_path / "run")
        processes, printed = _two_machines(flags, tmp_path)
        wait_for_checkpoint(processes[0], tmp_path / "run", before + 1)
        assert processes[0].poll() is None, printed[0].read_text()
        processes[signalled].send_signal(number)
        codes = [process.wait(timeout=200) for process in processes]
        texts = [path.read_text() for path in printed]
        if number == signal.SIGKILL:
            assert codes[1 - signalled] == 1, texts
            assert texts[1 - signalled].splitlines()[-1].startswith(lost)
        else:
            assert codes == [130 if number == signal.SIGINT else 143] * 2, texts
            assert "another machine of TF_CONFIG was asked to stop" in texts[1 - signalled]
        assert all("Traceback" not in text for text in texts)
    processes, printed = _two_machines(flags, tmp_path)
    for process, path in zip(processes, printed, strict=True):
        assert process.wait(timeout=300) == 0, path.read_text()
    assert "continuing after" in printed[0].read_text()
    _assert_nearly_equal_runs(alone, tmp_path / "run")


@pytest.mark.slow
def test_machines_that_were_started_differently_are_refused(finished, tmp_path):
    out, _ = finished
    alone = next(path for path in out.iterdir() if path.is_dir())
    flags = [f"--flagfile={alone / 'flags.txt'}", f"--save_model_dir={tmp_path}"]
    for different, message in (
        ("--train_batch_size=24", "TF_CONFIG: worker 1 has some flags, data or starting weights, worker 0 another"),
        (f"--run_dir={tmp_path / 'other'}", "give a --run_dir on a disk that all machines share"),
    ):
        processes, printed = _two_machines(flags, tmp_path, different)
        assert [process.wait(timeout=100) for process in processes] == [1, 1]
        texts = [path.read_text() for path in printed]
        assert message in texts[1].splitlines()[-1]
        assert all("Traceback" not in text for text in texts)


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_waiting_for_a_machine_can_be_ended(finished, tmp_path, number, code):
    out, _ = finished
    alone = next(path for path in out.iterdir() if path.is_dir())
    flags = [f"--flagfile={alone / 'flags.txt'}", f"--save_model_dir={tmp_path}"]
    processes, printed = _two_machines(flags, tmp_path)
    processes[1].kill()
    deadline = time.monotonic() + 100
    while "waiting for the 2 machines" not in printed[0].read_text() and time.monotonic() < deadline:
        time.sleep(0.01)
    processes[0].send_signal(number)
    assert processes[0].wait(timeout=100) == code
    assert "Traceback" not in printed[0].read_text()


WATCHED = """
import sys
from benchmark import central_main
from benchmark.run import command
from benchmark.run.folder import RunFolder
add_row = RunFolder.add_row
def watched_add_row(self, step, *values):
    print("pages", open("/proc/self/statm").read().split()[1])
    add_row(self, step, *values)
RunFolder.add_row = watched_add_row
central_main.main(command.parse(central_main.FLAGS, sys.argv[1:]))
"""


@pytest.mark.slow
def test_many_epochs_add_no_memory(tfrecords, tmp_path):
    flags = [f"--tfrecords_dir={tfrecords}", f"--save_model_dir={tmp_path}", f"--model={TINY}", "--num_epochs=25"]
    flags += ["--image_height=32", "--image_width=32", "--train_batch_size=16"]
    command = [sys.executable, "-c", WATCHED, *flags]
    done = subprocess.run(command, cwd=str(ROOT), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    pages = [int(line.split()[1]) for line in done.stdout.splitlines() if line.startswith("pages ")]
    assert len(pages) == 25
    assert pages[-1] <= 1.02 * pages[4]


def _macro_precision(records, task, dtype, seed, num_epochs, learning_rate, run_dir):
    shape = (64, 64, 3)

    model = networks.build_model("cnn", shape, task.num_outputs, seed=seed, compute_dtype=dtype)
    training = TrainingData(records, "train", task, 16, shape[:2], seed)
    validation = evaluation_dataset(records, "val", task, shape[:2], 64)
    trainer = CentralTrainer(model, task, 10.0, Devices())
    rates = np.full(num_epochs * training.steps_per_epoch, learning_rate, np.float32)
    with RunFolder(run_dir, [], "epoch") as run:
        train(trainer, training, validation, run, LoopConfig(num_epochs, rates), SafePoints("step"))
    return passes.accumulate(trainer.model, validation, task)


def _check_both_dtypes_learn(tfrecords, tmp_path, num_epochs, learning_rate):
    """Three seeds a dtype beat knowing nothing, and the dtypes differ no more than the seeds do."""
    records = open_records(tfrecords)
    task = make_task(records, False, None)
    found = {}
    for dtype in ("float32", "bfloat16"):
        for seed in range(3):
            run_dir = tmp_path / f"{dtype}{seed}"
            result = _macro_precision(records, task, dtype, seed, num_epochs, learning_rate, run_dir)
            found[dtype, seed] = result.metrics(task)["macro_averaged_precision"]
            assert found[dtype, seed] > result.know_nothing() + 0.1
    means, deviations = (
        [function([found[dtype, seed] for seed in range(3)]) for dtype in ("float32", "bfloat16")]
        for function in (np.mean, lambda values: np.std(values, ddof=1))
    )
    # Welch's t-test would call a difference real at about 2.8 standard errors with so few seeds.
    assert abs(means[0] - means[1]) < 2.8 * max(np.hypot(*deviations) / np.sqrt(3), 0.005)


@pytest.mark.long
def test_bfloat16_learns_as_much_as_float32_and_both_far_more_than_nothing(tmp_path):
    make_dataset(tmp_path / "dataset", num_images=2000, seed=0)
    write_tfrecords(tmp_path / "dataset", tmp_path / "records")
    _check_both_dtypes_learn(tmp_path / "records", tmp_path, 6, 2e-3)


@pytest.mark.long
def test_real_photos_are_learnt_in_both_dtypes(coco256, tmp_path):
    write_tfrecords(coco256, tmp_path / "records")
    _check_both_dtypes_learn(tmp_path / "records", tmp_path, 12, 1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("moment", [pytest.param(0.2, marks=pytest.mark.long), 0.6])
def test_killed_in_any_epoch_it_equals_the_unbroken_run(finished, tmp_path, moment):
    out, _ = finished
    unbroken = next(path for path in out.iterdir() if path.is_dir())
    steps = 2 * -(-json.loads((unbroken / "run.json").read_text())["data"]["photos"]["train"] // 16)
    flags = [f"--flagfile={unbroken / 'flags.txt'}", f"--run_dir={tmp_path / 'run'}", "--minutes_per_checkpoint=0"]
    flags.append(f"--save_model_dir={tmp_path}")
    process = start(CENTRAL, *flags, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for_checkpoint(process, tmp_path / "run", round(moment * steps))
    assert process.poll() is None
    process.kill()
    process.wait()
    _run(*flags)
    assert (tmp_path / "run" / "metrics.csv").read_text() == (unbroken / "metrics.csv").read_text()
    assert_equal_weights(tmp_path / "run" / "last.h5", unbroken / "last.h5")
    shutil.rmtree(tmp_path / "run")


_TINY = ("--image_height=32", "--image_width=32", "--train_batch_size=80", "--num_epochs=1")


@pytest.mark.slow
def test_a_network_of_keras_trains_and_is_evaluated(tfrecords, task, tmp_path):
    keras = ("--model=keras:MobileNetV3Small", f"--tfrecords_dir={tfrecords}", *_TINY)
    _run(*keras, "--backbone_weights=none", f"--save_model_dir={tmp_path}")
    saved = tmp_path / f"keras_MobileNetV3Small_central_{task.num_outputs}labels.h5"
    facts = json.loads((saved.with_suffix("") / "run.json").read_text())
    assert facts["restored_model"] is None
    run(
        "benchmark.evaluate_main", f"--tfrecords_dir={tfrecords}", f"--models={saved}", f"--output_dir={tmp_path / 'e'}"
    )
    evaluation = json.loads((tmp_path / "e" / "evaluation.json").read_text())
    summary = json.loads((saved.with_suffix("") / "summary.json").read_text())
    (found,) = (result["metrics"] for result in evaluation["results"] if result["partition"] == "test")
    assert found["loss"]["value"] == pytest.approx(summary["test"]["loss"], rel=1e-5)

    # The same run from other weights is another run.
    other = _run(*keras, f"--backbone_weights={saved}", f"--save_model_dir={tmp_path}", code=1)
    assert "begun with other restored weights than --restore_model_path or --backbone_weights names" in only_line(other)
    done = _run(*keras, f"--backbone_weights={saved}", f"--save_model_dir={tmp_path / 'b'}")
    assert "skipped classifier (not of the backbone)" in done.stdout
    facts = json.loads((tmp_path / "b" / saved.stem / "run.json").read_text())
    assert facts["restored_model"]["path"] == str(saved)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--model=vgg"], "--model=vgg: no such model; the models are resnet18, cnn, keras:NAME"),
        (["--model=keras:ResNet51"], "close ones are keras:ResNet50"),
        (["--model=keras:InceptionV3", *_TINY[:2]], "takes no input of 32 x 32 pixels; give --image_height"),
        (["--model=no_such_module:f"], "there is no module no_such_module"),
        (["--model=keras:VGG16", "--normalization=group"], "has the normalization that it has; leave it out"),
        (["--model=cnn", "--backbone_weights=imagenet"], "only networks of tf.keras.applications"),
        (["--model=cnn", "--backbone_weights=/none.h5"], "--backbone_weights=/none.h5: no such file"),
        (["--model=keras:VGG16", "--restore_model_path=/a", "--backbone_weights=/b"], "give one of them"),
        (["--model=benchmark.model.specs:check"], "--model=benchmark.model.specs:check: it"),
    ],
)
def test_networks_that_cannot_be_are_refused_and_leave_no_run(tfrecords, tmp_path, flags, words):
    refused = _run(f"--tfrecords_dir={tfrecords}", f"--run_dir={tmp_path / 'run'}", *flags, code=1)
    assert words in only_line(refused)
    assert not any((tmp_path / "run" / name).exists() for name in ("flags.txt", "run.json", "best.h5"))
