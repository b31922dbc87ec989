"""Photos and labels as training and evaluation read them, from TFRecords, HDF5 or TFDS.

What enters is the path of records. What leaves is batches of pixels and label vectors: of all photos, of one client,
or in a fixed order.
"""

__all__ = [
    "artificial",
    "augmentation",
    "clients",
    "features",
    "group_orders",
    "inputs",
    "labels",
    "opening",
    "pipeline",
    "records",
    "tfds",
    "tfds_builder",
    "tff_clients",
]
