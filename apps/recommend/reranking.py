"""From ranked candidates to the list that is shown: the rules of the surface, as stages in a fixed order.

Pure: everything that a stage needs to know comes in. Each stage says of what it drops that it did, and why.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import log

import numpy as np
from numpy.typing import NDArray

from apps.recommend.exploration import explore
from apps.recommend.rules.schemas import Diversity, Exploration, SurfaceRules
from features.recommender.candidate_kernels import count_occurrences, isin
from features.recommender.diversity import mmr_order

RowArray = NDArray[np.int64]


@dataclass(slots=True)
class RerankContext:
    """What the stages know of C candidates (rows) and of the visitor."""

    items: NDArray[np.int64]
    """Shape [C]."""
    matches: Callable[[str], NDArray[np.bool_]]
    """Which rows an expression holds for, shape [C]."""
    values_of: Callable[[str, RowArray], list[str]]
    """Of a quota's field: the values of rows."""
    vectors: Callable[[RowArray], NDArray[np.float32]]
    """Unit vectors of rows, shape [len(rows), D]."""
    row_of: Callable[[str], int | None]
    """Row of an item by its id; None where it is no candidate."""
    visited: Callable[[str, float], NDArray[np.bool_]]
    """Which rows the visitor ("bought" or "seen", within so many days), shape [C]."""
    shown: Callable[[float], NDArray[np.int64]]
    """Items shown to the visitor within so many hours, each as often as it was."""


@dataclass
class Slate:
    """Shape [n] each, in the order shown."""

    rows: list[int]
    propensities: list[float]
    pinned: set[int] = field(default_factory=set)
    explored: set[int] = field(default_factory=set)
    dropped: dict[int, tuple[str, str]] = field(default_factory=dict)
    """Row to (stage, why), of what is not shown; only where it was asked for."""
    log_odds: NDArray[np.float64] = field(default_factory=lambda: np.empty(0))
    """Shape [C], with what the rules made of them."""


def rerank(
    order: RowArray,
    log_odds: NDArray[np.float64],
    context: RerankContext,
    rules: SurfaceRules,
    *,
    n: int,
    drop_seen: bool,
    exploration: Exploration | None,
    rng: np.random.Generator,
    traced: bool,
) -> Slate:
    """order: all rows, best first; log_odds: shape [C], 0 is a neutral score. Returns at most n rows."""
    slate = Slate([], [], log_odds=log_odds.astype(np.float64))
    gone = _excluded_rows(context, rules, slate, drop_seen=drop_seen, traced=traced)
    order = order[~gone[order]]
    if _apply_score_rules(slate.log_odds, context, rules):
        order = order[(-slate.log_odds[order]).argsort(kind="stable")]
    if rules.diversity is not None and len(order) > 1:
        order = diversify(order, context.vectors, rules.diversity, n=n)
    pins = _pins(rules, context, gone, n=n)
    # What nobody will see, not even a trace, is not counted.
    needed = len(order) if traced else n + (exploration.pool if exploration is not None else 0)
    listed = _apply_quotas(order, context, rules, pins=pins, slate=slate, needed=needed, traced=traced)
    _assign_positions(slate, listed, pins, n=n, exploration=exploration, rng=rng)
    if traced:
        shown_rows = set(slate.rows)
        slate.dropped.update(
            (row, ("cut", f"ranked below the first {n}"))
            for row in order.tolist()
            if row not in shown_rows and row not in slate.dropped
        )
    return slate


def _excluded_rows(
    context: RerankContext, rules: SurfaceRules, slate: Slate, *, drop_seen: bool, traced: bool
) -> NDArray[np.bool_]:
    """Which rows may not be shown, shape [C]."""
    gone = np.zeros(len(context.items), dtype=bool)
    reasons: list[tuple[NDArray[np.bool_], str, str]] = []
    if drop_seen:
        reasons.append((context.visited("seen", 400), "seen", "the request leaves out what the visitor saw or bought"))
    for rule in rules.rules:
        if rule.kind == "hide":
            reasons.append((context.matches(rule.when), "hide", f"hidden: {rule.when}"))
        elif (rule.kind == "bought" or rule.kind == "seen") and not rule.factor:
            rows = context.visited(rule.kind, rule.days)
            reasons.append((rows, rule.kind, f"{rule.kind} within {rule.days:g} days"))
    for rows, stage, why in reasons:
        if traced:
            slate.dropped.update((row, (stage, why)) for row in np.flatnonzero(rows & ~gone).tolist())
        gone |= rows
    return gone


