"""Adapts a model to the users of a partition, one per episode, and summarizes what that brings."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmark.data.labels import PhotoTable
from benchmark.model import saved as saved_model
from benchmark.personalization import summary as personalization_summary
from benchmark.personalization.adaptation import Adaptation, batch_positions
from benchmark.personalization.log import EpisodeResult, UserResult
from benchmark.personalization.runner import RunConfig
from benchmark.personalization.sources import UserEpisodeSource
from benchmark.personalization.users import CHRONOLOGICAL
from flair.files import atomic
from flair.statistics.divergence import divergences
from flair.terminal.table import Columns

ASSUMPTION = "photos are in the order of their Flickr ids, assuming that Flickr numbers them as they arrive"


class Users:
    """The users of a partition as episodes, and how the model adapts to them; says how many can be.

    `query_size_limit` is as in `Personalizer`.
    """

    def __init__(
        self, config: RunConfig, episodes: UserEpisodeSource, adaptation: Adaptation, query_size_limit: int
    ) -> None:
        self.episodes = episodes
        self._config, self._adaptation, self._query_size_limit = config, adaptation, query_size_limit
        print(
            f"{len(episodes.drawn.eligible):,} of {len(episodes.table.users):,} users of {episodes.partition} can be "
            "episodes" + (f"; {ASSUMPTION}" if episodes.split == CHRONOLOGICAL else ""),
            flush=True,
        )
        if episodes.duplicates is not None:
            ids = episodes.table.image_ids
            known = sum(image_id in episodes.duplicates.ids for image_id in ids)
            print(f"{known:,} of {len(ids):,} photos have near duplicates in the file of --duplicates", flush=True)

    def prepare(self, folder: Path) -> Callable[[int], EpisodeResult]:
        """Loads the model; returns what adapts it to the user of an episode and scores both on the same photos."""
        # TensorFlow takes seconds to load; a run whose episodes are all in the log goes without.
        from benchmark.personalization.personalizer import Personalizer

        config, adaptation, table = self._config, self._adaptation, self.episodes.table
        model = saved_model.load(config.model, config.image_size)
        inputs, has_features = config.inputs(model, config.partition), config.feature_dir is not None
        personalizer = Personalizer(model, adaptation, has_features, self._query_size_limit)
        divergence = dict(zip(table.users, user_divergences(table, len(config.records.labels)).tolist(), strict=True))
        photos = {user.user_id: len(user.image_ids) for user in self.episodes.drawn.eligible}

        def run_episode(number: int) -> UserResult:
            episode = self.episodes.drawn.episode(number)
            user, sizes = episode.user_id, (len(episode.support), len(episode.query))
            positions = batch_positions(sizes[0], adaptation.steps, adaptation.batch_size, config.seed, number)
            baseline, adapted = personalizer.run(
                inputs.user(config.partition, user), episode.support, episode.query, positions
            )
            scores = baseline.loss, adapted.loss, baseline.micro_ap, adapted.micro_ap
            return UserResult(number, user, photos[user], *sizes, divergence[user], *scores)

        return run_episode

    def summarize(self, results: Sequence[EpisodeResult], folder: Path) -> dict[str, Any]:
        """Writes users.csv and the figures; returns means over users, differences, and for whom adaptation helps."""
        from benchmark.personalization.figures import draw_users  # Matplotlib, which only the end needs

        episodes = self.episodes
        scores = personalization_summary.score_users([one for one in results if isinstance(one, UserResult)])
        atomic.write_csv(folder / "users.csv", [personalization_summary.UserScore._fields, *scores])
        draw_users(folder / "figures", scores)
        return {
            "split": episodes.split,
            **({"assumption": ASSUMPTION} if episodes.split == CHRONOLOGICAL else {}),
            "trainable": self._adaptation.trainable,
            "proximal_strength": self._adaptation.proximal_strength,
            "users": {
                "partition": len(episodes.table.users),
                "eligible": len(episodes.drawn.eligible),
                "used": len(scores),
            },
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
