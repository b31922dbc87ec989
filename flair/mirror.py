"""A loopback HTTP server of one folder that resumes: stands in for Apple's server in trials, tests and measurements."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

from flair.download.server import Mirror
from flair.terminal import command
from flair.terminal.flags import Parser, port_number
from flair.terminal.paths import path_flag


def main(argv: Sequence[str]) -> int:
    """The command line of `python -m flair.mirror`."""
    parser = Parser(
        "python -m flair.mirror",
        "Serves a folder on the loopback interface, with resumable downloads, until Ctrl-C.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--archives_dir",
        was="folder",
        type=path_flag,
        required=True,
        help="folder to serve, such as flair.synthetic --archives_dir makes",
    )
    parser.add_argument(
        "--port", type=port_number, default=8000, help="port to listen on, 0 for any free one (default: 8000)"
    )
    flags = parser.parse_args(argv)
    with Mirror(flags.archives_dir, flags.port) as server:
        print(f"serving {flags.archives_dir} at {server.url} until Ctrl-C", flush=True)
        print(f"next: python download_dataset.py --dataset_dir=DIR --base_url={server.url}", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            server.serve_forever()
        print(f"served {len(server.requests):,} requests")
    return command.EXIT_OK


if __name__ == "__main__":
    command.run(main)
