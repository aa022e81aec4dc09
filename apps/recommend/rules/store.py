"""Stores the rules of each surface in the event log's topic of rules, where the last document of a surface holds.

Every process follows the topic, so rules put through one server are in force in all within a second.
"""

import uuid
from collections.abc import Sequence
from datetime import UTC, datetime

from apps.ports import Clock
from apps.recommend.rules.schemas import NO_RULES, SurfaceRules
from apps.topic_projection import Entry, TopicProjection
from features.contract.events import RulesDefined, key_of, to_json
from infra import topics
from infra.log.client import EventLog


class SurfaceRuleStore:
    """Holds the rules in force by surface. Safe to use from threads."""

    def __init__(self, log: EventLog, clock: Clock) -> None:
        self._clock = clock
        self._rules: dict[str, SurfaceRules] = {}
        self._topic = TopicProjection(log, topics.RULES, parse=_parse, apply=self._apply)

    def get(self, surface: str) -> SurfaceRules:
        """Returns the rules in force; NO_RULES for a surface that was never given any."""
        return self._rules.get(surface, NO_RULES)

    def put(self, surface: str, rules: SurfaceRules) -> None:
        """Stores a surface's rules; on return every reader of this object sees them. Raises LogError."""
        event = RulesDefined(
            type="rules",
            event_id=f"rules-{uuid.uuid4().hex}",
            event_time=datetime.fromtimestamp(self._clock(), tz=UTC),
            surface=surface,
            rules=rules.model_dump(mode="json"),
        )
        self._topic.append(key_of(event), to_json(event))

    def renew(self) -> None:
        """Reads what is new. Raises what the log's client raises; the rules read before stay in force."""
        self._topic.catch_up()

    def _apply(self, entries: Sequence[Entry[tuple[str, SurfaceRules]]]) -> None:
        # Replaced whole: readers need no lock.
        self._rules = self._rules | dict(entry.event for entry in entries)


def _parse(value: bytes) -> tuple[str, SurfaceRules]:
    event = RulesDefined.model_validate_json(value)
    return event.surface, SurfaceRules.model_validate(event.rules)
