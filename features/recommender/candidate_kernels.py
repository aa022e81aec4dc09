"""Generates the candidates of a request and computes their features, in loops that Numba compiles.

Items are catalogue indices. Allowed items are the bits of a features.recommender.catalogue.ItemSet; no bits at all
allow everything. The set operations of re-ranking stand here too, for they share the hash table: compiled from another
file it could go stale (see compiled.py).
"""

import math
from typing import NamedTuple

import numpy as np
from numba import float32, float64, int32, int64
from numpy.typing import NDArray

from features.recommender.compiled import FLOAT32S, FLOAT64S, INT64S, UINT8S, array, compiled

Items = NDArray[np.int64]
Table = NDArray[np.int32]  # an open-addressing hash table: item to its position

SOURCES = ("co_purchase", "repurchase", "two_tower", "trending")
USER_ITEM_FEATURES = ("own_orders", "own_score", "own_idle_days", "own_due", "own_share", "own_returned", "own_viewed")
OWN_ORDERS, OWN_SCORE, OWN_IDLE_DAYS, OWN_DUE, OWN_SHARE, OWN_RETURNED, OWN_VIEWED = range(7)
ITEM_WINDOWS = (
    "item_orders_1d", "item_orders_7d", "item_orders_30d", "item_units_30d", "item_revenue_30d", "item_returns_30d",
    "item_trend",
)  # fmt: skip
USER_FEATURES = (
    "user_orders_30d", "user_orders_90d", "user_orders_400d", "user_spend_90d", "user_mean_price",
    "user_items", "user_basket", "user_idle_days", "user_interval_days",
)  # fmt: skip
ORDERS_30D, ORDERS_90D, ORDERS_400D, SPEND_90D, MEAN_PRICE, ITEM_COUNT, BASKET, IDLE_DAYS, INTERVAL_DAYS = range(9)
CANDIDATE_FEATURES = (
    "tower_score", "co_score", "co_best", *(f"rank_{source}" for source in SOURCES), *USER_ITEM_FEATURES, *ITEM_WINDOWS,
    "item_price", "price_ratio", *USER_FEATURES,
)  # fmt: skip
"""The columns of candidate features, in order. Ranks are 1 / (1 + rank in the source), 0 where it lacks the item."""
TOWER_SCORE, CO_SCORE, CO_BEST, FIRST_RANK, FIRST_OWN, FIRST_WINDOW, ITEM_PRICE, PRICE_RATIO, FIRST_USER = (
    CANDIDATE_FEATURES.index(name)
    for name in (
        "tower_score", "co_score", "co_best", f"rank_{SOURCES[0]}", USER_ITEM_FEATURES[0], ITEM_WINDOWS[0],
        "item_price", "price_ratio", USER_FEATURES[0],
    )
)  # fmt: skip

MS_PER_DAY = 86_400_000.0
"""timestamps.DAY as a float. Not imported: the machine code goes stale only with this file."""
HALF_LIFE_DAYS = 60.0
DEFAULT_INTERVAL_DAYS = 60.0
"""Assumed between two orders of an item that was ordered once."""
MAX_DUE, NEVER_DAYS = 10.0, 400.0
UNRANKED = 10_000
"""Rank of a candidate in a source that lacks it."""


class CoPurchases(NamedTuple):
    """The neighbours of a visitor's recent items, each once: the sum of their weighted similarities, the highest of
    these, and the recent item (seed) that it belongs to."""

    table: Table
    items: Items
    scores: NDArray[np.float64]
    best: NDArray[np.float32]
    seeds: Items


class OwnItems(NamedTuple):
    """The known items of a visitor's history with their USER_ITEM_FEATURES; the first `bought` were bought."""

    table: Table
    items: Items
    features: NDArray[np.float64]
    bought: int


@compiled()
def _hash_table(count: int) -> Table:
    """Returns an empty table for at most `count` items."""
    size = 16
    while size < 2 * count:
        size *= 2
    return np.full(size, -1, dtype=np.int32)


@compiled()
def _slot(table: Table, items: Items, item: int) -> int:
    """Finds the slot that holds the position of `item` among `items`, or the empty one (-1) where it belongs."""
    last = len(table) - 1
    slot = (item * 2_654_435_761 >> 15) & last
    while table[slot] >= 0 and items[table[slot]] != item:
        slot = (slot + 1) & last
    return slot


@compiled()
def _positions(items: Items) -> Table:
    """Returns the table of `items`; of a repeated one it holds the last position."""
    table = _hash_table(len(items))
    for row in range(len(items)):
        table[_slot(table, items, items[row])] = row
    return table


@compiled()
def _is_allowed(bits: NDArray[np.uint8], item: int) -> bool:
    return len(bits) == 0 or (bits[item >> 3] >> (item & 7)) & 1 == 1


