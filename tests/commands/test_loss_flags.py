"""The flags of the loss, through the doors that have them: what they train, what run.json says, what is refused."""

from __future__ import annotations

import json
import math
from collections import Counter

import numpy as np
import pytest
import tensorflow as tf

from benchmark import central_main, federated_main
from benchmark.data.opening import make_task
from benchmark.federated import checks
from benchmark.metrics.loss import LossConfig
from benchmark.run import command
from benchmark.run.files import read_json
from benchmark.training import flags as model_flags
from benchmark.training import loss as loss_flags
from flair.dataset.catalog import COARSE_LABELS
from flair.dataset.metadata import load_users
from flair.errors import FlairError
from tests.support.commands import read_csv, read_weights, refused, run

BEST = "--best_metric=macro_averaged_precision"
PRIVATE = ("--epsilon=2", "--delta=0.01")


def _flags(*given, door=federated_main):
    return command.parse(door.FLAGS, ["--tfrecords_dir=anywhere", *map(str, given)])


def _checked(*given):
    flags = _flags(*given)
    model_flags.check_model_flags(flags)
    checks.check_federated_flags(flags)
    return flags


def _analytics(path, labels=(("animal", 12.5), ("fire", 0.0)), question="labels", **changes):
    rows = [{"label": name, "users": users, "low": 0.0, "high": 40.0} for name, users in labels]
    one = {"noise_multiplier": 4.0, "sampling_probability": 1.0, "compositions": 1, "delta": 1e-3}
    content = {"private": True, "users": 32, "spending": [one], "questions": {question: {"labels": rows, **changes}}}
    path.write_text(json.dumps(content))
    return path


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([], LossConfig()),
        (["--loss=focal"], LossConfig(2.0, 2.0)),
        (["--loss=focal", "--loss_gamma=1"], LossConfig(1.0, 1.0)),
        (["--loss=asl"], LossConfig(4.0, 0.0, 0.05)),
        (["--loss=asl", "--loss_gamma=3", "--loss_gamma_positive=1", "--loss_margin=0"], LossConfig(3.0, 1.0)),
    ],
)
def test_flags_are_the_losses_of_the_papers(given, expected):
    for door in (central_main, federated_main):
        assert loss_flags.loss_config(_flags(*given, door=door)) == expected


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--loss_gamma=1"], "--loss_gamma=1 has no effect with --loss=bce"),
        (["--loss=focal", "--loss_margin=0.1"], "--loss_margin=0.1 has no effect with --loss=focal"),
        (["--loss=focal", "--loss_gamma_positive=1"], "--loss_gamma_positive=1 has no effect with --loss=focal"),
        (["--loss=focal", "--loss_gamma=0"], "--loss=focal with a gamma of 0 is --loss=bce"),
        (["--loss=asl", "--loss_gamma=0", "--loss_margin=0"], "--loss=asl with gammas and a margin of 0 is --loss=bce"),
        (["--logit_adjustment=/nowhere.json"], "--logit_adjustment=/nowhere.json: no such file; expected {label: "),
        (["--logit_adjustment=train", *PRIVATE], "--logit_adjustment=train: counts the labels of the training users"),
        (["--logit_adjustment=train", "--local_noise_multiplier=3"], "--logit_adjustment=train: counts the labels"),
    ],
)
def test_what_has_no_effect_or_no_privacy_is_refused(given, message):
    with pytest.raises(FlairError) as error:
        _checked(*given)
    assert str(error.value).startswith(message)
    _checked("--logit_adjustment=train", "--noise_multiplier=0")  # adds no noise and claims nothing


