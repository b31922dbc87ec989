"""Draws runs beside each other on one HTML page.

What enters is run folders. What leaves is figures, and a page that needs no network and escapes what it shows.
"""

__all__ = ["drawing", "figures", "page", "runs"]
