"""SCAFFOLD against NumPy, and across processes: what is kept of every user."""

from __future__ import annotations

import numpy as np
import pytest

from benchmark.data.clients import UserClients, client_batches
from benchmark.federated.cohort import sample_cohort
from benchmark.rounds.config import SCAFFOLD, ClientConfig, FederatedConfig, OptimizerConfig
from benchmark.rounds.inprocess import InProcessRuntime
from benchmark.run.user_states import UserStates
from tests.support.linear import NumpyLinear, clip, linear_model
from tests.support.rounds import SEED, small_batch_plan

RATE, SERVER_RATE, NUM_USERS = 0.5, 0.7, 6


@pytest.fixture(scope="module")
def data(records):
    return UserClients(records, "train")


@pytest.fixture(scope="module")
def plan(task):
    return small_batch_plan(task)


def _cohort(data, round_number):
    users = data.client_ids[:NUM_USERS]
    return sample_cohort(users, seed=SEED, round_number=round_number, clients_per_round=3)


def _runtime(data, plan, folder, clipnorm=0.0, rates=(RATE,)):
    client = ClientConfig(SCAFFOLD, rates, clipnorm=clipnorm, weighted=False)
    config = FederatedConfig(client, OptimizerConfig("sgd", (SERVER_RATE,)))
    model = linear_model(plan.task.num_outputs)
    size = sum(variable.shape.num_elements() for variable in model.trainable_variables)
    states = UserStates(folder, folder.parent, data.client_ids[:NUM_USERS], size)
    return InProcessRuntime(model, config, data, plan, SEED, user_states=states), states


@pytest.mark.parametrize("clipnorm", [0.0, 0.05])
def test_ten_rounds_of_partial_participation_equal_numpy(data, plan, tmp_path, clipnorm):
    """Karimireddy et al. 2020, Algorithm 1 with option II, written out; with clipping, of the corrected gradient."""
    runtime, states = _runtime(data, plan, tmp_path / "states", clipnorm)
    x = [weight.astype(np.float64) for weight in runtime.weights()]
    start, c, variates = x, [np.zeros_like(w) for w in x], {}
    for round_number in range(10):
        updates, changes = [], []
        for client_id in _cohort(data, round_number):
            own = variates.get(client_id, [np.zeros_like(w) for w in x])
            y, steps = NumpyLinear(*x), 0
            for batch in client_batches(data, [client_id], plan=plan, seed=SEED, round_number=round_number):
                gradients = y.gradients(batch.inputs.numpy(), batch.labels.numpy().astype(np.float64))
                moves = [g - c_i + c_s for g, c_i, c_s in zip(gradients, own, c, strict=True)]
                moves = [clip(move, clipnorm) if clipnorm else move for move in moves]
                y = NumpyLinear(y.kernel - RATE * moves[0], y.bias - RATE * moves[1])
                steps += 1
            moved = [before - after for before, after in zip(x, (y.kernel, y.bias), strict=True)]
            new = [c_i - c_s + m / (steps * RATE) for c_i, c_s, m in zip(own, c, moved, strict=True)]
            updates.append(moved)
            changes.append([after - before for after, before in zip(new, own, strict=True)])
            variates[client_id] = new
        x = [
            w - SERVER_RATE * np.mean(of_weight, 0) for w, of_weight in zip(x, zip(*updates, strict=True), strict=True)
        ]
        share = len(changes) / NUM_USERS
        c = [c_s + share * np.mean(of_c, 0) for c_s, of_c in zip(c, zip(*changes, strict=True), strict=True)]
        runtime.run_round(round_number, _cohort(data, round_number))
    assert 3 < len(variates) <= NUM_USERS and max(np.abs(w - s).max() for w, s in zip(x, start, strict=True)) > 0.05
    for weight, expected in zip(runtime.weights(), x, strict=True):
        np.testing.assert_allclose(weight, expected, atol=1e-5)
    for mine, expected in zip(runtime.state()[-4:-2], c, strict=True):
        np.testing.assert_allclose(mine, expected, atol=1e-5)
        assert np.abs(expected).max() > 1e-3
    for client_id in data.client_ids[:NUM_USERS]:
        if client_id not in variates:
            assert states.get(client_id) is None
        else:
            expected = np.concatenate([part.ravel() for part in variates[client_id]])
            np.testing.assert_allclose(states.get(client_id), expected, atol=1e-5)