def test_a_private_run_takes_public_frequencies_and_analytics_whose_spending_it_adds_up(tmp_path):
    public = tmp_path / "public.json"
    public.write_text(json.dumps(dict.fromkeys(COARSE_LABELS, 0.1) | {"questions": 0.2, "private": 0.3}))
    _checked(f"--logit_adjustment={public}", *PRIVATE)
    released = _analytics(tmp_path / "analytics.json")
    with pytest.raises(FlairError, match="its counts have cost privacy of the same users"):
        _checked(f"--logit_adjustment={released}", *PRIVATE)
    _checked(f"--logit_adjustment={released}", f"--also_spent={released}", *PRIVATE)
    _checked(f"--logit_adjustment={released}")  # without privacy whatever there is
    exact = tmp_path / "exact.json"
    exact.write_text(released.read_text().replace('"private": true', '"private": false'))
    with pytest.raises(FlairError, match="holds exact counts"):
        _checked(f"--logit_adjustment={exact}", *PRIVATE)


def test_frequencies_are_those_of_the_metadata_file(miniature, records):
    photos = [photo for user in load_users(miniature) if user.partition == "train" for photo in user.records]
    for fine, binary in ((False, None), (True, None), (False, "plant")):
        task = make_task(records, fine, binary)
        counts = Counter(name for photo in photos for name in getattr(photo, task.feature))
        expected = [(counts[name] + 0.5) / (len(photos) + 1) for name in task.label_names]
        offsets = loss_flags.logit_offsets(_flags("--logit_adjustment=train"), records, task)
        np.testing.assert_allclose(offsets, [math.log(f / (1 - f)) for f in expected], rtol=1e-6)


def test_frequencies_of_files(tmp_path, records, task):
    every = [(name, 32.0 if name == "structure" else 3.0) for name in task.label_names]
    found = loss_flags.read_frequencies(str(_analytics(tmp_path / "a.json", every)), task)
    assert dict(zip(task.label_names, found, strict=True)) == {
        name: pytest.approx((users + 0.5) / 33) for name, users in every
    }
    fine = make_task(records, True, None)
    listed = _analytics(tmp_path / "b.json", [("dog", 9.0)], "fine_labels", threshold=4.0, of=fine.num_columns)
    found = dict(zip(fine.label_names, loss_flags.read_frequencies(str(listed), fine), strict=True))
    assert found["dog"] == pytest.approx(9.5 / 33)
    assert [found[name] for name in found if name != "dog"] == pytest.approx([2.5 / 33] * (len(found) - 1))
    shares = tmp_path / "shares.json"
    shares.write_text(json.dumps(dict.fromkeys(task.label_names, 0.25)))
    assert loss_flags.read_frequencies(str(shares), task).tolist() == [0.25] * task.num_outputs


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{}", "has no frequency of the label animal"),
        ("[]", "expected dict, found list"),
        ('{"animal": "often"}', "has no frequencies (animal: expected int or float"),
        ('{"animal": 1.0}', "the frequency of animal is 1.0; expected one above 0 and below 1"),
        ('{"animal": NaN}', "the frequency of animal is nan; expected one above 0 and below 1"),
        ('{"users": 3, "questions": {"photos": {}}}', "has no answer about labels; ask benchmark.analytics_main"),
        ('{"users": 3, "questions": {"labels": {"labels": [{"label": "fire"}]}}}', "is damaged"),
        ('{"users": 3, "questions": {"labels": {"labels": []}}}', "has no frequency of the label animal"),
    ],
)
def test_files_that_are_something_else_are_refused(tmp_path, task, text, message):
    path = tmp_path / "file.json"
    path.write_text(text)
    with pytest.raises(FlairError) as error:
        loss_flags.read_frequencies(str(path), task)
    assert message in str(error.value) and str(path) in str(error.value)


def test_analytics_about_other_labels_are_refused(tmp_path, records):
    other = _analytics(tmp_path / "other.json", [("dog", 9.0)], "fine_labels", threshold=4.0, of=1628)
    with pytest.raises(FlairError, match="is about 1,628 labels, and the records have"):
        loss_flags.read_frequencies(str(other), make_task(records, True, None))


_SMALL = ("--model=cnn", "--image_height=32", "--image_width=32", "--seed=3")


