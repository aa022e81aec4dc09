"""Assigns units to variations by a pure function of the definition and the unit's id, so nothing is stored.

The bucket is GrowthBook's hash version 2 (https://docs.growthbook.io/lib/build-your-own, "Hashing"): FNV-1a, 32 bit,
of the decimal digits of the FNV-1a of seed + value. Hashing twice is what makes experiments with different
seeds independent of each other. The ranges are GrowthBook's too, so other SDKs can repeat an assignment.
"""

from itertools import accumulate
from typing import NamedTuple

from apps.experiments.schemas import ExperimentDefinition

BUCKETS = 10_000
_FNV_OFFSET = 0x811C9DC5
_FNV_PRIME = 0x01000193


class Assignment(NamedTuple):
    """The variation of a unit, and the bucket that decided it."""

    variation: str
    bucket: int
    """0 to 9,999."""


def fnv32a(text: str) -> int:
    """Returns FNV-1a over the characters' code points, 0 to 2**32 - 1.

    Code points, not UTF-8 bytes: that is what GrowthBook's SDKs hash.

    >>> hex(fnv32a("a"))
    '0xe40c292c'
    """
    value = _FNV_OFFSET
    for character in text:
        value = ((value ^ ord(character)) * _FNV_PRIME) & 0xFFFFFFFF
    return value


def bucket(seed: str, value: str) -> int:
    """Returns the bucket of a value, 0 to 9,999: always the same for the same seed and value.

    >>> bucket("seed", "a")
    505
    """
    return fnv32a(str(fnv32a(seed + value))) % BUCKETS


def assign(definition: ExperimentDefinition, unit: str) -> Assignment | None:
    """Returns the variation of `unit`; None when it falls outside the coverage or the experiment is stopped.

    Each variation owns the buckets from the sum of the weights before it, as many as weight * coverage:
    raising the coverage adds units and moves none.
    """
    if definition.status != "running":
        return None
    index = bucket(definition.seed, unit)
    weights = [variation.weight for variation in definition.variations]
    for variation, start in zip(definition.variations, accumulate(weights, initial=0.0), strict=False):
        # Rounded, or 0.1 + 0.2 would reach past bucket 2,999.
        low, high = round(start * BUCKETS, 6), round((start + variation.weight * definition.coverage) * BUCKETS, 6)
        if low <= index < high:
            return Assignment(variation.key, index)
    return None
