"""`python -m flair.review`: a web page on this machine to look at photos and near duplicates, and to mark them."""

from __future__ import annotations

import argparse
import getpass
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from flair.terminal import command
from flair.terminal.flags import make_parser, port_number
from flair.terminal.paths import command_line, path_flag

if TYPE_CHECKING:
    from werkzeug.serving import BaseWSGIServer

    from flair.curation.reviews import ReviewFile
    from flair.reviewing.app import Review

DEFAULT_PORT = 8009
DESCRIPTION = """\
Serves a web page at http://127.0.0.1:PORT/, for this machine only: browse the photos by user, label and partition,
compare near duplicates side by side with their distances, and mark photos (ok, problematic, blacklist) and pairs
(duplicate, not). Keys: ? on the page shows them.

Marks are written to --reviews at once, each with the reviewer and the time; any number of windows may be open. They
belong to photos and pairs, so they stay valid when a set or the list of near duplicates changes."""


def main(argv: Sequence[str] | None = None) -> int:
    """Parses the flags and serves the page until Ctrl-C; returns the exit code of that."""
    flags = _parse(argv)
    if flags.output_file:
        return _export(flags)

    start = time.monotonic()
    review = _open(flags)
    server = _listen(review, flags.port)
    port = server.port

    from flair.terminal.progress import duration

    photos = f"{len(review.index.records):,} photos, {len(review.groups.groups):,} groups"
    print(f"{photos}, indexed in {duration(time.monotonic() - start)}")
    print(f"Reviews: {review.reviews.path.absolute()} ({_count(review.reviews)})")
    print(f"Open http://127.0.0.1:{port}/ in a browser on this machine; Ctrl-C ends the page", flush=True)
    try:
        server.serve_forever()  # werkzeug's returns at Ctrl-C
    finally:
        server.server_close()
        print(f"Reviews: {review.reviews.path.absolute()} ({_count(review.reviews)})")
        sample = {"dataset_dir": flags.dataset_dir, "name": "NAME", "reviews": review.reviews.path}
        print("Next:", command_line("python -m flair.sample_testset threshold", **sample), flush=True)
    return command.EXIT_INTERRUPTED


def _export(flags: argparse.Namespace) -> int:
    """Writes the near duplicates as they are after the reviewers' marks, for --exclude."""
    from pathlib import Path

    from flair.curation.exclusion import NEAR_DUPLICATES_FILE, read_exclusion
    from flair.curation.reviews import read_reviews
    from flair.files import atomic

    found = read_exclusion(Path(flags.duplicates) / NEAR_DUPLICATES_FILE)
    reviewed = read_reviews(flags.reviews).applied_to(found)
    others = {name: sorted(group - {name}) for group in reviewed.components for name in sorted(group)}
    atomic.write_json(flags.output_file, others)
    print(
        f"Wrote {flags.output_file}: {len(others):,} photos in {len(reviewed.components):,} components "
        f"({len(found.components):,} before the marks of {flags.reviews})"
    )
    print(command_line("Next:", exclude=flags.output_file), "in preparation, sampling and evaluation")
    return command.EXIT_OK


def _open(flags: argparse.Namespace) -> Review:
    from flair.curation.manifest import read_testset
    from flair.curation.reviews import ReviewFile, check_reviewer
    from flair.dataset.metadata import load_records
    from flair.errors import FlairError
    from flair.reviewing.app import Review
    from flair.reviewing.groups import NO_GROUPS, read_groups
    from flair.reviewing.index import PhotoIndex

    if flags.reviewer:
        check_reviewer(flags.reviewer)
    reviews = ReviewFile(flags.reviews)
    reviews.read()  # a damaged file is told now, not at the first mark
    testset = read_testset(flags.testset) if flags.testset else None
    print(f"reading {flags.dataset_dir} ...", file=sys.stderr, flush=True)
    index = PhotoIndex(load_records(flags.dataset_dir))
    if testset is not None and not any(image_id in index for image_id in testset.image_ids):
        raise FlairError(f"--testset={flags.testset}: none of its photos is in {flags.dataset_dir}")
    groups = read_groups(flags.duplicates, index) if flags.duplicates else NO_GROUPS
    return Review(flags.dataset_dir, index, reviews, groups, testset, flags.reviewer or _user_name())


def _listen(review: Review, port: int) -> BaseWSGIServer:
    import socket

    from werkzeug.serving import WSGIRequestHandler, make_server

    from flair.errors import FlairError
    from flair.reviewing.app import create_app
    from flair.reviewing.guard import LOOPBACK

    class Handler(WSGIRequestHandler):
        timeout = 60
        server_version, sys_version = "flair.review", ""

        def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
            """Says nothing: the terminal is for what matters."""

    listener = socket.socket()
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((LOOPBACK, port))
        listener.listen(128)
    except OSError as error:
        listener.close()
        raise FlairError(
            f"--port={port}: cannot listen there ({error.strerror}); choose another, or 0 for any that is free"
        ) from None
    port = listener.getsockname()[1]
    app = create_app(review, port)
    server = make_server(LOOPBACK, port, app, threaded=True, request_handler=Handler, fd=listener.fileno())
    listener.close()
    return server


def _count(reviews: ReviewFile) -> str:
    from flair.curation.reviews import NO_MARK

    found = reviews.read()
    photos = sum(found.photo_mark(image_id) != NO_MARK for image_id in found.photos)
    pairs = sum(found.pair_mark(*key) != NO_MARK for key in found.pairs)
    return f"{photos:,} photos and {pairs:,} pairs marked"


def _user_name() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "reviewer"


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = make_parser("python -m flair.review", DESCRIPTION)
    add = parser.add_argument
    add(
        "--duplicates",
        type=path_flag,
        metavar="DIR",
        help="--output_dir of flair.near_duplicates: groups to compare (default: none)",
    )
    add(
        "--testset",
        type=path_flag,
        metavar="FILE",
        help="manifest of flair.sample_testset: a filter for its photos (default: none)",
    )
    add(
        "--reviews",
        type=path_flag,
        default="reviews.json",
        metavar="FILE",
        help="where marks are kept (default: reviews.json)",
    )
    add("--reviewer", metavar="NAME", help="name written beside marks; the page can change it (default: your login)")
    add("--port", type=port_number, default=DEFAULT_PORT, help=f"0: any that is free (default: {DEFAULT_PORT})")
    add(
        "--output_file",
        was="export",
        type=path_flag,
        metavar="FILE.json",
        help="serve nothing: write the near duplicates, corrected by the marks of --reviews, in the form "
        "that --exclude reads (default: serve the page)",
    )
    flags = parser.parse_args(argv)
    if flags.output_file and not flags.duplicates:
        parser.error("--output_file needs --duplicates=DIR")
    return flags


if __name__ == "__main__":
    command.run(main, stopped=command.CONTINUES)