@pytest.mark.slow
def test_a_federated_run_with_offsets_says_which_and_continues_with_no_others(tfrecords, task, tmp_path):
    shares = tmp_path / "shares.json"
    frequencies = dict(zip(task.label_names, np.linspace(0.02, 0.9, task.num_outputs).tolist(), strict=True))
    shares.write_text(json.dumps(frequencies))
    flags = (f"--tfrecords_dir={tfrecords}", *_SMALL, "--trainable=head", f"--feature_dir={tmp_path / 'features'}")
    flags += ("--clients_per_round=8", "--rounds_per_eval=1", f"--save_model_dir={tmp_path}", "--loss=asl")
    given = (*flags, f"--logit_adjustment={shares}")
    door = "benchmark.federated_main"
    assert "a large validation loss however good the model is; give --best_metric=" in refused(door, *given)
    run(door, *given, BEST, "--total_rounds=2")
    folder = next(tmp_path.glob("cnn_federated_*labels"))
    facts = read_json(folder / "run.json", {})["logit_adjustment"]
    assert facts["offsets"] == pytest.approx([math.log(f / (1 - f)) for f in frequencies.values()], rel=1e-6)
    (folder / "summary.json").unlink()
    shares.write_text(json.dumps(dict.fromkeys(task.label_names, 0.5)))
    assert "begun with other frequencies" in refused(door, *given, BEST, "--total_rounds=2")
    shares.write_text(json.dumps(frequencies))
    run(door, *given, BEST, "--total_rounds=2")
    rows = read_csv(folder / "metrics.csv")
    # What is called loss is cross-entropy of the scores, which no run with these offsets brings down.
    assert [float(row["val_loss"]) for row in rows][-1] > 0.3
    plain = run(door, *flags, BEST, "--total_rounds=2", f"--save_model_dir={tmp_path / 'plain'}")
    assert "complete" not in plain.stdout
    ours, theirs = (read_weights(next(place.glob("*.h5"))) for place in (tmp_path, tmp_path / "plain"))
    bias = next(name for name in ours if name.endswith("classifier/bias:0"))
    shift = ours[bias] - theirs[bias]
    assert np.corrcoef(shift, facts["offsets"])[0, 1] < -0.5  # a rare label's own logit may be larger


@pytest.mark.slow
def test_central_training_descends_the_loss_it_is_given(task):
    """One step of plain numbers: Keras's Adam on the paper's formula."""
    from benchmark.central.step import CentralTrainer
    from benchmark.metrics.loss import keras_loss
    from benchmark.model import networks
    from benchmark.run.devices import Devices

    config = LossConfig(4.0, 1.0, 0.05, tuple(np.linspace(-3, 1, task.num_outputs).tolist()))
    pixels = np.random.default_rng(0).integers(0, 256, (10, 32, 32, 3)).astype(np.uint8)
    labels = (np.random.default_rng(1).random((10, task.num_outputs)) < 0.3).astype(np.float32)
    ours, split, keras = (networks.build_model("cnn", (32, 32, 3), task.num_outputs, seed=2) for _ in range(3))
    keras.compile(optimizer=tf.keras.optimizers.Adam(0.01, clipnorm=0.05), loss=keras_loss(config))
    trainers = [CentralTrainer(ours, task, 0.05, Devices(), loss=config)]
    trainers.append(CentralTrainer(split, task, 0.05, Devices(), microbatch_size=4, loss=config))
    cross_entropy = tf.keras.losses.BinaryCrossentropy(from_logits=True)
    for _ in range(2):
        told = float(cross_entropy(labels, keras(pixels)))
        keras.train_on_batch(pixels, labels)
        for trainer in trainers:
            found, _ = trainer.step([(tf.constant(pixels), tf.constant(labels))], 0.01)
            assert found == pytest.approx(told, rel=1e-4)
    for model in (ours, split):
        for found, wanted in zip(model.get_weights(), keras.get_weights(), strict=True):
            np.testing.assert_allclose(found, wanted, atol=2e-5)
