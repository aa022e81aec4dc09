"""Simulates card payments with known ground truth: made-up cards, terminals and frauds, no real data.

Cards have habits (amount, pace, hours, terminals nearby, liking for online shops). Fraud comes three ways, each with
honest look-alikes so that no rule is perfect:

    terminal   for some weeks a share of a compromised terminal's payments is fraud, at nearly ordinary amounts
    card       for two weeks somebody else pays too: in bursts, often online, at new terminals, often for more,
               after a tiny payment that tests the card
    amount     single payments far above the card's habit; a third of such payments are honest

A fraud becomes known days later (gamma, mean LABEL_DELAY_DAYS), and now and then a suspicion is cleared.
Knows nothing of features or models.
"""

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from features.contract import columns
from features.contract.timestamps import DAY, HOUR, milliseconds
from features.fraud.velocity import CHANNELS
from infra import topics
from infra.log.client import EventLog

FRAUD_SHARE = 0.01
OF_TERMINALS, OF_CARDS, OF_AMOUNTS = 0.55, 0.33, 0.12
"""How the frauds divide into the three ways."""
LABEL_DELAY_DAYS = 6.0
LONGEST_DELAY_DAYS = 14.0
CLEARED_SHARE = 0.003
"""Share of honest payments that someone looked into and cleared."""
PAYMENTS_PER_DAY = 0.9
"""Of an average card."""
NEARBY = 12
"""Terminals that a card mostly pays at."""
ONLINE_TERMINALS = 0.08

LIVE_TRANSACTIONS = "live_transactions.parquet"
LIVE_LABELS = "live_labels.parquet"
CHUNK = 10_000


@dataclass(frozen=True, slots=True)
class _World:
    """Habits of the cards and prices of the terminals, as parallel arrays."""

    card_log_amount: NDArray[np.float64]
    card_rate: NDArray[np.float64]
    card_hour: NDArray[np.float64]
    card_online: NDArray[np.float64]
    nearby: NDArray[np.int64]
    """Shape [cards, NEARBY]: terminals, nearest first."""
    terminal_level: NDArray[np.float64]
    """Log factor of a terminal's prices."""
    shops: NDArray[np.int64]
    """The online terminals, most popular first."""


@dataclass(slots=True)
class _Payments:
    """Parallel arrays, shape [payments]; time in milliseconds since the simulation's start."""

    time: NDArray[np.int64]
    card: NDArray[np.int64]
    terminal: NDArray[np.int64]
    amount: NDArray[np.float64]
    channel: NDArray[np.int64]
    scenario: NDArray[np.int64]
    """0 honest, 1 terminal, 2 card, 3 amount."""


SCENARIOS = ("", "terminal", "card", "amount")


def simulate(*, cards: int, terminals: int, days: int, end: datetime, seed: int) -> tuple[pa.Table, pa.Table]:
    """Simulates the payments of the `days` days before `end`, and the labels that become known.

    Returns (transactions, labels), both in time order: transactions has event_id, event_time (int64 ms), card_id,
    terminal_id, amount, channel and the truth: fraud, scenario, known_time (int64 ms, null where nobody will ever
    look). labels has event_id, transaction_id, event_time (when known, also after `end`), fraud, card_id,
    terminal_id, transaction_time. About 0.9 payments a card and day, FRAUD_SHARE of them fraud.
    """
    rng = np.random.default_rng(seed)
    world = _build(rng, cards=cards, terminals=terminals)
    honest = _ordinary(rng, world, days=days)
    target = FRAUD_SHARE * len(honest.time)
    _compromise_terminals(rng, honest, terminals=terminals, days=days, frauds=target * OF_TERMINALS)
    _inflate(rng, honest, frauds=target * OF_AMOUNTS)
    payments = _merged(honest, _card_frauds(rng, world, days=days, frauds=target * OF_CARDS))
    return _tables(rng, payments, cards=cards, terminals=terminals, start=milliseconds(end) - days * DAY)


