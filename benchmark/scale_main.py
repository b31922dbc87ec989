"""`python -m benchmark.scale_main`: how long a round takes, and what it sends, on how many machines (docs/scale.md)."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path

from benchmark.run.files import read_json
from benchmark.run.shapes import NUMBER
from benchmark.speed.flags import positive_ints
from benchmark.speed.sizing import Parts, size, table
from flair.errors import FlairError
from flair.terminal import command
from flair.terminal.flags import Number, Parser, positive_int
from flair.terminal.paths import path_flag

# ResNet-18 at 224 pixels, float32, 17 labels, on one core of an AMD EPYC (Zen 5), as `speed_main ray --repeats=2`
# printed it on a host of two.
RESNET18 = Parts(
    photo_seconds=0.057,
    client_overhead=1.1,
    weights_bytes=44_732_724,
    aggregate_bytes=44_732_728,
    merge_seconds=0.004,
    fixed_seconds=0.22,
    worker_bytes=1_800_000_000,
)
_PARTS = dict.fromkeys(Parts._fields, NUMBER)


def main(argv: Sequence[str]) -> int:
    """Parses the flags and prints the table."""
    flags = _parse(argv)
    parts = RESNET18 if flags.parts is None else _read(Path(flags.parts))
    print(
        f"a photo takes a worker {parts.photo_seconds * 1e3:.0f} ms, a client {parts.client_overhead:.1f} photos more; "
        f"{parts.weights_bytes / 1e6:.1f} MB of weights, {parts.aggregate_bytes / 1e6:.1f} MB back from each worker, "
        f"{parts.merge_seconds * 1e3:.0f} ms to add them; {flags.workers_per_machine} workers a machine take "
        f"{flags.workers_per_machine * parts.worker_bytes / 1e9:.1f} GB; {flags.epochs} epochs, at most "
        f"{flags.max_elements_per_client} photos a client, a link of {flags.link_gbit:g} Gbit/s"
    )
    sizes = [
        size(
            parts,
            clients,
            machines,
            flags.workers_per_machine,
            epochs=flags.epochs,
            max_elements=flags.max_elements_per_client,
            link_bytes=flags.link_gbit * 1e9 / 8,
        )
        for clients in flags.clients
        for machines in flags.machines
    ]
    print(table(sizes))
    return 0


def _read(path: Path) -> Parts:
    content = read_json(path, {"parts": _PARTS})
    if content is None:
        raise FlairError(f"--parts={path}: no such file; expected what `benchmark.speed_main ray --output_file` wrote")
    parts = Parts(**{name: content["parts"][name] for name in Parts._fields})
    wrong = next((name for name, value in parts._asdict().items() if not 0 <= value < math.inf), None)
    if wrong is not None or parts.photo_seconds == 0:
        raise FlairError(f"{path}: parts.{wrong or 'photo_seconds'} is not a size or a time; measure it again")
    return parts


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = Parser(
        "python -m benchmark.scale_main", "Computes rounds of FLAIR on clusters of any size from measured parts."
    )
    parser.add_argument(
        "--parts", type=path_flag, metavar="FILE", help="JSON of `speed_main ray` (default: ResNet-18 on Zen 5 cores)"
    )
    parser.add_argument("--clients", type=positive_ints, default=[200, 5000], help="of a round (default: 200,5000)")
    parser.add_argument("--machines", type=positive_ints, default=[1, 10, 100], help="default: 1,10,100")
    parser.add_argument("--workers_per_machine", type=positive_int, default=2, help="default: 2")
    parser.add_argument("--epochs", type=positive_int, default=2, help="passes of a client (default: 2)")
    parser.add_argument("--max_elements_per_client", type=positive_int, default=512, help="photos (default: 512)")
    parser.add_argument(
        "--link_gbit", type=Number(above=0), default=10.0, help="the driver's link, Gbit/s (default: 10)"
    )
    return parser.parse_args(argv)


if __name__ == "__main__":
    command.run(main)
