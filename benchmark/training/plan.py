"""What a dry run plans for, how long that will take, and the lines it prints; imports nothing heavy."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from benchmark.data.records import Records
from benchmark.run import machine
from flair.dataset.catalog import NUM_IMAGES, NUM_USERS, PARTITIONS
from flair.errors import FlairError
from flair.terminal.progress import duration

_NAME_WIDTH = 12
_HOURS_IN_DAYS = 48  # longer durations are said in days


class Population(NamedTuple):
    """The users and photos of each partition that a training is planned for, and why they are not the records' own."""

    users: dict[str, int]
    photos: dict[str, int]
    note: str = ""


def population_of(records: Records, num_users: int | None, cohort: int = 1) -> Population:
    """The population to plan for.

    Args:
      records: the prepared records.
      num_users: training users to plan for, the photos scaled alike; 41,131 has FLAIR's published counts. None: those
        of the records, or FLAIR's where the records hold fewer than a cohort.
      cohort: users that a round needs.
    """
    users = {partition: len(records.users(partition)) for partition in PARTITIONS}
    photos = {partition: records.num_photos(partition) for partition in PARTITIONS}
    held = f"the records hold {users['train']:,} training users"
    if num_users is None and users["train"] >= cohort:
        return Population(users, photos)
    if num_users is not None and num_users < cohort:
        raise FlairError(f"--num_users={num_users}: fewer than the {cohort:,} of --clients_per_round")
    if num_users is None and cohort > NUM_USERS["train"]:
        raise FlairError(f"--clients_per_round={cohort}: {held}; give at most that many")
    if num_users in (None, NUM_USERS["train"]):
        reason = "" if num_users else f", fewer than --clients_per_round={cohort}, so training on them would be refused"
        return Population(dict(NUM_USERS), dict(NUM_IMAGES), f"FLAIR's published counts; {held}{reason}")
    assert num_users is not None
    factor = num_users / users["train"]
    scaled = [{name: round(count * factor) for name, count in counts.items()} for counts in (users, photos)]
    return Population(scaled[0], scaled[1], f"--num_users; {held}, all counts are scaled by {factor:.4g}")


class Part(NamedTuple):
    """A part of a training: `times` times `seconds` each, as `what` says."""

    what: str
    times: int
    seconds: float


def time_lines(parts: Sequence[Part], measured: str) -> list[str]:
    """The estimate, its parts and what was measured for it, as lines of the plan.

    >>> for line in time_lines([Part("rounds", 5000, 120.0), Part("evaluations", 500, 30.0)], "one round"): print(line)
    time:       about 7.1 days, if nothing else runs here
                = 5,000 rounds x 2 min 0 s
                + 500 evaluations x 30.0 s
                measured just now: one round
    """
    total = sum(part.times * part.seconds for part in parts)
    rows = [f"about {long_duration(total)}, if nothing else runs here"]
    for number, part in enumerate(parts):
        rows.append(f"{'+' if number else '='} {part.times:,} {part.what} x {_seconds(part.seconds)}")
    return entry("time", *rows, f"measured just now: {measured}")


def entry(name: str, *rows: str) -> list[str]:
    """`name:` and its value, further rows below the first one.

    >>> entry("rounds", "5,000", "evaluated every 10")
    ['rounds:     5,000', '            evaluated every 10']
    """
    return [f"{f'{name}:' if number == 0 else '':<{_NAME_WIDTH}}{row}" for number, row in enumerate(rows)]


def data_lines(population: Population, records_name: str) -> list[str]:
    """Where the records are and how many users and photos each partition has."""
    counts = (f"{name} {population.users[name]:,} users, {population.photos[name]:,} photos" for name in PARTITIONS)
    notes = [population.note] if population.note else []
    return entry("records", records_name) + entry("data", "; ".join(counts), *notes)


def long_duration(seconds: float) -> str:
    """As `flair.terminal.progress.duration`, with days.

    >>> long_duration(90), long_duration(1_000_000)
    ('1 min 30 s', '11.6 days')
    """
    return f"{seconds / 86_400:,.1f} days" if seconds > 3600 * _HOURS_IN_DAYS else duration(seconds)


def rate(per_second: float) -> str:
    """A speed with three digits or more.

    >>> rate(31.4159), rate(3333.3)
    ('31.4', '3,333')
    """
    return f"{per_second:,.0f}" if per_second >= 100 else f"{per_second:.3g}"


def print_plan(program: str, lines: Iterable[str]) -> None:
    """Prints the plan with its heading, the machine and what to type next."""
    print(f"dry run of {program}: built, measured on a few throw-away steps; nothing trained, nothing written")
    print("\n".join([*lines, *entry("machine", *machine.header().splitlines()[:1])]))
    print("next: the same command without --dry_run and --num_users")


def _seconds(seconds: float) -> str:
    return f"{seconds:.3g} s" if seconds < 10 else duration(seconds)
