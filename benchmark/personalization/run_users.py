"""Adapts a model to the users of a partition, one per episode, and summarizes what that brings."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmark.data.labels import PhotoTable, read_photo_table
from benchmark.model import saved as saved_model
from benchmark.personalization import summary as personalization_summary
from benchmark.personalization.adaptation import Adaptation, batch_positions
from benchmark.personalization.dump import DumpedEpisode
from benchmark.personalization.log import EpisodeResult, UserResult
from benchmark.personalization.runner import RunConfig
from benchmark.personalization.users import CHRONOLOGICAL, UserEpisode, UserEpisodes, UserPhotos
from flair.curation.exclusion import Exclusion, read_exclusion
from flair.errors import FlairError
from flair.files import atomic
from flair.statistics.divergence import divergences
from flair.terminal.table import Columns

ASSUMPTION = "photos are in the order of their Flickr ids, assuming that Flickr numbers them as they arrive"


@dataclass(frozen=True)
class UsersConfig:
    """How users are divided (see `UserEpisodes`; `duplicates` is a file), and how the model adapts to them."""

    split: str
    num_support: int | None
    num_query: int | None
    duplicates: str | None
    adaptation: Adaptation
    query_size_limit: int


class Users:
    """The users of a partition as episodes; says how many can be."""

    def __init__(self, config: RunConfig, of_users: UsersConfig) -> None:
        self._config, self._of_users = config, of_users
        self._duplicates = _read_duplicates(of_users.duplicates)
        self._table = table = read_photo_table(config.records, config.partition)
        users = [
            UserPhotos(user_id, [table.image_ids[row] for row in rows])
            for user_id, rows in zip(table.users, table.rows_by_user(), strict=True)
        ]
        self._episodes = UserEpisodes(
            users,
            of_users.split,
            config.seed,
            of_users.num_support,
            of_users.num_query,
            None if self._duplicates is None else self._duplicates.component_of,
        )
        print(
            f"{len(self._episodes.eligible):,} of {len(table.users):,} users of {config.partition} can be episodes"
            + (f"; {ASSUMPTION}" if of_users.split == CHRONOLOGICAL else ""),
            flush=True,
        )
        if self._duplicates is not None:
            known, total = sum(image_id in self._duplicates.ids for image_id in table.image_ids), len(table.image_ids)
            print(f"{known:,} of {total:,} photos have near duplicates in {of_users.duplicates}", flush=True)

    def dump_settings(self) -> dict[str, Any]:
        return {
            "episodes": "users",
            "partition": self._config.partition,
            "split": self._of_users.split,
            "seed": self._config.seed,
            "num_support": self._of_users.num_support,
            "num_query": self._of_users.num_query,
            "num_episodes": self._config.num_episodes,
            "data": self._config.records.digest(),
            "duplicates": None if self._duplicates is None else self._duplicates.digest,
        }

    def dumped(self, number: int) -> DumpedEpisode:
        episode = self._episodes.episode(number)
        return DumpedEpisode({"user_id": episode.user_id}, *self._photos_of(episode))

    def prepare(self, folder: Path) -> Callable[[int], EpisodeResult]:
        """Loads the model; returns what adapts it to the user of an episode and scores both on the same photos."""
        # TensorFlow takes seconds to load; a run whose episodes are all in the log goes without.
        from benchmark.personalization.personalizer import Personalizer

        config, adaptation, table = self._config, self._of_users.adaptation, self._table
        model = saved_model.load(config.model, config.image_size)
        inputs, has_features = config.inputs(model), config.feature_dir is not None
        personalizer = Personalizer(model, adaptation, has_features, self._of_users.query_size_limit)
        divergence = dict(zip(table.users, user_divergences(table, len(config.records.labels)).tolist(), strict=True))
        photos = {user.user_id: len(user.image_ids) for user in self._episodes.eligible}

        def run_episode(number: int) -> UserResult:
            episode = self._episodes.episode(number)
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

        of_users = self._of_users
        scores = personalization_summary.score_users([one for one in results if isinstance(one, UserResult)])
        atomic.write_csv(folder / "users.csv", [personalization_summary.UserScore._fields, *scores])
        draw_users(folder / "figures", scores)
        return {
            "split": of_users.split,
            **({"assumption": ASSUMPTION} if of_users.split == CHRONOLOGICAL else {}),
            "trainable": of_users.adaptation.trainable,
            "proximal_strength": of_users.adaptation.proximal_strength,
            "users": {
                "partition": len(self._table.users),
                "eligible": len(self._episodes.eligible),
                "used": len(scores),
            },
            **personalization_summary.summarize_users(scores),
        }

    def _photos_of(self, episode: UserEpisode) -> tuple[list[bytes], list[bytes]]:
        """Serialized examples of support and query."""
        serialized = self._config.records.read_user(self._config.partition, episode.user_id)
        return [serialized[row] for row in episode.support], [serialized[row] for row in episode.query]


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


def _read_duplicates(path: str | None) -> Exclusion | None:
    if path is None:
        return None
    duplicates = read_exclusion(path)
    if duplicates.listed:
        raise FlairError(
            f"--duplicates={path}: is a list of ids; expected {{image_id: [its near duplicates]}}, as "
            "flair.near_duplicates writes it"
        )
    return duplicates


def _group_lines(groups: Iterable[tuple[str, dict[str, Any]]]) -> list[str]:
    columns = Columns("<32", ">6", "<6", ">10.4f", ">22")
    return [
        columns.line(
            *(f"  {name}", group["users"], " user" if group["users"] == 1 else " users"),
            *(group["loss_difference"]["mean"], span(group["loss_difference"])),
        )
        for name, group in groups
    ]