def _build(rng: np.random.Generator, *, cards: int, terminals: int) -> _World:
    shops = rng.permutation(terminals)[: max(1, round(terminals * ONLINE_TERMINALS))]
    positions, homes = rng.random((terminals, 2)), rng.random((cards, 2))
    positions[shops] += 10  # nobody lives near an online shop
    near = min(NEARBY, terminals)
    nearby = np.empty((cards, near), dtype=np.int64)
    for start in range(0, cards, 1_000):
        distance = ((homes[start : start + 1_000, None, :] - positions[None, :, :]) ** 2).sum(axis=2)
        nearby[start : start + 1_000] = np.argsort(distance, axis=1)[:, :near]
    return _World(
        card_log_amount=rng.normal(np.log(32), 0.6, cards),
        card_rate=PAYMENTS_PER_DAY * rng.gamma(2.0, 0.5, cards),
        card_hour=rng.normal(14, 2.5, cards),
        card_online=rng.beta(1.0, 6.0, cards),
        nearby=nearby,
        terminal_level=rng.normal(0, 0.35, terminals),
        shops=shops,
    )


def _ordinary(rng: np.random.Generator, world: _World, *, days: int) -> _Payments:
    cards = len(world.card_rate)
    card = np.repeat(np.arange(cards), rng.poisson(world.card_rate * days))
    n = len(card)
    day = rng.integers(0, days, n)
    # An outing: some payments fall within the hours after the one before, as honest bursts do.
    outing = (rng.random(n) < 0.15) & (np.roll(card, 1) == card)
    hour = (rng.normal(world.card_hour[card], 3.5) + 12 * (rng.random(n) < 0.06)) % 24
    time = day * DAY + (hour * HOUR).astype(np.int64)
    time = np.where(outing, np.roll(time, 1) + rng.exponential(1.2 * HOUR, n).astype(np.int64), time)
    time = np.minimum(time, days * DAY - 1)
    terminal, online = _choose_terminals(rng, world, card, online_share=world.card_online[card], away_share=0.05)
    amount = np.exp(world.card_log_amount[card] + world.terminal_level[terminal] + rng.normal(0, 0.5, n))
    channel = np.where(online, 2, rng.random(n) < 0.55)
    return _Payments(time, card, terminal, amount, channel.astype(np.int64), np.zeros(n, dtype=np.int64))


