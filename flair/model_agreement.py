"""The agreement of trained models on each photo, as scores for `flair.sample_testset top`.

Models need TensorFlow, which this package does without: a command of the benchmark scores the photos in a process of
its own, and leaves a file as `flair.label_scores` reads it.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from flair.errors import FlairError
from flair.label_scores import Scores, read_scores

COMMAND = "benchmark.agreement_main"


def model_agreement(models: str, tfrecords_dir: str, partition: str, use_fine_grained_labels: bool = False) -> Scores:
    """The mean probability that the models (their files, joined by commas) give each label that a photo carries.

    Raises:
      FlairError: a model or the records cannot be read; the command has said why on stderr.
    """
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "agreement.json"
        command = [sys.executable, "-m", COMMAND, f"--models={models}", f"--tfrecords_dir={tfrecords_dir}"]
        command += [f"--partition={partition}", f"--output_file={file}"]
        command += ["--use_fine_grained_labels"] if use_fine_grained_labels else []
        code = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=sys.stderr).returncode
        if code == 130:
            raise KeyboardInterrupt
        if code != 0:
            raise FlairError(f"--models={models}: {COMMAND} exited with {code}; see what it says above")
        return read_scores(file)
