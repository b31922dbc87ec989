"""One run as a process and as a folder: flags, seeds, checkpoints, interruption, devices.

What enters is the command line and the numbers of each step. What leaves is a run folder from which the same command
continues, with the result of an unbroken run.
"""

__all__ = [
    "checkpoint",
    "command",
    "devices",
    "files",
    "flag_file",
    "flags",
    "folder",
    "interruption",
    "loggers",
    "machine",
    "members",
    "names",
    "schedules",
    "seeds",
    "shapes",
    "tf_config",
    "user_states",
]
