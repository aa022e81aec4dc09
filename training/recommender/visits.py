"""Groups events into visits, which the recommenders learn from and the gate is evaluated on.

A visit is what one user looked at, put into the cart and bought, with at most VISIT_GAP_MS from one event to the next:
the half hour after which web analytics ends a session. It is called a visit here, since a session is a visitor without
an account. Its first moment is when a home page would be requested. In a log of purchases alone, a visit is an order.
Returns come weeks later, and count with the visit that bought the item.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from features.contract import columns
from features.contract.timestamps import DAY
from features.recommender.recency import VISIT_GAP_MS

RETURN_WINDOW = 30 * DAY
VISIT_EVENT_TYPES = ("purchase", "cart", "view")
"""Types of the events that make up a visit."""
EVENT_TYPES = (*VISIT_EVENT_TYPES, "return")


@dataclass(frozen=True, slots=True)
class Visits:
    """Holds visits in order of time, one row for each."""

    users: NDArray[np.object_]
    times: NDArray[np.int64]
    """First moment, ms."""
    items: dict[str, list[NDArray[np.object_]]]
    """By event type (EVENT_TYPES), the items of each visit, each once; "return": the purchases that were returned."""

    def __len__(self) -> int:
        return len(self.times)

    @property
    def buying(self) -> NDArray[np.bool_]:
        """Returns which visits bought anything, shape [visits]."""
        return np.fromiter((len(items) > 0 for items in self.items["purchase"]), np.bool_, len(self))

    def rows(self, rows: NDArray[Any]) -> "Visits":
        """Returns these rows, given as indices or as a mask."""
        rows = np.flatnonzero(rows) if rows.dtype == bool else rows
        items = {event_type: [lists[row] for row in rows] for event_type, lists in self.items.items()}
        return Visits(self.users[rows], self.times[rows], items)

    def latest(self, count: int) -> "Visits":
        """Returns the latest `count` visits that bought, and at most as many others since the first of these."""
        buying = np.flatnonzero(self.buying)[-count:] if count else np.empty(0, dtype=np.int64)
        return self.rows(np.arange(buying[0], len(self))).thinned(len(buying)) if len(buying) else self.rows(buying)

    def thinned(self, without_purchase: int) -> "Visits":
        """Returns all visits that bought, and at most `without_purchase` of the others, spread evenly over time."""
        buying = self.buying
        others = _spread_evenly(np.flatnonzero(~buying), without_purchase)
        return self.rows(np.sort(np.concatenate((np.flatnonzero(buying), others))))

    def spread_evenly(self, count: int) -> "Visits":
        """Returns at most `count` visits, spread evenly over time."""
        return self.rows(_spread_evenly(np.arange(len(self)), count))


def _spread_evenly(rows: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Returns at most `count` of the rows, at equal distances."""
    return rows[np.unique(np.linspace(0, len(rows) - 1, min(count, len(rows))).astype(np.int64))]


def visits_from_events(events: pd.DataFrame) -> Visits:
    """Groups shop events (type, event_time, user_id, item_id) of users, not of anonymous sessions, into visits."""
    actions = events[events["type"].isin(VISIT_EVENT_TYPES) & events[columns.USER].notna()]
    user_codes = pd.factorize(actions[columns.USER], sort=True)[0]
    actions = actions.assign(returned=_was_returned(actions, events), user=user_codes)
    actions = actions.sort_values(["user", "event_time"], kind="stable")
    user, time = actions["user"].to_numpy(), actions["event_time"].to_numpy(np.int64)
    starts = np.ones(len(actions), dtype=bool)
    starts[1:] = (user[1:] != user[:-1]) | (np.diff(time) > VISIT_GAP_MS)
    order = np.lexsort((user[starts], time[starts]))
    row_of_visit = np.empty(len(order), dtype=np.int64)
    row_of_visit[order] = np.arange(len(order))
    actions = actions.assign(visit=row_of_visit[np.cumsum(starts) - 1]).sort_values("visit", kind="stable")
    users = actions[columns.USER].to_numpy(object)[np.searchsorted(actions["visit"], np.arange(len(order)))]
    items = {}
    for event_type in EVENT_TYPES:
        of_type = actions["returned"] if event_type == "return" else actions["type"] == event_type
        taken = actions[of_type].drop_duplicates(["visit", columns.ITEM])
        ends = np.cumsum(np.bincount(taken["visit"], minlength=len(order)))
        items[event_type] = np.split(taken[columns.ITEM].to_numpy(object), ends[:-1]) if len(order) else []
    return Visits(users, time[starts][order], items)


def _was_returned(actions: pd.DataFrame, events: pd.DataFrame) -> NDArray[np.bool_]:
    """Returns which rows of `actions` are purchases with a return in `events`.

    A return belongs to its user's last purchase of the item before it, if that is at most RETURN_WINDOW ago.
    """
    key = [columns.USER, columns.ITEM]
    bought = actions.assign(row=np.arange(len(actions)))[(actions["type"] == "purchase").to_numpy()]
    returns = events[(events["type"] == "return") & events[columns.USER].notna()]
    rows = pd.merge_asof(
        returns[[*key, "event_time"]].sort_values("event_time", kind="stable"),
        bought[[*key, "event_time", "row"]].sort_values("event_time", kind="stable"),
        on="event_time", by=key, tolerance=RETURN_WINDOW, allow_exact_matches=False,
    )["row"].dropna()  # fmt: skip
    returned = np.zeros(len(actions), dtype=np.bool_)
    returned[rows.to_numpy(np.int64)] = True
    return returned
