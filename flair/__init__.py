"""The FLAIR dataset on disk: download, verify, and turn into HDF5 and TFRecords."""

__version__ = "0.1.0"
