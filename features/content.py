"""What an item is before anyone has bought it: title, price and category as the tokens that the item tower reads.

Training and whoever gives a new item its vector both call this. Knows nothing of models.
"""

import re
import zlib
from collections.abc import Sequence
from math import log2

import numpy as np
from numpy.typing import NDArray

WORD = re.compile(r"[a-z0-9]+")


def tokens_of(title: str, price: float, category: str, *, buckets: int) -> list[int]:
    """Words of the title, the price to half an octave and the category, hashed into 0 ... buckets - 1.

    The hashing trick; CRC-32 is the same everywhere. A price of 0 and an empty category are not known.

    >>> known = tokens_of("Red retrospot mug", 2.5, "", buckets=4096)
    >>> known == tokens_of("RED RETROSPOT MUG", 2.6, "", buckets=4096), len(known)
    (True, 4)
    """
    tokens = WORD.findall(title.lower())
    tokens += [f"price={round(2 * log2(price))}"] if price > 0 else []
    tokens += [f"category={category.lower()}"] if category else []
    return [zlib.crc32(token.encode()) % buckets for token in tokens]


def padded(bags: Sequence[Sequence[int]]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """What the exported item tower reads: tokens int64 [B, L], weights float32 [B, L] that sum to 1 in each row, or to
    0 in that of an item without content."""
    tokens = np.zeros((len(bags), max((1, *map(len, bags)))), dtype=np.int64)
    weights = np.zeros(tokens.shape, dtype=np.float32)
    for row, bag in enumerate(bags):
        tokens[row, : len(bag)] = bag
        weights[row, : len(bag)] = 1 / max(1, len(bag))
    return tokens, weights
