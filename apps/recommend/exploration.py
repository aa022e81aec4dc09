"""Showing other items than the best with known chances. Pure: places of a ranked list in, places and chances out."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from apps.recommend.rules.schemas import Exploration

Places = NDArray[np.int64]


def explore(
    log_odds: NDArray[np.float64], slots: int, policy: Exploration, rng: np.random.Generator
) -> tuple[Places, NDArray[np.float64]]:
    """Which places of the ranked list fill the `slots`, and the chance of each there.

    log_odds: of the ranked list, best first, shape [L]; the first `slots` are what would be shown without
    exploration. Returns at most `slots` distinct places, and for epsilon the chance that this item stood at this
    position; for plackett_luce the chance given the items above it, so that their product is that of the list.

    >>> places, chances = explore(np.zeros(3), 3, Exploration(policy="epsilon"), np.random.default_rng(1))
    >>> places.tolist(), chances.tolist()
    ([0, 1, 2], [1.0, 1.0, 1.0])
    """
    slots = min(slots, len(log_odds))
    pool = min(len(log_odds) - slots, policy.pool)
    if policy.policy == "epsilon":
        return _epsilon(slots, pool, policy.epsilon, rng)
    return _plackett_luce(log_odds[: slots + pool] / policy.temperature, slots, rng)


def _epsilon(slots: int, pool: int, epsilon: float, rng: np.random.Generator) -> tuple[Places, NDArray[np.float64]]:
    """Every position draws a ticket of its own: a random one-to-one map of positions to tickets, of which the first
    `pool` stand for items. By symmetry each item has the chance epsilon / tickets at each position, exactly."""
    places, chances = np.arange(slots), np.ones(slots)
    if not pool or not slots:
        return places, chances
    tickets = max(pool, slots)
    drawn = rng.permutation(tickets)[:slots]
    explores = (rng.random(slots) < epsilon) & (drawn < pool)
    places[explores] = slots + drawn[explores]
    chances[:] = np.where(explores, epsilon / tickets, 1 - epsilon * pool / tickets)
    return places, chances


def _plackett_luce(
    utilities: NDArray[np.float64], slots: int, rng: np.random.Generator
) -> tuple[Places, NDArray[np.float64]]:
    if not slots:
        return np.empty(0, dtype=np.int64), np.empty(0)
    order: NDArray[Any] = np.argsort(-(utilities + rng.gumbel(size=len(utilities))))
    weights = np.exp(utilities[order] - utilities.max())
    # What is left before each draw; summed from the end, so that small weights are not lost below large ones.
    left = np.cumsum(weights[::-1])[::-1]
    return order[:slots], np.maximum(weights[:slots] / left[:slots], np.finfo(float).tiny)
