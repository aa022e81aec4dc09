"""How counts read in sentences, on the console's pages and in what commands print."""


def counted(count: int, noun: str) -> str:
    """Returns the count and its noun, in the plural unless the count is 1.

    >>> counted(1, "day"), counted(0, "event"), counted(1_234, "dead letter")
    ('1 day', '0 events', '1,234 dead letters')
    """
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