def _apply_score_rules(log_odds: NDArray[np.float64], context: RerankContext, rules: SurfaceRules) -> bool:
    """Multiply odds in place; False where no rule does so."""
    changed = False
    for rule in rules.rules:
        if rule.kind == "boost" or rule.kind == "bury":
            log_odds[context.matches(rule.when)] += log(rule.factor)
        elif (rule.kind == "bought" or rule.kind == "seen") and rule.factor:
            log_odds[context.visited(rule.kind, rule.days)] += log(rule.factor)
        elif rule.kind == "rotate":
            log_odds += np.minimum(count_occurrences(context.items, context.shown(rule.hours)), rule.most) * log(
                rule.factor
            )
        else:
            continue
        changed = True
    return changed


def diversify(
    order: RowArray, vectors: Callable[[RowArray], NDArray[np.float32]], rule: Diversity, *, n: int
) -> RowArray:
    """The first n chosen one by one from the pool, by (1 - weight) x relevance - weight x likeness to what is chosen.

    Relevance is 1 for the best of the pool and falls evenly with the place, so that the scale of scores plays no part;
    likeness is the highest cosine to an item chosen before.
    """
    pool = order[: max(rule.pool, n)]
    return np.concatenate((pool[mmr_order(vectors(pool), rule.weight, n)], order[len(pool) :]))


def _pins(rules: SurfaceRules, context: RerankContext, gone: NDArray[np.bool_], *, n: int) -> dict[int, int]:
    """Position (from 0 on) to the row that is pinned there; the first pin of a position or item holds."""
    pins: dict[int, int] = {}
    for rule in rules.rules:
        if rule.kind == "pin" and rule.position <= n and rule.position - 1 not in pins:
            row = context.row_of(rule.item_id)
            if row is not None and not gone[row] and row not in pins.values():
                pins[rule.position - 1] = row
    return pins


def _apply_quotas(
    order: RowArray,
    context: RerankContext,
    rules: SurfaceRules,
    *,
    pins: dict[int, int],
    slate: Slate,
    needed: int,
    traced: bool,
) -> list[int]:
    """The rows that are not pinned, without those that would be too many of one value."""
    pinned = np.array(list(pins.values()), dtype=np.int64)
    if pins:
        order = order[~isin(order, pinned)]
    # Of several quotas on one field the smallest holds.
    quotas = sorted((rule for rule in rules.rules if rule.kind == "quota"), key=lambda rule: -rule.most)
    if not quotas:
        return list(order[:needed].tolist())
    most: dict[str, int] = {rule.field: rule.most for rule in quotas}
    counts: dict[str, dict[str, int]] = {
        name: Counter(context.values_of(name, pinned)) if pins else {} for name in most
    }
    rows: list[int] = []
    # Most rows of a long order are never asked for their values.
    for start in range(0, len(order), max(1, 2 * needed)):
        part = order[start : start + max(1, 2 * needed)]
        columns = [(name, context.values_of(name, part), counts[name], most[name]) for name in most]
        for place, row in enumerate(part.tolist()):
            if len(rows) >= needed:
                return rows
            for name, values, used, limit in columns:
                if used.get(values[place], 0) >= limit:
                    if traced:
                        slate.dropped[row] = ("quota", f"more than {limit} of one {name}")
                    break
            else:
                rows.append(row)
                for _, values, used, _ in columns:
                    used[values[place]] = used.get(values[place], 0) + 1
    return rows


def _assign_positions(
    slate: Slate,
    listed: Sequence[int],
    pins: dict[int, int],
    *,
    n: int,
    exploration: Exploration | None,
    rng: np.random.Generator,
) -> None:
    """Pins at their positions, the others around them."""
    free = max(0, n - len(pins))
    chances = [1.0] * min(free, len(listed))
    chosen = list(listed[:free])
    if exploration is not None and chosen:
        places, propensities = explore(slate.log_odds[np.array(listed)], free, exploration, rng)
        chosen, chances = [listed[place] for place in places.tolist()], propensities.tolist()
        slate.explored = {row for row, place in zip(chosen, places.tolist(), strict=True) if place >= free}
    slate.pinned = set(pins.values())
    queue = iter(zip(chosen, chances, strict=True))
    for position in range(len(chosen) + len(pins)):
        row, chance = (pins[position], 1.0) if position in pins else next(queue, (None, 0.0))
        if row is not None:
            slate.rows.append(row)
            slate.propensities.append(chance)
    # A list too short for a pin's position ends with it.
    for position, row in sorted(pins.items()):
        if position >= len(chosen) + len(pins):
            slate.rows.append(row)
            slate.propensities.append(1.0)
