"""Turns title, price and category into the tokens that both towers read of an item without purchases.

Does not know the models.
"""

import re
import zlib
from math import log2

WORD = re.compile(r"[a-z0-9]+")


def content_tokens(title: str, price: float, category: str, *, buckets: int) -> list[int]:
    """Hashes the words of the title, the price to half an octave and the category into 0 ... buckets - 1.

    The hashing trick; CRC-32 is the same everywhere. A price of 0 and an empty category are unknown.

    >>> known = content_tokens("Red retrospot mug", 2.5, "", buckets=4096)
    >>> known == content_tokens("RED RETROSPOT MUG", 2.6, "", buckets=4096), len(known)
    (True, 4)
    """
    tokens = WORD.findall(title.lower())
    tokens += [f"price={round(2 * log2(price))}"] if price > 0 else []
    tokens += [f"category={category.lower()}"] if category else []
    return [zlib.crc32(token.encode()) % buckets for token in tokens]
