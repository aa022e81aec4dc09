"""Exploration: the logged propensity is the probability with which it happens."""

from collections import Counter

import numpy as np
import pytest
from scipy.stats import chi2

from apps.recommend.exploration import explore
from apps.recommend.rules.schemas import Exploration

DRAWS = 40_000
P_VALUE = 1e-4
"""A test of a true statement fails once in ten thousand seeds, and the seed is fixed."""


def chi_square_p(counts: dict[object, int], chances: dict[object, float], total: int) -> float:
    """Returns the p-value of Pearson's chi-square of the counts under the chances, rare outcomes taken together."""
    rare = [outcome for outcome, chance in chances.items() if chance * total < 5]
    cells = [(counts.get(outcome, 0), chance * total) for outcome, chance in chances.items() if outcome not in rare]
    if rare:
        rare_count = sum(counts.get(outcome, 0) for outcome in rare)
        cells.append((rare_count, sum(chances[outcome] for outcome in rare) * total))
    statistic = sum((seen - expected) ** 2 / expected for seen, expected in cells if expected > 0)
    return float(chi2.sf(statistic, max(1, len(cells) - 1)))


@pytest.mark.parametrize(("items", "slots", "pool"), [(12, 4, 8), (8, 4, 2), (6, 4, 300), (5, 4, 1)])
def test_each_items_frequency_at_a_position_is_its_epsilon_propensity(items: int, slots: int, pool: int) -> None:
    policy, rng = Exploration(policy="epsilon", epsilon=0.3, pool=pool), np.random.default_rng(5)
    counts: Counter[tuple[int, int]] = Counter()
    propensities: dict[tuple[int, int], float] = {}
    for _ in range(DRAWS):
        rows, chances = explore(np.zeros(items), slots, policy, rng)
        assert len(set(rows.tolist())) == slots
        for slot, (row, chance) in enumerate(zip(rows.tolist(), chances.tolist(), strict=True)):
            assert propensities.setdefault((slot, row), chance) == chance
            counts[slot, row] += 1
    for slot in range(slots):
        in_slot: dict[object, float] = {row: chance for (at, row), chance in propensities.items() if at == slot}
        assert sum(in_slot.values()) == pytest.approx(1)
        observed: dict[object, int] = {row: counts[slot, row] for row in in_slot}  # type: ignore[index]
        assert chi_square_p(observed, in_slot, DRAWS) > P_VALUE


def test_the_frequency_of_a_list_is_the_product_of_its_plackett_luce_propensities() -> None:
    policy, rng = Exploration(policy="plackett_luce", temperature=0.7, pool=2), np.random.default_rng(6)
    log_odds = np.array([1.0, 0.6, 0.1, -0.4])
    counts: Counter[tuple[int, ...]] = Counter()
    propensities: dict[tuple[int, ...], float] = {}
    for _ in range(DRAWS):
        rows, chances = explore(log_odds, 2, policy, rng)
        shown = tuple(rows.tolist())
        assert propensities.setdefault(shown, float(np.prod(chances))) == pytest.approx(float(np.prod(chances)))
        counts[shown] += 1
    assert sum(propensities.values()) == pytest.approx(1)
    assert chi_square_p(dict(counts), dict(propensities), DRAWS) > P_VALUE


def test_the_lower_the_temperature_the_closer_to_the_ranking() -> None:
    log_odds, rng = np.linspace(3, 0, 30), np.random.default_rng(7)

    def best_first(temperature: float) -> float:
        policy = Exploration(policy="plackett_luce", temperature=temperature)
        return float(np.mean([explore(log_odds, 1, policy, rng)[0][0] == 0 for _ in range(2_000)]))

    assert best_first(0.01) > 0.99
    assert best_first(0.01) > best_first(0.3) > best_first(3.0)


@pytest.mark.parametrize("policy", ["epsilon", "plackett_luce"])
def test_nothing_to_show_is_no_error(policy: str) -> None:
    for items, slots in ((0, 5), (5, 0)):
        rows, chances = explore(
            np.zeros(items), slots, Exploration.model_validate({"policy": policy}), np.random.default_rng(1)
        )
        assert (len(rows), len(chances)) == (0, 0)
