"""Runs a training command once for each preset, in one process: TensorFlow and TFF start only once.

Usage: python preset_driver.py parse|dry_run SETTING PRESET... -- FLAG...

`parse` checks the flags and prints one JSON line a preset, without TensorFlow; `dry_run` calls the command's main.
"""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

from benchmark.federated import checks, settings
from benchmark.run import command
from benchmark.training import flags as model_flags

mode, setting, *rest = sys.argv[1:]
presets, extra = rest[: rest.index("--")], rest[rest.index("--") + 1 :]
program = importlib.import_module(f"benchmark.{setting}_main")
for preset in presets:
    flags = command.parse(program.FLAGS, [f"--flagfile={preset}", "--dry_run", *extra])
    if mode == "dry_run":
        print(f"preset {Path(preset).name}", flush=True)
        program.main(flags)
        continue
    model_flags.check_model_flags(flags)
    found = {flag.name: flags[flag.name] for flag in program.FLAGS if flags[flag.name] is not None}
    if setting == "federated":
        checks.check_federated_flags(flags)
        artificial = -(-345_879 // (flags.mean_datapoints_per_user or 1))
        plan = settings.privacy_plan_of(flags, artificial if flags.iid else 41_131)
        found["sigma"] = None if plan is None else plan.noise_multiplier
    print(json.dumps({"preset": Path(preset).stem, **found}, default=str), flush=True)
