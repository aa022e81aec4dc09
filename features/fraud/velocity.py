"""Computes the features of a card payment: how it compares with what its card and its terminal did before.

One `encode` serves the stream job, training and the live scorer. It never looks past the payment: entries of later
moments and the payment itself are dropped before anything is counted, and a fraud counts from the moment it became
known. Does not know where histories are stored, nor any model.
"""

from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from features.contract import columns
from features.contract.timestamps import DAY, HOUR
from features.history import arrays
from features.history.arrays import History

CHANNELS = ("chip", "contactless", "online")
CHANNEL_CODES = {name: code for code, name in enumerate(CHANNELS)}

CARD_WINDOWS = {"1h": HOUR, "24h": DAY, "7d": 7 * DAY, "30d": 30 * DAY}
LABEL_DELAY = 7 * DAY
"""Risk is measured over a window that ended this long ago, because most younger frauds are not known yet."""
MAX_IDLE = 30 * DAY
LAST_NIGHT_HOUR = 5
USUAL_SPREAD = 0.5
"""Prior of the standard deviation of a card's log amounts."""
SPREAD_WEIGHT = 3.0
"""Weight of that prior, in payments."""
HORIZON = arrays.CARD_HORIZON
"""Older entries do not count: stored histories, of cards and terminals alike, do not reach back further."""
ROWS_AT_ONCE = 1_024
"""Bounds the intermediate arrays of large batches, so that they fit into the cache."""

_FAR = np.int64(2**62)
_WIDTHS = np.array([HOUR, DAY, 7 * DAY, DAY + LABEL_DELAY, 7 * DAY + LABEL_DELAY, 30 * DAY, 30 * DAY + LABEL_DELAY])
_1H, _24H, _7D, _24H_DELAYED, _7D_DELAYED, _30D, _30D_DELAYED = range(7)
_DELAYED = [_24H_DELAYED, _7D_DELAYED, _30D_DELAYED]
_CARD, _OF_TERMINAL = [_1H, _24H, _7D, _30D], [_24H, _7D, _30D]

FEATURES: tuple[str, ...] = (
    *(f"card_count_{window}" for window in CARD_WINDOWS),
    *(f"card_sum_{window}" for window in CARD_WINDOWS),
    *(f"card_mean_{window}" for window in CARD_WINDOWS),
    "amount",
    "amount_ratio",
    "amount_deviation",
    "amount_terminal_ratio",
    "card_idle_seconds",
    "terminal_new",
    "terminal_count_24h",
    "terminal_count_7d",
    "terminal_count_30d",
    "terminal_frauds_7d",
    "terminal_frauds_30d",
    "terminal_risk_24h",
    "terminal_risk_7d",
    "terminal_risk_30d",
    "hour",
    "night",
    "weekend",
    "contactless",
    "online",
)
SKEWED = frozenset(
    name
    for name in FEATURES
    if name.startswith(("card_", "terminal_count", "terminal_frauds"))
    or name in {"amount", "amount_ratio", "amount_terminal_ratio"}
)
"""Features that span many magnitudes and are never negative; models take their log1p."""


_AMOUNT, _TERMINAL, _HOUR = (FEATURES.index(name) for name in ("amount", "terminal_count_24h", "hour"))


class ReasonText(NamedTuple):
    """How a feature is named to people."""

    code: str
    """Stable, so that rules and reports may rely on it. Several features may share a code."""
    text: str
    """Template of `value` (of this payment) and `usual` (typical value)."""


_SPANS = {"1h": "1 hour", "24h": "24 hours", "7d": "7 days", "30d": "30 days"}

