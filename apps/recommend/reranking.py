"""Applies the rules of a surface to ranked candidates: stages in a fixed order, from the ranking to the slate.

A new rule is a model in rules/schemas.py and a branch in the stage that it belongs to: `_excluded_rows` for rules that
leave items out, `_apply_score_rules` for rules that change odds. Pure: reads data and asks no service. Each stage
records which rows it drops, and why.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import log

import numpy as np
from numpy.typing import NDArray

from apps.recommend.candidate_set import CandidateSet, Rows
from apps.recommend.exploration import explore
from apps.recommend.recent_impressions import ShownSlate
from apps.recommend.rules.schemas import Diversity, Exploration, SurfaceRules
from features.contract import columns
from features.contract.timestamps import DAY, HOUR
from features.recommender.candidate_kernels import count_occurrences, interacted_since, isin
from features.recommender.candidates import Visitor
from features.recommender.diversity import mmr_order

SEEN_DAYS = 400
"""How far back a request that drops seen items looks: as far as histories reach."""
ANY_EVENT_TYPE = -1


@dataclass(frozen=True, slots=True)
class RerankContext:
    """The data that the stages read: of C candidates as rows, and of the visitor."""

    candidate_set: CandidateSet
    visitor: Visitor
    recent_slates: Sequence[ShownSlate]
    """What the visitor was shown on this surface lately."""

    @property
    def items(self) -> NDArray[np.int64]:
        """Item indices of the rows, shape [C]."""
        return self.candidate_set.candidates.items

    def interacted(self, rule: str, days: float) -> NDArray[np.bool_]:
        """Returns which rows the visitor bought (rule "bought"), or bought or looked at ("seen"), within so many
        days, shape [C]."""
        visitor = self.visitor
        event_type = columns.EVENT_TYPE_CODES["purchase"] if rule == "bought" else ANY_EVENT_TYPE
        since = visitor.at - days * DAY
        return interacted_since(self.items, visitor.items, visitor.times, visitor.event_types, since, event_type)

    def times_shown(self, hours: float) -> NDArray[np.int64]:
        """Returns how often each row was shown to the visitor within so many hours, shape [C]."""
        since = int(self.visitor.at - hours * HOUR)
        shown = [slate.items for slate in self.recent_slates if slate.at >= since]
        return count_occurrences(self.items, np.concatenate(shown)) if shown else np.zeros(len(self.items), np.int64)


@dataclass
class Slate:
    """The list to show: rows of the candidates and their propensities, shape [n] each, in the order shown."""

    rows: list[int]
    propensities: list[float]
    pinned: set[int] = field(default_factory=set)
    explored: set[int] = field(default_factory=set)
    dropped: dict[int, tuple[str, str]] = field(default_factory=dict)
    """Row to (stage, why) of what is not shown; only for a traced request."""
    log_odds: NDArray[np.float64] = field(default_factory=lambda: np.empty(0))
    """Shape [C], after the rules that change odds."""


def rerank(
    order: Rows,
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
    """Returns a slate of at most n rows. order: all rows, best first; log_odds: shape [C], 0 is a neutral score.
    Raises Problem 422."""
    slate = Slate([], [], log_odds=log_odds.astype(np.float64))
    excluded = _excluded_rows(context, rules, slate, drop_seen=drop_seen, traced=traced)
    order = order[~excluded[order]]
    if _apply_score_rules(slate.log_odds, context, rules):
        order = order[(-slate.log_odds[order]).argsort(kind="stable")]
    if rules.diversity is not None and len(order) > 1:
        order = diversify(order, context.candidate_set, rules.diversity, n=n)
    pins = _pins(rules, context, excluded, n=n)
    # Rows that neither the slate nor a trace will show are not counted against quotas.
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
    """Returns which rows may not be shown, shape [C]."""
    excluded = np.zeros(len(context.items), dtype=bool)
    reasons: list[tuple[NDArray[np.bool_], str, str]] = []
    if drop_seen:
        rows = context.interacted("seen", SEEN_DAYS)
        reasons.append((rows, "seen", "the request leaves out what the visitor saw or bought"))
    for rule in rules.rules:
        if rule.kind == "hide":
            reasons.append((context.candidate_set.matches(rule.when), "hide", f"hidden: {rule.when}"))
        elif (rule.kind == "bought" or rule.kind == "seen") and not rule.factor:
            rows = context.interacted(rule.kind, rule.days)
            reasons.append((rows, rule.kind, f"{rule.kind} within {rule.days:g} {'day' if rule.days == 1 else 'days'}"))
    for rows, stage, why in reasons:
        if traced:
            slate.dropped.update((row, (stage, why)) for row in np.flatnonzero(rows & ~excluded).tolist())
        excluded |= rows
    return excluded


def _apply_score_rules(log_odds: NDArray[np.float64], context: RerankContext, rules: SurfaceRules) -> bool:
    """Multiplies odds in place; False where no rule does so."""
    changed = False
    for rule in rules.rules:
        if rule.kind == "boost" or rule.kind == "bury":
            log_odds[context.candidate_set.matches(rule.when)] += log(rule.factor)
        elif (rule.kind == "bought" or rule.kind == "seen") and rule.factor:
            log_odds[context.interacted(rule.kind, rule.days)] += log(rule.factor)
        elif rule.kind == "rotate":
            log_odds += np.minimum(context.times_shown(rule.hours), rule.most) * log(rule.factor)
        else:
            continue
        changed = True
    return changed


def diversify(order: Rows, candidate_set: CandidateSet, rule: Diversity, *, n: int) -> Rows:
    """Returns the rows with the first n chosen from the pool by maximal marginal relevance: one after the other, by
    (1 - weight) x relevance - weight x similarity to those chosen before.

    Relevance is 1 for the best of the pool and falls evenly with the position, so that the scale of scores plays no
    part; similarity is the highest cosine to an item chosen before (Carbonell and Goldstein, SIGIR 1998).
    """
    pool = order[: max(rule.pool, n)]
    return np.concatenate((pool[mmr_order(candidate_set.vectors(pool), rule.weight, n)], order[len(pool) :]))


def _pins(rules: SurfaceRules, context: RerankContext, excluded: NDArray[np.bool_], *, n: int) -> dict[int, int]:
    """Returns position (from 0 on) to the row that is pinned there; the first pin of a position or item holds."""
    pins: dict[int, int] = {}
    for rule in rules.rules:
        if rule.kind == "pin" and rule.position <= n and rule.position - 1 not in pins:
            row = context.candidate_set.row_of(rule.item_id)
            if row is not None and not excluded[row] and row not in pins.values():
                pins[rule.position - 1] = row
    return pins


def _apply_quotas(
    order: Rows,
    context: RerankContext,
    rules: SurfaceRules,
    *,
    pins: dict[int, int],
    slate: Slate,
    needed: int,
    traced: bool,
) -> list[int]:
    """Returns the rows that are not pinned, without those that would be too many of one value; at most `needed`."""
    pinned = np.array(list(pins.values()), dtype=np.int64)
    if pins:
        order = order[~isin(order, pinned)]
    # Of several quotas on one field the smallest holds.
    quotas = sorted((rule for rule in rules.rules if rule.kind == "quota"), key=lambda rule: -rule.most)
    if not quotas:
        return list(order[:needed].tolist())
    values_of = context.candidate_set.values_of
    most: dict[str, int] = {rule.field: rule.most for rule in quotas}
    counts: dict[str, dict[str, int]] = {name: Counter(values_of(name, pinned)) if pins else {} for name in most}
    rows: list[int] = []
    # The values of most rows of a long order are never needed.
    for start in range(0, len(order), max(1, 2 * needed)):
        part = order[start : start + max(1, 2 * needed)]
        fields = [(name, values_of(name, part), counts[name], most[name]) for name in most]
        for index, row in enumerate(part.tolist()):
            if len(rows) >= needed:
                return rows
            for name, values, used, limit in fields:
                if used.get(values[index], 0) >= limit:
                    if traced:
                        slate.dropped[row] = ("quota", f"more than {limit} of one {name}")
                    break
            else:
                rows.append(row)
                for _, values, used, _ in fields:
                    used[values[index]] = used.get(values[index], 0) + 1
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
    """Puts pins at their positions and the other rows around them."""
    free = max(0, n - len(pins))
    propensities = [1.0] * min(free, len(listed))
    chosen = list(listed[:free])
    if exploration is not None and chosen:
        positions, chances = explore(slate.log_odds[np.array(listed)], free, exploration, rng)
        chosen, propensities = [listed[position] for position in positions.tolist()], chances.tolist()
        slate.explored = {row for row, position in zip(chosen, positions.tolist(), strict=True) if position >= free}
    slate.pinned = set(pins.values())
    queue = iter(zip(chosen, propensities, strict=True))
    for position in range(len(chosen) + len(pins)):
        row, propensity = (pins[position], 1.0) if position in pins else next(queue, (None, 0.0))
        if row is not None:
            slate.rows.append(row)
            slate.propensities.append(propensity)
    # A slate too short for a pin's position ends with it.
    for position, row in sorted(pins.items()):
        if position >= len(chosen) + len(pins):
            slate.rows.append(row)
            slate.propensities.append(1.0)
