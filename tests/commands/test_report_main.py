"""The report from the command line, and the page in a browser."""

from __future__ import annotations

import json
from functools import partial

import numpy as np
import pytest
from matplotlib.figure import Figure

from benchmark.data.records import Task
from benchmark.evaluation import result as evaluation_result
from benchmark.evaluation.sets import EvaluationSet
from benchmark.federated import client_eval
from benchmark.privacy.caveats import RunRecord
from benchmark.privacy.statement import write_statement
from benchmark.report.runs import SECRET, different_settings, open_runs
from benchmark.run import members
from benchmark.run.names import short_names
from flair.errors import FlairError
from tests.support.commands import only_line, run
from tests.support.privacy import plan_of

LABELS = ("animal", "art <b>bold</b>", "cost $1", "fire_and_$moke", "plant")
TASK = Task("labels", LABELS, len(LABELS))
DP_METRICS = ("fraction_clipped", "update_norm", "signal_to_noise", "cosine")


_report = partial(run, "benchmark.report_main")


def _make_run(folder, step, seed, rounds, extra=lambda _round: {}, flags=()):
    """A run folder as a training leaves it."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    columns = ["train_loss", "val_loss", "val_macro_averaged_precision", "val_micro_averaged_precision", *extra(1)]
    lines = [",".join([step, *columns])]
    for number in range(1, rounds + 1):
        is_evaluated = number % 5 == 0
        loss = 0.3 + 0.3 / number
        row = {"train_loss": loss + 0.02 * rng.normal(), **extra(number)}
        if is_evaluated:
            row |= {"val_loss": loss, "val_macro_averaged_precision": 0.5 - 0.4 / number}
            row |= {"val_micro_averaged_precision": 0.7 - 0.5 / number}
        else:
            row.pop("epsilon", None)
        lines.append(",".join([str(number), *(str(row.get(name, "")) for name in columns)]))
    (folder / "metrics.csv").write_text("\n".join(lines) + "\n")
    times = "".join(f"{number},{number * 7.5}\n" for number in range(1, rounds + 1))
    (folder / "times.csv").write_text(f"{step},seconds\n{times}")
    (folder / "flags.txt").write_text("".join(f"--{flag}\n" for flag in [*flags, "model=cnn", f"seed={seed}"]))
    facts = {"started": "2026-01-02T03:04:05+0000", "versions": {"tensorflow": "2.14.1"}, "git_revision": "abc"}
    (folder / "run.json").write_text(json.dumps(facts))
    metrics = {"loss": 0.3, "macro_averaged_precision": 0.5, "micro_averaged_precision": 0.7}
    summary = {"setting": step, f"{step}s": rounds, "training_seconds": 99.0, "val": metrics, "test": metrics}
    (folder / "summary.json").write_text(json.dumps(summary | {"epsilon": 3.5} if "epsilon" in extra(5) else summary))


def _look(folder, seed, rounds):
    """Clients as a training with --rounds_per_client_eval=5 leaves them: large users do better, and the more later."""
    rng = np.random.default_rng(seed)
    for number in range(5, rounds + 1, 5):
        rows = []
        for user, photos in enumerate([1, 1, 2, 3, 5, 6, 9, 14, 17, 30, 60, 90]):
            size = np.log2(photos)
            before = 0.5 - 0.02 * size - 0.002 * number + 0.02 * rng.normal()
            after, name, distance = before - 0.02 * size, f"{user}@N01", 0.6 / (1 + size)
            rows.append((number, name, "val", photos, before, 1 - before, None, None, distance))
            if photos > 1:
                for kind, loss in (("val_before", before), ("val_after", after)):
                    rows.append((number, name, kind, photos // 2, loss, 1 - loss, None, None, None))
            seen = (before, 1 - before, 0.1, 0.2 + 0.1 * size) if user % 3 else (None, None, 0.1, None)
            rows.append((number, name, "cohort", photos, *seen, distance))
        members.append(folder / "clients.csv.gz", (*client_eval.COLUMNS, *client_eval.DRIFT_COLUMNS), rows)


class _Fixed:
    """Predictions that no model made."""

    def __init__(self, scores):
        self.scores, self.losses = scores, -np.log(np.clip(scores, 0.1, 1)).mean(axis=1).astype(np.float32)


def _evaluate(folder, name, seed):
    rng = np.random.default_rng(7)
    users = [f"{user}@N01" for user in range(15) for _ in range(user % 4 + 1)]
    labels = (rng.random((len(users), len(LABELS))) < [0.5, 0.4, 0.3, 0.2, 0.01]).astype(np.uint8)
    ids = tuple(str(number) for number in range(len(users)))
    photos = EvaluationSet("test", "test", np.arange(len(users)), ids, tuple(users), labels, ids)
    rng = np.random.default_rng(seed)
    scores = np.float32(1 / (1 + np.exp(-rng.normal(size=labels.shape) - 1.5 * labels)))
    scored = evaluation_result.Scored(photos, _Fixed(scores), TASK, 200, 0)
    result = {"model": name} | evaluation_result.result_of(scored, folder)
    evaluation_result.write_json(folder / "evaluation.json", {"format": 1, "results": [result], "comparisons": []})
    return scored


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A central, a federated and a private run with evaluations; the second brings a figure of its own."""
    root = tmp_path_factory.mktemp("runs")
    paths = [root / name / "cnn_17" for name in ("central", "federated <i>", "private")]
    _make_run(paths[0], "epoch", 1, 10, flags=("learning_rate=0.1", "run_dir=here"))

    def drift(number):
        return {"gradient_diversity": 0.4 + 0.01 * number, "cosine_to_mean": 0.5 - 0.005 * number, "update_norm": 0.3}

    _make_run(paths[1], "round", 2, 40, drift, flags=("client_learning_rate=0.1", "run_dir=there"))

    def noise(number):
        found = {"clip_norm": 0.1 + 0.001 * number, "average_client_norm": 0.5, "server_update_norm": 0.2}
        found |= {f"not_private/{name}": 0.3 for name in (*DP_METRICS, "gradient_diversity", "cosine_to_mean")}
        return found | {"epsilon": 0.5 + 0.1 * number}

    _make_run(paths[2], "round", 3, 40, noise, ("client_learning_rate=0.2", "run_dir=else", "epsilon=4"))
    for seed, path in enumerate(paths[1:]):
        _look(path, seed, 40)
    plan = plan_of(num_users=500, cohort=20, total_rounds=40, noise_multiplier=1.0)
    write_statement(paths[2], make_statement_of(plan))
    scored = [_evaluate(path, path.parent.name, seed) for seed, path in enumerate(paths)]
    common = {"comparisons": [{"a": "central", "b": "private", "partition": "test"}]}
    common["comparisons"][0]["metrics"] = evaluation_result.difference(scored[0], scored[2])
    evaluation_result.write_json(root / "evaluation.json", common)
    (paths[1] / "figures").mkdir()
    figure = Figure(figsize=(3, 2))
    figure.subplots().plot([1, 2])
    figure.savefig(paths[1] / "figures" / "mine.png")
    (paths[1] / "figures" / "captions.json").write_text('{"mine.png": "What I <found>"}')
    return root, paths


