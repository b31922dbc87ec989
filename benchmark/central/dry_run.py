"""What `central_main --dry_run` prints."""

from __future__ import annotations

import itertools

from benchmark.central.step import CentralTrainer
from benchmark.data.inputs import Inputs
from benchmark.data.records import Records, Task
from benchmark.evaluation import passes
from benchmark.run.devices import Devices
from benchmark.run.flags import Flags
from benchmark.training import flags as model_flags
from benchmark.training import plan as training_plan
from benchmark.training.inputs import Prepared
from benchmark.training.plan import Part, entry, rate
from benchmark.training.timing import Speed, extraction_parts, memory_row, scoring_parts, seconds_of, tiled

_TIMED_STEPS = 2


def plan_lines(
    flags: Flags, records: Records, task: Task, devices: Devices, trainer: CentralTrainer, prepared: Prepared
) -> list[str]:
    """The lines of the plan; times a few steps and an evaluation batch."""
    population = training_plan.population_of(records, flags.num_users)
    training = _training_speed(flags, devices, trainer, prepared.inputs)
    extraction = extraction_parts(prepared.body, population, flags.feature_views)
    scored, scoring = scoring_parts(
        trainer.model, prepared.inputs.evaluation("val"), task, flags.eval_batch_size, population, flags.num_epochs + 1
    )
    photos = population.photos["train"]
    steps = -(-photos // flags.train_batch_size)
    epochs = Part(f"epochs of {photos:,} photos", flags.num_epochs, photos / training.photos_per_second)
    schedule = flags.learning_rate_schedule
    return [
        *training_plan.data_lines(population, str(records.root)),
        *model_flags.model_lines(flags, task, trainer.network),
        *entry("epochs", f"{flags.num_epochs:,} of {steps:,} steps of {flags.train_batch_size:,} photos"),
        *entry(
            "optimizer",
            f"Adam, learning rate {flags.learning_rate:g} ({schedule}, {flags.warmup_epochs:g} epochs of warm-up), "
            f"gradients clipped to {flags.clipnorm:g} a weight",
        ),
        *entry("memory", memory_row()),
        *training_plan.time_lines(
            [*extraction, epochs, *scored],
            f"training {rate(training.photos_per_second)} photos/s ({training.photos} photos), "
            f"evaluation {rate(scoring.photos_per_second)} photos/s ({scoring.photos} photos)",
        ),
    ]


def _training_speed(flags: Flags, devices: Devices, trainer: CentralTrainer, inputs: Inputs) -> Speed:
    """Times steps from records to new weights, with the photos that the devices pass at once."""
    replicas = len(devices.replicas)
    share = min(trainer.microbatch_size, max(flags.train_batch_size // replicas, 1))
    data = inputs.training(share * replicas, flags.seed, range(replicas), replicas)
    # Full batches for every device, epoch after epoch; a small data set repeats its photos.
    steps = (
        [tiled(part, share) for part in parts]
        for epoch in itertools.count()
        for parts in passes.grouped(data.batches(epoch), replicas)
    )
    trainer.step(next(steps), flags.learning_rate)  # compiles
    seconds = seconds_of(
        lambda: [trainer.step(parts, flags.learning_rate) for parts in itertools.islice(steps, _TIMED_STEPS)]
    )
    photos = _TIMED_STEPS * share * replicas
    return Speed(photos / seconds, photos)