REASONS: dict[str, ReasonText] = {
    **{
        f"card_count_{window}": ReasonText(
            code, f"payments in {_SPANS[window]}: {{value:,.0f}}, usually {{usual:,.0f}}"
        )
        for code, window in (
            ("CARD_BURST", "1h"),
            ("CARD_BURST", "24h"),
            ("CARD_ACTIVITY", "7d"),
            ("CARD_ACTIVITY", "30d"),
        )
    },
    **{
        f"card_sum_{window}": ReasonText("CARD_SPEND", f"{{value:,.2f}} spent in {span}, usually {{usual:,.2f}}")
        for window, span in _SPANS.items()
    },
    **{
        f"card_mean_{window}": ReasonText("CARD_SPEND", f"{{value:,.2f}} a payment over {span}, usually {{usual:,.2f}}")
        for window, span in _SPANS.items()
    },
    "amount": ReasonText("AMOUNT_UNUSUAL", "amount {value:,.2f}, payments are usually about {usual:,.2f}"),
    "amount_ratio": ReasonText("AMOUNT_UNUSUAL", "amount {value:,.1f} times what this card usually pays"),
    "amount_deviation": ReasonText("AMOUNT_UNUSUAL", "amount {value:+,.1f} spreads from what this card usually pays"),
    "amount_terminal_ratio": ReasonText("AMOUNT_UNUSUAL", "amount {value:,.1f} times what this terminal usually takes"),
    "card_idle_seconds": ReasonText(
        "CARD_PACE", "{value:,.0f} seconds since the card's last payment, usually {usual:,.0f}"
    ),
    "terminal_new": ReasonText("TERMINAL_NEW", "this card has not paid at this terminal before"),
    **{
        f"terminal_count_{window}": ReasonText(
            "TERMINAL_TRAFFIC", f"payments at the terminal in {span}: {{value:,.0f}}, usually {{usual:,.0f}}"
        )
        for window, span in _SPANS.items()
        if window != "1h"
    },
    **{
        f"terminal_frauds_{window}": ReasonText(
            "TERMINAL_FRAUD", f"frauds reported at the terminal in {_SPANS[window]}: {{value:,.0f}}"
        )
        for window in ("7d", "30d")
    },
    **{
        f"terminal_risk_{window}": ReasonText(
            "TERMINAL_FRAUD",
            f"{{value:.0%}} of the terminal's payments were fraud in {_SPANS[window]} up to a week ago",
        )
        for window in ("24h", "7d", "30d")
    },
    "hour": ReasonText("TIME_OF_DAY", "paid in the hour from {value:02.0f}:00 UTC"),
    "night": ReasonText("TIME_OF_DAY", "paid at night"),
    "weekend": ReasonText("TIME_OF_DAY", "paid at the weekend"),
    "contactless": ReasonText("CHANNEL", "paid contactless"),
    "online": ReasonText("CHANNEL", "paid online"),
}


@dataclass(frozen=True, slots=True)
class Payments:
    """N payments as parallel arrays of shape [N]."""

    times: NDArray[np.int64]
    """Milliseconds since the epoch."""
    amounts: NDArray[np.float64]
    channels: NDArray[np.int64]
    """Codes of CHANNEL_CODES."""
    cards: NDArray[Any]
    terminals: NDArray[Any]
    """Ids, dtype object."""
    event_hashes: NDArray[np.int64]
    """The payments' own hashes, by which they are recognised in a history."""

    def __len__(self) -> int:
        return len(self.times)

    def rows(self, start: int, end: int) -> "Payments":
        """Returns the payments in [start, end), as views."""
        return Payments(*(getattr(self, field.name)[start:end] for field in fields(self)))

    def take(self, rows: NDArray[np.int64]) -> "Payments":
        """Returns the payments at `rows`."""
        return Payments(*(getattr(self, field.name)[rows] for field in fields(self)))