def make_statement_of(plan):
    from benchmark.privacy.statement import make_statement

    return make_statement(plan, RunRecord(rounds_completed=40, clip_norms=[0.1] * 40))


@pytest.fixture(scope="module")
def report(runs, tmp_path_factory):
    root, paths = runs
    out = tmp_path_factory.mktemp("report") / "page"
    done = _report(*paths, f"--output_dir={out}", f"--evaluation={root}", "--title=A & B")
    return out, done


FIGURES = {
    *(f"{m}_over_{x}" for m in ("loss", "macro_averaged_precision") for x in ("epochs", "rounds", "time")),
    *("macro_averaged_precision_against_epsilon", "clip_norm", "average_client_norm", "server_update_norm"),
    *DP_METRICS,
    *("gradient_diversity", "cosine_to_mean", "local_training_by_size", "cosine_by_size", "cosine_by_labels"),
    *("micro_averaged_precision_of_worst_decile", "loss_of_worst_decile"),
    *("by_label_test", "micro_averaged_precision_by_user_test", "macro_averaged_precision_test"),
}


def test_the_report_is_one_page_and_its_figures(report):
    out, done = report
    drawn = {path.stem for path in (out / "figures").glob("*.png")}
    assert drawn >= FIGURES
    assert str(out / "index.html") in done.stdout and "next: " in done.stdout
    page = (out / "index.html").read_text()
    for needle in ("http://", "https://", 'src="//', "<script", "url("):
        outside_text = page.replace("https://arxiv.org", "")  # a caveat cites a paper
        assert needle not in outside_text, needle
    assert "A &amp; B" in page
    assert "federated &lt;i&gt;" in page and "<i>" not in page
    assert "What I &lt;found&gt;" in page


