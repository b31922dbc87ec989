"""Turns a dataset directory into record files: TFRecords (`tfrecord`) or one HDF5 file (`hdf5`).

What enters is a dataset directory, and which users and photos to leave out. What leaves is record files whose bytes
depend on the photos and the flags alone, and readers for them.
"""

__all__ = ["preparation"]
