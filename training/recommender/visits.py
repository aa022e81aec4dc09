"""Visits: what one user did in one go. What the recommenders learn from, and what the gate asks about.

A visit is what a user looked at, put into the cart and bought, with at most VISIT_GAP_MS from one event to the next:
the half hour after which web analytics ends a session. It is called a visit here, since a session is a visitor without
an account. Its first moment is when a home page would be asked for. In a log of purchases alone, a visit is an order.
What comes back comes back weeks later, and is told with the visit that bought it.
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
VISITED = ("purchase", "cart", "view")
"""Kinds of events that make a visit."""
EVENT_TYPES = (*VISITED, "return")


@dataclass(frozen=True, slots=True)
class Visits:
    """Visits in order of time, one row a visit."""

    users: NDArray[np.object_]
    times: NDArray[np.int64]
    """First moment, ms."""
    items: dict[str, list[NDArray[np.object_]]]
    """By kind (KINDS), each visit's items, each once; "return": those of the bought that came back later."""

    def __len__(self) -> int:
        return len(self.times)

    @property
    def buying(self) -> NDArray[np.bool_]:
        """Which of them bought anything, shape [visits]."""
        return np.fromiter((len(one) > 0 for one in self.items["purchase"]), np.bool_, len(self))

    def rows(self, wanted: NDArray[Any]) -> "Visits":
        wanted = np.flatnonzero(wanted) if wanted.dtype == bool else wanted
        items = {kind: [lists[row] for row in wanted] for kind, lists in self.items.items()}
        return Visits(self.users[wanted], self.times[wanted], items)

    def latest(self, orders: int) -> "Visits":
        """The latest `orders` visits that bought, and at most as many of the others since the first of these."""
        buying = np.flatnonzero(self.buying)[-orders:] if orders else np.empty(0, dtype=np.int64)
        return self.rows(np.arange(buying[0], len(self))).thinned(len(buying)) if len(buying) else self.rows(buying)

    def thinned(self, others: int) -> "Visits":
        """All visits that bought, and at most `others` of the rest, spread evenly over time."""
        buying = self.buying
        rest = _evenly(np.flatnonzero(~buying), others)
        return self.rows(np.sort(np.concatenate((np.flatnonzero(buying), rest))))

    def evenly(self, count: int) -> "Visits":
        """At most `count` visits, spread evenly over time."""
        return self.rows(_evenly(np.arange(len(self)), count))


def _evenly(rows: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    return rows[np.unique(np.linspace(0, len(rows) - 1, min(count, len(rows))).astype(np.int64))]


def visits_of(events: pd.DataFrame) -> Visits:
    """The visits of users (not of anonymous sessions) in shop events (type, event_time, user_id, item_id)."""
    did = events[events["type"].isin(VISITED) & events[columns.USER].notna()]
    did = did.assign(back=_came_back(did, events), user=pd.factorize(did[columns.USER], sort=True)[0])
    did = did.sort_values(["user", "event_time"], kind="stable")
    user, time = did["user"].to_numpy(), did["event_time"].to_numpy(np.int64)
    begins = np.ones(len(did), dtype=bool)
    begins[1:] = (user[1:] != user[:-1]) | (np.diff(time) > VISIT_GAP_MS)
    order = np.lexsort((user[begins], time[begins]))
    place = np.empty(len(order), dtype=np.int64)
    place[order] = np.arange(len(order))
    did = did.assign(visit=place[np.cumsum(begins) - 1]).sort_values("visit", kind="stable")
    users = did[columns.USER].to_numpy(object)[np.searchsorted(did["visit"], np.arange(len(order)))]
    lists = {}
    for kind in EVENT_TYPES:
        mine = did[did["back"] if kind == "return" else did["type"] == kind].drop_duplicates(["visit", columns.ITEM])
        ends = np.cumsum(np.bincount(mine["visit"], minlength=len(order)))
        lists[kind] = np.split(mine[columns.ITEM].to_numpy(object), ends[:-1]) if len(order) else []
    return Visits(users, time[begins][order], lists)


def _came_back(did: pd.DataFrame, events: pd.DataFrame) -> NDArray[np.bool_]:
    """Which rows of `did` are purchases that `events` tell a return of: a return is of its user's last purchase of the
    item before it, if that is at most RETURN_WINDOW ago."""
    key = [columns.USER, columns.ITEM]
    bought = did.assign(row=np.arange(len(did)))[(did["type"] == "purchase").to_numpy()]
    returns = events[(events["type"] == "return") & events[columns.USER].notna()]
    found = pd.merge_asof(
        returns[[*key, "event_time"]].sort_values("event_time", kind="stable"),
        bought[[*key, "event_time", "row"]].sort_values("event_time", kind="stable"),
        on="event_time", by=key, tolerance=RETURN_WINDOW, allow_exact_matches=False,
    )["row"].dropna()  # fmt: skip
    back = np.zeros(len(did), dtype=np.bool_)
    back[found.to_numpy(np.int64)] = True
    return back
