"""One HDF5 file of all photos, grouped by user or by partition, written and read with h5py.

What enters is photos with their labels, or a file that nobody vouches for. What leaves is the file, or its photos by
user after its structure has been checked.
"""

__all__ = ["global_heap", "objects", "reader", "writer"]
