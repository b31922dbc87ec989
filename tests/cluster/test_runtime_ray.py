"""Ray's runtime against the in-process one: equal results, on whatever workers, through their deaths."""

from __future__ import annotations

import importlib.util
import os
import signal
import sys
import threading
import time

import numpy as np
import psutil
import pytest

# Importing Ray here would be too early for the token that the cluster sets.
if importlib.util.find_spec("ray") is None:
    pytest.skip("the extra 'ray' is not installed", allow_module_level=True)

from benchmark.cluster.cluster import Cluster
from benchmark.cluster.pool import WorkerPool
from benchmark.cluster.runtime import RayRuntime
from benchmark.cluster.scorer import RayScorer
from benchmark.data.clients import BatchPlan, ClientSource
from benchmark.data.inputs import PixelInputs
from benchmark.features.cache import FeatureCache, FeatureSource, Network
from benchmark.federated.cohort import sample_cohort
from benchmark.federated.scoring import LocalScorer
from benchmark.model.identity import network_digest
from benchmark.model.networks import build_model
from benchmark.model.trainable import ALL, FILM, HEAD, body_and_head, choose, num_weights
from benchmark.privacy.noise_key import NoiseKey
from benchmark.privacy.request import Mechanism
from benchmark.rounds.config import (
    SCAFFOLD,
    CanaryConfig,
    ClientConfig,
    FederatedConfig,
    LocalNoiseConfig,
    NoiseConfig,
    OptimizerConfig,
)
from benchmark.rounds.inprocess import InProcessRuntime
from benchmark.run.user_states import UserStates
from flair.errors import FlairError
from tests.support.rounds import MIME_LITE, SEED, SIZE, UNWEIGHTED, assert_equal_rounds, small_batch_plan
from tests.support.tiny_network import TINY

KEY = NoiseKey(bytes(range(32)))
_ADAPTIVE = NoiseConfig(Mechanism.GAUSSIAN, 0.5, 6.0, 0.05, target_unclipped_quantile=0.3, clipped_count_stddev=1.0)
CONFIGS = {
    "fed_avg": FederatedConfig(),
    "adaptive_dp": FederatedConfig(client=UNWEIGHTED, noise=_ADAPTIVE),
}
# Not compression: it rounds each update at random to few steps, so that a last bit may come out a whole step apart.
SLOW_CONFIGS = {
    "tree": FederatedConfig(
        client=UNWEIGHTED,
        noise=NoiseConfig(Mechanism.TREE, 0.1, 6.0, 0.05),
        server_optimizer=OptimizerConfig("sgd", (1.0,)),
    ),
    "local": FederatedConfig(ClientConfig(weighted=False, local_noise=LocalNoiseConfig(0.5, 0.05))),
    "robust": FederatedConfig(aggregator="robust"),
    "secure": FederatedConfig(aggregator="secure"),
    "mime_lite": MIME_LITE,
}


class _SharedCluster(Cluster):
    """One cluster for all tests of this module: starting one takes seconds."""

    def close(self, keep_logs=False):
        pass


@pytest.fixture(scope="module")
def cluster():
    shared = _SharedCluster(None, num_cpus=3)
    yield shared
    Cluster.close(shared)


@pytest.fixture(scope="module")
def source(records):
    return ClientSource(str(records.root), records.digest())


@pytest.fixture(scope="module")
def plan(task):
    return small_batch_plan(task)


@pytest.fixture(scope="module")
def pools(cluster):
    """Pools by their number of workers, kept: a worker takes seconds to import TensorFlow."""
    made = {}

    def pool(num_workers):
        if num_workers not in made:
            for other in made.values():
                other.close()
            made.clear()
            made[num_workers] = WorkerPool(cluster, num_workers)
        return made[num_workers]

    yield pool
    for one in made.values():
        one.close()


def _model_arguments(task):
    return TINY, (*SIZE, 3), task.num_outputs, False, 3, "float32"


def _ray(config, source, plan, pool, **more):
    arguments = _model_arguments(plan.task)
    data = source.open()[1]
    return RayRuntime(build_model(*arguments), (arguments, ALL), config, data, source, plan, SEED, KEY, pool, **more)


def _inprocess(config, source, plan, **more):
    data = source.open()[1]
    return InProcessRuntime(build_model(*_model_arguments(plan.task)), config, data, plan, SEED, KEY, **more)


