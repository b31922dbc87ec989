"""Scores every photo of a partition by the agreement of saved models, for `flair.sample_testset top`.

The score of a photo for a label that it carries is the mean probability that the models give the label. Writes JSON,
{image_id: {label: score}}. A test set made from these scores favours these models.
"""

from __future__ import annotations

import time

import numpy as np

from benchmark.data.opening import make_task, open_records
from benchmark.data.records import Records, Task
from benchmark.model.saved import NETWORK_HELP, SavedModel, find_models
from benchmark.run import command
from benchmark.run.flags import Flags, Role, Table, boolean, choice, integer, path, paths, text
from flair.dataset.catalog import HELDOUT, PARTITIONS
from flair.errors import FlairError
from flair.files import atomic
from flair.records.tfrecord import example
from flair.terminal.paths import command_line
from flair.terminal.progress import Progress, duration

FLAGS: Table = (
    path("tfrecords_dir", None, "Folder that prepare_tfrecords.py wrote.", Role.DATA, required=True),
    paths(
        "models",
        None,
        "Saved models: .h5 or .keras files, run folders, folders of .h5 files.",
        Role.RESULT,
        required=True,
    ),
    text("network", None, NETWORK_HELP, Role.RESULT),
    choice("partition", "test", [*PARTITIONS, HELDOUT], "Partition whose photos are scored.", Role.RESULT),
    path("output_file", None, "JSON file to write.", Role.PLACE, required=True),
    boolean("use_fine_grained_labels", "The models predict the fine-grained labels.", Role.RESULT),
    integer("eval_batch_size", 512, "Photos a batch; changes speed, never a number.", Role.SPEED, least=1),
)

_READ_AT_ONCE = 256


def main(flags: Flags) -> None:
    """Checks the models against the records, scores, writes."""
    started = time.monotonic()
    atomic.destination(flags.output_file)  # refused before hours of work, not after them
    models = find_models(flags.models, flags.network)
    records = open_records(flags.tfrecords_dir)
    task = make_task(records, flags.use_fine_grained_labels, None)
    for model in models:
        if model.num_outputs != task.num_outputs:
            raise FlairError(
                f"{model.path}: has {model.num_outputs:,} outputs, but {records.root} has {task.num_outputs:,} labels; "
                "see --use_fine_grained_labels"
            )
    agreement: dict[str, dict[str, float]] = {}
    total = np.zeros((records.num_photos(flags.partition), task.num_outputs))
    for model in models:
        total += _predict(flags, model, records, task)
    for start in range(0, len(total), _READ_AT_ONCE):
        rows = range(start, min(start + _READ_AT_ONCE, len(total)))
        for row, serialized in zip(rows, records.read_photos(flags.partition, rows), strict=True):
            photo = example.decode(serialized)
            if photo.image_id is None:
                raise FlairError(f"{records.root}: its photos have no ids; prepare it again with prepare_tfrecords.py")
            columns = getattr(photo, task.feature)
            agreement[photo.image_id] = {task.label_names[i]: total[row, i] / len(models) for i in columns}
    atomic.write_json(flags.output_file, agreement, indent=None)
    print(
        f"{flags.output_file}: {len(agreement):,} photos scored by {len(models)} models "
        f"in {duration(time.monotonic() - started)}"
    )
    sample = command_line("python -m flair.sample_testset top", scores=flags.output_file)
    print(f"next: {sample} --dataset_dir=DATASET --name=NAME")


def _predict(flags: Flags, model: SavedModel, records: Records, task: Task) -> np.ndarray:
    """Probabilities float32 [photos, labels], photos in the order of the records."""
    from benchmark.data.pipeline import evaluation_dataset
    from benchmark.evaluation import passes
    from benchmark.model import saved

    keras_model = saved.load(model)
    data = evaluation_dataset(records, flags.partition, task, model.image_size, flags.eval_batch_size)
    scores = []
    with Progress(data.num_photos, f"{model.name} on {flags.partition}", "photo") as progress:
        for found, _, _ in passes.predicted(keras_model, data):
            scores.append(found)
            progress.add(len(found))
    return np.concatenate(scores)


if __name__ == "__main__":
    command.run(main, FLAGS)