@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_in_a_browser(report, browser, tmp_path, width):
    out, _ = report
    page = browser.new_page(viewport={"width": width, "height": 844})
    complaints, requests = [], []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: requests.append(request.url))
    page.goto((out / "index.html").as_uri())
    shown = page.evaluate("[...document.images].map(i => [i.closest('figure').id, i.naturalWidth, i.alt])")
    assert {name.removeprefix("figure-") for name, _, _ in shown} >= FIGURES
    assert all(natural > 0 and alt for _, natural, alt in shown)
    assert complaints == []
    assert all(url.startswith(("file:", "data:")) for url in requests)
    overflow = page.evaluate("""[...document.querySelectorAll('body *')].filter(
        e => e.getBoundingClientRect().right > innerWidth + 1).map(e => e.outerHTML.slice(0, 80))""")
    assert overflow == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.screenshot(path=tmp_path / f"report-{width}.png", full_page=True)
    assert (tmp_path / f"report-{width}.png").stat().st_size > 50_000
    page.close()


def test_the_page_has_results_settings_and_statement(report, runs, browser):
    out, _ = report
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.goto((out / "index.html").as_uri())
    rows = page.locator("#table table").first.locator("tbody tr")
    assert rows.count() == 3
    result = json.loads((runs[1][2] / "evaluation.json").read_text())["results"][0]["metrics"]["loss"]
    text = rows.nth(2).inner_text()
    assert f"{result['value']:.3f}" in text and f"[{result['low']:.3f}, {result['high']:.3f}]" in text
    assert "central − private" in page.locator("#table").inner_text()
    settings = page.locator("#settings").inner_text()
    assert "--client_learning_rate" in settings and "--model" not in settings and "--run_dir" not in settings
    private = page.locator("#privacy").inner_text()
    assert (
        "provided that only the models and clip norms of this run are released" in private
        and "un-noised measurements." in private
    )
    page.close()


def test_without_evaluations_and_privacy_figures_are_left_out_with_a_reason(runs, tmp_path):
    folder = tmp_path / "alone"
    _make_run(folder, "round", 4, 5)
    done = _report(folder, f"--output_dir={tmp_path / 'out'}")
    page = (tmp_path / "out" / "index.html").read_text()
    for reason in (
        "no run is private",
        "no run is private and has",
        "no run clips",
        "--debug_measurements",
        "no run has an evaluation.json",
        "no run looked at updates",
        "no run looked at any",
    ):
        assert reason in page and reason in done.stdout
    assert "0.500" in page  # the summary's point estimates


def test_the_seed_of_a_private_run_is_not_told(runs):
    private = open_runs([str(runs[1][2])])[0]
    assert private.settings["seed"] == SECRET
    assert dict(different_settings(open_runs(map(str, runs[1]))))["seed"] == ["1", "2", SECRET]


def test_an_evaluation_of_an_earlier_state_of_the_run_is_left_out(tmp_path):
    _make_run(tmp_path / "run", "round", 1, 5)
    (tmp_path / "run" / "best.h5").write_bytes(b"now")
    content = {"format": 1, "best_sha256": "0" * 64, "results": [], "comparisons": []}
    (tmp_path / "run" / "evaluation.json").write_text(json.dumps(content))
    (run,) = open_runs([str(tmp_path)])
    assert run.evaluation is None
    assert "earlier state" in run.notes[0]


