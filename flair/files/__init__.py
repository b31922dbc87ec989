"""Files that appear whole or not at all, and reading files that may be damaged or hostile.

What enters is bytes, rows, JSON or text, and the path where they belong. What leaves is a finished file under that
path, or one line that says what is wrong with the file that lies there.
"""

__all__ = [
    "atomic",
    "checked_json",
    "feature_file",
    "growing",
    "json_text",
    "lock",
    "npy_file",
    "regular_file",
    "text_file",
]
