"""Adapts a model to the users of a partition, one per episode, and summarizes what that brings."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from benchmark.data.labels import PhotoTable
from benchmark.model import saved as saved_model
from benchmark.personalization import summary as personalization_summary
from benchmark.personalization.log import EpisodeLog, UserResult
from benchmark.personalization.runner import RunConfig, run_episodes
from benchmark.personalization.sources import UserEpisodeSource
from benchmark.personalization.users import CHRONOLOGICAL, Adaptation, batch_positions
from flair.files import atomic
from flair.statistics.divergence import divergences
from flair.terminal.table import Columns

ASSUMPTION = "photos are in the order of their Flickr ids, assuming that Flickr numbers them as they arrive"


def run(
    config: RunConfig,
    episodes: UserEpisodeSource,
    adaptation: Adaptation,
    query_size_limit: int,
    log: EpisodeLog,
    folder: Path,
) -> dict[str, Any]:
    """Adapts the model to the users of a partition, and writes users.csv and the figures into the run's folder.

    `query_size_limit` is as in `Personalizer`. Returns means over users, differences, and for whom adaptation helps.
    """
    table, drawn = episodes.table, episodes.drawn
    print(
        f"{len(drawn.eligible):,} of {len(table.users):,} users of {episodes.partition} can be episodes"
        + (f"; {ASSUMPTION}" if episodes.split == CHRONOLOGICAL else ""),
        flush=True,
    )
    if episodes.duplicates is not None:
        known = sum(image_id in episodes.duplicates.ids for image_id in table.image_ids)
        print(
            f"{known:,} of {len(table.image_ids):,} photos have near duplicates in the file of --duplicates", flush=True
        )

    def prepare() -> Callable[[int], UserResult]:
        # TensorFlow takes seconds to load; a run whose episodes are all in the log goes without.
        from benchmark.personalization.personalizer import Personalizer

        model = saved_model.load(config.model, config.image_size)
        inputs, has_features = config.inputs(model, config.partition), config.feature_dir is not None
        personalizer = Personalizer(model, adaptation, has_features, query_size_limit)
        divergence = dict(zip(table.users, user_divergences(table, len(config.records.labels)).tolist(), strict=True))
        photos = {user.user_id: len(user.image_ids) for user in drawn.eligible}

        def run_episode(number: int) -> UserResult:
            user, support, query = drawn.episode(number)
            positions = batch_positions(len(support), adaptation.steps, adaptation.batch_size, config.seed, number)
            baseline, adapted = personalizer.run(inputs.user(config.partition, user), support, query, positions)
            scores = baseline.loss, adapted.loss, baseline.micro_ap, adapted.micro_ap
            return UserResult(number, user, photos[user], len(support), len(query), divergence[user], *scores)

        return run_episode

    results = run_episodes(config, episodes, prepare, log)
    from benchmark.personalization.figures import draw_users  # Matplotlib, which only the end needs

    scores = personalization_summary.score_users([one for one in results if isinstance(one, UserResult)])
    atomic.write_csv(folder / "users.csv", [personalization_summary.UserScore._fields, *scores])
    draw_users(folder / "figures", scores)
    return {
        "split": episodes.split,
        **({"assumption": ASSUMPTION} if episodes.split == CHRONOLOGICAL else {}),
        "trainable": adaptation.trainable,
        "proximal_strength": adaptation.proximal_strength,
        "users": {"partition": len(table.users), "eligible": len(drawn.eligible), "used": len(scores)},
        **personalization_summary.summarize_users(scores),
    }


def describe(summary: dict[str, Any]) -> list[str]:
    """The summary as a table for people."""
    users = summary["users"]
    columns = Columns("<22", ">9.4f", ">22", ">9.4f", ">9.4f", ">9.4f")
    lines = [
        f"{users['used']:,} users used of {users['eligible']:,} eligible and {users['partition']:,} in "
        f"{summary['partition']}; {summary['steps']} steps on {summary['trainable']}, {summary['split']} split",
        *([f"assumption: {summary['assumption']}"] if "assumption" in summary else []),
        columns.line("", "mean", "95% interval", "p10", "p50", "p90"),
    ]
    for metric, name in (("loss", "loss"), ("micro_ap", "micro AP")):
        for kind in ("baseline", "adapted", "difference"):
            found = summary[metric][kind]
            percentiles = (found.get(f"p{p}") for p in (10, 50, 90))
            lines.append(columns.line(f"{name}, {kind}", found["mean"], span(found), *percentiles))
        share = summary[metric]["share_improved"]
        lines.append(f"{f'{name}, improved':<22}{'-' if share is None else f'{share:.1%}':>9} of the users")
    lines.append("difference in loss (above 0: adaptation helps)")
    lines += _group_lines((f"{group['photos']} photos", group) for group in summary["by_user_size"])
    lines += _group_lines(
        (f"divergence {group['least']:.2f} to {group['most']:.2f}", group) for group in summary["by_user_divergence"]
    )
    return lines


def span(found: dict[str, Any]) -> str | None:
    """An interval as text, None for a mean without interval."""
    return None if found["low"] is None else f"{found['low']:.4f} to {found['high']:.4f}"


def user_divergences(table: PhotoTable, num_labels: int) -> np.ndarray:
    """Jensen-Shannon divergence in bits of each user's coarse labels from the partition's: float64 [users]."""
    counts = np.zeros((len(table.users), num_labels), np.int64)
    for owner, labels in zip(table.owner.tolist(), table.labels, strict=True):
        counts[owner, list(labels)] += 1
    labelled = counts.sum(axis=1) > 0
    found = np.full(len(counts), np.nan)
    found[labelled] = divergences(counts[labelled][:, counts.sum(axis=0) > 0])
    return found


def _group_lines(groups: Iterable[tuple[str, dict[str, Any]]]) -> list[str]:
    columns = Columns("<32", ">6", "<6", ">10.4f", ">22")
    return [
        columns.line(
            *(f"  {name}", group["users"], " user" if group["users"] == 1 else " users"),
            *(group["loss_difference"]["mean"], span(group["loss_difference"])),
        )
        for name, group in groups
    ]
