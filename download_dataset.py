"""Downloads FLAIR: photos, labels and metadata, from Apple's server, a mirror of it, or Hugging Face."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

from flair.dataset import catalog
from flair.errors import FlairError
from flair.terminal import command
from flair.terminal.flags import Number, Parser, Whole, positive_int
from flair.terminal.paths import path_flag

EPILOG = """\
Stopped or failed, the same command continues at the byte where it was; what is finished is not fetched again.

exit codes:
  0    everything that was asked for is there
  1    something failed; standard error says what and why
  2    wrong usage
  130  interrupted by Ctrl-C (143 by SIGTERM)

environment:
  HTTP_PROXY, HTTPS_PROXY, NO_PROXY   proxies
  REQUESTS_CA_BUNDLE                  certificates to trust in place of the public ones
  HF_ENDPOINT                         a mirror of the hub, for --source=huggingface

The annotations are licensed CC-BY-NC 4.0 by Apple; every photo belongs to its owner.
"""

# Of ml-flair's module of this name, as the last two functions.
DATA_URL = f"{catalog.APPLE_BASE_URL}/"
NUM_IMAGE_BATCHES = catalog.NUM_ARCHIVES
SMALL_IMAGE_URLS = [DATA_URL + catalog.small_archive_url_path(index) for index in range(NUM_IMAGE_BATCHES)]
RAW_IMAGE_URLS = [DATA_URL + catalog.raw_archive_url_path(index) for index in range(NUM_IMAGE_BATCHES)]
LABELS_AND_METADATA_URL = DATA_URL + catalog.METADATA_URL_PATH
LABEL_RELATIONSHIP_URL = DATA_URL + catalog.TAXONOMY_URL_PATH


def main(argv: Sequence[str]) -> int:
    """Parses the flags, downloads, and tells what came of it."""
    flags = _parse(argv)

    from flair.download import huggingface, run
    from flair.download.client import Patience
    from flair.download.plan import DownloadConfig
    from flair.download.source import AppleSource, Source

    source: Source
    if flags.source == "huggingface":
        huggingface.check_pyarrow("--source=huggingface")
        try:
            endpoint = _http_url(os.environ.get("HF_ENDPOINT") or catalog.HUGGINGFACE_ENDPOINT)
        except argparse.ArgumentTypeError as error:
            raise FlairError(f"HF_ENDPOINT: {error}") from None
        source = huggingface.HuggingFaceSource(endpoint)
    else:
        source = AppleSource(flags.base_url or catalog.APPLE_BASE_URL)
    config = DownloadConfig(
        Path(flags.dataset_dir),
        num_workers=flags.num_workers,
        only_metadata=flags.only == "metadata",
        limit_archives=flags.limit_archives,
        raw=flags.download_raw,
        keep_archives=flags.keep_archive_after_decompress,
        patience=Patience(retries=flags.retries, timeout=flags.timeout),
    )
    if config.dataset_dir.exists() and not config.dataset_dir.is_dir():
        raise FlairError(f"--dataset_dir={config.dataset_dir}: is a file; expected a directory, or a new name")
    outcome = run.download(source, config)
    run.print_summary(outcome, source, config)
    return command.EXIT_FAILED if outcome.failed else command.EXIT_OK


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = Parser("download_dataset.py", __doc__, epilog=EPILOG, allow_abbrev=False)
    add = parser.add_argument
    add(
        "--dataset_dir",
        type=path_flag,
        required=True,
        help="folder to put the dataset in; made when missing (required)",
    )
    add(
        "--download_raw",
        action="store_true",
        help="also download the photos in their original size, about 1.2 TB (default: only 256x256 pixels, about 6 GB)",
    )
    add(
        "--keep_archive_after_decompress",
        action="store_true",
        help="keep the archives in --dataset_dir once they are unpacked (default: delete them)",
    )
    add(
        "--source",
        choices=("apple", "huggingface"),
        default="apple",
        help="where from; huggingface needs pyarrow and has no raw photos (default: apple)",
    )
    add(
        "--base_url",
        type=_http_url,
        help=f"address of a mirror of Apple's server (default: {catalog.APPLE_BASE_URL})",
    )
    add("--num_workers", default=4, type=positive_int, help="archives at a time (default: 4)")
    add("--only", choices=("metadata",), help="labels and metadata, no photos (default: everything)")
    add(
        "--limit_archives",
        type=positive_int,
        metavar="N",
        help="only the first N archives, for a first taste (default: all)",
    )
    add(
        "--retries",
        default=6,
        type=Whole(least=0),
        help="tries in a row that bring nothing new before a file is given up; waits double from 1 s to 60 s "
        "(default: 6)",
    )
    add(
        "--timeout",
        default=60.0,
        type=Number(above=0, below=86_400),
        help="seconds without a byte, or with less than 1 kB/s, after which a connection is given up (default: 60)",
    )
    flags = parser.parse_args(argv)
    if flags.source == "huggingface":
        if flags.base_url is not None:
            parser.error("--base_url is for --source=apple; for --source=huggingface set HF_ENDPOINT")
        if flags.download_raw:
            parser.error("--download_raw needs --source=apple: Hugging Face has the small photos only")
    if flags.only == "metadata" and (flags.limit_archives or flags.download_raw):
        parser.error("--only=metadata fetches no photos, so --limit_archives and --download_raw mean nothing with it")
    return flags


def _http_url(text: str) -> str:
    """The address as it is, if requests could be sent to it."""
    try:
        parts = urlsplit(text)
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0 and text.isprintable()
    except ValueError:
        good = False
    if not good or text != text.strip():
        raise argparse.ArgumentTypeError(f"expected an http:// or https:// address, got {text!r:.200}")
    return text


def extract_tar(compressed_path: str, dataset_dir: str, keep_archive_after_decompress: bool) -> None:
    """Unpacks an archive of photos into `small_images` of a dataset folder, or `raw_images` if it is `images-*.tar.gz`.

    All of its photos appear or none; what is not a photo is left out. The archive is then deleted unless it is kept.

    Raises:
      FlairError: the archive is damaged, or holds what no archive of photos does, such as a path that leads elsewhere.
    """
    from flair.download import archive

    archive.extract(Path(compressed_path), Path(dataset_dir), keep_archive_after_decompress)


def decompress_images(dataset_dir: str, keep_archive_after_decompress: bool) -> None:
    """`extract_tar` of every `*.tar.gz` in a dataset folder, one after the other."""
    for path in sorted(Path(dataset_dir).glob("*.tar.gz")):
        extract_tar(str(path), dataset_dir, keep_archive_after_decompress)


if __name__ == "__main__":
    command.run(main, stopped=command.CONTINUES)
