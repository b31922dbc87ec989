"""The dataset directory as it is published: metadata, photos, taxonomy, and what is known about FLAIR.

What enters is the folder that `download_dataset.py` wrote. What leaves is records of photos by user, and JPEG data
that has been looked at to its last coded bit.
"""

__all__ = ["catalog", "images", "metadata"]