def _cohort(source, round_number, size=6):
    return sample_cohort(source.open()[1].client_ids, seed=SEED, round_number=round_number, clients_per_round=size)


def _assert_close(one, other, atol=1e-5):
    for mine, theirs in zip(one, other, strict=True):
        if isinstance(mine, bytes):
            assert mine == theirs
        else:
            np.testing.assert_allclose(mine, theirs, atol=atol)


def _assert_equal_runs(config, source, plan, pool):
    ours, reference = _ray(config, source, plan, pool), _inprocess(config, source, plan)
    assert_equal_rounds(ours, reference, [_cohort(source, round_number) for round_number in range(3)])
    _assert_close(ours.state(), reference.state())


@pytest.mark.parametrize("name", ["adaptive_dp", pytest.param("fed_avg", marks=pytest.mark.slow)])
def test_two_workers_equal_inprocess(name, source, plan, pools):
    _assert_equal_runs(CONFIGS[name], source, plan, pools(2))


@pytest.mark.slow
def test_control_variates_travel_to_two_workers_and_back(source, plan, pools, tmp_path):
    config = FederatedConfig(ClientConfig(SCAFFOLD, weighted=False), OptimizerConfig("sgd", (1.0,)))
    ids, size = source.open()[1].client_ids, num_weights(build_model(*_model_arguments(plan.task)))
    stores = [UserStates(tmp_path / name, tmp_path, ids, size) for name in ("ray", "inprocess")]
    ours = _ray(config, source, plan, pools(2), user_states=stores[0])
    reference = _inprocess(config, source, plan, user_states=stores[1])
    cohorts = [ids[:3], ids[2:5], ids[:3]]
    assert_equal_rounds(ours, reference, cohorts)
    _assert_close(ours.state()[:-1], reference.state()[:-1])  # but for the names of the stores
    for client_id in ids[:5]:
        np.testing.assert_allclose(stores[0].get(client_id), stores[1].get(client_id), atol=1e-5)
        assert np.abs(stores[0].get(client_id)).max() > 1e-4
    assert stores[0].get(ids[5]) is None
    for store in stores:
        store.close()


@pytest.mark.slow  # two workers: test_two_workers_equal_inprocess
@pytest.mark.parametrize(
    ("name", "num_workers"),
    [
        ("fed_avg", 1),
        ("adaptive_dp", 3),
        pytest.param("fed_avg", 3, marks=pytest.mark.long),
        pytest.param("adaptive_dp", 1, marks=pytest.mark.long),
    ],
)
def test_any_number_of_workers_equals_inprocess(name, num_workers, source, plan, pools):
    _assert_equal_runs(CONFIGS[name], source, plan, pools(num_workers))


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW_CONFIGS)
def test_every_aggregator_equals_inprocess(name, source, plan, pools):
    _assert_equal_runs(SLOW_CONFIGS[name], source, plan, pools(2))


@pytest.mark.slow
def test_canaries_beside_workers_have_the_scores_of_those_in_process(source, plan, pools):
    config, canaries = CONFIGS["adaptive_dp"], CanaryConfig(8, 0.5)
    runtimes = (
        _ray(config, source, plan, pools(2), canaries=canaries),
        _inprocess(config, source, plan, canaries=canaries),
    )
    assert_equal_rounds(*runtimes, [_cohort(source, round_number) for round_number in range(2)])
    ours, reference = (runtime.canary_scores() for runtime in runtimes)
    np.testing.assert_array_equal(ours.included, reference.included)
    np.testing.assert_allclose(ours.released, reference.released, rtol=1e-3)
    np.testing.assert_allclose(ours.final, reference.final, atol=1e-5)
    assert ours.influence.canaries == reference.influence.canaries > 0


def _assert_equal_drifts(ours, reference, round_number, cohort, looked_at):
    drifts = [runtime.run_round(round_number, cohort, looked_at).drift for runtime in (ours, reference)]
    for mine, theirs in zip(*drifts, strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-5)
    assert len(drifts[0].norms) == len(cohort)


