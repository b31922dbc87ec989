"""What is published about FLAIR: addresses, names and counts, each with its source.

Sources: [paper] Song, Granqvist, Talwar, "FLAIR: Federated Learning Annotated Image Repository", NeurIPS 2022,
https://arxiv.org/abs/2207.08869. [ml-flair] https://github.com/apple/ml-flair, README and download_dataset.py.
[hub] the dataset card of https://huggingface.co/datasets/apple/flair. [counted] counted in labels_and_metadata.json.
"""

from __future__ import annotations

from typing import Final, NamedTuple


class Distribution(NamedTuple):
    """How a count is spread: mean, sample standard deviation, least, quartiles, most."""

    mean: float
    sd: float
    least: float
    lower_quartile: float
    median: float
    upper_quartile: float
    most: float


# [ml-flair] Apple's server. No checksums are published.
APPLE_BASE_URL: Final = "https://docs-assets.developer.apple.com/ml-research/datasets/flair"
NUM_ARCHIVES: Final = 43
METADATA_FILE: Final = "labels_and_metadata.json"
TAXONOMY_FILE: Final = "label_relationship.txt"
ATTRIBUTION_FILE: Final = "ATTRIBUTION.txt"
SMALL_IMAGES_DIR: Final = "small_images"
RAW_IMAGES_DIR: Final = "raw_images"
METADATA_URL_PATH: Final = f"labels/{METADATA_FILE}"
TAXONOMY_URL_PATH: Final = f"labels/{TAXONOMY_FILE}"
MANIFEST_FILE: Final = "manifest.json"  # not published: checksums that a mirror keeps beside its files
SMALL_ARCHIVES_BYTES: Final = 6_000_000_000  # [ml-flair] "~6GB"
RAW_IMAGES_BYTES: Final = 1_200_000_000_000  # [ml-flair] "~1.2TB"

# [paper], [ml-flair] README, "License"
HOMEPAGE: Final = "https://github.com/apple/ml-flair"
LICENSE_URL: Final = "https://creativecommons.org/licenses/by-nc/4.0/"  # of the annotations
DATE_PUBLISHED: Final = "2022-07-18"  # of the paper's first version
CITATION: Final = (
    "@inproceedings{song2022flair, title={FLAIR: Federated Learning Annotated Image Repository}, "
    "author={Song, Congzheng and Granqvist, Filip and Talwar, Kunal}, booktitle={NeurIPS Datasets and Benchmarks}, "
    "year={2022}}"
)

# [hub]
HUGGINGFACE_ENDPOINT: Final = "https://huggingface.co"
HUGGINGFACE_DATASET: Final = "apple/flair"
HUGGINGFACE_REVISION: Final = "227b0632bcf0d35cc87b4107a00a0cc11277af4a"
HUGGINGFACE_SHARDS: Final = {"train": 10, "val": 2, "test": 2}
HUGGINGFACE_BYTES: Final = 5_740_000_000

PARTITIONS: Final = ("train", "val", "test")
HELDOUT: Final = "heldout"  # not published: photos of train users that prepare_tfrecords.py put aside
IMAGE_SIZE: Final = 256  # pixels, both sides, of every photo in small_images

# [ml-flair] README, "Dataset split"
NUM_USERS: Final = {"train": 41_131, "val": 5_141, "test": 5_142}
NUM_IMAGES: Final = {"train": 345_879, "val": 39_239, "test": 43_960}

# [counted] photos of the user who has the most; labels per photo
IMAGES_PER_USER_MAX: Final = 4_151
COARSE_LABELS_PER_IMAGE_MEAN: Final = 2.785
FINE_LABELS_PER_IMAGE_MEAN: Final = 4.615
NUM_FINE_LABELS: Final = 1_628

# [ml-flair] explore_labels.ipynb, its five tables of spreads
COARSE_LABELS_PER_IMAGE: Final = Distribution(2.785249, 1.149218, 1, 2, 3, 4, 9)
FINE_LABELS_PER_IMAGE: Final = Distribution(4.614781, 2.729608, 1, 3, 4, 6, 36)
IMAGES_PER_USER: Final = Distribution(8.345548, 51.275980, 1, 1, 2, 5, 4_151)
COARSE_LABELS_PER_USER: Final = Distribution(4.608647, 2.811109, 1, 3, 4, 6, 17)  # different ones
FINE_LABELS_PER_USER: Final = Distribution(16.813242, 32.666895, 1, 4, 7, 16, 838)  # different ones

# [counted] photos that carry each of the 17 coarse labels, most frequent first
COARSE_LABEL_COUNTS: Final = {
    "structure": 228_923,
    "equipment": 225_862,
    "material": 139_733,
    "outdoor": 131_322,
    "plant": 123_363,
    "food": 110_792,
    "animal": 68_858,
    "liquid": 68_677,
    "art": 37_230,
    "interior_room": 32_042,
    "light": 11_326,
    "recreation": 5_651,
    "celebration": 3_769,
    "fire": 3_011,
    "music": 2_571,
    "games": 1_093,
    "religion": 866,
}
COARSE_LABELS: Final = tuple(sorted(COARSE_LABEL_COUNTS))

# [ml-flair] explore_labels.ipynb: photos that carry each of the 20 most frequent fine-grained labels
HEAD_FINE_LABEL_COUNTS: Final = {
    "wood_processed": 82_336,
    "material": 74_807,
    "structure": 61_517,
    "grass": 44_741,
    "plate": 42_392,
    "plant": 42_009,
    "blue_sky": 41_043,
    "foliage": 40_793,
    "cloudy": 36_225,
    "tree": 33_984,
    "textile": 33_709,
    "building": 32_349,
    "rocks": 28_850,
    "container": 25_189,
    "land": 24_715,
    "sky": 24_669,
    "fence": 24_249,
    "food": 23_752,
    "interior_room": 23_254,
    "vegetation": 23_106,
}


def small_archive_url_path(index: int) -> str:
    """Path of a small-image archive below the base URL.

    >>> small_archive_url_path(7)
    'images/small/small_images-07.tar.gz'
    """
    return f"images/small/small_images-{index:02d}.tar.gz"


def raw_archive_url_path(index: int) -> str:
    """Path of a raw-image archive below the base URL.

    >>> raw_archive_url_path(42)
    'images/raw/images-42.tar.gz'
    """
    return f"images/raw/images-{index:02d}.tar.gz"


def huggingface_shard(partition: str, index: int) -> str:
    """Path of a parquet shard inside the Hugging Face dataset repository.

    >>> huggingface_shard("val", 1)
    'data/val-00001-of-00002.parquet'
    """
    return f"data/{partition}-{index:05d}-of-{HUGGINGFACE_SHARDS[partition]:05d}.parquet"
