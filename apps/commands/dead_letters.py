"""Dead letters: what could not be used, shown by reason, exported to be mended, and put back.

Whoever writes one (the import, the scorer, the feature job) gives its reason, its origin and the value as it came. What
was put back is remembered in a file, and an event's own id makes a second time count for nothing anyway.
"""

import hashlib
import os
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import orjson

from apps.ingest.service import IngestService
from infra import topics
from infra.log.client import EventLog, read_all
from infra.log.open import open_log
from infra.settings import Settings

Say = Callable[[str], None]

BATCH = 500
SAMPLE_LENGTH = 200
CENTURY_DAYS = 36_500
REPLAYED = "replayed.txt"
"""Ids of the letters that were put back, one a line, in the folder `dead_letters` of the data directory."""


class LettersError(Exception):
    """The file of mended letters cannot be used; says which line, and why."""


class Letter(NamedTuple):
    id: str
    reason: str
    told: dict[str, Any]
    """The record as it stands in the topic."""


def letters(log: EventLog) -> Iterator[Letter]:
    """Every dead letter once, oldest first: a crash may have written one twice."""
    seen: set[str] = set()
    for record in read_all(log, topics.DEAD_LETTERS):
        try:
            told = orjson.loads(record.value)
        except orjson.JSONDecodeError:
            told = {"reason": "unreadable letter", "value": record.value.decode("utf-8", "replace")}
        if not isinstance(told, dict):
            told = {"reason": "unreadable letter", "value": told}
        letter = Letter(_id(told), str(told.get("reason") or record.key), told)
        if letter.id not in seen:
            seen.add(letter.id)
            yield letter


def _id(told: dict[str, Any]) -> str:
    """The letter's own id, which names where it came from; of an import's letter, a hash of all it says."""
    given = told.get("event_id")
    if isinstance(given, str):
        return given
    return hashlib.sha256(orjson.dumps(told, option=orjson.OPT_SORT_KEYS)).hexdigest()[:32]


def show(settings: Settings, *, reason: str | None, samples: int, say: Say) -> None:
    """How many letters wait, by reason, the commonest first, with a few as they came."""
    done = _replayed(settings)
    counts: dict[str, int] = {}
    shown: dict[str, list[Letter]] = {}
    put_back = 0
    for letter in letters(open_log(settings)):
        if reason is not None and letter.reason != reason:
            continue
        if letter.id in done:
            put_back += 1
            continue
        counts[letter.reason] = counts.get(letter.reason, 0) + 1
        if len(shown.setdefault(letter.reason, [])) < samples:
            shown[letter.reason].append(letter)
    for name, count in sorted(counts.items(), key=lambda pair: (-pair[1], pair[0])):
        say(f"{count:>9,}  {name}")
        for letter in shown[name]:
            detail = f"{letter.told['detail']}: " if letter.told.get("detail") else ""
            value = letter.told.get("value")
            text = value if isinstance(value, str) else orjson.dumps(value).decode()
            say(f"           {detail}{text[:SAMPLE_LENGTH]}")
    say(f"{sum(counts.values()):,} dead letters wait, {put_back:,} were put back")


def export(settings: Settings, target: Path, *, reason: str | None, say: Say) -> None:
    """Write the letters that wait to a JSONL file, each with its value as JSON where it is JSON."""
    done = _replayed(settings)
    count = 0
    with target.open("wb") as file:
        for letter in letters(open_log(settings)):
            if letter.id in done or (reason is not None and letter.reason != reason):
                continue
            line = {
                "letter": letter.id, "reason": letter.reason, "detail": letter.told.get("detail"),
                "origin": letter.told.get("origin"), "value": _opened(letter.told.get("value")),
            }  # fmt: skip
            file.write(orjson.dumps(line) + b"\n")
            count += 1
    say(f"{count:,} dead letters written to {target}: mend each `value`, then `headrace replay {target}`")


def _opened(value: object) -> object:
    if isinstance(value, str):
        try:
            return orjson.loads(value)
        except orjson.JSONDecodeError:
            return value
    return value


def replay(settings: Settings, source: Path, *, now: datetime, say: Say) -> int:
    """Put the mended letters of a file back, each checked like an event of POST /v1/events, however old it is.

    Says line by line what is still wrong and returns how many lines are. A letter that was put back is skipped.
    Raises LettersError for a line that is no exported letter, having put nothing back.
    """
    found = list(_mended(source))
    done = _replayed(settings)
    waiting = [one for one in found if one[1] not in done]
    service = IngestService(
        open_log(settings),
        now.timestamp,
        recent=settings.recent_event_ids,
        max_event_bytes=settings.max_event_bytes,
        max_future_seconds=settings.max_future_seconds,
        max_age_days=CENTURY_DAYS,
    )
    accepted = refused = 0
    for start in range(0, len(waiting), BATCH):
        batch = waiting[start : start + BATCH]
        response = service.accept([value for _, _, value in batch])
        back = []
        for (number, letter, _), result in zip(batch, response.results, strict=True):
            if result.status == "refused":
                where = f"{result.field}: " if result.field else ""
                say(f"line {number}: {where}{result.reason}")
            else:
                back.append(letter)
        _remember(settings, back)
        accepted += len(back)
        refused += response.refused
    say(f"{accepted:,} put back, {len(found) - len(waiting):,} were back already, {refused:,} still wrong")
    return refused


def _mended(source: Path) -> Iterator[tuple[int, str, Any]]:
    """(line number, letter id, value) of every line."""
    with source.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                told = orjson.loads(line)
                yield number, str(told["letter"]), _opened(told["value"])
            except (orjson.JSONDecodeError, KeyError, TypeError) as error:
                raise LettersError(
                    f"{source}, line {number} is not a letter as `headrace dead-letters --export` writes it ({error}); "
                    "change only what stands in `value`"
                ) from error


def _replayed(settings: Settings) -> set[str]:
    try:
        return set((settings.data_dir / topics.DEAD_LETTERS / REPLAYED).read_text().splitlines())
    except FileNotFoundError:
        return set()


def _remember(settings: Settings, ids: list[str]) -> None:
    folder = settings.data_dir / topics.DEAD_LETTERS
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / REPLAYED).open("a") as file:
        file.write("".join(f"{one}\n" for one in ids))
        file.flush()
        os.fsync(file.fileno())
