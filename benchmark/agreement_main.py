"""Scores every photo of a partition by the agreement of saved models, for `flair.sample_testset top`.

The score of a photo for a label that it carries is the mean probability that the models give the label. Writes JSON,
{image_id: {label: score}}. A test set made from these scores favours these models.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np
from absl import flags

from benchmark.data.opening import make_task, open_records
from benchmark.data.records import Records, Task
from benchmark.model.saved import SavedModel, find_models
from benchmark.run import command, path_flags
from flair.dataset.catalog import HELDOUT, PARTITIONS
from flair.errors import FlairError
from flair.files import atomic
from flair.records.tfrecord import example
from flair.terminal.paths import command_line
from flair.terminal.progress import Progress, duration

path_flags.DEFINE_path("tfrecords_dir", None, "Folder that prepare_tfrecords.py wrote.", required=True)
path_flags.DEFINE_paths("models", None, "Saved models: .h5 files, run folders, folders of .h5 files.", required=True)
flags.DEFINE_enum("partition", "test", [*PARTITIONS, HELDOUT], "Partition whose photos are scored.")
path_flags.DEFINE_path("output_file", None, "JSON file to write.", required=True)
flags.DEFINE_boolean("use_fine_grained_labels", False, "The models predict the fine-grained labels.")
flags.DEFINE_integer("eval_batch_size", 512, "Photos a batch; changes speed, never a number.", lower_bound=1)

FLAGS = flags.FLAGS
_READ_AT_ONCE = 256


def main() -> None:
    """Checks the models against the records, scores, writes."""
    start = time.monotonic()
    atomic.destination(FLAGS.output_file)  # refused before hours of work, not after them
    models = find_models(FLAGS.models)
    records = open_records(FLAGS.tfrecords_dir)
    task = make_task(records, FLAGS.use_fine_grained_labels, None)
    for model in models:
        if model.num_outputs != task.num_outputs:
            raise FlairError(
                f"{model.path}: has {model.num_outputs:,} outputs, but {records.root} has {task.num_outputs:,} labels; "
                "see --use_fine_grained_labels"
            )
    agreement: dict[str, dict[str, float]] = {}
    total = np.zeros((records.num_photos(FLAGS.partition), task.num_outputs))
    for model in models:
        total += _predict(model, records, task)
    for row, (image_id, columns) in enumerate(_labels(records, task)):
        if image_id is None:
            raise FlairError(f"{records.root}: its photos have no ids; prepare it again with prepare_tfrecords.py")
        agreement[image_id] = {task.label_names[column]: total[row, column] / len(models) for column in columns}
    atomic.write_json(FLAGS.output_file, agreement, indent=None)
    print(
        f"{FLAGS.output_file}: {len(agreement):,} photos scored by {len(models)} models "
        f"in {duration(time.monotonic() - start)}"
    )
    sample = command_line("python -m flair.sample_testset top", scores=FLAGS.output_file)
    print(f"next: {sample} --dataset_dir=DATASET --name=NAME")


def _predict(model: SavedModel, records: Records, task: Task) -> np.ndarray:
    """Probabilities float32 [photos, labels], photos in the order of the records."""
    from benchmark.data.pipeline import evaluation_dataset
    from benchmark.evaluation import passes
    from benchmark.model import saved

    keras_model = saved.load(model)  # the step itself does not keep it alive
    step = passes.predict_step(keras_model)
    data = evaluation_dataset(records, FLAGS.partition, task, model.image_size, FLAGS.eval_batch_size)
    scores = []
    with Progress(data.num_photos, f"{model.name} on {FLAGS.partition}", "photo") as progress:
        for batch in data:
            scores.append(step([batch])[0][0].numpy())
            progress.add(len(scores[-1]))
    return np.concatenate(scores)


def _labels(records: Records, task: Task) -> Iterator[tuple[str | None, tuple[int, ...]]]:
    """Image id and label columns of every photo, in the order of the records."""
    count = records.num_photos(FLAGS.partition)
    for start in range(0, count, _READ_AT_ONCE):
        for serialized in records.read_photos(FLAGS.partition, range(start, min(start + _READ_AT_ONCE, count))):
            photo = example.decode(serialized)
            yield photo.image_id, getattr(photo, task.feature)


if __name__ == "__main__":
    command.run(main)