@pytest.mark.parametrize("which", [HEAD, pytest.param(FILM, marks=pytest.mark.slow)])
def test_few_weights_on_workers_equal_inprocess(which, records, source, plan, pools, tmp_path):
    """Features for the head, groups of clients; photos for FiLM, with weights that are frozen."""
    arguments = _model_arguments(plan.task)
    config, (_, clients) = CONFIGS["adaptive_dp"], source.open()

    def prepared():
        model = choose(build_model(*arguments), which)
        if which == FILM:
            return model, PixelInputs(records, plan.task, SIZE, 512), None
        body, head = body_and_head(model)
        network = Network(TINY, network_digest(body), SIZE, 64, "float32", "float32")
        inputs = FeatureCache(tmp_path, records, network, body).inputs(plan.task)
        return head, inputs, FeatureSource(str(tmp_path), network, 0)

    model, inputs, features = prepared()
    run = config, clients, source, plan, SEED, KEY, pools(2)
    ours = RayRuntime(model, (arguments, which), *run, features=features)
    read = inputs.clients(clients)
    reference = InProcessRuntime(prepared()[0], config, read, plan, SEED, KEY)
    assert_equal_rounds(ours, reference, [_cohort(source, round_number) for round_number in range(3)])
    _assert_equal_drifts(ours, reference, 3, _cohort(source, 3), [5, 4, 0, 3, 1])  # dealt out in another order
    remote, local = RayScorer(model, records, plan.task, ours.pool), LocalScorer(model, records, inputs, plan, read)
    assert remote.evaluate("val") == pytest.approx(local.evaluate("val"), abs=1e-6)
    chosen = records.users("test")[:3]
    for mine, theirs in zip(remote.score_clients("test", chosen), local.score_clients("test", chosen), strict=True):
        assert mine[1:] == pytest.approx(theirs[1:], abs=1e-5)


