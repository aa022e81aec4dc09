"""`headrace import`: appends a whole history to the event log, whatever form it comes in."""

import json
from collections import Counter
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
from tqdm import tqdm

from apps.commands import event_files, online_retail, simulated_shop
from apps.commands.bulk_load import HOLDOUT, append_dead_letters, append_events, split_at, write_holdout
from apps.wording import counted
from features.contract.timestamps import DAY
from infra.log.open import open_log
from infra.progress import progress_bar
from infra.settings import Settings

Say = Callable[[str], None]
SHARED = Path("../shared/data/online_retail")
"""Where the Online Retail data is looked for, beside the project, before it is downloaded."""


class ImportRefusedError(Exception):
    """The import cannot start; the message says what to change."""


def run(
    settings: Settings,
    *,
    source: str,
    data: Path | None,
    customers: int | None,
    hold_out_days: int,
    mapping: dict[str, str],
    event_type: str | None,
    now: datetime,
    say: Say,
) -> None:
    """Imports `online-retail`, `simulated` or a file; the last `hold_out_days` stay out of the log.

    Raises DataError, ImportRefusedError or LogFullError; the message says what to do.
    """
    if source == "online-retail":
        imported = _online_retail(settings, data, customers, now, say)
    elif source == "simulated":
        imported = simulated_shop.simulate(customers=customers or 2000, end=now, seed=7)
        say("events: the built-in shop simulator (made-up shoppers, for a look without data)")
    else:
        if not Path(source).exists():
            raise ImportRefusedError(
                f"there is no file {source}; name online-retail, simulated, or the path of a CSV, Parquet or JSONL file"
            )
        imported = event_files.read(Path(source), mapping=mapping, event_type=event_type)
    _store(settings, imported, hold_out_days=hold_out_days, origin=source, say=say)


def _online_retail(
    settings: Settings, data: Path | None, customers: int | None, now: datetime, say: Say
) -> online_retail.Imported:
    path = data or (SHARED if SHARED.exists() else None)
    if path is None:
        try:
            path = _fetch(settings)
        except online_retail.DataError as error:
            say(f"events: {error}")
            say("events: no Online Retail data, so the built-in shop simulator stands in (its shoppers are made up)")
            return simulated_shop.simulate(customers=customers or 2000, end=now, seed=7)
    imported = online_retail.to_events(online_retail.read_lines(path), now=now, customers=customers)
    say(
        f"events: Online Retail from {path}, times moved forward by {counted(imported.shift.days // 7, 'week')} "
        "so that its last day falls within the last week"
    )
    return imported


def _fetch(settings: Settings) -> Path:
    with progress_bar(desc="download", unit="B", unit_scale=True) as bar:

        def on_progress(done: int, total: int) -> None:
            bar.total, bar.n = total, done
            bar.refresh()

        return online_retail.download(
            settings.online_retail_url, settings.data_dir / "downloads", on_progress=on_progress
        )


def _store(settings: Settings, imported: online_retail.Imported, *, hold_out_days: int, origin: str, say: Say) -> None:
    if not imported.events.num_rows:
        raise ImportRefusedError(f"no line of {origin} can be an event; the reasons: {_summary(imported)}")
    log = open_log(settings)
    events, later = imported.events, None
    if hold_out_days:
        # From midnight: a day that is half in the log and half held out would count for neither.
        last = pc.max(events["event_time"]).as_py()
        events, later = split_at(events, (last - hold_out_days * DAY) // DAY * DAY)
    with progress_bar(total=events.num_rows, desc="events", unit="event", unit_scale=True) as bar:
        count = append_events(log, events, on_progress=lambda rows: _advance(bar, rows))
    append_dead_letters(log, imported.rejected, origin=origin)
    users = pc.count_distinct(events["user_id"]).as_py()
    types = Counter(events["type"].to_pylist())
    why = f" ({_summary(imported)})" if len(imported.rejected) else ""
    say(
        f"events: {count:,} accepted ({', '.join(f'{number:,} {name}' for name, number in types.most_common())}) "
        f"of {counted(users, 'user')}; {len(imported.rejected):,} dead-lettered{why}"
    )
    say("events: quality " + ", ".join(f"{name} {share * 100:.1f} %" for name, share in imported.quality.items()))
    folder = settings.data_dir / "quality"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "import.json").write_text(json.dumps({"origin": origin, "accepted": count, **imported.quality}))
    if later is not None:
        write_holdout(settings.data_dir / HOLDOUT, later)
        say(
            f"events: {later.num_rows:,} of the last {counted(hold_out_days, 'day')} held out for the gate "
            "and `headrace traffic`"
        )


def _advance(bar: "tqdm[Any]", rows: int) -> None:
    bar.update(rows)


def _summary(imported: online_retail.Imported) -> str:
    reasons = Counter(reason for reason, _ in imported.rejected)
    return ", ".join(f"{number:,} {reason}" for reason, number in reasons.most_common(5))
