"""The documented name for reading HDF5 files that prepare_dataset.py wrote; the code is in `flair.records.hdf5`."""

from __future__ import annotations

from flair.records.hdf5.reader import HDF5File

__all__ = ["HDF5File"]
