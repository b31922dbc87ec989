"""Few weights that train: only they move, take noise, and travel."""

from __future__ import annotations

import math

import numpy as np
import pytest

from benchmark.data.clients import UserClients
from benchmark.model.networks import build_model
from benchmark.model.trainable import ALL, FILM, HEAD, TRAINABLE, choose, num_weights
from benchmark.privacy.adaptive import noise_norm
from benchmark.privacy.noise_key import NoiseKey
from benchmark.privacy.request import Mechanism
from benchmark.rounds.config import (
    ALGORITHMS,
    FED_PROX,
    MIME_LITE,
    SCAFFOLD,
    ClientConfig,
    FederatedConfig,
    NoiseConfig,
)
from benchmark.rounds.config import OptimizerConfig as Optimizer
from benchmark.rounds.inprocess import InProcessRuntime
from benchmark.run.user_states import UserStates
from tests.support.rounds import SEED, SIZE, assert_equal_rounds, small_batch_plan
from tests.support.tiny_network import TINY

_CLASSIFIER = {"classifier/kernel:0", "classifier/bias:0"}
_NORMS = {f"norm{index}/{name}:0" for index in range(1, 5) for name in ("gamma", "beta")}
_LISTS = {FILM: _CLASSIFIER | _NORMS, HEAD: _CLASSIFIER}


def _model(task, which, pretrained_norm=False, network="cnn"):
    return choose(build_model(network, (*SIZE, 3), task.num_outputs, pretrained_norm, seed=3), which)


def _values(model):
    return {variable.name: variable.numpy() for variable in model.variables}


def _run(model, records, task, config, rounds=2, key=None, user_states=None):
    data = UserClients(records, "train")
    runtime = InProcessRuntime(model, config, data, small_batch_plan(task), SEED, key, user_states=user_states)
    for round_number in range(rounds):
        runtime.run_round(round_number, data.client_ids[round_number : round_number + 3])
    for variable, weight in zip(model.trainable_variables, runtime.weights(), strict=True):
        variable.assign(weight)
    return runtime


_SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    ("which", "pretrained_norm"),
    [(HEAD, False), (FILM, True), pytest.param(FILM, False, marks=_SLOW), pytest.param(HEAD, True, marks=_SLOW)],
)
def test_the_chosen_weights_move_and_no_other(records, task, which, pretrained_norm):
    model = _model(task, which, pretrained_norm, network="cnn" if which == FILM or pretrained_norm else TINY)
    before = _values(model)
    runtime = _run(model, records, task, FederatedConfig(), rounds=1)
    moved = {name for name, value in _values(model).items() if not np.array_equal(value, before[name])}
    assert moved == _LISTS[which]
    # The state of a round, which checkpoints hold and workers are sent, has the chosen weights and Adam's two moments.
    sizes = [array.size for array in runtime.state()]
    assert sum(size for size in sizes if size > 1) == 3 * num_weights(model)


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", sorted(set(ALGORITHMS) - {"fed_avg"}))
def test_every_algorithm_leaves_the_others_alone(records, task, algorithm, tmp_path):
    strength = 0.5 if algorithm == FED_PROX else 0.0
    client = ClientConfig(algorithm=algorithm, proximal_strength=strength)
    optimizer = Optimizer("sgd" if algorithm == MIME_LITE else "adam", (0.1,))
    model = _model(task, HEAD, network=TINY)
    before = _values(model)
    users = UserClients(records, "train").client_ids
    states = UserStates(tmp_path / "states", tmp_path, users, num_weights(model)) if algorithm == SCAFFOLD else None
    _run(model, records, task, FederatedConfig(client, optimizer), user_states=states)
    assert {name for name, value in _values(model).items() if not np.array_equal(value, before[name])} == _CLASSIFIER


@pytest.mark.parametrize("which", [HEAD, pytest.param(FILM, marks=_SLOW)])
def test_noise_has_its_deviation_on_the_chosen_weights_and_is_nowhere_else(records, task, which):
    sigma, clip, cohort, rounds = 1.5, 0.3, 4.0, 60
    noise = NoiseConfig(Mechanism.GAUSSIAN, sigma, cohort, clip)
    config = FederatedConfig(ClientConfig(weighted=False), Optimizer("sgd", (1.0,)), noise=noise)
    model = _model(task, which)
    before = _values(model)
    runtime = InProcessRuntime(
        model, config, UserClients(records, "train"), small_batch_plan(task), SEED, NoiseKey(bytes(32))
    )
    steps, norms = [], []
    last = runtime.weights()
    for round_number in range(rounds):
        runtime.run_round(round_number, [])  # nobody takes part: the step is noise alone
        now = runtime.weights()
        step = np.concatenate([np.ravel(a - b) for a, b in zip(now, last, strict=True)])
        steps.append(step)
        norms.append(np.linalg.norm(step))
        last = now
    found = np.concatenate(steps)
    assert len(steps[0]) == num_weights(model) == sum(before[name].size for name in _LISTS[which])
    expected = sigma * clip / cohort
    assert found.std() == pytest.approx(expected, rel=4 / math.sqrt(2 * found.size))
    # What the statement says of a round's noise is its norm, in clip norms.
    assert np.mean(norms) / clip == pytest.approx(noise_norm(sigma, cohort, num_weights(model)), rel=0.01)
    frozen = {variable.name for variable in model.non_trainable_variables}
    assert frozen.isdisjoint(_LISTS[which])
    assert all(np.array_equal(_values(model)[name], before[name]) for name in frozen)


@pytest.mark.slow
@pytest.mark.parametrize("which", [FILM, pytest.param(HEAD, marks=pytest.mark.long)])
def test_few_weights_on_tffs_own_runtime(records, task, which):
    from benchmark.rounds.tff import TffRuntime

    data, plan = UserClients(records, "train"), small_batch_plan(task)
    ours = InProcessRuntime(_model(task, which, network=TINY), FederatedConfig(), data, plan, SEED)
    theirs = TffRuntime(lambda: _model(task, which, network=TINY), FederatedConfig(), data, plan, SEED)
    try:
        assert_equal_rounds(ours, theirs, [data.client_ids[n : n + 3] for n in range(2)])
    finally:
        theirs.close()


def test_choosing_again_forgets_the_choice_before(task):
    model = _model(task, HEAD)
    counts = [num_weights(choose(model, which)) for which in TRAINABLE]
    assert counts[TRAINABLE.index(ALL)] == model.count_params()
    assert counts[TRAINABLE.index(HEAD)] == 128 * task.num_outputs + task.num_outputs
    assert counts[TRAINABLE.index(FILM)] == counts[TRAINABLE.index(HEAD)] + 2 * (32 + 64 + 128 + 128)
