"""Generates the candidates of a request and computes their features, in loops that Numba compiles.

Items are catalogue indices. Allowed items are the bits of a features.recommender.catalogue.ItemSet; no bits at all
allow everything.
"""

import math

import numpy as np
from numpy.typing import NDArray

from features.recommender.compiled import (
    FLOAT32,
    FLOAT32S,
    FLOAT64,
    FLOAT64S,
    INT32,
    INT64,
    INT64S,
    UINT8S,
    array,
    compiled,
)

Items = NDArray[np.int64]
Table = NDArray[np.int32]  # an open-addressing hash table: item to its position

MS_PER_DAY = 86_400_000.0
HALF_LIFE_DAYS = 60.0
DEFAULT_INTERVAL_DAYS = 60.0
"""Between two orders of an item that was ordered once."""
MAX_DUE = 10.0
UNRANKED = 10_000
"""Rank of a candidate in a source that did not draw it."""
NEVER_DAYS = 400.0
DECAYED_PURCHASES, IDLE_DAYS, MEAN_PRICE = 1, 2, 4
"""Places among USER_ITEM_FEATURES, and the last among USER_FEATURES."""


@compiled()
def _hash_table(count: int) -> Table:
    """An empty table of `count` items at most."""
    size = 16
    while size < 2 * count:
        size *= 2
    return np.full(size, -1, dtype=np.int32)


@compiled()
def _slot(table: Table, items: Items, item: int) -> int:
    """The slot of the table that holds the place of `item` among `items`; an empty one (-1) where it is not there."""
    last = len(table) - 1
    slot = (item * 2_654_435_761 >> 15) & last
    while table[slot] >= 0 and items[table[slot]] != item:
        slot = (slot + 1) & last
    return slot


@compiled()
def _is_allowed(bits: NDArray[np.uint8], item: int) -> bool:
    return len(bits) == 0 or (bits[item >> 3] >> (item & 7)) & 1 == 1


@compiled(UINT8S, INT64S)
def are_allowed(allowed: NDArray[np.uint8], items: Items) -> NDArray[np.bool_]:
    """Which of `items` are allowed."""
    holds = np.empty(len(items), dtype=np.bool_)
    for place in range(len(items)):
        holds[place] = _is_allowed(allowed, items[place])
    return holds


@compiled(any_order=True)
def _dot(left: NDArray[np.float32], right: NDArray[np.float32]) -> float:
    total = np.float32(0)
    for place in range(len(left)):
        total += left[place] * right[place]
    return total  # type: ignore[return-value]


@compiled(INT64S, FLOAT32S, array(INT32, 2), array(FLOAT32, 2))
def co_purchase_scores(
    recent: Items, weights: NDArray[np.float32], neighbours: NDArray[np.int32], similarities: NDArray[np.float32]
) -> tuple[Table, Items, NDArray[np.float64], NDArray[np.float32], Items]:
    """The neighbours of recent items, each once: (table, items, weighed similarity summed, the highest one, and the
    recent item that it is to)."""
    most = len(recent) * neighbours.shape[1]
    table, count = _hash_table(most), 0
    items, total = np.empty(most, dtype=np.int64), np.empty(most)
    best, because = np.empty(most, dtype=np.float32), np.empty(most, dtype=np.int64)
    for place in range(len(recent)):
        one = recent[place]
        for column in range(neighbours.shape[1]):
            item = int(neighbours[one, column])
            if item < 0:
                continue
            pull = similarities[one, column] * weights[place]
            slot = _slot(table, items, item)
            if table[slot] < 0:
                table[slot] = count
                items[count], total[count], best[count], because[count] = item, 0, -1, -1
                count += 1
            found = table[slot]
            total[found] += pull
            if pull > best[found]:
                best[found], because[found] = pull, one
    return table, items[:count], total[:count], best[:count], because[:count]


