"""The FLAIR dataset on disk: download, verify, and turn into HDF5 and TFRecords."""

from flair.parallel import stopping

__version__ = "0.1.0"

if (_command := stopping.starting_command()) is not None:
    stopping.while_starting(_command)