class _Past:
    """The entries of histories that came before each row's payment; all other entries are moved out of every window.

    They do not depend on what else a history holds: that of a live payment holds more than that of a stored one.
    """

    def __init__(
        self,
        past: History,
        times: NDArray[np.int64],
        hashes: NDArray[np.int64],
        own_hashes: NDArray[np.int64],
        caps: NDArray[np.int64] | None = None,
    ) -> None:
        """times, own_hashes: of the payments, shape [rows]; hashes: of the entries, shape [entries]; caps: how many of
        the latest entries within HORIZON count, shape [rows]; without it all entries count."""
        self.rows = len(times)
        self.row = np.repeat(np.arange(self.rows), past.lengths)
        self.at = times[self.row]
        self.age = self.at - past.times
        self.usable = (self.age >= 0) & (hashes != own_hashes[self.row])
        if caps is not None:
            self.usable &= self.age < HORIZON
        self._starts = past.offsets[:-1]
        self._filled = past.offsets[1:] > self._starts
        self.count = self._count()
        if caps is not None and np.any(self.count > caps):
            before = np.cumsum(self.usable) - self.usable
            ends = np.concatenate((before, [before[-1] + self.usable[-1]]))[past.offsets[1:]]
            self.usable &= ends[self.row] - before <= caps[self.row]
            self.count = self._count()
        self.age[~self.usable] = _FAR

    def _count(self) -> NDArray[np.int64]:
        """Counts the usable entries, shape [rows]."""
        counts = np.zeros(self.rows, dtype=np.int64)
        if len(self.row):
            counts[self._filled] = np.add.reduceat(self.usable, self._starts[self._filled], dtype=np.int64)
        return counts

    def cells(self, age: NDArray[np.int64]) -> NDArray[np.int64]:
        """Returns the row and narrowest window of each entry as one number, shape [entries]."""
        cells: NDArray[np.int64] = np.searchsorted(_WIDTHS, age, side="right") + self.row * (len(_WIDTHS) + 1)
        return cells

    def totals(self, cells: NDArray[np.int64], weights: NDArray[np.float64] | None = None) -> NDArray[np.float64]:
        """Sums entries, or their weights, in each window, shape [rows, windows]. A window includes the narrower
        ones."""
        size = len(_WIDTHS) + 1
        sums = np.bincount(cells, weights, minlength=self.rows * size).reshape(self.rows, size)
        return np.cumsum(sums[:, :-1], axis=1, dtype=np.float64)

    def sums(self, weights: NDArray[Any]) -> NDArray[np.float64]:
        """Sums the weights of all usable entries, shape [rows]."""
        total = np.bincount(self.row, weights * self.usable, minlength=self.rows)
        return total.astype(np.float64, copy=False)

    def youngest(self) -> NDArray[np.int64]:
        """Returns the age of the latest usable entry, at most MAX_IDLE, shape [rows]."""
        ages = np.full(self.rows, MAX_IDLE, dtype=np.int64)
        if len(self.row):
            ages[self._filled] = np.minimum.reduceat(self.age, self._starts[self._filled])
        np.minimum(ages, MAX_IDLE, out=ages)
        return ages


def encode(card: History, terminal: History, frauds: History, payments: Payments) -> NDArray[np.float32]:
    """Computes the features of N payments, shape [N, len(FEATURES)], float32, all finite.

    card, terminal: N rows of arrays.CARD_COLUMNS; frauds: N rows of arrays.FRAUD_COLUMNS, the known frauds of the
    payment's terminal. Card and terminal windows include the payment itself, once, whether or not it is stored yet.

    Windows and the delayed risk follow Le Borgne et al., Reproducible Machine Learning for Credit Card Fraud
    Detection (2022), chapter 3.
    """
    count = len(payments)
    result = np.empty((count, len(FEATURES)), dtype=np.float32)
    if count <= ROWS_AT_ONCE:
        _encode_rows(result, card, terminal, frauds, payments)
        return result
    for start in range(0, count, ROWS_AT_ONCE):
        end = min(start + ROWS_AT_ONCE, count)
        rows = payments.rows(start, end)
        _encode_rows(
            result[start:end], _rows(card, start, end), _rows(terminal, start, end), _rows(frauds, start, end), rows
        )
    return result


def _rows(whole: History, start: int, end: int) -> History:
    first, last = whole.offsets[start], whole.offsets[end]
    return History(
        whole.offsets[start : end + 1] - first,
        {name: column[first:last] for name, column in whole.entries.items()},
    )


def _stacked(card: History, terminal: History) -> History:
    """Stacks terminal rows under card rows: one pass over both halves the numpy calls, which dominate for one
    payment."""
    names = (columns.TIMES, columns.AMOUNTS, columns.EVENT_HASHES)
    return History(
        np.concatenate((card.offsets, terminal.offsets[1:] + card.offsets[-1])),
        {name: np.concatenate((card.entries[name], terminal.entries[name])) for name in names},
    )