@compiled(INT64, INT64S, INT64S, INT64S, INT64, INT64, INT64)
def user_item_features(
    at: int, items: Items, times: Items, kinds: Items, purchase: int, returned: int, last_view: int
) -> tuple[Table, Items, NDArray[np.float64], int]:
    """What the visitor did with each known item before: (table, items, USER_ITEM_FEATURES of each, how many of them
    were bought); those that were bought come first. Kinds up to `last_view` are looks and carts."""
    table, count, visits, visit = _hash_table(len(items)), 0, 0, -1
    found, told = np.empty(len(items), dtype=np.int64), np.zeros((len(items), 7))
    first, last = np.empty(len(items), dtype=np.int64), np.empty(len(items), dtype=np.int64)
    for place in range(len(items)):
        if kinds[place] != purchase or items[place] < 0:
            continue
        time = times[place]
        if time != visit:
            visit = time
            visits += 1
        slot = _slot(table, found, items[place])
        one = table[slot]
        if one < 0:
            one = table[slot] = count
            found[count], first[count] = items[place], time
            count += 1
        elif last[one] == time:
            continue  # an item bought twice in one order counts once
        last[one] = time
        told[one, 0] += 1
        told[one, 1] += 0.5 ** ((at - time) / MS_PER_DAY / HALF_LIFE_DAYS)
    bought = count
    for one in range(bought):
        orders, idle = told[one, 0], (at - last[one]) / MS_PER_DAY
        interval = (last[one] - first[one]) / MS_PER_DAY / (orders - 1) if orders > 1 else DEFAULT_INTERVAL_DAYS
        told[one, 2] = idle
        told[one, 3] = min(idle / max(interval, 1.0), MAX_DUE)
        told[one, 4] = orders / visits
    for place in range(len(items)):
        back = kinds[place] == returned
        if items[place] < 0 or not (back or (kinds[place] <= last_view and times[place] > at - MS_PER_DAY)):
            continue
        slot = _slot(table, found, items[place])
        if table[slot] < 0:
            table[slot] = count
            found[count], told[count, 2] = items[place], NEVER_DAYS
            count += 1
        told[table[slot], 5 if back else 6] = 1
    return table, found[:count], told[:count], bought


@compiled(INT64S, FLOAT64S, INT64, UINT8S)
def top_k_allowed(items: Items, scores: NDArray[np.float64], count: int, allowed: NDArray[np.uint8]) -> Items:
    """The `count` allowed items with the highest scores, highest first; among equals the lower item."""
    best, value, found = np.empty(count, dtype=np.int64), np.empty(count), 0
    for place in range(len(items)):
        item, score = items[place], scores[place]
        full = found == count
        if full and (count == 0 or score < value[count - 1] or (score == value[count - 1] and item > best[count - 1])):
            continue
        if not _is_allowed(allowed, item):
            continue
        to = count - 1 if full else found
        while to > 0 and (score > value[to - 1] or (score == value[to - 1] and item < best[to - 1])):
            value[to], best[to] = value[to - 1], best[to - 1]
            to -= 1
        value[to], best[to] = score, item
        if not full:
            found += 1
    return best[:found]


@compiled(INT64S, INT64, UINT8S)
def first_k_allowed(items: Items, count: int, allowed: NDArray[np.uint8]) -> Items:
    """The first `count` allowed ones."""
    found, kept = 0, np.empty(min(count, len(items)), dtype=np.int64)
    for item in items:
        if found == len(kept):
            break
        if _is_allowed(allowed, item):
            kept[found] = item
            found += 1
    return kept[:found]


@compiled(INT64S, INT64S, INT64S)
def merge_sources(drawn: Items, ascending: Items, ends: Items) -> tuple[Items, Items]:
    """The drawn items, ascending and each once, and their places in each source, shape [C, S], ABSENT where it did not
    draw the item.

    drawn: those of the first source, best first, then those of the next, to where `ends` (shape [S]) says; an item that
    a source holds twice counts where it stands first; ascending: the same, sorted.
    """
    items, count = np.empty(len(drawn), dtype=np.int64), 0
    table = _hash_table(len(drawn))
    for item in ascending:
        if count == 0 or item != items[count - 1]:
            table[_slot(table, items, item)] = count
            items[count] = item
            count += 1
    ranks, place = np.full((count, len(ends)), UNRANKED, dtype=np.int64), 0
    for source in range(len(ends)):
        rank = 0
        while place < ends[source]:
            one = table[_slot(table, items, drawn[place])]
            if ranks[one, source] == UNRANKED:
                ranks[one, source] = rank
                rank += 1
            place += 1
    return items[:count], ranks


