"""Which photos go to which parquet file."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from flair.dataset.metadata import Record, User
from flair.publishing.parquet import plan_shards

PARTITIONS = ("train", "val", "test", "heldout")
users = st.lists(st.tuples(st.sampled_from(PARTITIONS), st.integers(1, 40)), min_size=1, max_size=30)


@given(users)
def test_files_hold_all_photos_in_order_equally_many_each_and_none_is_empty(drawn: list[tuple[str, int]]) -> None:
    made = [
        User(
            f"{number}@N00",
            partition,
            tuple(Record(f"{number}@N00", f"{number}0{row}", (), (), partition) for row in range(count)),
        )
        for number, (partition, count) in enumerate(drawn)
    ]
    shards = plan_shards(made)
    for partition, most in zip(PARTITIONS, (10, 2, 2, 1), strict=True):
        files = [shard for shard in shards if shard.name.startswith(f"data/{partition}-")]
        records = [record for user in made if user.partition == partition for record in user.records]
        assert [record for file in files for record in file.records] == records
        assert len(files) == min(most, len(records))
        assert [file.name for file in files] == [
            f"data/{partition}-{index:05d}-of-{len(files):05d}.parquet" for index in range(len(files))
        ]
        sizes = {len(file.records) for file in files}
        assert not files or (min(sizes) >= 1 and max(sizes) - min(sizes) <= 1)
        assert all([row for group in file.row_groups() for row in group] == list(file.records) for file in files)
