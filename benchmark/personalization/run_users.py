"""Episodes that are users, from the records to the summary."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmark.data.labels import PhotoTable, read_photo_table
from benchmark.data.records import Records, Task
from benchmark.model import saved as saved_model
from benchmark.model.saved import SavedModel
from benchmark.personalization import flags as personalize_flags
from benchmark.personalization import summary as personalization_summary
from benchmark.personalization.adaptation import Adaptation, batch_positions
from benchmark.personalization.dump import DumpedEpisode, dump_episodes
from benchmark.personalization.log import EpisodeLog, UserResult, to_csv
from benchmark.personalization.users import CHRONOLOGICAL, UserEpisode, UserEpisodes, UserPhotos
from benchmark.run.flags import Flags
from flair.curation.exclusion import Exclusion, read_exclusion
from flair.errors import FlairError
from flair.files import atomic
from flair.statistics.divergence import divergences
from flair.terminal.progress import Progress

ASSUMPTION = "photos are in the order of their Flickr ids, assuming that Flickr numbers them as they arrive"


def run_users(
    flags: Flags,
    records: Records,
    task: Task,
    saved: SavedModel,
    image_size: tuple[int, int],
    folder: Path,
    log: EpisodeLog,
) -> dict[str, Any]:
    """Runs the episodes that are missing in `log`, writes users.csv and figures; the rest of the summary."""
    duplicates = _read_duplicates(flags)
    table = read_photo_table(records, flags.partition)
    episodes = UserEpisodes(
        _user_photos(table),
        flags.split,
        flags.seed,
        flags.num_support,
        flags.num_query,
        None if duplicates is None else duplicates.component_of,
    )
    print(
        f"{len(episodes.eligible):,} of {len(table.users):,} users of {flags.partition} can be episodes"
        + (f"; {ASSUMPTION}" if flags.split == CHRONOLOGICAL else ""),
        flush=True,
    )
    if duplicates is not None:
        known = sum(image_id in duplicates.ids for image_id in table.image_ids)
        print(f"{known:,} of {len(table.image_ids):,} photos have near duplicates in {flags.duplicates}", flush=True)
    if flags.dump_dir is not None:
        _dump(flags, records, task, episodes, duplicates)
    if len(log.results) < flags.num_episodes:
        _adapt(flags, records, task, saved, image_size, episodes, table, log)
    results = [result for result in log.results[: flags.num_episodes] if isinstance(result, UserResult)]
    scores = personalization_summary.score_users(results)
    atomic.write_text(folder / "users.csv", to_csv(personalization_summary.UserScore._fields, scores))
    from benchmark.personalization.figures import draw_users

    draw_users(folder / "figures", scores)
    return {
        "split": flags.split,
        **({"assumption": ASSUMPTION} if flags.split == CHRONOLOGICAL else {}),
        "layers": flags.layers,
        "proximal_strength": flags.proximal_strength,
        "users": {
            "partition": len(table.users),
            "eligible": len(episodes.eligible),
            "used": len(scores),
        },
        **personalization_summary.summarize_users(scores),
    }


def describe(summary: dict[str, Any]) -> list[str]:
    """The summary as a table for people."""
    users = summary["users"]
    lines = [
        f"{users['used']:,} users used of {users['eligible']:,} eligible and {users['partition']:,} in "
        f"{summary['partition']}; {summary['steps']} steps on {summary['layers']}, {summary['split']} split",
        *([f"assumption: {summary['assumption']}"] if "assumption" in summary else []),
        f"{'':<22}{'mean':>9}{'95% interval':>22}{'p10':>9}{'p50':>9}{'p90':>9}",
    ]
    for metric, name in (("loss", "loss"), ("micro_ap", "micro AP")):
        for kind in ("baseline", "adapted", "difference"):
            found = summary[metric][kind]
            percentiles = "".join(_number(found.get(f"p{p}"), 9) for p in (10, 50, 90))
            lines.append(f"{f'{name}, {kind}':<22}{_number(found['mean'], 9)}{_span(found):>22}{percentiles}")
        share = summary[metric]["share_improved"]
        lines.append(f"{f'{name}, improved':<22}{'-' if share is None else f'{share:.1%}':>9} of the users")
    lines.append("difference in loss (above 0: adaptation helps)")
    lines += _group_lines((f"{group['photos']} photos", group) for group in summary["by_user_size"])
    lines += _group_lines(
        (f"divergence {group['least']:.2f} to {group['most']:.2f}", group) for group in summary["by_user_divergence"]
    )
    return lines


def user_divergences(table: PhotoTable, num_labels: int) -> np.ndarray:
    """Jensen-Shannon divergence in bits of each user's coarse labels from the partition's: float64 [users]."""
    counts = np.zeros((len(table.users), num_labels), np.int64)
    for owner, labels in zip(table.owner.tolist(), table.labels, strict=True):
        counts[owner, list(labels)] += 1
    labelled = counts.sum(axis=1) > 0
    found = np.full(len(counts), np.nan)
    found[labelled] = divergences(counts[labelled][:, counts.sum(axis=0) > 0])
    return found


def _read_duplicates(flags: Flags) -> Exclusion | None:
    if flags.duplicates is None:
        return None
    duplicates = read_exclusion(flags.duplicates)
    if duplicates.listed:
        raise FlairError(
            f"--duplicates={flags.duplicates}: is a list of ids; expected {{image_id: [its near duplicates]}}, as "
            "flair.near_duplicates writes it"
        )
    return duplicates


def _user_photos(table: PhotoTable) -> list[UserPhotos]:
    return [
        UserPhotos(user_id, [table.image_ids[row] for row in rows])
        for user_id, rows in zip(table.users, table.rows_by_user(), strict=True)
    ]


def _adapt(
    flags: Flags,
    records: Records,
    task: Task,
    saved: SavedModel,
    image_size: tuple[int, int],
    episodes: UserEpisodes,
    table: PhotoTable,
    log: EpisodeLog,
) -> None:
    from benchmark.personalization.personalizer import Personalizer
    from benchmark.run.interruption import SafePoints

    adaptation = Adaptation(
        flags.layers,
        personalize_flags.steps(flags),
        personalize_flags.learning_rate(flags),
        flags.batch_size,
        flags.proximal_strength,
        flags.clipnorm,
    )
    model = saved_model.load(saved, image_size)
    personalizer = Personalizer(model, task, image_size, adaptation, flags.query_size_limit)
    divergence = dict(zip(table.users, user_divergences(table, len(records.labels)).tolist(), strict=True))
    photos = dict(zip(table.users, np.bincount(table.owner).tolist(), strict=True))
    total, done = flags.num_episodes, len(log.results)
    with SafePoints("episode") as safe_points, Progress(total, "episodes", "episode", done=done) as progress:
        for number in range(done, total):
            episode = episodes.episode(number)
            serialized = records.read_user(flags.partition, episode.user_id)
            support, query = _take(serialized, episode.support), _take(serialized, episode.query)
            positions = batch_positions(len(support), adaptation.steps, adaptation.batch_size, flags.seed, number)
            baseline, adapted = personalizer.run(support, query, positions)
            log.add(
                UserResult(
                    *(number, episode.user_id, photos[episode.user_id], len(support), len(query)),
                    divergence[episode.user_id],
                    *(baseline.loss, adapted.loss, baseline.micro_ap, adapted.micro_ap),
                )
            )
            progress.add()
            if safe_points.requested is not None:
                safe_points.stop()


def _dump(flags: Flags, records: Records, task: Task, episodes: UserEpisodes, duplicates: Exclusion | None) -> None:
    settings = {
        **{name: flags[name] for name in ("episodes", "partition", "split", "seed", "num_support", "num_query")},
        "num_episodes": flags.num_episodes,
        "data": records.digest(),
        "duplicates": None if duplicates is None else duplicates.digest,
    }
    read = partial(_dumped, records, episodes)
    dump_episodes(flags.dump_dir, flags.num_episodes, read, records, task.feature, settings)
    print(f"{flags.dump_dir}: {flags.num_episodes:,} episodes as TFRecords", flush=True)


def _dumped(flags: Flags, records: Records, episodes: UserEpisodes, number: int) -> DumpedEpisode:
    episode: UserEpisode = episodes.episode(number)
    serialized = records.read_user(flags.partition, episode.user_id)
    support, query = _take(serialized, episode.support), _take(serialized, episode.query)
    return DumpedEpisode({"user_id": episode.user_id}, support, query)


def _take(serialized: Sequence[bytes], positions: Iterable[int]) -> list[bytes]:
    return [serialized[position] for position in positions]


def _group_lines(groups: Iterable[tuple[str, dict[str, Any]]]) -> list[str]:
    return [
        f"  {name:<30}{group['users']:>6} {'user ' if group['users'] == 1 else 'users'}"
        f"{_number(group['loss_difference']['mean'], 10)}{_span(group['loss_difference']):>22}"
        for name, group in groups
    ]


def _number(value: float | None, width: int) -> str:
    return f"{'-':>{width}}" if value is None else f"{value:>{width}.4f}"


def _span(found: dict[str, Any]) -> str:
    return "-" if found["low"] is None else f"{found['low']:.4f} to {found['high']:.4f}"