@compiled(
    INT64S, array(INT64, 2), array(INT32), INT64S, FLOAT64S, FLOAT32S, INT64S, array(INT32), INT64S,
    array(FLOAT64, 2), array(FLOAT32, 2), FLOAT32S, FLOAT32S, array(FLOAT32, 2), FLOAT32S,
)  # fmt: skip
def candidate_features(
    items: Items, ranks: NDArray[np.int64], near_table: Table, near: Items, near_total: NDArray[np.float64],
    near_best: NDArray[np.float32], near_because: Items, own_table: Table, own_items: Items,
    own_told: NDArray[np.float64], vectors: NDArray[np.float32], user_vector: NDArray[np.float32],
    prices: NDArray[np.float32], windows: NDArray[np.float32], user: NDArray[np.float32],
) -> tuple[NDArray[np.float32], Items]:  # fmt: skip
    """(features of `items`, shape [C, F] in the order of CANDIDATE_FEATURES; the recent item that speaks most for each,
    -1 for none).

    near: what `bought_with` told; own: what `own` did.
    """
    count, sources, of_own, of_item = len(items), ranks.shape[1], own_told.shape[1], windows.shape[1]
    at_own = 3 + sources
    at_item = at_own + of_own
    at_user = at_item + of_item + 2
    features = np.zeros((count, at_user + len(user)), dtype=np.float32)
    because = np.full(count, -1, dtype=np.int64)
    usual = user[MEAN_PRICE] + np.float32(0.1)
    for place in range(count):
        item, row = items[place], features[place]
        row[0] = _dot(vectors[item], user_vector)
        for source in range(sources):
            if ranks[place, source] < UNRANKED:
                row[3 + source] = 1 / (1 + ranks[place, source])
        one = near_table[_slot(near_table, near, item)]
        if one >= 0:
            row[1], row[2], because[place] = near_total[one], near_best[one], near_because[one]
        one = own_table[_slot(own_table, own_items, item)]
        if one >= 0:
            row[at_own:at_item] = own_told[one]
        else:
            row[at_own + IDLE_DAYS] = NEVER_DAYS
        row[at_item : at_item + of_item] = windows[item]
        row[at_user - 2] = prices[item]
        if user[MEAN_PRICE] > 0:
            row[at_user - 1] = math.log((prices[item] + np.float32(0.1)) / usual)
        row[at_user:] = user
    return features, because


@compiled(INT64, INT64S, INT64S, INT64S, FLOAT64S, FLOAT64S, INT64)
def user_features(
    at: int, items: Items, times: Items, kinds: Items, prices: NDArray[np.float64], quantities: NDArray[np.float64],
    purchase: int,
) -> NDArray[np.float32]:  # fmt: skip
    """USER_FEATURES. An order is what was bought at one moment."""
    told, table, visits, visit, first, lines = np.zeros(9), _hash_table(len(items)), 0, -1, 0, 0
    found, unknown = np.empty(len(items), dtype=np.int64), 0
    for place in range(len(items)):
        if kinds[place] != purchase:
            continue
        time, item = times[place], items[place]
        days = (at - time) / MS_PER_DAY
        if time != visit:
            first = time if visits == 0 else first
            visit = time
            visits += 1
            told[0] += days < 30
            told[1] += days < 90
            told[2] += days < 400
        if days < 90:
            told[3] += prices[place] * quantities[place]
        told[MEAN_PRICE] += prices[place]
        if item < 0:
            unknown = 1
        elif table[_slot(table, found, item)] < 0:
            found[int(told[5])] = item
            table[_slot(table, found, item)] = int(told[5])
            told[5] += 1
        lines += 1
    if visits == 0:
        told[7] = told[8] = NEVER_DAYS
        return told.astype(np.float32)
    told[MEAN_PRICE] /= lines
    told[5] += unknown
    told[6] = lines / visits
    told[7] = (at - visit) / MS_PER_DAY
    told[8] = (visit - first) / MS_PER_DAY / (visits - 1) if visits > 1 else NEVER_DAYS
    return told.astype(np.float32)


