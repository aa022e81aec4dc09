"""`headrace simulate`: appends simulated card payments to the event log and keeps the latest days for `traffic`."""

from collections.abc import Callable
from datetime import datetime

from apps.commands import payment_simulator
from apps.wording import counted
from infra.log.open import open_log
from infra.settings import Settings

LIVE = "live"
"""Folder in the data directory for the payments that `headrace traffic` is to send."""


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
    """Simulates `days` days up to `now` and writes them; the last `live_days` of them stay out of the log."""
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
        f"payments: {written.transactions:,} simulated "
        f"({counted(written.frauds, 'fraud')}, {counted(written.labels, 'known label')}); "
        f"{written.live_transactions:,} of the last {counted(live_days, 'day')} kept for `headrace traffic`"
    )
