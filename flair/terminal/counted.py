"""A number of things in words."""


def counted(count: int, noun: str) -> str:
    """The number and the noun, which takes an s unless it is one.

    >>> counted(1, "round"), counted(5000, "round")
    ('1 round', '5,000 rounds')
    """
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
