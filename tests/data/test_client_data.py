"""Clients' photos: order, augmentation, the same batches for every runtime, artificial clients, reading ahead."""

from __future__ import annotations

import pickle
import threading

import numpy as np
import pytest
import scipy.stats
import tensorflow as tf

from benchmark.data.artificial import Artificial, FreshClients, visits
from benchmark.data.clients import (
    BatchPlan,
    ClientSource,
    IidClients,
    UserClients,
    client_batches,
    client_dataset,
    client_seed,
    content_digest,
    prefetched,
    training_clients,
    training_order,
)


def _plan(task, **changes):
    return BatchPlan(task, **{"image_size": (32, 32), "batch_size": 4, "epochs": 2, "max_elements": 512, **changes})


def test_every_epoch_shows_every_photo_once_in_an_order_of_its_own(task):
    plan = _plan(task, epochs=3)
    order, seeds = training_order(tf.constant(20), tf.constant(client_seed(0, 5, "user")), plan)
    epochs = order.numpy().reshape(3, 20)
    assert all(sorted(epoch) == list(range(20)) for epoch in epochs.tolist())
    assert len({tuple(epoch) for epoch in epochs.tolist()}) == 3
    assert len({tuple(seed) for seed in seeds.numpy().tolist()}) == 60


def test_a_large_client_shows_a_fresh_subset_each_epoch(task):
    order, _ = training_order(tf.constant(40), tf.constant(client_seed(0, 0, "u")), _plan(task, max_elements=10))
    first, second = (set(part) for part in order.numpy().reshape(2, 10).tolist())
    assert len(first) == len(second) == 10
    assert first != second


def test_python_and_graph_make_the_same_batches(records, task):
    data = UserClients(records, "train")
    plan = _plan(task)
    cohort = data.client_ids[:6]
    ours = list(client_batches(data, cohort, plan=plan, seed=3, round_number=7))
    theirs = []
    for client_id in cohort:
        serialized = tf.constant(data.read(client_id), tf.string)
        theirs += list(client_dataset(serialized, tf.constant(client_seed(3, 7, client_id)), plan))
    assert len(ours) == len(theirs)
    for mine, (pixels, labels) in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(mine.inputs, pixels)
        np.testing.assert_array_equal(mine.labels, labels)
    assert sum(batch.is_last for batch in ours) == len(cohort)
    assert sum(len(batch.labels) for batch in ours) == 2 * sum(len(data.read(c)) for c in cohort)


def test_a_second_pass_repeats_the_first(records, task):
    data = UserClients(records, "train")
    batches = list(client_batches(data, data.client_ids[:1], plan=_plan(task), seed=0, round_number=0, passes=2))
    half = len(batches) // 2
    for first, second in zip(batches[:half], batches[half:], strict=True):
        np.testing.assert_array_equal(first.inputs, second.inputs)


def test_round_and_client_change_the_augmentation(records, task):
    data = UserClients(records, "train")

    def pixels(round_number):
        batches = client_batches(data, data.client_ids[:1], plan=_plan(task), seed=0, round_number=round_number)
        return np.concatenate([batch.inputs for batch in batches])

    assert not np.array_equal(pixels(0), pixels(1))


def test_iid_clients_share_out_every_photo_once(records):
    for photos_per_client in (None, 7):
        data = IidClients(records, "train", seed=0, photos_per_client=photos_per_client)
        dealt = [example for client_id in data.client_ids for example in data.read(client_id)]
        users = UserClients(records, "train")
        assert sorted(dealt) == sorted(example for user in users.client_ids for example in users.read(user))
    sizes = [len(data.read(client_id)) for client_id in data.client_ids]
    assert set(sizes[:-1]) == {7}


def test_iid_clients_keep_the_sizes_of_the_users(records):
    users, iid = UserClients(records, "train"), IidClients(records, "train", seed=0)
    assert sorted(len(users.read(c)) for c in users.client_ids) == sorted(len(iid.read(c)) for c in iid.client_ids)


def test_fresh_clients_draw_their_photos_anew_at_each_visit_and_the_same_on_another_machine(records):
    artificial = Artificial(seed=3, photos_per_client=7, is_fresh=True)
    data = training_clients(records, artificial)
    total = len(records.photo_index("train").offset)
    assert len(data.client_ids) == -(-total // 7)
    first, second = ([data.rows(name) for name in visits(data.client_ids, number)] for number in (0, 1))
    assert all(len(rows) == 7 for rows in [*first, *second])
    assert not any(np.array_equal(*pair) for pair in zip(first, second, strict=True))
    drawn = np.concatenate(first)
    assert drawn.min() >= 0 and drawn.max() < total and len(set(drawn)) < len(drawn), "with replacement"

    (name,) = visits(data.client_ids[-1:], 1)
    assert data.read(name) == records.read_photos("train", second[-1]) and data.num_photos(name) == 7
    source = pickle.loads(pickle.dumps(ClientSource(str(records.root), records.digest(), artificial)))
    assert source.open()[1].read(name) == data.read(name)
    other = training_clients(records, artificial._replace(seed=4))
    assert not np.array_equal(other.rows(name), second[-1])


def test_the_digest_behind_a_noise_key_covers_photos_that_no_client_has_drawn_yet(records):
    """It once covered what clients would draw under their bare names, which is no visit's draw."""
    data = training_clients(records, Artificial(seed=3, photos_per_client=7, is_fresh=True))
    total = len(records.photo_index("train").offset)
    assert list(data.all_photos()) == records.read_photos("train", range(total))
    before = content_digest(data)
    undrawn = set(range(total)) - set(np.concatenate([data.rows(name) for name in data.client_ids]))
    other = records.read_photos("train", [min(undrawn)])[0]

    class Changed(FreshClients):
        def all_photos(self):
            return (photo + b"." if photo == other else photo for photo in super().all_photos())

    changed = Changed(records, "train", Artificial(seed=3, photos_per_client=7, is_fresh=True))
    assert content_digest(changed) != before == content_digest(data)


def test_fresh_photos_are_uniform_and_poisson_sizes_keep_to_their_minimum(records):
    artificial = Artificial(seed=0, photos_per_client=3, is_fresh=True, is_poisson=True, least=2)
    data = training_clients(records, artificial)
    names = [name for number in range(30) for name in visits(data.client_ids, number)]
    drawn = [data.rows(name) for name in names]
    sizes, poisson = np.array([len(rows) for rows in drawn]), scipy.stats.poisson(3)
    assert sizes.min() == 2 and [data.num_photos(name) for name in names] == sizes.tolist()
    expected = np.array([poisson.pmf(size) for size in range(2, 7)] + [poisson.sf(6)]) / poisson.sf(1) * len(sizes)
    found = np.bincount(np.minimum(sizes, 7), minlength=8)[2:]
    assert scipy.stats.chisquare(found, expected).pvalue > 1e-3
    counts = np.bincount(np.concatenate(drawn), minlength=len(records.photo_index("train").offset))
    assert scipy.stats.chisquare(counts).pvalue > 1e-3


def test_an_error_while_reading_ahead_reaches_the_consumer():
    def items():
        yield 1
        raise OSError("disk on fire")

    ahead = prefetched(items(), 2)
    assert next(ahead) == 1
    with pytest.raises(OSError, match="disk on fire"):
        next(ahead)


def test_the_thread_that_reads_ahead_ends_with_its_consumer():
    ahead = prefetched(iter(range(10**9)), 2)
    assert [next(ahead) for _ in range(3)] == [0, 1, 2]
    ahead.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("prefetch")]