def _encode_rows(
    result: NDArray[np.float32], card: History, terminal: History, frauds: History, payments: Payments
) -> None:
    n = len(payments)
    both = _stacked(card, terminal)
    times, own = np.concatenate((payments.times,) * 2), np.concatenate((payments.event_hashes,) * 2)
    caps = np.repeat([arrays.CARD_CAP, arrays.TERMINAL_CAP], n)
    past = _Past(both, times, both.entries[columns.EVENT_HASHES], own, caps)
    cells = past.cells(past.age)
    counts = past.totals(cells)
    earlier = past.count
    earlier_or_one = np.maximum(earlier, 1)
    logs = np.log1p(both.entries[columns.AMOUNTS])
    usual = past.sums(logs) / earlier_or_one

    card_entries = slice(0, card.offsets[-1])
    sums = past.totals(cells[card_entries], card.entries[columns.AMOUNTS])[:n, _CARD] + payments.amounts[:, None]
    card_counts = counts[:n, _CARD] + 1
    result[:, 0:4] = card_counts
    result[:, 4:8] = sums
    result[:, 8:12] = sums / card_counts

    log_amount = np.log1p(payments.amounts)
    squares = np.bincount(past.row[card_entries], (logs[card_entries] ** 2) * past.usable[card_entries], minlength=n)
    variance = np.maximum(squares / earlier_or_one[:n] - usual[:n] ** 2, 0)
    spread = np.sqrt((earlier[:n] * variance + SPREAD_WEIGHT * USUAL_SPREAD**2) / (earlier[:n] + SPREAD_WEIGHT))
    above = (log_amount - usual[:n]) * (earlier[:n] > 0)
    result[:, _AMOUNT] = payments.amounts
    result[:, _AMOUNT + 1] = np.exp(above)
    result[:, _AMOUNT + 2] = above / spread
    result[:, _AMOUNT + 3] = np.exp((log_amount - usual[n:]) * (earlier[n:] > 0))
    result[:, _AMOUNT + 4] = past.youngest()[:n] / 1000
    row = past.row[card_entries]
    visits = past.usable[card_entries] & (card.entries[columns.COUNTERPARTIES] == payments.terminals[row])
    result[:, _AMOUNT + 5] = np.bincount(row, visits, minlength=n) == 0

    result[:, _TERMINAL : _TERMINAL + 3] = counts[n:, _OF_TERMINAL] + 1
    result[:, _TERMINAL + 3 : _HOUR] = _fraud_features(frauds, payments, counts[n:])
    hours = payments.times % DAY // HOUR
    result[:, _HOUR] = hours
    result[:, _HOUR + 1] = hours <= LAST_NIGHT_HOUR
    result[:, _HOUR + 2] = (payments.times // DAY + 3) % 7 >= 5  # 1 January 1970 was a Thursday
    result[:, _HOUR + 3] = payments.channels == CHANNEL_CODES["contactless"]
    result[:, _HOUR + 4] = payments.channels == CHANNEL_CODES["online"]


def _fraud_features(
    frauds: History, payments: Payments, terminal_counts: NDArray[np.float64]
) -> NDArray[np.float64] | float:
    """Computes frauds reported in 7 and 30 days, and the share of fraud in the three delayed windows, shape [rows,
    5]."""
    if not len(frauds.times):
        return 0.0
    past = _Past(frauds, payments.times, frauds.entries[columns.FRAUD_HASHES], payments.event_hashes)
    known_age = past.at - frauds.entries[columns.FRAUD_KNOWN_TIMES]
    unknown = ~past.usable | (known_age < 0)
    known_age[unknown] = _FAR
    past.age[unknown] = _FAR
    reported = past.totals(past.cells(known_age))[:, [_7D, _30D]]
    happened = past.totals(past.cells(past.age))
    delayed = happened[:, _DELAYED] - happened[:, [_7D]]
    payment_counts = terminal_counts[:, _DELAYED] - terminal_counts[:, [_7D]]
    # A stored history is cut to its latest payments, its frauds are not: no share above 1.
    shares = delayed / np.maximum(np.maximum(payment_counts, delayed), 1)
    return np.concatenate((reported, shares), axis=1)
