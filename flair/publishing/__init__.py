"""FLAIR for other people's tools: parquet files in Hugging Face's layout, and descriptions in Croissant.

What enters is a dataset directory, record files or a test set. What leaves is a folder that `datasets.load_dataset` and
`download_dataset.py --source=huggingface` read, or a `croissant.json` that says what is there, with checksums.
"""

__all__ = ["description", "parquet"]
