"""`headrace simulate`: simulated card payments into the event log, the latest days kept aside for the replay."""

from collections.abc import Callable
from datetime import datetime

from apps.commands import payment_simulator
from infra.log.open import open_log
from infra.settings import Settings

LIVE = "live"
"""Folder, below the data directory, of the payments that are still to come."""


def run(
    settings: Settings,
    *,
    cards: int,
    terminals: int,
    days: int,
    live_days: int,
    seed: int,
    now: datetime,
    say: Callable[[str], None],
) -> None:
    """Simulate `days` up to `now` and write them; `live_days` of them stay out of the log."""
    transactions, labels = payment_simulator.simulate(cards=cards, terminals=terminals, days=days, end=now, seed=seed)
    written = payment_simulator.write(
        open_log(settings),
        transactions=transactions,
        labels=labels,
        end=now,
        live_days=live_days,
        live_dir=settings.data_dir / LIVE,
    )
    say(
        f"payments: {written.transactions:,} simulated ({written.frauds:,} frauds, {written.labels:,} labels known); "
        f"{written.live_transactions:,} of the last {live_days} days kept for the replay"
    )
