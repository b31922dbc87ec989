"""The presets: complete, documented, parsed, and planned by a dry run that trains and writes nothing."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

import pytest

from flair.records.tfrecord.writer import write_tfrecords
from tests.support.commands import ROOT, only_line, refused, run
from tests.support.tiny_network import TINY

CONFIGS = ROOT / "benchmark" / "configs"
TASKS = [f"{labels}_{start}" for labels in ("coarse", "fine") for start in ("scratch", "pretrained")]
MINIATURE = ("miniature_central", "miniature_federated")
CENTRAL = [*(f"central_{task}" for task in (*TASKS, "structure")), MINIATURE[0]]
FEDERATED = [*(f"federated_{task}" for task in (*TASKS, "structure")), MINIATURE[1]]
PRIVATE = [f"federated_dp_{task}" for task in (*TASKS, "structure")]
FEW = [
    f"few_{trainable}_{network}{epsilon}"
    for trainable in ("head", "film")
    for network in ("resnet18", "convnext")
    for epsilon in ("", "_eps2", "_eps8")
]
PFL = ["pfl_iid", "pfl_non_iid", "pfl_iid_dp", "pfl_non_iid_dp"]
# By PLD, for FLAIR's 41,131 users, epsilon 2, delta n^-1.1 and 5,000 rounds: cohorts of 200, and of 5,000.
SIGMA_200, SIGMA_5000 = 0.975, 17.36
SIGMAS = {**dict.fromkeys(PRIVATE, SIGMA_200), **dict.fromkeys(("pfl_iid_dp", "pfl_non_iid_dp"), SIGMA_5000)}
SIGMAS |= {preset: SIGMA_200 if preset.endswith("eps2") else 0.591 for preset in FEW if "eps" in preset}
# How long the noise on a round's mean update is, in clip norms.
NOISE_NORMS = {"head_resnet18": 0.4548, "film_resnet18": 0.6592, "head_convnext": 0.5568, "film_convnext": 0.8349}


def _path(preset):
    return str(CONFIGS / f"{preset}.flags")


def _drive(mode, setting, presets, *flags, timeout=900):
    command = [
        sys.executable,
        "tests/support/preset_driver.py",
        mode,
        setting,
        *map(_path, presets),
        "--",
        *map(str, flags),
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=timeout, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_there_is_one_preset_for_every_row():
    assert sorted(path.stem for path in CONFIGS.iterdir()) == sorted([*CENTRAL, *FEDERATED, *PRIVATE, *FEW, *PFL])


def _comment(preset):
    lines = (CONFIGS / f"{preset}.flags").read_text(encoding="utf-8").splitlines()
    comment = [line for line in lines if line.startswith("#")]
    assert lines[: len(comment)] == comment, "the comment comes first"
    return "\n".join(comment)


@pytest.mark.parametrize("preset", [*CENTRAL, *FEDERATED, *PRIVATE, *FEW, *PFL])
def test_a_preset_opens_with_what_it_is(preset):
    comment = _comment(preset)
    for part in ("Source: ", "Command:", "Hardware and time to expect: ", "Published: ", "Measured here: "):
        assert f"\n# {part}" in comment
    module = "central_main" if preset in CENTRAL else "federated_main"
    assert f"python -m benchmark.{module} --flagfile=benchmark/configs/{preset}.flags" in comment
    flags = (CONFIGS / f"{preset}.flags").read_text(encoding="utf-8").removeprefix(comment)
    # Paths and seeds are the user's.
    assert not re.search(r"--(tfrecords_dir|save_model_dir|run_dir|restore_model_path|seed)\b", flags)
    assert ("--restore_model_path=" in comment) == ("--normalization=frozen_batch" in flags)


def test_what_a_paper_did_is_not_claimed_without_a_source():
    texts = [_comment(preset) for preset in (*CENTRAL, *FEDERATED, *PRIVATE, *FEW, *PFL)]
    texts.append((ROOT / "docs" / "reproduce.md").read_text(encoding="utf-8"))
    for text in texts:
        assert not re.search(r"[Tt]he paper\s+(#\s+)?(simulates\b(?!\s+is not on record)|used)", text)
        # The code of ml-flair has the flag, but no number for it; pfl-research's configuration has one.
        assert "pfl-research" in text or "5000" not in text.replace("--total_rounds=5000", "")


def test_published_numbers_are_those_on_record():
    for preset, number in {
        "federated_coarse_scratch": "macro AP 50.1",
        "federated_coarse_pretrained": "macro AP 62.0",
        "federated_fine_scratch": "micro AP 22.5",
        "federated_fine_pretrained": "micro AP 27.0",
    }.items():
        assert f"Published: {number}" in _comment(preset)
    assert "31.5" in _comment("federated_coarse_pretrained")


def test_every_preset_parses_and_says_its_settings():
    federated = _drive(
        "parse", "federated", [*FEDERATED, *PRIVATE, *FEW, *PFL], "--tfrecords_dir=anywhere"
    ).splitlines()
    central = _drive("parse", "central", CENTRAL, "--tfrecords_dir=anywhere").splitlines()
    found = {one.pop("preset"): one for one in map(json.loads, [*federated, *central])}
    assert list(found) == [*FEDERATED, *PRIVATE, *FEW, *PFL, *CENTRAL]
    for preset, flags in found.items():
        assert flags["use_fine_grained_labels"] == ("_fine_" in preset)
        assert flags.get("binary_label") == ("structure" if "structure" in preset else None)
        expected = preset.endswith("pretrained") or preset in PFL or preset.startswith(("few_head_r", "few_film_r"))
        assert flags["normalization"] == ("auto" if "convnext" in preset else "frozen_batch" if expected else "group")
    for preset in FEW:
        assert found[preset]["trainable"] == preset.split("_")[1]
        if "sigma" in found[preset] and preset.endswith("eps2"):
            norm = NOISE_NORMS[preset.removeprefix("few_").removesuffix("_eps2")]
            assert f"mean update it is {norm:.2f} clip norms long" in re.sub(r"\s+#\s+", " ", _comment(preset))
    for preset in (*FEDERATED, *PRIVATE, *FEW, *PFL):
        wanted = SIGMAS.get(preset)
        assert found[preset]["sigma"] == (wanted if wanted is None else pytest.approx(wanted, rel=2e-3))
    for preset in PFL:
        flags = found[preset]
        assert (flags["client_learning_rate"], flags["server_learning_rate"]) == (0.01, 0.1)
        assert (flags["server_optimizer"], flags["server_warmup_rounds"]) == ("adamw", 30)
        assert flags["rounds_per_eval"] == 20
        assert flags["best_metric"] == "macro_averaged_precision"
        assert flags.get("mean_datapoints_per_user") == (None if "non_iid" in preset else 50)
        assert flags["fresh_photos"] == ("non_iid" not in preset)
        assert flags.get("simulated_clients_per_round") == (5000 if preset.endswith("dp") else None)


SMALL = ("--image_height=32", "--image_width=32", f"--model={TINY}", "--normalization=auto")


def _dry_run(module, tfrecords, out, *flags, code=0):
    out.mkdir(exist_ok=True)
    before = _listing(tfrecords), _listing(out)
    done = run(f"benchmark.{module}_main", f"--tfrecords_dir={tfrecords}", "--dry_run", *flags, code=code, cwd=out)
    assert (_listing(tfrecords), _listing(out)) == before, "a dry run writes nothing"
    return done


def _listing(tfrecords):
    return {path: path.lstat().st_mtime_ns for path in tfrecords.rglob("*")}


def _value(printed, name):
    return re.search(rf"^{name}: +(.*)$", printed, re.MULTILINE).group(1)


@pytest.mark.slow
def test_a_private_dry_run_plans_for_flair_with_a_miniature(tfrecords, tmp_path):
    more = "--ema_decay=0.99", "--early_stopping=200"
    done = _dry_run(
        "federated", tfrecords, tmp_path / "out", f"--flagfile={_path('federated_dp_coarse_scratch')}", *SMALL, *more
    )
    assert _value(done.stdout, "data").startswith("train 41,131 users, 345,879 photos;")
    assert "the records hold 32 training users, fewer than --clients_per_round=200" in done.stdout
    assert _value(done.stdout, "rounds") == "5,000, an evaluation every 10"
    assert "an average of the weights, of decay 0.99, is evaluated beside the model" in done.stdout
    assert "fewer where no model of 200 rounds is better" in done.stdout
    assert re.search(r"\+ 1,002 validations of [\d,]+ photos .*\n *\+ 2 test of ", done.stdout)
    assert _value(done.stdout, "cohort").startswith("200 of 41,131 users a round, poisson (q = 0.004863)")
    assert "at delta 8.403e-06 after 5,000 rounds" in _value(done.stdout, "privacy")
    assert float(_value(done.stdout, "sigma").split()[0]) == pytest.approx(SIGMA_200, rel=2e-3)
    assert "needed for epsilon 2: 0.9737 by PLD, 1.024 by RDP" in done.stdout
    total, count = re.search(
        r"per query: ([\d.]+) on the updates, standard deviation ([\d.]+) clients", done.stdout
    ).groups()
    # The split of the total between the two queries (Andrew et al., theorem 1): z^-2 = z_sum^-2 + (2 b)^-2.
    assert (float(total) ** -2 + (2 * float(count)) ** -2) ** -0.5 == pytest.approx(0.9737, rel=1e-3)
    assert re.match(r"about [\d.]+ (days|h|min)", _value(done.stdout, "time"))
    assert re.match(r"[\d.]+ [MG]B in this process", _value(done.stdout, "memory"))
    assert "next: " in done.stdout


def test_the_time_of_a_plan_is_its_parts(tfrecords, tmp_path):
    flags = (f"--flagfile={_path('central_coarse_scratch')}", *SMALL, "--num_users=41131", "--num_epochs=10")
    done = _dry_run("central", tfrecords, tmp_path / "out", *flags)
    assert _value(done.stdout, "epochs") == "10 of 676 steps of 512 photos"
    training, scoring = (
        float(re.search(rf"{what} ([\d.,]+) photos/s", done.stdout).group(1).replace(",", ""))
        for what in ("training", "evaluation")
    )
    seconds = 10 * 345_879 / training + (11 * 39_239 + 43_960) / scoring
    printed = _seconds(re.match(r"about (.*?), if", _value(done.stdout, "time")).group(1))
    assert printed == pytest.approx(seconds, rel=0.02)  # printed with three digits


def _seconds(text):
    unit = {"s": 1, "min": 60, "h": 3600, "days": 86_400}
    words = text.replace(",", "").split()
    return sum(float(value) * unit[name] for value, name in zip(words[::2], words[1::2], strict=True))


@pytest.mark.parametrize(
    ("module", "flags", "message"),
    [
        ("federated", ["--num_users=100"], "fewer than the 200 of --clients_per_round"),
        ("federated", ["--clients_per_round=50000"], "give at most that many"),
        ("central", ["--num_epochs=2", "--warmup_epochs=3"], "--warmup_epochs=3"),
    ],
)
def test_a_plan_that_cannot_be_is_refused(tfrecords, tmp_path, module, flags, message):
    assert message in only_line(_dry_run(module, tfrecords, tmp_path / "out", *SMALL, *flags, code=1))


def test_a_dry_run_of_central_training_refuses_damaged_test_photos(miniature, tmp_path):
    write_tfrecords(miniature, tmp_path / "records", layout="sharded", num_workers=1)
    (shard,) = (tmp_path / "records" / "test").glob("*.tfrecords")
    os.truncate(shard, shard.stat().st_size - 1)
    line = only_line(_dry_run("central", tmp_path / "records", tmp_path / "out", *SMALL, code=1))
    assert f"{shard}: has " in line and "where the index says" in line


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--num_users=41131"], "only a --dry_run plans"),
        (["--normalization=frozen_batch"], "give --restore_model_path"),
    ],
)
def test_training_is_refused_what_only_a_dry_run_may(tfrecords, tmp_path, flags, message):
    line = refused("benchmark.central_main", f"--tfrecords_dir={tfrecords}", *flags, f"--save_model_dir={tmp_path}")
    assert message in line
    assert not list(tmp_path.iterdir())


@pytest.mark.long
@pytest.mark.parametrize(("setting", "presets"), [("central", CENTRAL), ("federated", [*FEDERATED, *PRIVATE, *PFL])])
def test_every_preset_passes_a_dry_run(tfrecords, setting, presets):
    flags = (f"--tfrecords_dir={tfrecords}", "--num_users=41131", "--image_height=64", "--image_width=64")
    printed = _drive("dry_run", setting, presets, *flags, timeout=1700)
    plans = dict(part.split("\n", 1) for part in printed.split("preset ")[1:])
    assert list(plans) == [f"{preset}.flags" for preset in presets]
    for preset in presets:
        plan = plans[f"{preset}.flags"]
        assert _value(plan, "data").startswith("train 41,131 users")
        assert ("cnn" if preset in MINIATURE else "resnet18") in _value(plan, "model")
        assert ("MISSING" in plan) == (preset in PFL or preset.endswith("pretrained"))
        assert ("sigma:" in plan) == (preset in SIGMAS)
        if preset in SIGMAS:
            assert float(_value(plan, "sigma").split()[0]) == pytest.approx(SIGMAS[preset], rel=2e-3)
