"""Fraud features equal a plain reading of their definitions, and never know more than the moment of the payment did."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features.contract import columns
from features.contract.timestamps import DAY, HOUR
from features.fraud import velocity
from features.fraud.velocity import CARD_WINDOWS, FEATURES, REASONS, SKEWED, Payments, encode
from features.history import arrays
from features.history.arrays import History, from_lists

NOW = 1_700_000_000_000
AGES = st.one_of(
    st.integers(-2 * DAY, 45 * DAY),
    st.sampled_from([0, HOUR, DAY, 7 * DAY, 8 * DAY, 14 * DAY, 30 * DAY, 37 * DAY]).flatmap(
        lambda edge: st.integers(edge - 1, edge + 1)
    ),
)
TERMINALS = ["t0", "t1", "t2"]


@st.composite
def payment_lists(draw: st.DrawFn) -> dict[str, list[Any]]:
    ages = sorted(draw(st.lists(AGES, max_size=12)), reverse=True)
    return {
        columns.TIMES: [NOW - age for age in ages],
        columns.AMOUNTS: [draw(st.floats(0, 1e4)) for _ in ages],
        columns.COUNTERPARTIES: [draw(st.sampled_from(TERMINALS)) for _ in ages],
        columns.EVENT_HASHES: [draw(st.integers(0, 6)) for _ in ages],
    }


@st.composite
def fraud_lists(draw: st.DrawFn) -> dict[str, list[int]]:
    ages = sorted(draw(st.lists(AGES, max_size=8)), reverse=True)
    return {
        columns.FRAUD_TIMES: [NOW - age for age in ages],
        columns.FRAUD_KNOWN_TIMES: [NOW - draw(AGES) for _ in ages],
        columns.FRAUD_HASHES: [draw(st.integers(0, 6)) for _ in ages],
    }


@st.composite
def cases(draw: st.DrawFn) -> dict[str, Any]:
    return {
        "card": draw(payment_lists()),
        "terminal": draw(payment_lists()),
        "frauds": draw(fraud_lists()),
        "amount": draw(st.floats(0, 1e5)),
        "channel": draw(st.integers(0, 2)),
        "place": draw(st.sampled_from(TERMINALS)),
        "hash": draw(st.integers(0, 6)),
        "time": NOW + draw(st.integers(-DAY, DAY)),
    }


def encoded(rows: list[dict[str, Any]]) -> np.ndarray:
    payments = Payments(
        times=np.array([row["time"] for row in rows], dtype=np.int64),
        amounts=np.array([row["amount"] for row in rows], dtype=np.float64),
        channels=np.array([row["channel"] for row in rows], dtype=np.int64),
        cards=np.array(["c" for _ in rows], dtype=object),
        terminals=np.array([row["place"] for row in rows], dtype=object),
        event_hashes=np.array([row["hash"] for row in rows], dtype=np.int64),
    )
    return encode(
        from_lists([row["card"] for row in rows], arrays.CARD_COLUMNS),
        from_lists([row["terminal"] for row in rows], arrays.TERMINAL_COLUMNS),
        from_lists([row["frauds"] for row in rows], arrays.FRAUD_COLUMNS, names=arrays.FRAUD_NAMES),
        payments,
    )


def naive(row: dict[str, Any]) -> dict[str, float]:
    """The definitions, read one payment at a time."""
    at, amount = row["time"], row["amount"]

    def past(lists: dict[str, list[Any]], *, cap: int) -> list[tuple[int, float, str]]:
        entries = zip(*(lists[name] for name in arrays.CARD_COLUMNS), strict=True)
        others = [
            (time, paid, counterparty) for time, paid, counterparty, own in entries if time <= at and own != row["hash"]
        ]
        return [entry for entry in others if at - entry[0] < 37 * DAY][-cap:]

    def known() -> list[tuple[int, int]]:
        entries = zip(*(row["frauds"][name] for name in row["frauds"]), strict=True)
        return [(time, known) for time, known, own in entries if time <= at and known <= at and own != row["hash"]]

    card, terminal = past(row["card"], cap=arrays.CARD_CAP), past(row["terminal"], cap=arrays.TERMINAL_CAP)
    frauds = known()
    values: dict[str, float] = {}
    for window, width in CARD_WINDOWS.items():
        paid = [entry[1] for entry in card if at - entry[0] < width] + [amount]
        values[f"card_count_{window}"] = len(paid)
        values[f"card_sum_{window}"] = sum(paid)
        values[f"card_mean_{window}"] = sum(paid) / len(paid)
    logs = np.log1p([entry[1] for entry in card])
    usual = logs.mean() if card else np.log1p(amount)
    spread = np.sqrt((len(card) * (logs.var() if card else 0) + 3 * 0.25) / (len(card) + 3))
    values["amount"] = amount
    values["amount_ratio"] = np.exp(np.log1p(amount) - usual)
    values["amount_deviation"] = (np.log1p(amount) - usual) / spread
    seen = np.log1p([entry[1] for entry in terminal])
    values["amount_terminal_ratio"] = np.exp(np.log1p(amount) - seen.mean()) if terminal else 1
    values["card_idle_seconds"] = min([at - entry[0] for entry in card] + [30 * DAY]) / 1000
    values["terminal_new"] = row["place"] not in [entry[2] for entry in card]
    for window, width in {"24h": DAY, "7d": 7 * DAY, "30d": 30 * DAY}.items():
        values[f"terminal_count_{window}"] = 1 + sum(at - entry[0] < width for entry in terminal)
        then = sum(7 * DAY <= at - entry[0] < 7 * DAY + width for entry in terminal)
        bad = sum(7 * DAY <= at - time < 7 * DAY + width for time, _ in frauds)
        values[f"terminal_risk_{window}"] = bad / max(then, bad, 1)
        values[f"terminal_frauds_{window}"] = sum(at - known < width for _, known in frauds)
    hour = at // HOUR % 24
    values |= {"hour": hour, "night": hour <= 5, "weekend": (at // DAY + 3) % 7 >= 5}
    values |= {"contactless": row["channel"] == 1, "online": row["channel"] == 2}
    return values


@given(st.lists(cases(), min_size=1, max_size=4), st.sampled_from([3, 256]))
@settings(max_examples=200, deadline=None)
def test_features_are_what_their_definitions_say(rows: list[dict[str, Any]], cap: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(arrays, "CARD_CAP", cap)
        patch.setattr(arrays, "TERMINAL_CAP", cap + 1)
        result, expected = encoded(rows), [naive(row) for row in rows]
    assert result.shape == (len(rows), len(FEATURES))
    assert result.dtype == np.float32
    for values, row in zip(result, expected, strict=True):
        np.testing.assert_allclose(values, [float(row[name]) for name in FEATURES], rtol=1e-4, atol=1e-4)


@given(cases(), st.integers(1, 40 * DAY))
@settings(deadline=None)
def test_a_planted_future_payment_or_label_changes_nothing(row: dict[str, Any], later: int) -> None:
    """A payment after this one, a fraud after it, and one before it that nobody knew of yet."""
    before = encoded([row])
    at = row["time"]
    payment = {
        columns.TIMES: at + later,
        columns.AMOUNTS: 1e6,
        columns.COUNTERPARTIES: row["place"],
        columns.EVENT_HASHES: 99,
    }
    frauds = [(at + later, at + later), (at - later, at + later)]
    planted = dict(row)
    for name in ("card", "terminal"):
        planted[name] = {column: [*row[name][column], payment[column]] for column in payment}
    lists = row["frauds"]
    planted["frauds"] = {
        columns.FRAUD_TIMES: [*lists[columns.FRAUD_TIMES], *(time for time, _ in frauds)],
        columns.FRAUD_KNOWN_TIMES: [*lists[columns.FRAUD_KNOWN_TIMES], *(known for _, known in frauds)],
        columns.FRAUD_HASHES: [*lists[columns.FRAUD_HASHES], 98, 99],
    }
    np.testing.assert_array_equal(before, encoded([planted]))


@given(cases())
@settings(deadline=None)
def test_a_payment_that_is_stored_already_counts_once(row: dict[str, Any]) -> None:
    own = {
        columns.TIMES: row["time"],
        columns.AMOUNTS: row["amount"],
        columns.COUNTERPARTIES: row["place"],
        columns.EVENT_HASHES: row["hash"],
    }
    stored = dict(row)
    for name in ("card", "terminal"):
        stored[name] = {column: [*row[name][column], own[column]] for column in own}
    np.testing.assert_array_equal(encoded([row]), encoded([stored]))


def test_large_batches_are_encoded_as_their_parts_are(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(5)
    offsets = np.concatenate(([0], np.cumsum(rng.integers(0, 9, 50)))).astype(np.int64)
    entries = {
        columns.TIMES: NOW - rng.integers(0, 40 * DAY, offsets[-1]),
        columns.AMOUNTS: rng.gamma(2, 20, offsets[-1]),
        columns.COUNTERPARTIES: np.array(TERMINALS, dtype=object)[rng.integers(0, 3, offsets[-1])],
        columns.EVENT_HASHES: rng.integers(0, 99, offsets[-1]),
    }
    past = History(offsets, entries)
    names = {columns.FRAUD_KNOWN_TIMES: columns.TIMES, columns.FRAUD_HASHES: columns.EVENT_HASHES}
    frauds = History(
        offsets, {columns.TIMES: entries[columns.TIMES]} | {new: entries[old] for new, old in names.items()}
    )
    ids = np.array(TERMINALS, dtype=object)[rng.integers(0, 3, 50)]
    payments = Payments(
        np.full(50, NOW), rng.gamma(2, 20, 50), rng.integers(0, 3, 50), ids, ids, rng.integers(0, 99, 50)
    )
    whole = encode(past, past, frauds, payments)
    monkeypatch.setattr(velocity, "ROWS_AT_ONCE", 7)
    np.testing.assert_array_equal(whole, encode(past, past, frauds, payments))


def test_every_feature_has_a_reason_that_can_be_told() -> None:
    assert set(REASONS) == set(FEATURES)
    assert set(FEATURES) >= SKEWED
    assert REASONS["card_count_24h"].text.format(value=7.0, usual=1.0) == "payments in 24 hours: 7, usually 1"
    for reason in REASONS.values():
        assert reason.text.format(value=3.0, usual=1.5)