def test_refusals_are_one_line(runs, tmp_path):
    cases = [
        ([tmp_path / "nowhere"], "no such folder", 1),
        ([tmp_path / "empty"], "is no run folder", 1),
        ([runs[1][0], "--evaluation=/nowhere"], "evaluation.json", 1),
        ([], "expected at least one RUN_DIR", 2),
    ]
    (tmp_path / "empty").mkdir()
    damaged = tmp_path / "damaged"
    _make_run(damaged, "round", 1, 5)
    (damaged / "summary.json").write_text("{")
    cases.append(([damaged], "summary.json: is not JSON", 1))
    for arguments, words, code in cases:
        assert words in only_line(_report(*arguments, f"--output_dir={tmp_path / 'out'}", code=code))
    assert not (tmp_path / "out").exists()


def test_what_is_no_png_is_refused(tmp_path):
    _make_run(tmp_path / "run", "round", 1, 5)
    (tmp_path / "run" / "figures").mkdir()
    (tmp_path / "run" / "figures" / "a.png").write_bytes(b"<svg onload=alert(1)>")
    with pytest.raises(FlairError, match="is no PNG"):
        open_runs([str(tmp_path / "run")])


def test_help_is_quick_and_names_the_arguments():
    done = _report("--help")
    assert "RUN_DIR" in done.stdout and "--output_dir" in done.stdout


def test_names_tell_runs_apart():
    assert short_names(["/a/x/run", "/a/y/run", "/a/y/other"]) == ["x/run", "y/run", "y/other"]
    assert short_names(["/a/run", "/a/run/sub"]) == ["run", "run/sub"]
    # A saved model and the run folder beside it: names are relative paths, so that results stay in their folder.
    assert short_names(["/a/run.h5", "/a/run"]) == ["run.h5", "run"]


def test_a_run_folder_named_twice_is_one_run(tmp_path):
    _make_run(tmp_path / "run", "round", 1, 5)
    assert len(open_runs([str(tmp_path / "run"), str(tmp_path / "run" / ".." / "run")])) == 1


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("privacy.json", {}, "caveats: is missing"),
        ("privacy.json", {"caveats": []}, "is no privacy statement"),
        ("privacy.json", [], "expected dict, found list"),
        ("summary.json", {"training_seconds": "long"}, "training_seconds: expected int or float"),
        ("summary.json", {"val": {"loss": [1]}}, "val.loss: expected"),
        ("run.json", {"machine": "big"}, "machine: expected dict"),
        ("evaluation.json", {"results": [{"partition": "test"}]}, "results[0].users: is missing"),
    ],
)
def test_a_damaged_file_of_a_run_is_refused_in_one_line_not_a_traceback(tmp_path, name, content, reason):
    _make_run(tmp_path / "run", "round", 1, 5)
    (tmp_path / "run" / name).write_text(json.dumps(content))
    with pytest.raises(FlairError) as caught:
        open_runs([str(tmp_path / "run")])
    assert str(tmp_path / "run" / name) in str(caught.value) and reason in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("rows", [[(1, "a")], [(1, "a", "val", "many", 1, 1, 1, 1, 1)], [("one", "a")]])
def test_damaged_clients_are_refused_in_one_line(tmp_path, rows):
    _make_run(tmp_path / "run", "round", 1, 5)
    header = (*client_eval.COLUMNS, *client_eval.DRIFT_COLUMNS)
    members.append(tmp_path / "run" / "clients.csv.gz", header, rows)
    with pytest.raises(FlairError, match="is damaged") as caught:
        open_runs([str(tmp_path / "run")])
    assert str(tmp_path / "run" / "clients.csv.gz") in str(caught.value) and "\n" not in str(caught.value)


def test_numbers_of_a_diverged_model_that_are_null_do_not_stop_the_report(tmp_path):
    from benchmark.report import figures

    run = tmp_path / "run"
    _make_run(run, "round", 1, 5)
    _evaluate(run, "run", 1)
    content = json.loads((run / "evaluation.json").read_text())
    (result,) = content["results"]
    result["metrics"]["loss"] = dict.fromkeys(("value", "low", "high"))
    result["per_user"]["loss"] |= {"p50": None, "percentiles": [None] * 101}
    result["per_label"][0]["averaged_precision"] = None
    (run / "evaluation.json").write_text(json.dumps(content))
    outcomes = figures.draw_all(open_runs([str(run)]))
    assert any(one.name == "loss_by_user_test" for one in outcomes if hasattr(one, "name"))
