"""A loopback HTTP server of one folder that resumes: stands in for Apple's server in trials, tests and measurements."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Sequence

from flair.download.server import Mirror
from flair.terminal import command
from flair.terminal.paths import path_flag


def main(argv: Sequence[str]) -> int:
    """The command line of `python -m flair.mirror`."""
    parser = argparse.ArgumentParser(
        prog="python -m flair.mirror",
        description="Serves a folder on the loopback interface, with resumable downloads, until Ctrl-C.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--folder", type=path_flag, required=True, help="folder to serve, such as one made with --archives_dir"
    )
    parser.add_argument("--port", type=int, default=8000, help="port to listen on, 0 for any free one (default: 8000)")
    flags = parser.parse_args(argv)
    with Mirror(flags.folder, flags.port) as server:
        print(f"serving {flags.folder} at {server.url} until Ctrl-C", flush=True)
        print(f"next: python download_dataset.py --dataset_dir=DIR --base_url={server.url}", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            server.serve_forever()
        print(f"served {len(server.requests):,} requests")
    return command.EXIT_OK


if __name__ == "__main__":
    command.run(main)
