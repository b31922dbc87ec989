"""The web page on which a person looks at photos and marks them.

What enters is a dataset directory, the groups of near duplicates or a test set, and the marks made so far. What leaves
is `reviews.json`; the page is bound to loopback and escapes what it shows.
"""

__all__ = ["app", "groups", "guard", "index"]
