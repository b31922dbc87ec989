"""Work in several processes or threads that ends when it is told to.

What enters is a function and what to call it with. What leaves is the results in order; a signal or an error ends all
workers, and none outlives its parent.
"""

__all__ = ["processes", "stopping", "threads"]
