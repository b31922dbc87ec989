"""Runs a training command once for each preset, in one process: TensorFlow and TFF start only once.

Usage: python preset_driver.py parse|dry_run SETTING PRESET... -- FLAG...

`parse` checks the flags and prints one JSON line a preset, without TensorFlow; `dry_run` calls the command's main.
"""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

from absl import flags

mode, setting, *rest = sys.argv[1:]
presets, extra = rest[: rest.index("--")], rest[rest.index("--") + 1 :]
program = importlib.import_module(f"benchmark.{setting}_main")
for preset in presets:
    flags.FLAGS.unparse_flags()
    # unparse_flags takes values back, but not the marks that flags of the preset before were given.
    for name in flags.FLAGS:
        flags.FLAGS[name].present = 0
    flags.FLAGS([program.__name__, f"--flagfile={preset}", "--dry_run", *extra])
    if mode == "dry_run":
        print(f"preset {Path(preset).name}", flush=True)
        program.main()
        continue
    program.model_flags.check_model_flags()
    found = {name: flags.FLAGS[name].value for name in flags.FLAGS if flags.FLAGS[name].value is not None}
    if setting == "federated":
        program.federated_flags.check_federated_flags()
        artificial = -(-345_879 // (flags.FLAGS.mean_datapoints_per_user or 1))
        plan = program.federated_flags.make_privacy_plan(artificial if flags.FLAGS.iid else 41_131)
        found["sigma"] = None if plan is None else plan.noise_multiplier
    print(json.dumps({"preset": Path(preset).stem, **found}, default=str), flush=True)
