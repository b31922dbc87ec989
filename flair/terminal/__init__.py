"""What a command says and is told: progress, flags, paths, exit codes.

What enters is the command line and how much of the work is done. What leaves is lines on stdout and stderr, parsed
values, and the exit code.
"""

__all__ = ["command", "counted", "flags", "paths", "progress", "standard_streams", "table"]
