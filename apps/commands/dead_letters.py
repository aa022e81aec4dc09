"""Shows dead letters by reason, exports them for correction, and replays the corrected ones.

The import, the scorer and the feature job write them, each with its reason, its origin and the value as it came. The
ids of replayed letters are kept in a file. A second replay of an event would count once anyway, by its event id.
"""

import hashlib
import os
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import orjson

from apps.ingest.service import IngestService
from apps.wording import counted
from infra import topics
from infra.log.client import EventLog, read_all
from infra.log.open import open_log
from infra.settings import Settings

Say = Callable[[str], None]

BATCH = 500
SAMPLE_LENGTH = 200
CENTURY_DAYS = 36_500
REPLAYED = "replayed.txt"
"""Ids of the replayed letters, one per line, in the folder `dead_letters` of the data directory."""


class LettersError(Exception):
    """The file of corrected letters cannot be used; the message says which line, and why."""


class Letter(NamedTuple):
    id: str
    reason: str
    record: dict[str, Any]
    """The JSON object as it stands in the topic."""


def letters(log: EventLog) -> Iterator[Letter]:
    """Yields every dead letter once, oldest first: a crash may have written one twice."""
    seen: set[str] = set()
    for record in read_all(log, topics.DEAD_LETTERS):
        try:
            content = orjson.loads(record.value)
        except orjson.JSONDecodeError:
            content = {"reason": "unreadable letter", "value": record.value.decode("utf-8", "replace")}
        if not isinstance(content, dict):
            content = {"reason": "unreadable letter", "value": content}
        letter = Letter(_id(content), str(content.get("reason") or record.key), content)
        if letter.id not in seen:
            seen.add(letter.id)
            yield letter


def _id(content: dict[str, Any]) -> str:
    """Returns the letter's own id, which names its origin; for a letter of the import, a hash of its content."""
    own_id = content.get("event_id")
    if isinstance(own_id, str):
        return own_id
    return hashlib.sha256(orjson.dumps(content, option=orjson.OPT_SORT_KEYS)).hexdigest()[:32]


def show(settings: Settings, *, reason: str | None, samples: int, say: Say) -> None:
    """Prints how many letters wait, by reason, the most frequent first, with `samples` of each as they came."""
    replayed = _replayed(settings)
    counts: dict[str, int] = {}
    shown: dict[str, list[Letter]] = {}
    replayed_count = 0
    for letter in letters(open_log(settings)):
        if reason is not None and letter.reason != reason:
            continue
        if letter.id in replayed:
            replayed_count += 1
            continue
        counts[letter.reason] = counts.get(letter.reason, 0) + 1
        if len(shown.setdefault(letter.reason, [])) < samples:
            shown[letter.reason].append(letter)
    for name, count in sorted(counts.items(), key=lambda pair: (-pair[1], pair[0])):
        say(f"{count:>9,}  {name}")
        for letter in shown[name]:
            detail = f"{letter.record['detail']}: " if letter.record.get("detail") else ""
            value = letter.record.get("value")
            text = value if isinstance(value, str) else orjson.dumps(value).decode()
            say(f"           {detail}{text[:SAMPLE_LENGTH]}")
    say(f"waiting: {counted(sum(counts.values()), 'dead letter')}; replayed: {replayed_count:,}")


def export(settings: Settings, target: Path, *, reason: str | None, say: Say) -> None:
    """Writes the letters that wait to a JSONL file, each with its value as JSON where it is JSON."""
    replayed = _replayed(settings)
    count = 0
    with target.open("wb") as file:
        for letter in letters(open_log(settings)):
            if letter.id in replayed or (reason is not None and letter.reason != reason):
                continue
            line = {
                "letter": letter.id, "reason": letter.reason, "detail": letter.record.get("detail"),
                "origin": letter.record.get("origin"), "value": _parsed(letter.record.get("value")),
            }  # fmt: skip
            file.write(orjson.dumps(line) + b"\n")
            count += 1
    say(f"{counted(count, 'dead letter')} written to {target}: correct each `value`, then `headrace replay {target}`")


def _parsed(value: object) -> object:
    if isinstance(value, str):
        try:
            return orjson.loads(value)
        except orjson.JSONDecodeError:
            return value
    return value


def replay(settings: Settings, source: Path, *, now: datetime, say: Say) -> int:
    """Sends the corrected letters of a file, each checked like an event of POST /v1/events, however old it is.

    Prints line by line what is still wrong and returns how many lines are. A letter that was replayed before is
    skipped. Raises LettersError for a line that is not an exported letter, having replayed nothing.
    """
    corrected = list(_corrected(source))
    replayed = _replayed(settings)
    waiting = [letter for letter in corrected if letter[1] not in replayed]
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
        taken = []
        for (number, letter, _), result in zip(batch, response.results, strict=True):
            if result.status == "refused":
                field = f"{result.field}: " if result.field else ""
                say(f"line {number}: {field}{result.reason}")
            else:
                taken.append(letter)
        _remember(settings, taken)
        accepted += len(taken)
        refused += response.refused
    say(f"replayed: {accepted:,}; replayed before: {len(corrected) - len(waiting):,}; still wrong: {refused:,}")
    return refused


def _corrected(source: Path) -> Iterator[tuple[int, str, Any]]:
    """Yields the line number, letter id and value of every line."""
    with source.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                letter = orjson.loads(line)
                yield number, str(letter["letter"]), _parsed(letter["value"])
            except (orjson.JSONDecodeError, KeyError, TypeError) as error:
                raise LettersError(
                    f"{source}, line {number} is not a letter as `headrace dead-letters --export` writes it ({error}); "
                    "change nothing but its `value`"
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
        file.write("".join(f"{letter_id}\n" for letter_id in ids))
        file.flush()
        os.fsync(file.fileno())
