"""Adapting a resident model: independent arithmetic, exact equalities, and nothing that stays behind."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import tensorflow as tf
from sklearn.metrics import average_precision_score

from benchmark.data import augmentation
from benchmark.data.clients import StoredPhotos
from benchmark.data.records import Task
from benchmark.metrics.loss import LossConfig
from benchmark.model import networks
from benchmark.model.trainable import TRAINABLE
from benchmark.personalization import personalizer as personalization
from benchmark.personalization.personalizer import Personalizer
from benchmark.personalization.users import Adaptation, batch_positions
from flair.dataset.images import read_jpeg
from flair.dataset.metadata import load_users
from flair.errors import FlairError
from flair.records.tfrecord import example
from tests.support.tiny_network import TINY

SIZE = (32, 32)


@pytest.fixture(scope="module")
def users(miniature):
    """Serialized photos of the users with at least 6."""
    columns = {}
    found = []
    for user in load_users(miniature):
        for record in user.records:
            for name in record.labels:
                columns.setdefault(name, len(columns))
        photos = [
            example.encode(
                example.Example(
                    read_jpeg(miniature, record).data,
                    tuple(columns[name] for name in record.labels),
                    (),
                    record.image_id,
                    record.user_id,
                )
            )
            for record in user.records
        ]
        if len(photos) >= 6:
            found.append(photos)
    return sorted(found, key=len, reverse=True)


TASK = Task("labels", tuple(f"label_{i}" for i in range(17)), 17)


@pytest.fixture(scope="module")
def model():
    return networks.build_model(TINY, (*SIZE, 3), 17, seed=3)


def _adaptation(trainable="all", steps=4, **changes):
    return Adaptation(**{"trainable": trainable, "steps": steps, "learning_rate": 0.1, "batch_size": 4, **changes})


def _run(model, photos, adaptation, query=4, limit=500):
    support = range(query, len(photos))
    positions = batch_positions(len(support), adaptation.steps, adaptation.batch_size, 0, 0)
    return _personalizer(model, adaptation, limit).run(_stored(photos), support, range(query), positions)


def _stored(photos):
    return StoredPhotos("user", photos, TASK, SIZE)


@functools.cache
def _personalizer(model, adaptation, limit=500):
    return Personalizer(model, adaptation, query_size_limit=limit)


@pytest.mark.parametrize("layers", TRAINABLE)
def test_without_a_step_nothing_changes_at_all(model, users, layers):
    for photos in users[:4]:
        baseline, adapted = _run(model, photos, _adaptation(layers, steps=0))
        assert baseline == adapted


@pytest.mark.parametrize("layers", ["head", "all"])
def test_query_blocks_never_change_a_number(model, users, layers):
    two, all_at_once = (_run(model, users[0], _adaptation(layers), query=7, limit=limit) for limit in (2, 500))
    assert two == all_at_once
    assert two[0] != two[1]


def test_the_global_weights_come_back(model, users):
    before = [value.copy() for value in model.get_weights()]
    personalizer = _personalizer(model, _adaptation())
    positions = batch_positions(3, 3, 4, 0, 0)
    first = personalizer.run(_stored(users[0]), range(4, 7), range(4), positions)
    other = personalizer.run(_stored(users[1]), range(2, 5), range(2), positions)
    for now, then in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(now, then)
    assert personalizer.run(_stored(users[0]), range(4, 7), range(4), positions) == first
    assert other != first
    # ... also when an episode fails half-way.
    with pytest.raises(FlairError):
        _personalizer(model, _adaptation(learning_rate=1e30)).run(_stored(users[0]), range(4, 7), range(4), positions)
    for now, then in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(now, then)


def _photo(serialized):
    photo = example.decode(serialized)
    labels = np.zeros(17, np.float32)
    labels[list(photo.labels)] = 1
    whole = tf.io.decode_jpeg(photo.image, channels=3)[tf.newaxis]
    return augmentation.resize(whole, SIZE)[0].numpy(), labels


def _scores(model, photos):
    pixels, labels = (np.stack(arrays) for arrays in zip(*map(_photo, photos), strict=True))
    logits = np.float64(model(pixels, training=False).numpy())
    losses = np.maximum(logits, 0) - logits * labels + np.log1p(np.exp(-np.abs(logits)))
    return float(losses.mean()), float(average_precision_score(labels, logits, average="micro"))


_PREFIXES = {"all": "", "head": "classifier", "film": ("norm", "classifier")}


@pytest.mark.parametrize(
    ("layers", "mu", "clipnorm"),
    [("head", 0.0, 0.0), ("film", 0.0, 0.0), ("all", 0.0, 0.0), ("all", 0.5, 0.02), ("head, adjusted", 0.0, 0.0)],
)
def test_against_keras(model, users, layers, mu, clipnorm):
    photos, query = users[0], 6
    layers, _, is_adjusted = layers.partition(", ")
    offsets = tuple(np.linspace(-3, 1, 17).tolist()) if is_adjusted else ()
    adaptation = _adaptation(layers, proximal_strength=mu, clipnorm=clipnorm, loss=LossConfig(offsets=offsets))
    support = photos[query:]
    positions = batch_positions(len(support), 4, 4, 0, 0)
    baseline, adapted = _personalizer(model, adaptation).run(
        _stored(photos), range(query, len(photos)), range(query), positions
    )
    clone = networks.build_model(TINY, (*SIZE, 3), 17, seed=9)
    clone.set_weights(model.get_weights())
    assert _scores(clone, photos[:query]) == pytest.approx((baseline.loss, baseline.micro_ap), abs=1e-5)
    for layer in clone.layers:
        layer.trainable = layer.name.startswith(_PREFIXES[layers])
    start = [tf.identity(weight) for weight in clone.trainable_variables]
    assert len(start) == {"all": 6, "head": 2, "film": 4}[layers]
    optimizer = tf.keras.optimizers.SGD(0.1, clipnorm=clipnorm or None)
    for batch in positions:
        pixels, labels = (np.stack(arrays) for arrays in zip(*(_photo(support[i]) for i in batch), strict=True))
        with tf.GradientTape() as tape:
            logits = clone(pixels, training=True) + (offsets or 0.0)
            loss = tf.keras.losses.BinaryCrossentropy(from_logits=True)(labels, logits)
            for weight, begun in zip(clone.trainable_variables, start, strict=True):
                loss += mu / 2 * tf.reduce_sum((weight - begun) ** 2)
        gradients = tape.gradient(loss, clone.trainable_variables)
        optimizer.apply_gradients(zip(gradients, clone.trainable_variables, strict=True))
    assert _scores(clone, photos[:query]) == pytest.approx((adapted.loss, adapted.micro_ap), abs=1e-5)
    assert abs(adapted.loss - baseline.loss) > 1e-3


def test_the_proximal_term_holds_the_model_back(model, users):
    differences = []
    for mu in (0.0, 5.0):
        baseline, adapted = _run(model, users[0], _adaptation("head", steps=4, proximal_strength=mu))
        differences.append(abs(baseline.loss - adapted.loss))
    assert differences[0] > differences[1] > 0


def test_average_precision_survives_missing_classes():
    rng = np.random.default_rng(0)
    scores, labels = rng.random((6, 17)).astype(np.float32), np.zeros((6, 17), np.float32)
    labels[:, :3] = rng.random((6, 3)) < 0.5  # fourteen labels never occur
    expected = average_precision_score(labels, scores, average="micro")
    assert personalization.micro_average_precision(scores, labels) == pytest.approx(expected)
    assert np.isnan(personalization.micro_average_precision(scores, np.zeros_like(labels)))


def test_batches_go_through_all_photos_before_any_comes_twice():
    positions = batch_positions(10, 6, 4, seed=1, number=2)
    assert positions.shape == (6, 4)
    flat = positions.ravel()
    assert sorted(flat[:10]) == list(range(10))
    assert sorted(flat[10:20]) == list(range(10))
    assert batch_positions(3, 5, 16, 1, 2).shape == (5, 3)
    assert batch_positions(3, 0, 16, 1, 2).shape == (0, 3)
    np.testing.assert_array_equal(positions, batch_positions(10, 6, 4, 1, 2))
    assert (positions != batch_positions(10, 6, 4, 1, 3)).any()


def test_a_broken_photo_is_named(model, users):
    photo = example.decode(users[0][1])
    broken = example.encode(photo._replace(image=photo.image[:20]))
    with pytest.raises(FlairError, match=rf"image {photo.image_id} cannot be decoded"):
        _run(model, [users[0][0], broken, *users[0][2:]], _adaptation())


def test_a_learning_rate_without_reason_is_one_line(model, users):
    with pytest.raises(FlairError, match=r"--learning_rate=1e\+30 is too large"):
        _run(model, users[0], _adaptation(learning_rate=1e30))


def test_a_model_that_diverged_in_training_is_named_not_the_learning_rate(users):
    diverged = networks.build_model(TINY, (*SIZE, 3), 17, seed=3)
    weight = diverged.get_layer("classifier").trainable_variables[0]
    weight.assign(tf.fill(weight.shape, np.nan))
    personalizer = Personalizer(diverged, _adaptation())
    with pytest.raises(FlairError, match="give another --model"):
        personalizer.run(_stored(users[0]), range(3), range(3, 5), batch_positions(3, 1, 2, 0, 0))