@compiled(UINT8S, INT64S)
def are_allowed(allowed: NDArray[np.uint8], items: Items) -> NDArray[np.bool_]:
    """Returns which of `items` are allowed."""
    holds = np.empty(len(items), dtype=np.bool_)
    for row in range(len(items)):
        holds[row] = _is_allowed(allowed, items[row])
    return holds


@compiled(any_order=True)
def _dot(left: NDArray[np.float32], right: NDArray[np.float32]) -> float:
    total = np.float32(0)
    for axis in range(len(left)):
        total += left[axis] * right[axis]
    return total  # type: ignore[return-value]


@compiled()
def co_purchase_scores(
    recent: Items, weights: NDArray[np.float32], neighbours: NDArray[np.int32], similarities: NDArray[np.float32]
) -> CoPurchases:
    """Scores the neighbours of recent items by their similarities, weighted as the recent items are."""
    most = len(recent) * neighbours.shape[1]
    table, count = _hash_table(most), 0
    items, scores = np.empty(most, dtype=np.int64), np.empty(most)
    best, seeds = np.empty(most, dtype=np.float32), np.empty(most, dtype=np.int64)
    for row in range(len(recent)):
        seed = recent[row]
        for column in range(neighbours.shape[1]):
            item = int(neighbours[seed, column])
            if item < 0:
                continue
            similarity = similarities[seed, column] * weights[row]
            slot = _slot(table, items, item)
            if table[slot] < 0:
                table[slot] = count
                items[count], scores[count], best[count], seeds[count] = item, 0, -1, -1
                count += 1
            position = table[slot]
            scores[position] += similarity
            if similarity > best[position]:
                best[position], seeds[position] = similarity, seed
    return CoPurchases(table, items[:count], scores[:count], best[:count], seeds[:count])


@compiled()
def user_item_features(
    at: int, items: Items, times: Items, event_types: Items, purchase: int, returned: int, last_view: int
) -> OwnItems:
    """Computes USER_ITEM_FEATURES as of `at` (ms). Event types up to `last_view` are views and carts."""
    table, count, order_count, last_order = _hash_table(len(items)), 0, 0, -1
    own, features = np.empty(len(items), dtype=np.int64), np.zeros((len(items), 7))
    first, last = np.empty(len(items), dtype=np.int64), np.empty(len(items), dtype=np.int64)
    for row in range(len(items)):
        if event_types[row] != purchase or items[row] < 0:
            continue
        time = times[row]
        if time != last_order:
            last_order = time
            order_count += 1
        slot = _slot(table, own, items[row])
        position = table[slot]
        if position < 0:
            position = table[slot] = count
            own[count], first[count] = items[row], time
            count += 1
        elif last[position] == time:
            continue  # an item bought twice in one order counts once
        last[position] = time
        features[position, OWN_ORDERS] += 1
        features[position, OWN_SCORE] += 0.5 ** ((at - time) / MS_PER_DAY / HALF_LIFE_DAYS)
    bought = count
    for position in range(bought):
        orders, idle = features[position, OWN_ORDERS], (at - last[position]) / MS_PER_DAY
        days = (last[position] - first[position]) / MS_PER_DAY
        interval = days / (orders - 1) if orders > 1 else DEFAULT_INTERVAL_DAYS
        features[position, OWN_IDLE_DAYS] = idle
        features[position, OWN_DUE] = min(idle / max(interval, 1.0), MAX_DUE)
        features[position, OWN_SHARE] = orders / order_count
    for row in range(len(items)):
        back = event_types[row] == returned
        if items[row] < 0 or not (back or (event_types[row] <= last_view and times[row] > at - MS_PER_DAY)):
            continue
        slot = _slot(table, own, items[row])
        if table[slot] < 0:
            table[slot] = count
            own[count], features[count, OWN_IDLE_DAYS] = items[row], NEVER_DAYS
            count += 1
        features[table[slot], OWN_RETURNED if back else OWN_VIEWED] = 1
    return OwnItems(table, own[:count], features[:count], bought)


@compiled()
def top_k_allowed(items: Items, scores: NDArray[np.float64], count: int, allowed: NDArray[np.uint8]) -> Items:
    """Returns the `count` allowed items with the highest scores, highest first; of equal scores the lower item."""
    best, value, size = np.empty(count, dtype=np.int64), np.empty(count), 0
    for row in range(len(items)):
        item, score = items[row], scores[row]
        full = size == count
        if full and (count == 0 or score < value[count - 1] or (score == value[count - 1] and item > best[count - 1])):
            continue
        if not _is_allowed(allowed, item):
            continue
        to = count - 1 if full else size
        while to > 0 and (score > value[to - 1] or (score == value[to - 1] and item < best[to - 1])):
            value[to], best[to] = value[to - 1], best[to - 1]
            to -= 1
        value[to], best[to] = score, item
        if not full:
            size += 1
    return best[:size]


