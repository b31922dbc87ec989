"""What checks of photos and of record files share: comparing users and photos, in several processes."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple, TypeVar

from flair.checks.findings import Check
from flair.dataset.images import PhotoError
from flair.dataset.metadata import Record
from flair.parallel.processes import batches, map_in_order
from flair.terminal.progress import Progress

_PHOTOS_PER_TASK = 512

Context = TypeVar("Context")
Item = TypeVar("Item")
Key = tuple[str, str]  # a partition and a name in it


class Findings(NamedTuple):
    """Examples of damaged records, of other ids and labels than the metadata's, and of other photos."""

    damaged: list[str]
    different: list[str]
    wrong_photos: list[str]

    def add(self, record: Record, is_same: bool, has_photo: Callable[[], bool]) -> None:
        """Adds the photo of `record` if its ids and labels are others, and if `has_photo` says that it is another."""
        where = f"image {record.image_id} of user {record.user_id}"
        if not is_same:
            self.different.append(where)
        try:
            if not has_photo():
                self.wrong_photos.append(where)
        except PhotoError:
            pass  # counted by the checks of the photos


def compare_names(expected: Sequence[Key], found: Collection[Key], text: str, check: Check) -> None:
    """Counts a failure for each name that is missing or does not belong there; `text` is how one is shown."""
    check.checked = len(expected)
    for key in expected:
        if key not in found:
            check.fail(f"{text.format(*key)} is missing")
    for key in sorted(set(found) - set(expected)):
        check.fail(f"{text.format(*key)} does not belong there")


def compare_photos(
    title: str,
    find: Callable[[Context, list[Item]], Sequence[Sequence[str]]],
    context: Context,
    items: Sequence[Item],
    size: Callable[[Item], int],
    checks: Sequence[Check],
    num_workers: int,
) -> None:
    """Adds to each check the examples that `find` gives of it; `checks[0]` counts items, the others their photos."""
    checks[0].checked = len(items)
    tasks = list(batches(items, _PHOTOS_PER_TASK, size))
    with Progress(sum(map(size, items)), title, "photo") as progress:
        # The processes have no name here: an exception in the loop closes them at once, and not after it is reported.
        for task, by_check in zip(tasks, map_in_order(find, context, tasks, min(num_workers, len(tasks))), strict=True):
            for check, examples in zip(checks, by_check, strict=True):
                for example in examples:
                    check.fail(example)
            num_photos = sum(map(size, task))
            for check in checks[1:]:
                check.checked += num_photos
            progress.add(num_photos)
