"""Files of features, as the commands write them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from flair.files import feature_file


def write_features(path: Path, values: np.ndarray, image_ids: Sequence[str], about: dict[str, Any]) -> None:
    """Writes features float32 [m, d] of the photos `image_ids`."""
    growing = feature_file.growing(path, (len(values), values.shape[1]), np.dtype(np.float32), about)
    growing.add(values)
    feature_file.finish(growing, path, image_ids, about)
