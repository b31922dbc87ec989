"""The flags of central training, with the published names and defaults."""

from __future__ import annotations

from benchmark.run.flags import Role, Table, choice, integer, number
from benchmark.run.schedules import SCHEDULES
from benchmark.training.flags import BEST_METRIC, EARLY_STOPPING, LOGGERS, MODEL_FLAGS, OVERWRITE, RUN_DIR

FLAGS: Table = (
    *MODEL_FLAGS,
    number("learning_rate", 1e-4, "Learning rate of Adam.", Role.RESULT, least=0),
    number(
        "clipnorm",
        10.0,
        "Bound on the L2 norm of the gradient of each weight; 0 turns clipping off.",
        Role.RESULT,
        least=0,
    ),
    integer("train_batch_size", 512, "Photos a training step, over all devices.", Role.RESULT, least=1),
    integer(
        "microbatch_size",
        None,
        "Photos a device passes forward and backward at once; a larger batch is split, with the same result up to "
        "rounding. None: 64 without a GPU, the whole batch with one.",
        Role.SPEED,
        least=1,
    ),
    integer("num_epochs", 100, "Passes over the training photos.", Role.LENGTH, least=1),
    choice(
        "learning_rate_schedule", "constant", SCHEDULES, "How the learning rate falls after the warm-up.", Role.RESULT
    ),
    number("warmup_epochs", 0.0, "Epochs over which the learning rate rises from zero.", Role.RESULT, least=0),
    BEST_METRIC,
    EARLY_STOPPING,
    LOGGERS,
    RUN_DIR,
    OVERWRITE,
    number("minutes_per_checkpoint", 10.0, "Minutes between checkpoints inside an epoch.", Role.SAVING, least=0),
)