@compiled(
    INT64, INT64S, INT64S, INT64S, FLOAT64S, FLOAT64S, INT64S, FLOAT32S, INT64S, INT64S, INT64S, INT64S, UINT8S,
    array(INT32, 2), array(FLOAT32, 2), array(FLOAT32, 2), FLOAT32S, FLOAT32S, array(FLOAT32, 2), INT64, INT64, INT64,
)  # fmt: skip
def generate_candidates(
    at: int, items: Items, times: Items, kinds: Items, paid: NDArray[np.float64], quantities: NDArray[np.float64],
    recent: Items, weights: NDArray[np.float32], near: Items, hot: Items, popular: Items, quotas: Items,
    allowed: NDArray[np.uint8], neighbours: NDArray[np.int32], similarities: NDArray[np.float32],
    vectors: NDArray[np.float32], user_vector: NDArray[np.float32], prices: NDArray[np.float32],
    windows: NDArray[np.float32], purchase: int, returned: int, last_view: int,
) -> tuple[Items, Items, NDArray[np.float32], Items]:  # fmt: skip
    """The candidates of a visitor whose entries are (items, times, kinds, paid, quantities): their items, ranks,
    features and what speaks for them, as features.recommender.candidates.Candidates has them. All steps in one call:
    each call from Python costs as much as the shorter of them."""
    pulled = co_purchase_scores(recent, weights, neighbours, similarities)
    owned = user_item_features(at, items, times, kinds, purchase, returned, last_view)
    bought = owned[3]
    together = top_k_allowed(pulled[1], pulled[2], quotas[0], allowed)
    again = top_k_allowed(owned[1][:bought], owned[2][:bought, DECAYED_PURCHASES].copy(), quotas[1], allowed)
    nearest = first_k_allowed(near, quotas[2], allowed)
    # What is hot and what is popular are one source, in this order.
    hottest, best = first_k_allowed(hot, quotas[3] // 2, allowed), first_k_allowed(popular, quotas[3] // 2, allowed)
    ends = np.array([len(together), len(again), len(nearest), len(hottest) + len(best)]).cumsum()
    flat = np.concatenate((together, again, nearest, hottest, best))
    chosen, ranks = merge_sources(flat, np.sort(flat), ends)
    user = user_features(at, items, times, kinds, paid, quantities, purchase)
    features, because = candidate_features(
        chosen, ranks, pulled[0], pulled[1], pulled[2], pulled[3], pulled[4], owned[0], owned[1], owned[2], vectors,
        user_vector, prices, windows, user,
    )  # fmt: skip
    return chosen, ranks, features, because


@compiled(INT64S, INT64S)
def isin(items: Items, others: Items) -> NDArray[np.bool_]:
    """Which of `items` are among `others`: np.isin for few, in a tenth of the time."""
    table, held = _hash_table(len(others)), np.empty(len(items), dtype=np.bool_)
    for place in range(len(others)):
        table[_slot(table, others, others[place])] = place
    for place in range(len(items)):
        held[place] = table[_slot(table, others, items[place])] >= 0
    return held


@compiled(INT64S, INT64S, INT64S, INT64S, FLOAT64, INT64)
def interacted_since(
    items: Items, others: Items, times: Items, kinds: Items, since: float, kind: int
) -> NDArray[np.bool_]:
    """Which of `items` (each once) a visitor whose entries are (others, times, kinds) met after `since`; by events of
    one kind only, unless `kind` is -1."""
    table, held = _hash_table(len(items)), np.zeros(len(items), dtype=np.bool_)
    for place in range(len(items)):
        table[_slot(table, items, items[place])] = place
    for place in range(len(others)):
        if times[place] > since and (kind < 0 or kinds[place] == kind):
            found = table[_slot(table, items, others[place])]
            if found >= 0:
                held[found] = True
    return held


@compiled(INT64S, INT64S)
def count_occurrences(items: Items, others: Items) -> Items:
    """How often each of `items` (each once) is among `others`."""
    table, counts = _hash_table(len(items)), np.zeros(len(items), dtype=np.int64)
    for place in range(len(items)):
        table[_slot(table, items, items[place])] = place
    for other in others:
        place = table[_slot(table, items, other)]
        if place >= 0:
            counts[place] += 1
    return counts


@compiled(array(FLOAT32, 2), FLOAT64, INT64)
def mmr_order(vectors: NDArray[np.float32], weight: float, most: int) -> Items:
    """The places of the vectors (best first, unit length) in another order: the first `most` are chosen one by one, by
    (1 - weight) x relevance - weight x the highest cosine to one chosen before; relevance falls evenly with the place,
    from 1. The others stay in theirs."""
    pool = len(vectors)
    value, worst = np.empty(pool), np.zeros(pool)
    for place in range(pool):
        value[place] = (1 - weight) * (1 - place / pool)
    chosen, last = np.empty(pool, dtype=np.int64), min(most, pool)
    for turn in range(last):
        best = -1
        for place in range(pool):
            if value[place] > -np.inf and (best < 0 or value[place] - worst[place] > value[best] - worst[best]):
                best = place
        chosen[turn], value[best] = best, -np.inf
        for place in range(pool):
            if value[place] > -np.inf:
                worst[place] = max(worst[place], weight * _dot(vectors[place], vectors[best]))
    for place in range(pool):
        if value[place] > -np.inf:
            chosen[last] = place
            last += 1
    return chosen
