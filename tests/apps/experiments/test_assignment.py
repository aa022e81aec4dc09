"""Assignments repeat GrowthBook's, follow weights and coverage, and are independent between seeds."""

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apps.experiments.assignment import BUCKETS, assign, bucket

PUBLISHED = [  # GrowthBook's cases.json, "hash", version 2
    ("seed", "a", 0.0505),
    ("seed", "b", 0.2696),
    ("foo", "ab", 0.2575),
    ("foo", "def", 0.2019),
    ("89123klj", "8952klfjas09ujkasdf", 0.124),
    ("90850943850283058242805", "123", 0.7516),
    ("()**(%$##$%#$#", '___)((*":&', 0.0128),
]
UNITS = [f"user-{number}" for number in range(40_000)]


@pytest.mark.parametrize(("seed", "value", "expected"), PUBLISHED)
def test_published_vectors(seed, value, expected):
    assert bucket(seed, value) / BUCKETS == expected


@given(seed=st.text(), value=st.text())
def test_a_bucket_is_in_range_and_stays(seed, value):
    assert 0 <= bucket(seed, value) < BUCKETS
    assert bucket(seed, value) == bucket(seed, value)


def test_buckets_are_uniform():
    counts = [0] * 20
    for unit in UNITS:
        counts[bucket("some-seed", unit) * 20 // BUCKETS] += 1
    expected = len(UNITS) / 20
    chi_squared = sum((count - expected) ** 2 / expected for count in counts)
    assert chi_squared < 43.8  # 19 degrees of freedom, p = 0.001


def test_seeds_assign_units_independently(define):
    first, second = define(seed="first"), define(seed="second")
    both = sum(assign(first, unit).variation == assign(second, unit).variation for unit in UNITS)
    assert abs(both - len(UNITS) / 2) < 4 * math.sqrt(len(UNITS) / 4)


@given(raw=st.lists(st.integers(1, 100), min_size=2, max_size=6), coverage=st.floats(0, 1))
def test_every_bucket_belongs_to_one_variation_or_to_none(define_once, raw, coverage):
    definition = define_once(
        names=[f"v{index}" for index in range(len(raw))],
        weights=[weight / sum(raw) for weight in raw],
        coverage=coverage,
    )
    counts = dict.fromkeys([variation.key for variation in definition.variations], 0)
    for unit in UNITS_BY_BUCKET:
        if assignment := assign(definition, unit):
            counts[assignment.variation] += 1
    for variation in definition.variations:
        assert abs(counts[variation.key] - variation.weight * coverage * BUCKETS_TRIED) <= 2
    if coverage == 1:
        assert sum(counts.values()) == BUCKETS_TRIED


def _one_unit_per_bucket(step: int) -> list[str]:
    """Units whose buckets under seed "s" are 0, step, 2 * step and so on."""
    units: dict[int, str] = {}
    for number in itertools.count():
        index = bucket("s", str(number))
        if index % step == 0:
            units.setdefault(index, str(number))
        if len(units) == BUCKETS // step:
            return [units[index] for index in sorted(units)]
    raise AssertionError


UNITS_BY_BUCKET = _one_unit_per_bucket(100)
BUCKETS_TRIED = len(UNITS_BY_BUCKET)


@pytest.fixture(scope="module")
def define_once():
    from apps.experiments.schemas import ExperimentDefinition

    def make(*, names, weights, coverage):
        variations = [{"key": name, "weight": weight} for name, weight in zip(names, weights, strict=True)]
        return ExperimentDefinition(key="s", seed="s", surface="home", variations=variations, coverage=coverage)

    return make


def test_more_coverage_moves_nobody(define):
    half, whole = define(coverage=0.5), define(coverage=1.0)
    for unit in UNITS[:2_000]:
        before = assign(half, unit)
        assert before is None or before == assign(whole, unit)


def test_decimal_weights_get_their_exact_buckets(define):
    definition = define(names=("a", "b", "c"), weights=(0.1, 0.2, 0.7), seed="s", key="s")
    for unit, expected in zip(UNITS_BY_BUCKET[9:31], ["a"] + ["b"] * 20 + ["c"], strict=True):
        assert assign(definition, unit).variation == expected


def test_a_stopped_experiment_assigns_nobody(define):
    assert assign(define(status="stopped"), "anyone") is None
