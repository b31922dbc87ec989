"""Compares a dataset directory and the records made from it with what should be in them.

What enters is a dataset directory, a folder of TFRecords, an HDF5 file. What leaves is findings: one line each, as
problems or remarks.
"""

__all__ = ["dataset", "findings", "hdf5", "tfrecords"]
