"""Makes a miniature FLAIR from a seed: users, labels, taxonomy, photos, archives.

What enters is a number of users or photos and a seed. What leaves is a dataset directory in FLAIR's layout, and
archives of it as Apple's server has them.
"""

__all__ = ["archives", "dataset", "files", "photos", "population", "taxonomy"]
