"""Chooses other items than the best with known propensities. Pure: reads the log-odds of a ranked list and returns
positions in it. Knows nothing of items, rules or requests."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from apps.recommend.rules.schemas import Exploration

Positions = NDArray[np.int64]


def explore(
    log_odds: NDArray[np.float64], slots: int, policy: Exploration, rng: np.random.Generator
) -> tuple[Positions, NDArray[np.float64]]:
    """Returns which positions of the ranked list fill the `slots`, and the propensity of each.

    log_odds: of the ranked list, best first, shape [L]; the first `slots` are what would be shown without exploration.
    Returns at most `slots` distinct positions. The propensity of epsilon is the probability of this item in this slot;
    that of plackett_luce is conditional on the items above it, so that the product is that of the whole slate.

    >>> positions, propensities = explore(np.zeros(3), 3, Exploration(policy="epsilon"), np.random.default_rng(1))
    >>> positions.tolist(), propensities.tolist()
    ([0, 1, 2], [1.0, 1.0, 1.0])
    """
    slots = min(slots, len(log_odds))
    pool = min(len(log_odds) - slots, policy.pool)
    if policy.policy == "epsilon":
        return _epsilon(slots, pool, policy.epsilon, rng)
    return _plackett_luce(log_odds[: slots + pool] / policy.temperature, slots, rng)


def _epsilon(slots: int, pool: int, epsilon: float, rng: np.random.Generator) -> tuple[Positions, NDArray[np.float64]]:
    """Gives each slot a ticket of its own: a random one-to-one map of slots to tickets, of which the first `pool`
    stand for items. By symmetry each item has exactly the probability epsilon / tickets in each slot."""
    positions, propensities = np.arange(slots), np.ones(slots)
    if not pool or not slots:
        return positions, propensities
    ticket_count = max(pool, slots)
    tickets = rng.permutation(ticket_count)[:slots]
    explores = (rng.random(slots) < epsilon) & (tickets < pool)
    positions[explores] = slots + tickets[explores]
    propensities[:] = np.where(explores, epsilon / ticket_count, 1 - epsilon * pool / ticket_count)
    return positions, propensities


def _plackett_luce(
    utilities: NDArray[np.float64], slots: int, rng: np.random.Generator
) -> tuple[Positions, NDArray[np.float64]]:
    """Samples without replacement by the Gumbel trick (Plackett 1975)."""
    if not slots:
        return np.empty(0, dtype=np.int64), np.empty(0)
    order: NDArray[Any] = np.argsort(-(utilities + rng.gumbel(size=len(utilities))))
    weights = np.exp(utilities[order] - utilities.max())
    # What is left before each draw; summed from the end, so that small weights are not lost below large ones.
    left = np.cumsum(weights[::-1])[::-1]
    return order[:slots], np.maximum(weights[:slots] / left[:slots], np.finfo(float).tiny)
