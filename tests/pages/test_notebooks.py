"""The notebooks run from top to bottom, are committed without outputs, and say what to do when there is no data."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from flair.dataset import catalog
from flair.dataset.metadata import load_records
from flair.dataset.notebooks import NoData, check_dataset_dir
from tests.support.commands import ROOT, run

if TYPE_CHECKING:  # nbformat takes seconds to import, which every run of any test would wait for
    import nbformat

EXPLORE = ("explore_images.ipynb", "explore_labels.ipynb")
TUTORIAL = "docs/federated_tutorial.ipynb"
NOTEBOOKS = sorted(path.relative_to(ROOT).as_posix() for path in (*ROOT.glob("*.ipynb"), *ROOT.glob("docs/*.ipynb")))


def execute(
    name: str, monkeypatch: pytest.MonkeyPatch, folder: Path, more: str = "", **variables: object
) -> nbformat.NotebookNode:
    """Runs a copy of the notebook in a kernel of this interpreter, where Jupyter would run it; `more` is a last cell.

    Raises:
      CellExecutionError: a cell failed.
    """
    import nbformat
    from nbclient import NotebookClient

    for variable in ("FLAIR_DATASET_DIR", "FLAIR_TFRECORDS_DIR"):
        monkeypatch.delenv(variable, raising=False)
    for variable, value in variables.items():
        monkeypatch.setenv(variable, str(value))
    for variable in ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "TMPDIR"):
        place = folder / variable
        place.mkdir(exist_ok=True)
        monkeypatch.setenv(variable, str(place))
    path = ROOT / name
    notebook = nbformat.read(path, as_version=4)
    if more:
        notebook.cells.append(nbformat.v4.new_code_cell(more))
    resources = {"metadata": {"path": str(path.parent)}}
    NotebookClient(notebook, timeout=600, kernel_name="python3", resources=resources).execute()
    return notebook


def failure(*arguments: Any, **variables: object) -> Any:
    """The error that ends what `execute` runs."""
    from nbclient.exceptions import CellExecutionError

    with pytest.raises(CellExecutionError) as raised:
        execute(*arguments, **variables)
    return raised.value


def printed(notebook: nbformat.NotebookNode, cell: str) -> str:
    """What the cell of that id printed."""
    (found,) = (each for each in notebook.cells if each.id == cell)
    return "".join(output.text for output in found.outputs if output.output_type == "stream")


def pictures(notebook: nbformat.NotebookNode) -> int:
    """Number of PNGs shown."""
    return sum("image/png" in output.get("data", {}) for cell in notebook.cells for output in cell.get("outputs", []))


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_it_is_committed_clean(name: str) -> None:
    import nbformat

    text = (ROOT / name).read_text(encoding="utf-8")
    notebook = nbformat.reads(text, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.outputs == [] and cell.execution_count is None for cell in code)
    assert notebook.metadata.kernelspec.name == "python3"
    # Ids by name, so that a change of one cell changes nothing else.
    ids = [cell.id for cell in notebook.cells]
    assert len(set(ids)) == len(ids) and all(re.fullmatch(r"[a-z]+(-[a-z]+)*", each) for each in ids)
    assert text == nbformat.writes(notebook, indent=1) + "\n"
    assert not re.search(r"/(home|root|Users|work|tmp)/", text)
    if name in EXPLORE:
        assert max(len(cell.source.splitlines()) for cell in code) <= 12


@pytest.mark.parametrize("name", EXPLORE)
def test_without_data_it_says_how_to_make_some(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    error = failure(name, monkeypatch, tmp_path)
    assert error.ename == "NoData"
    assert "python3 -m flair.synthetic --dataset_dir=mini" in error.evalue
    assert "FLAIR_DATASET_DIR" in error.evalue
    assert "site-packages" not in str(error) and "File " not in str(error)


def test_damaged_metadata_is_named_without_a_traceback(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    metadata = tmp_path / catalog.METADATA_FILE
    metadata.write_text('[{"user_id": 3}]')
    error = failure("explore_labels.ipynb", monkeypatch, tmp_path, FLAIR_DATASET_DIR=tmp_path)
    assert error.evalue.startswith(f"{metadata}, record 0: field 'image_id' is missing")
    assert "metadata.py" not in error.traceback and "File " not in error.traceback


def test_a_home_folder_is_understood(miniature: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(miniature.parent))
    assert check_dataset_dir(f"~/{miniature.name}") == miniature


def test_a_folder_that_will_not_do_is_named(miniature: Path, tmp_path: Path) -> None:
    assert check_dataset_dir(miniature, photos=True) == miniature
    (tmp_path / catalog.METADATA_FILE).write_bytes((miniature / catalog.METADATA_FILE).read_bytes())
    assert check_dataset_dir(tmp_path) == tmp_path
    for folder, photos, said in ((tmp_path, True, "no photos"), (tmp_path / "absent", False, "is no FLAIR dataset")):
        with pytest.raises(NoData, match=said) as raised:
            check_dataset_dir(folder, photos)
        assert str(folder) in str(raised.value) and "flair.synthetic" in str(raised.value)


def check_exploration(name: str, dataset_dir: Path, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    notebook = execute(name, monkeypatch, folder, FLAIR_DATASET_DIR=dataset_dir)
    records = load_records(dataset_dir)
    structure = sum("structure" in record.labels for record in records)
    table = printed(notebook, "coarse-table" if name == "explore_labels.ipynb" else "labels-table")
    assert re.search(rf"^structure +{structure} .* 228,923", table, re.M)
    if name == "explore_labels.ipynb":
        assert pictures(notebook) == 9
    else:
        both = sum({"structure", "plant"} <= {*record.labels, *record.fine_grained_labels} for record in records)
        assert printed(notebook, "search-label").startswith(f"{both:,} photos carry structure and plant")
        assert pictures(notebook) == 5 + 1 + bool(both) + 1 + 1 + 1


@pytest.mark.parametrize("name", [EXPLORE[0], pytest.param(EXPLORE[1], marks=pytest.mark.slow)])
def test_exploration_of_a_miniature(
    name: str, miniature: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    check_exploration(name, miniature, monkeypatch, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", EXPLORE)
def test_exploration_of_real_photos(
    name: str, flair_sample: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    check_exploration(name, flair_sample, monkeypatch, tmp_path)


REPORT = """
import json

