"""A head on real features of a real network, held against scikit-learn."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmark.metrics import histogram
from flair.records.tfrecord.writer import write_tfrecords
from tests.conftest import SHARED_DATA
from tests.support.commands import run

LITE0 = "benchmark.model.efficientnet_lite:efficientnet_lite0"


@pytest.mark.slow
def test_a_federated_head_is_as_good_as_scikit_learns(coco256: Path, tmp_path: Path) -> None:
    from sklearn.linear_model import LogisticRegression

    from benchmark.data.opening import make_task, open_records
    from benchmark.features.cache import FeatureCache, Network
    from benchmark.model import saved
    from benchmark.model.identity import network_digest
    from benchmark.model.trainable import body_and_head

    weights = SHARED_DATA / "backbones" / "efficientnet_lite0.safetensors"
    if not weights.is_file():
        pytest.skip(f"{weights} is not on this machine")
    records_dir, cache = tmp_path / "records", tmp_path / "features"
    write_tfrecords(coco256, records_dir, num_workers=1)
    run(
        "benchmark.federated_main",
        *(f"--tfrecords_dir={records_dir}", f"--model={LITE0}", f"--backbone_weights={weights}", "--trainable=head"),
        *("--total_rounds=300", "--clients_per_round=20", "--client_learning_rate=0.5", "--server_learning_rate=0.01"),
        *("--server_epsilon=0.001", "--rounds_per_eval=50", "--best_metric=macro_averaged_precision"),
        *(f"--save_model_dir={tmp_path / 'out'}", f"--run_dir={tmp_path / 'run'}", f"--feature_dir={cache}"),
    )
    records = open_records(records_dir)
    task = make_task(records, False, None)
    body, head = body_and_head(saved.load(saved.describe(tmp_path / "run" / "best.h5", LITE0)))
    network = Network(LITE0, network_digest(body), (224, 224), 1280, "float32", "float32")
    inputs = FeatureCache(cache, records, network, None).inputs(task)
    parts = {}
    for partition in ("train", "val", "test"):
        features, labels = zip(*inputs.evaluation(partition), strict=True)
        parts[partition] = np.concatenate(features), np.concatenate(labels)
    features, labels = (np.concatenate([parts[name][kind] for name in ("val", "test")]) for kind in (0, 1))
    federated = head(features, training=False).numpy()
    expected = np.full(labels.shape, -30.0)
    for column, known in enumerate(parts["train"][1].T):
        if known.min() < known.max():
            model = LogisticRegression(max_iter=2000).fit(parts["train"][0], known)
            expected[:, column] = model.decision_function(features)
    ours, theirs = (_macro(scores, labels) for scores in (federated, expected))
    print(f"macro AP {ours:.4f}, scikit-learn's {theirs:.4f}")
    assert ours > theirs - 0.02
    assert ours > 0.5


def _macro(logits: np.ndarray, labels: np.ndarray) -> float:
    scores = (1 / (1 + np.exp(-logits))).astype(np.float32)
    counts = histogram.histogram(scores, labels.astype(np.float32))
    return histogram.finalize(counts, 0.0, len(labels), False)["macro_averaged_precision"]