def test_a_run_is_repeatable_bit_for_bit_and_can_be_continued(source, plan, pools):
    first, second = (_ray(CONFIGS["adaptive_dp"], source, plan, pools(2)) for _ in range(2))
    for round_number in range(3):
        first.run_round(round_number, _cohort(source, round_number))
        if round_number == 1:
            saved = first.state()
    second.restore(saved)
    second.run_round(2, _cohort(source, 2))
    for one, other in zip(first.state(), second.state(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_fewer_clients_than_workers_and_none_at_all(source, plan, pools):
    ours = _ray(CONFIGS["adaptive_dp"], source, plan, pools(2))
    reference = _inprocess(CONFIGS["adaptive_dp"], source, plan)
    for round_number, size in enumerate((1, 0)):
        cohort = _cohort(source, round_number)[:size]
        mine, expected = (runtime.run_round(round_number, cohort) for runtime in (ours, reference))
        assert mine.num_examples == expected.num_examples
        assert mine.metrics == pytest.approx(expected.metrics, abs=1e-5)
        _assert_equal_drifts(ours, reference, 2 + round_number, cohort, [*range(size)])
    _assert_close(ours.state(), reference.state())


def test_workers_import_no_tff_and_keep_to_their_threads(source, plan, pools):
    pool = pools(2)
    runtime = _ray(CONFIGS["adaptive_dp"], source, plan, pool)
    runtime.run_round(0, _cohort(source, 0))
    places = pool.places()
    assert "tensorflow_federated" in sys.modules, "it is needed here"
    assert len({place.process for place in places}) == 2
    for place in places:
        assert place.threads == (1, 1)
        assert os.path.isfile(place.log)
    assert not any(_imports_tff(pool))


def _imports_tff(pool):
    import ray

    return [place.imports_tff for place in ray.get([slot.actor.place.remote() for slot in pool._slots])]


def test_diverged_clients_are_named_in_the_cohorts_order(source, plan, pools):
    config = FederatedConfig(client=ClientConfig(learning_rates=(float("inf"),), weighted=False), noise=_ADAPTIVE)
    cohort = _cohort(source, 0)
    result = _ray(config, source, plan, pools(2)).run_round(0, cohort)
    assert result.refused_clients == tuple(cohort)


@pytest.mark.slow
def test_scores_of_the_workers_are_those_of_this_process(records, source, plan, pools):
    pool = pools(2)
    runtime = _ray(CONFIGS["fed_avg"], source, plan, pool)
    model = build_model(*_model_arguments(plan.task)[:4], 9, "float32")
    pixels = PixelInputs(records, plan.task, plan.image_size, 512)
    local = LocalScorer(model, records, pixels, plan, source.open()[1])
    remote = RayScorer(model, records, plan.task, pool)
    for partition in ("val", "train"):
        assert remote.evaluate(partition) == pytest.approx(local.evaluate(partition), abs=1e-6)
    clients = records.users("test")
    config = CONFIGS["fed_avg"].client
    for mine, expected in (
        (remote.score_clients("test", clients), local.score_clients("test", clients)),
        (
            [one.after for one in remote.compare_local_training("test", clients, config, 5)],
            [one.after for one in local.compare_local_training("test", clients, config, 5)],
        ),
    ):
        assert [one.client_id for one in mine] == [one.client_id for one in expected]
        np.testing.assert_allclose([one[1:] for one in mine], [one[1:] for one in expected], atol=1e-5)
    before = runtime.weights()
    runtime.run_round(0, _cohort(source, 0))
    reference = _inprocess(CONFIGS["fed_avg"], source, plan)
    _assert_close(before, reference.weights(), 0)
    reference.run_round(0, _cohort(source, 0))
    _assert_close(runtime.weights(), reference.weights())


def test_nothing_listens_beyond_loopback(pools):
    pools(2).places()
    mine = psutil.Process()
    processes = [mine, *mine.children(recursive=True)]
    assert len(processes) > 5, "a cluster is several processes"
    listening = [
        connection.laddr.ip.removeprefix("::ffff:")
        for process in processes
        for connection in process.net_connections(kind="inet")
        if connection.status == psutil.CONN_LISTEN or connection.type == 2
    ]
    assert listening
    assert set(listening) <= {"127.0.0.1", "::1"}


def test_other_data_on_a_machine_is_refused(source, plan, pools):
    other = source._replace(digest="0" * 64)
    data = source.open()[1]
    arguments = _model_arguments(plan.task)
    with pytest.raises(FlairError, match="other data"):
        RayRuntime(
            build_model(*arguments), (arguments, ALL), CONFIGS["adaptive_dp"], data, other, plan, SEED, KEY, pools(2)
        )


def _kill_when_training(place, delay, killed):
    time.sleep(delay)
    os.kill(place.process, signal.SIGKILL)
    killed.append(place.process)


@pytest.mark.slow
def test_a_worker_killed_in_mid_round_changes_nothing(source, plan, pools, capfd):
    pool = pools(2)
    long_plan = BatchPlan(plan.task, SIZE, batch_size=1, epochs=20, max_elements=16)
    undisturbed = _ray(CONFIGS["adaptive_dp"], source, long_plan, pool)
    undisturbed.run_round(0, _cohort(source, 0))
    disturbed = _ray(CONFIGS["adaptive_dp"], source, long_plan, pool)
    killed = []
    delay = undisturbed.timing.seconds / 3
    thread = threading.Thread(target=_kill_when_training, args=(pool.places()[0], delay, killed))
    thread.start()
    disturbed.run_round(0, _cohort(source, 0))
    thread.join()
    assert killed
    assert "was lost" in capfd.readouterr().err
    for one, other in zip(disturbed.state(), undisturbed.state(), strict=True):
        np.testing.assert_array_equal(one, other)
    assert killed[0] not in [place.process for place in pool.places()]


@pytest.mark.slow
def test_a_worker_lost_three_times_ends_the_run_and_its_log_is_named(source, plan, pools, capfd):
    pool = pools(1)
    runtime = _ray(CONFIGS["fed_avg"], source, plan, pool)
    for round_number in range(2):
        os.kill(pool.places()[0].process, signal.SIGKILL)
        runtime.run_round(round_number, _cohort(source, round_number))
    place = pool.places()[0]
    os.kill(place.process, signal.SIGKILL)
    with pytest.raises(FlairError, match="lost 3 times") as raised:
        runtime.run_round(2, _cohort(source, 2))
    assert place.log in str(raised.value)
    assert os.path.isfile(place.log)
    assert "\n" not in str(raised.value)


def test_a_cluster_that_is_too_small_is_refused(cluster, monkeypatch):
    # A closed cluster cannot be asked anything any more.
    monkeypatch.setattr(cluster, "close", lambda *_: monkeypatch.setattr(cluster, "resources", None))
    with pytest.raises(FlairError, match="--num_workers=9") as raised:
        WorkerPool(cluster, 9)
    assert "3 CPUs" in str(raised.value)