def loss_alone(user):
    alone = by_hand.set_model_weights(by_hand.initialize(), initial_weights)
    output = by_hand.next(alone, [train_batches.create_tf_dataset_for_client(user)])
    return output.metrics["client_work"]["train"]["loss"]

print(json.dumps({
    "fixed": fixed_losses, "by_hand": hand_losses, "sampled": [float(train["loss"]) for train in history],
    "seen": float(seen["loss"]), "unseen": float(unseen["loss"]), "fast": float(result.metrics["loss"]),
    "heldout": float(heldout["loss"]), "put_aside": [int(seen["num_examples"]), int(heldout["num_examples"])],
    "photos": {
        partition: sum(len(records.read_user(partition, user)) for user in fixed_clients if user in users)
        for partition, users in (("train", seen_users), ("heldout", heldout_users))
    },
    "spread": [float(spread_losses[name]) for name in ("client_mean", "client_largest")],
    "of_clients": [float(loss_alone(user)) for user in fixed_clients],
    "epsilon": privacy_plan.epsilon, "log_dir": str(log_dir), "users": [len(seen_users), len(unseen_users)],
    "final": [float(value) for value in weights[-1]],
}))
"""


def check_tutorial(notebook: nbformat.NotebookNode) -> dict:
    report = json.loads(notebook.cells[-1].outputs[0].text)
    assert abs(report["by_hand"][0] - report["fixed"][0]) < 1e-4
    # The weights that the first round leaves are the same too, or the second one's loss would tell.
    assert abs(report["by_hand"][1] - report["fixed"][1]) < 1e-3
    assert report["fixed"][0] != report["fixed"][1]
    assert report["fixed"][-1] < report["fixed"][0]
    assert all(0 < report[name] < 2 for name in ("seen", "heldout", "unseen", "fast"))
    assert report["put_aside"] == [report["photos"]["train"], report["photos"]["heldout"]]
    assert min(report["put_aside"]) > 0
    # Clients that are alone in a round report the losses that the aggregator of one's own takes the mean of.
    assert report["spread"] == pytest.approx([np.mean(report["of_clients"]), max(report["of_clients"])], rel=1e-4)
    assert report["epsilon"] == pytest.approx(8, rel=0.01)
    assert "PRIVACY STATEMENT" in printed(notebook, "statement")
    for folder in ("train", "eval"):  # by one name, so that TensorBoard draws them into one chart
        (events,) = Path(report["log_dir"], folder).glob("events.out.tfevents.*")
        assert b"micro_averaged_precision" in events.read_bytes() and b"train/" not in events.read_bytes()
    return report


@pytest.mark.slow
def test_the_tutorial_on_its_own_miniature(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    check_tutorial(execute(TUTORIAL, monkeypatch, tmp_path, REPORT))


@pytest.mark.long
def test_the_tutorial_on_real_photos(flair_sample: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    records = tmp_path / "tfrecords"
    places = f"--dataset_dir={flair_sample}", f"--tfrecords_dir={records}"
    run("prepare_tfrecords.py", *places, "--heldout_fraction=0.2")
    report = check_tutorial(execute(TUTORIAL, monkeypatch, tmp_path, REPORT, FLAIR_TFRECORDS_DIR=records))
    assert report["users"] == [11, 2]


@pytest.mark.slow
def test_the_tutorial_names_a_folder_that_will_not_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    absent = tmp_path / "absent"
    error = failure(TUTORIAL, monkeypatch, tmp_path, FLAIR_TFRECORDS_DIR=absent)
    assert error.ename == "FlairError"
    assert f"{absent}: no such directory; make it with prepare_tfrecords.py" in error.evalue


def test_no_notebook_is_left_out() -> None:
    assert set(NOTEBOOKS) >= {*EXPLORE, TUTORIAL}


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_what_a_notebook_imports_of_ours_is_there(name: str) -> None:
    """Moving a module broke the tutorial, which only the slow tests run."""
    cells = json.loads((ROOT / name).read_text(encoding="utf-8"))["cells"]
    lines = (line for cell in cells if cell["cell_type"] == "code" for line in "".join(cell["source"]).splitlines())
    code = "\n".join(line for line in lines if not line.startswith("%"))
    imports = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.ImportFrom)]
    ours = [(str(node.module), alias.name) for node in imports for alias in node.names if _is_ours(str(node.module))]
    assert ours
    for module, wanted in ours:
        found = importlib.import_module(module)
        assert hasattr(found, wanted) or importlib.util.find_spec(f"{module}.{wanted}"), f"{module}.{wanted}"


def _is_ours(module: str) -> bool:
    return module.partition(".")[0] in ("flair", "benchmark")