@compiled()
def first_k_allowed(items: Items, count: int, allowed: NDArray[np.uint8]) -> Items:
    """Returns the first `count` allowed items."""
    size, kept = 0, np.empty(min(count, len(items)), dtype=np.int64)
    for item in items:
        if size == len(kept):
            break
        if _is_allowed(allowed, item):
            kept[size] = item
            size += 1
    return kept[:size]


@compiled()
def merge_sources(generated: Items, ascending: Items, ends: Items) -> tuple[Items, Items]:
    """Returns the items of all sources, ascending and each once, and their ranks in each source, shape [C, S], UNRANKED
    where it lacks the item.

    generated: the items of the first source, best first, then those of the next, up to `ends` (shape [S]); an item that
    a source holds twice counts where it stands first; ascending: the same items, sorted.
    """
    items, count = np.empty(len(generated), dtype=np.int64), 0
    table = _hash_table(len(generated))
    for item in ascending:
        if count == 0 or item != items[count - 1]:
            table[_slot(table, items, item)] = count
            items[count] = item
            count += 1
    ranks, row = np.full((count, len(ends)), UNRANKED, dtype=np.int64), 0
    for source in range(len(ends)):
        rank = 0
        while row < ends[source]:
            position = table[_slot(table, items, generated[row])]
            if ranks[position, source] == UNRANKED:
                ranks[position, source] = rank
                rank += 1
            row += 1
    return items[:count], ranks


@compiled()
def candidate_features(
    items: Items, ranks: NDArray[np.int64], co_purchases: CoPurchases, own: OwnItems, vectors: NDArray[np.float32],
    user_vector: NDArray[np.float32], prices: NDArray[np.float32], windows: NDArray[np.float32],
    user: NDArray[np.float32],
) -> tuple[NDArray[np.float32], Items]:  # fmt: skip
    """Computes CANDIDATE_FEATURES of `items`, shape [C, F]; also returns the recent item that speaks most for each, -1
    for none. user: USER_FEATURES."""
    features = np.zeros((len(items), FIRST_USER + len(user)), dtype=np.float32)
    seeds = np.full(len(items), -1, dtype=np.int64)
    usual = user[MEAN_PRICE] + np.float32(0.1)
    for candidate in range(len(items)):
        item, row = items[candidate], features[candidate]
        row[TOWER_SCORE] = _dot(vectors[item], user_vector)
        for source in range(ranks.shape[1]):
            if ranks[candidate, source] < UNRANKED:
                row[FIRST_RANK + source] = 1 / (1 + ranks[candidate, source])
        position = co_purchases.table[_slot(co_purchases.table, co_purchases.items, item)]
        if position >= 0:
            row[CO_SCORE], row[CO_BEST] = co_purchases.scores[position], co_purchases.best[position]
            seeds[candidate] = co_purchases.seeds[position]
        position = own.table[_slot(own.table, own.items, item)]
        if position >= 0:
            row[FIRST_OWN:FIRST_WINDOW] = own.features[position]
        else:
            row[FIRST_OWN + OWN_IDLE_DAYS] = NEVER_DAYS
        row[FIRST_WINDOW:ITEM_PRICE] = windows[item]
        row[ITEM_PRICE] = prices[item]
        if user[MEAN_PRICE] > 0:
            row[PRICE_RATIO] = math.log((prices[item] + np.float32(0.1)) / usual)
        row[FIRST_USER:] = user
    return features, seeds


@compiled(int64, INT64S, INT64S, INT64S, FLOAT64S, FLOAT64S, int64)
def user_features(
    at: int, items: Items, times: Items, event_types: Items, prices: NDArray[np.float64],
    quantities: NDArray[np.float64], purchase: int,
) -> NDArray[np.float32]:  # fmt: skip
    """Computes USER_FEATURES. An order is what was bought at one moment."""
    features, table, order_count, last_order, first_order, lines = np.zeros(9), _hash_table(len(items)), 0, -1, 0, 0
    bought, unknown = np.empty(len(items), dtype=np.int64), 0
    for row in range(len(items)):
        if event_types[row] != purchase:
            continue
        time, item = times[row], items[row]
        days = (at - time) / MS_PER_DAY
        if time != last_order:
            first_order = time if order_count == 0 else first_order
            last_order = time
            order_count += 1
            features[ORDERS_30D] += days < 30
            features[ORDERS_90D] += days < 90
            features[ORDERS_400D] += days < 400
        if days < 90:
            features[SPEND_90D] += prices[row] * quantities[row]
        features[MEAN_PRICE] += prices[row]
        if item < 0:
            unknown = 1
        elif table[_slot(table, bought, item)] < 0:
            bought[int(features[ITEM_COUNT])] = item
            table[_slot(table, bought, item)] = int(features[ITEM_COUNT])
            features[ITEM_COUNT] += 1
        lines += 1
    if order_count == 0:
        features[IDLE_DAYS] = features[INTERVAL_DAYS] = NEVER_DAYS
        return features.astype(np.float32)
    features[MEAN_PRICE] /= lines
    features[ITEM_COUNT] += unknown
    features[BASKET] = lines / order_count
    features[IDLE_DAYS] = (at - last_order) / MS_PER_DAY
    days = (last_order - first_order) / MS_PER_DAY
    features[INTERVAL_DAYS] = days / (order_count - 1) if order_count > 1 else NEVER_DAYS
    return features.astype(np.float32)


