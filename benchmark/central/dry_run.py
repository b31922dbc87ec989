"""What `central_main --dry_run` prints."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import tensorflow as tf

from benchmark.central.step import CentralTrainer
from benchmark.data.pipeline import EvaluationData, TrainingData
from benchmark.data.records import Records, Task
from benchmark.run import machine
from benchmark.run.devices import Devices
from benchmark.run.flags import Flags
from benchmark.training import flags as model_flags
from benchmark.training import plan as training_plan
from benchmark.training.plan import Part, entry, rate
from benchmark.training.timing import Speed, evaluation_speed, memory_row, seconds_of, tiled

_TIMED_STEPS = 2


def plan_lines(
    flags: Flags, records: Records, task: Task, devices: Devices, trainer: CentralTrainer, validation: EvaluationData
) -> list[str]:
    """Times a few steps and an evaluation batch; the lines of the plan."""
    population = training_plan.population_of(records, flags.num_users)
    training = _training_speed(flags, records, task, devices, trainer)
    scoring = evaluation_speed(trainer.model, validation, task, flags.eval_batch_size)
    steps = -(-population.photos["train"] // flags.train_batch_size)
    validated, tested = population.photos["val"], population.photos["test"]
    parts = [
        Part(
            f"epochs of {population.photos['train']:,} photos",
            flags.num_epochs,
            _seconds(population, "train", training),
        ),
        Part(f"validations of {validated:,} photos", flags.num_epochs + 1, _seconds(population, "val", scoring)),
        Part(f"test of {tested:,} photos", 1, _seconds(population, "test", scoring)),
    ]
    schedule = flags.learning_rate_schedule
    return [
        *training_plan.data_lines(population, str(records.root)),
        *model_flags.model_lines(flags, task, trainer.model),
        *entry("epochs", f"{flags.num_epochs:,} of {steps:,} steps of {flags.train_batch_size:,} photos"),
        *entry(
            "optimizer",
            f"Adam, learning rate {flags.learning_rate:g} ({schedule}, {flags.warmup_epochs:g} epochs of warm-up), "
            f"gradients clipped to {flags.clipnorm:g} a weight",
        ),
        *entry("memory", memory_row()),
        *training_plan.time_lines(
            parts,
            f"training {rate(training.photos_per_second)} photos/s ({training.photos} photos), "
            f"evaluation {rate(scoring.photos_per_second)} photos/s ({scoring.photos} photos)",
        ),
        *entry("machine", *machine.header().splitlines()[:1]),
    ]


def _seconds(population: training_plan.Population, partition: str, speed: Speed) -> float:
    return population.photos[partition] / speed.photos_per_second


def _training_speed(flags: Flags, records: Records, task: Task, devices: Devices, trainer: CentralTrainer) -> Speed:
    """Times steps from records to new weights, with the photos that the devices pass at once."""
    replicas = len(devices.replicas)
    share = min(trainer.microbatch_size, max(flags.train_batch_size // replicas, 1))
    data = TrainingData(
        records, "train", task, share * replicas, model_flags.image_size(flags), flags.seed, devices.replicas, replicas
    )
    steps = _steps(data, replicas, share)
    trainer.step(next(steps), flags.learning_rate)  # compiles
    seconds = seconds_of(
        lambda: [trainer.step(parts, flags.learning_rate) for parts in itertools.islice(steps, _TIMED_STEPS)]
    )
    photos = _TIMED_STEPS * share * replicas
    return Speed(photos / seconds, photos)


def _steps(data: TrainingData, replicas: int, share: int) -> Iterator[list[tuple[tf.Tensor, tf.Tensor]]]:
    """Full batches for every device, epoch after epoch; a small data set repeats its photos."""
    for epoch in itertools.count():
        batches = data.batches(epoch)
        while parts := list(itertools.islice(batches, replicas)):
            yield [tiled(part, share) for part in parts]
