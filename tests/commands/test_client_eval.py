"""Looking at clients while a federated run trains: clients.csv.gz against the metadata, metrics.csv and NumPy."""

from __future__ import annotations

import collections
import csv
import gzip
import io
import json
import math
from functools import partial

import numpy as np
import pytest
from scipy.spatial.distance import jensenshannon

from tests.support.commands import assert_equal_weights, read_csv, run

pytestmark = pytest.mark.slow
_run = partial(run, "benchmark.federated_main")
SMALL = ("--model=cnn", "--image_height=32", "--image_width=32", "--clients_per_round=6", "--client_batch_size=8")
RUN = (*SMALL, "--total_rounds=4", "--rounds_per_eval=2", "--epsilon=8", "--trainable=head", "--noaugment")
LOOKS = ("--rounds_per_client_eval=2", "--clients_per_client_eval=4", "--federated_eval_local_training")


def _read(run_dir):
    """Kind -> rows."""
    text = gzip.decompress((run_dir / "clients.csv.gz").read_bytes()).decode()
    found = collections.defaultdict(list)
    for row in csv.DictReader(io.StringIO(text)):
        found[row["kind"]].append(row)
    return found


@pytest.fixture(scope="module")
def runs(tfrecords, tmp_path_factory):
    """The folder of a private run that looked at clients, and of the same run that did not."""
    out = tmp_path_factory.mktemp("runs")
    (out / "key").write_text("5e" * 32 + "\n")
    shared = f"--tfrecords_dir={tfrecords}", f"--feature_dir={out / 'features'}", f"--noise_key_file={out / 'key'}"
    for name, more in (("looks", LOOKS), ("plain", ())):
        _run(*shared, *RUN, *more, f"--save_model_dir={out / name}", f"--run_dir={out / name / 'run'}")
    return out / "looks" / "run", out / "plain" / "run"


def test_a_run_that_looks_is_the_run_that_does_not(runs):
    assert_equal_weights(*(run / "last.h5" for run in runs))
    looks, plain = (read_csv(run / "metrics.csv") for run in runs)
    assert [{name: row[name] for name in plain[0]} for row in looks] == plain
    assert looks[0].keys() - plain[0].keys() == {"not_private/gradient_diversity", "not_private/cosine_to_mean"}
    assert not (runs[1] / "clients.csv.gz").exists()
    found = [[one["name"] for one in json.loads((run / "privacy.json").read_text())["caveats"]] for run in runs]
    assert set(found[0]) - set(found[1]) == {"clients looked at"} and "clients looked at:" in _text(runs[0])


def _text(run_dir):
    return (run_dir / "privacy.txt").read_text()


def test_the_validation_users_are_the_same_every_time_and_add_up_to_the_validation(runs):
    rows, metrics = _read(runs[0]), read_csv(runs[0] / "metrics.csv")
    assert [row["round"] for row in rows["val"]] == ["2"] * 4 + ["4"] * 4  # all there are
    assert [row["client"] for row in rows["val"][:4]] == [row["client"] for row in rows["val"][4:]]
    for number in (2, 4):
        of_round = [row for row in rows["val"] if row["round"] == str(number)]
        photos = np.array([int(row["photos"]) for row in of_round])
        losses = np.array([float(row["loss"]) for row in of_round])
        pooled = float(losses @ photos / photos.sum())
        assert pooled == pytest.approx(float(metrics[number - 1]["val_loss"]), rel=1e-5)
        assert all(0 <= float(row["micro_averaged_precision"]) <= 1 for row in of_round)
    before, after = rows["val_before"], rows["val_after"]
    sizes = {row["client"]: int(row["photos"]) for row in rows["val"]}
    assert [row["client"] for row in before] == [row["client"] for row in after]
    assert {row["client"]: int(row["photos"]) for row in before} == {
        name: count // 2 for name, count in sizes.items() if count > 1
    }
    assert any(row["loss"] != other["loss"] for row, other in zip(before, after, strict=True))


def test_the_clients_of_a_round_have_their_drift_and_the_labels_of_the_metadata(runs, miniature):
    rows, metrics = _read(runs[0])["cohort"], read_csv(runs[0] / "metrics.csv")
    records = json.loads((miniature / "labels_and_metadata.json").read_text())
    train = [record for record in records if record["partition"] == "train"]
    population = collections.Counter(label for record in train for label in record["labels"])
    for number in (2, 4):
        of_round = [row for row in rows if row["round"] == str(number)]
        assert len(of_round) == float(metrics[number - 1]["clients"])
        norms = [float(row["update_norm"]) for row in of_round]
        assert np.mean(norms) == pytest.approx(float(metrics[number - 1]["not_private/update_norm"]), rel=1e-5)
        scored = [row for row in of_round if row["loss"]]
        assert len(scored) == min(4, len(of_round))
        cosines = [float(row["cosine_to_mean"]) for row in of_round if row["cosine_to_mean"]]
        assert len(cosines) == len(scored) and np.abs(cosines).max() <= 1 + 1e-5
        assert np.mean(cosines) == pytest.approx(float(metrics[number - 1]["not_private/cosine_to_mean"]), rel=1e-9)
    for row in rows:
        own = [record for record in train if record["user_id"] == row["client"]]
        assert len(own) == int(row["photos"])
        labels = collections.Counter(label for record in own for label in record["labels"])
        shares = [[counts[label] / counts.total() for label in population] for counts in (labels, population)]
        assert float(row["label_divergence"]) == pytest.approx(jensenshannon(*shares, base=2) ** 2, abs=1e-9)


def test_artificial_clients_and_all_weights_are_looked_at_too(tfrecords, tmp_path):
    flags = (*SMALL, "--total_rounds=2", "--rounds_per_eval=2", "--iid", "--mean_datapoints_per_user=5", *LOOKS)
    _run(f"--tfrecords_dir={tfrecords}", f"--save_model_dir={tmp_path}", f"--run_dir={tmp_path / 'run'}", *flags)
    rows = _read(tmp_path / "run")["cohort"]
    assert len(rows) == 6 and all(row["client"].startswith("iid") for row in rows)
    assert sum(bool(row["loss"]) for row in rows) == 4
    last = read_csv(tmp_path / "run" / "metrics.csv")[-1]
    norms = np.array([float(row["update_norm"]) for row in rows])
    assert float(last["update_norm"]) == pytest.approx(norms.mean())
    assert 1 / 6 <= float(last["gradient_diversity"]) < math.inf