@compiled(
    int64, INT64S, INT64S, INT64S, FLOAT64S, FLOAT64S, INT64S, FLOAT32S, INT64S, INT64S, INT64S, INT64S, UINT8S,
    array(int32, 2), array(float32, 2), array(float32, 2), FLOAT32S, FLOAT32S, array(float32, 2), int64, int64, int64,
)  # fmt: skip
def generate_candidates(
    at: int, items: Items, times: Items, event_types: Items, paid: NDArray[np.float64],
    quantities: NDArray[np.float64], recent: Items, weights: NDArray[np.float32], tower_hits: Items,
    trending: Items, popular: Items, quotas: Items, allowed: NDArray[np.uint8], neighbours: NDArray[np.int32],
    similarities: NDArray[np.float32], vectors: NDArray[np.float32], user_vector: NDArray[np.float32],
    prices: NDArray[np.float32], windows: NDArray[np.float32], purchase: int, returned: int, last_view: int,
) -> tuple[Items, Items, NDArray[np.float32], Items]:  # fmt: skip
    """Generates the candidates of a visitor whose entries are (items, times, event_types, paid, quantities): the fields
    of features.recommender.candidates.Candidates. All steps run in one call: each call from Python costs as much as the
    shorter of them."""
    co_purchases = co_purchase_scores(recent, weights, neighbours, similarities)
    own = user_item_features(at, items, times, event_types, purchase, returned, last_view)
    co_purchased = top_k_allowed(co_purchases.items, co_purchases.scores, quotas[0], allowed)
    scores = own.features[: own.bought, OWN_SCORE].copy()
    repurchased = top_k_allowed(own.items[: own.bought], scores, quotas[1], allowed)
    nearest = first_k_allowed(tower_hits, quotas[2], allowed)
    # The sellers of the week and of the month are one source, in this order.
    half = quotas[3] // 2
    week, month = first_k_allowed(trending, half, allowed), first_k_allowed(popular, half, allowed)
    ends = np.array([len(co_purchased), len(repurchased), len(nearest), len(week) + len(month)]).cumsum()
    generated = np.concatenate((co_purchased, repurchased, nearest, week, month))
    merged, ranks = merge_sources(generated, np.sort(generated), ends)
    user = user_features(at, items, times, event_types, paid, quantities, purchase)
    features, seeds = candidate_features(merged, ranks, co_purchases, own, vectors, user_vector, prices, windows, user)
    return merged, ranks, features, seeds


@compiled(INT64S, INT64S)
def isin(items: Items, others: Items) -> NDArray[np.bool_]:
    """Returns which of `items` are among `others`: np.isin for few, in a tenth of the time."""
    table, held = _positions(others), np.empty(len(items), dtype=np.bool_)
    for row in range(len(items)):
        held[row] = table[_slot(table, others, items[row])] >= 0
    return held


@compiled(INT64S, INT64S, INT64S, INT64S, float64, int64)
def interacted_since(
    items: Items, others: Items, times: Items, event_types: Items, since: float, event_type: int
) -> NDArray[np.bool_]:
    """Returns which of `items` (each once) a visitor with the entries (others, times, event_types) interacted with
    after `since` (ms), by events of one type only unless `event_type` is -1."""
    table, held = _positions(items), np.zeros(len(items), dtype=np.bool_)
    for row in range(len(others)):
        if times[row] > since and (event_type < 0 or event_types[row] == event_type):
            position = table[_slot(table, items, others[row])]
            if position >= 0:
                held[position] = True
    return held


@compiled(INT64S, INT64S)
def count_occurrences(items: Items, others: Items) -> Items:
    """Counts how often each of `items` (each once) is among `others`."""
    table, counts = _positions(items), np.zeros(len(items), dtype=np.int64)
    for other in others:
        position = table[_slot(table, items, other)]
        if position >= 0:
            counts[position] += 1
    return counts