def _choose_terminals(
    rng: np.random.Generator,
    world: _World,
    card: NDArray[np.int64],
    *,
    online_share: NDArray[np.float64] | float,
    away_share: float,
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Chooses each payment's terminal: near home, away, or online (where the second array is true)."""
    n, near = len(card), world.nearby.shape[1]
    rank = np.minimum(rng.exponential(near / 3, n).astype(np.int64), near - 1)
    terminal = world.nearby[card, rank]
    terminal = np.where(rng.random(n) < away_share, rng.integers(0, len(world.terminal_level), n), terminal)
    online = rng.random(n) < online_share
    popular = np.minimum(rng.exponential(len(world.shops) / 4, n).astype(np.int64), len(world.shops) - 1)
    terminal = np.where(online, world.shops[popular], terminal)
    return terminal, online


def _compromise_terminals(
    rng: np.random.Generator, payments: _Payments, *, terminals: int, days: int, frauds: float
) -> None:
    """Turns a share of some terminals' payments into fraud, for some weeks each, until there are about `frauds`."""
    start = rng.uniform(-10, days, terminals)
    length = rng.uniform(21, 42, terminals)
    share = rng.uniform(0.4, 0.95, terminals)
    day = payments.time / DAY
    begin = start[payments.terminal]
    within = (day >= begin) & (day < begin + length[payments.terminal])
    hit = within & (rng.random(len(day)) < share[payments.terminal])
    order = rng.permutation(terminals)
    total = np.cumsum(np.bincount(payments.terminal[hit], minlength=terminals)[order])
    chosen = np.zeros(terminals, dtype=bool)
    chosen[order[: np.searchsorted(total, frauds) + 1]] = True
    hit &= chosen[payments.terminal]
    payments.scenario[hit] = 1
    payments.amount[hit] *= np.exp(rng.normal(0.15, 0.3, int(hit.sum())))


def _inflate(rng: np.random.Generator, payments: _Payments, *, frauds: float) -> None:
    """Makes single payments very large; two thirds of them are fraud."""
    honest = np.flatnonzero(payments.scenario == 0)
    large = rng.choice(honest, size=min(len(honest), max(1, round(frauds * 1.5))), replace=False)
    payments.amount[large] *= np.exp(rng.normal(2.2, 0.4, len(large)))
    payments.scenario[large[rng.random(len(large)) < 2 / 3]] = 3


def _card_frauds(rng: np.random.Generator, world: _World, *, days: int, frauds: float) -> _Payments:
    """Simulates payments with stolen cards: about 9 each within two weeks, in bursts of about 3."""
    stolen = rng.integers(0, len(world.card_rate), max(1, round(frauds / 9)))
    begin = rng.uniform(0, max(days - 14, 1), len(stolen))
    bursts = rng.poisson(2.0, len(stolen)) + 1
    thief = np.repeat(np.arange(len(stolen)), bursts)
    burst_time = begin[thief] * DAY + rng.uniform(0, min(14, days), len(thief)) * DAY
    sizes = rng.geometric(1 / 3, len(thief))
    burst = np.repeat(np.arange(len(thief)), sizes)
    card = stolen[thief[burst]]
    n = len(burst)
    # The first of a burst is the test, the others follow within hours.
    follows = np.roll(burst, 1) == burst
    time = (burst_time[burst] + follows * rng.exponential(0.8 * HOUR, n)).astype(np.int64)
    terminal, online = _choose_terminals(rng, world, card, online_share=0.65, away_share=0.8)
    amount = np.exp(world.card_log_amount[card] + rng.normal(1.2, 0.8, n))
    tested = ~follows & (rng.random(len(thief)) < 0.6)[burst]
    amount[tested] = rng.uniform(0.5, 3, int(tested.sum()))
    channel = np.where(online, 2, rng.random(n) < 0.5).astype(np.int64)
    kept = time < days * DAY
    scenario = np.full(n, 2, dtype=np.int64)
    return _Payments(time[kept], card[kept], terminal[kept], amount[kept], channel[kept], scenario[kept])


def _merged(first: _Payments, second: _Payments) -> _Payments:
    order = np.argsort(np.concatenate((first.time, second.time)), kind="stable")
    return _Payments(
        *(np.concatenate((getattr(first, name), getattr(second, name)))[order] for name in _Payments.__slots__)
    )


def _tokens(rng: np.random.Generator, prefix: str, count: int) -> NDArray[Any]:
    """Returns random ids such as a payment processor hands out instead of card numbers."""
    digits = rng.bytes(8 * count).hex()
    return np.array([f"{prefix}_{digits[start : start + 16]}" for start in range(0, 16 * count, 16)], dtype=object)


def _tables(
    rng: np.random.Generator, payments: _Payments, *, cards: int, terminals: int, start: int
) -> tuple[pa.Table, pa.Table]:
    n = len(payments.time)
    fraud = payments.scenario > 0
    looked_into = fraud | (rng.random(n) < CLEARED_SHARE)
    delay = np.minimum(rng.gamma(3.0, LABEL_DELAY_DAYS / 3, n), LONGEST_DELAY_DAYS) * DAY
    time = payments.time + start
    known = time + delay.astype(np.int64)
    ids = _tokens(rng, "tx", n)
    card = _tokens(rng, "card", cards)[payments.card]
    terminal = _tokens(rng, "term", terminals)[payments.terminal]
    transactions = pa.table(
        {
            "event_id": pa.array(ids, pa.string()),
            "event_time": time,
            columns.CARD: pa.array(card, pa.string()),
            columns.TERMINAL: pa.array(terminal, pa.string()),
            "amount": np.maximum(np.round(payments.amount, 2), 0.5),
            "channel": pa.array(np.array(CHANNELS, dtype=object)[payments.channel], pa.string()),
            "fraud": fraud,
            "scenario": pa.array(np.array(SCENARIOS, dtype=object)[payments.scenario], pa.string()),
            "known_time": pa.array(known, mask=~looked_into),
        }
    )
    labelled = np.flatnonzero(looked_into)
    labelled = labelled[np.argsort(known[labelled], kind="stable")]
    labels = pa.table(
        {
            "event_id": pa.array([f"label_{token[3:]}" for token in ids[labelled]], pa.string()),
            columns.TRANSACTION: pa.array(ids[labelled], pa.string()),
            "event_time": known[labelled],
            "fraud": fraud[labelled],
            columns.CARD: pa.array(card[labelled], pa.string()),
            columns.TERMINAL: pa.array(terminal[labelled], pa.string()),
            "transaction_time": time[labelled],
        }
    )
    return transactions, labels


@dataclass(frozen=True, slots=True)
class Written:
    """Rows that went to the log, and rows that were kept for `headrace traffic`."""

    transactions: int
    labels: int
    frauds: int
    live_transactions: int
    live_labels: int


def write(
    log: EventLog, *, transactions: pa.Table, labels: pa.Table, end: datetime, live_days: int, live_dir: Path
) -> Written:
    """Appends past payments and labels to the log, and writes later ones to files for `headrace traffic`.

    The past ends `live_days` before `end`: its payments go to TRANSACTIONS and the labels known by then to LABELS, in
    time order. The rest goes to LIVE_TRANSACTIONS and LIVE_LABELS (also labels of older payments that become known
    between then and `end`) below `live_dir`. Raises LogFullError when the log has no room.
    """
    now, last = milliseconds(end) - live_days * DAY, milliseconds(end)
    times, known = transactions["event_time"].to_numpy(), labels["event_time"].to_numpy()
    past, live = transactions.slice(0, int((times < now).sum())), transactions.slice(int((times < now).sum()))
    past_labels = labels.slice(0, int((known <= now).sum()))
    live_labels = labels.slice(past_labels.num_rows, int((known <= last).sum()) - past_labels.num_rows)
    events = past.select(["event_id", "event_time", columns.CARD, columns.TERMINAL, "amount", "channel"])
    _append(log, topics.TRANSACTIONS, events, type_="transaction", times=("event_time",))
    _append(log, topics.LABELS, past_labels, type_="label", times=("event_time", "transaction_time"))
    live_dir.mkdir(parents=True, exist_ok=True)
    pq.write_table(live, live_dir / LIVE_TRANSACTIONS)
    pq.write_table(live_labels, live_dir / LIVE_LABELS)
    frauds = int(past["fraud"].to_numpy().sum())
    return Written(past.num_rows, past_labels.num_rows, frauds, live.num_rows, live_labels.num_rows)


def _append(log: EventLog, topic: str, table: pa.Table, *, type_: str, times: tuple[str, ...]) -> None:
    for start in range(0, table.num_rows, CHUNK):
        chunk = table.slice(start, CHUNK)
        rows = {name: chunk[name].to_pylist() for name in chunk.column_names}
        for name in times:
            moments = np.datetime_as_string(chunk[name].to_numpy().astype("datetime64[ms]"))
            rows[name] = [f"{moment}Z" for moment in moments.tolist()]
        names = (*rows, "type")
        events = (
            dict(zip(names, values, strict=True)) for values in zip(*rows.values(), [type_] * len(chunk), strict=True)
        )
        log.append(topic, [(event[columns.CARD], orjson.dumps(event)) for event in events])
