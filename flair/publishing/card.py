"""The dataset card: `README.md`, whose first lines tell Hugging Face's `datasets` library what is where."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from flair.publishing.croissant import Count, Distributed, describe

DEFAULT_CONFIG = "default"  # of the partitions; each test set has one of its own name
COLUMNS = {  # of the parquet files
    "user_id": "string",
    "image_id": "int64",
    "labels": "strings",
    "partition": "string",
    "fine_grained_labels": "strings",
    "image": "image",
}
_TYPES = {"string": "dtype: string", "int64": "dtype: int64", "strings": "sequence: string", "image": "dtype: image"}
_TEXT = """\
# FLAIR

{description}

```python
import datasets

photos = datasets.load_dataset("path/of/this/folder", split="train")
photos[0]["user_id"], photos[0]["labels"], photos[0]["image"]
```

Photos of a user follow one another. `partition` is the part of the split by user; `croissant.json` has the checksum of
every file. Please cite *FLAIR: Federated Learning Annotated Image Repository*, Song, Granqvist, Talwar, NeurIPS 2022,
https://arxiv.org/abs/2207.08869.
"""


def dataset_card(counts: Mapping[str, Count], testsets: Mapping[str, int], files: Sequence[Distributed]) -> str:
    """The card of an export: `counts` by partition, photos of each test set by its name, all parquet files."""
    splits = {partition: (f"data/{partition}-*.parquet", count.photos) for partition, count in counts.items()}
    configs = {DEFAULT_CONFIG: splits}
    configs |= {name: {"test": (f"testsets/{name}.parquet", number)} for name, number in testsets.items()}
    lines = ["---", "license: cc-by-nc-4.0", "pretty_name: FLAIR", "task_categories:", "- image-classification"]
    lines.append("configs:")
    for config, parts in configs.items():
        lines += [f"- config_name: {json.dumps(config)}", "  data_files:"]
        for split, (path, _) in parts.items():
            lines += [f"  - split: {split}", f"    path: {json.dumps(path)}"]
    features = [line for name, kind in COLUMNS.items() for line in (f"  - name: {name}", f"    {_TYPES[kind]}")]
    lines.append("dataset_info:")
    for config, parts in configs.items():
        lines += [f"- config_name: {json.dumps(config)}", "  features:", *features, "  splits:"]
        for split, (path, number) in parts.items():
            size = sum(file.size for file in files if file.name.startswith(path.partition("*")[0]))
            lines += [f"  - name: {split}", f"    num_bytes: {size}", f"    num_examples: {number}"]
    return "\n".join([*lines, "---", "", _TEXT.format(description=describe(counts))])
