"""The rules there are: kept in the event log's rules topic, where the last ones of a surface hold.

Every process follows the topic, so rules put through one server are in force in all within a second.
"""

import logging
import threading
import uuid
from collections.abc import Callable
from datetime import UTC, datetime

from pydantic import ValidationError

from apps.recommend.rules.schemas import NO_RULES, SurfaceRules
from features.contract.events import RulesDefined, key_of, to_json
from infra import topics
from infra.log.client import START, EventLog

logger = logging.getLogger(__name__)


class SurfaceRuleStore:
    """`clock` gives seconds since the epoch. Safe to use from many threads."""

    def __init__(self, log: EventLog, clock: Callable[[], float]) -> None:
        self._log = log
        self._clock = clock
        self._lock = threading.Lock()
        self._position = START
        self._rules: dict[str, SurfaceRules] = {}

    def get(self, surface: str) -> SurfaceRules:
        """The rules in force; without any, NO_RULES."""
        return self._rules.get(surface, NO_RULES)

    def put(self, surface: str, rules: SurfaceRules) -> None:
        """Store a surface's rules; on return every reader of this object sees them. Raises LogError."""
        event = RulesDefined(
            type="rules",
            event_id=f"rules-{uuid.uuid4().hex}",
            event_time=datetime.fromtimestamp(self._clock(), tz=UTC),
            surface=surface,
            rules=rules.model_dump(mode="json"),
        )
        with self._lock:
            self._log.append(topics.RULES, [(key_of(event), to_json(event))])
            self._read_topic()

    def renew(self) -> None:
        """Read what is new. Raises what the log's client raises; the rules that are known stay in force."""
        with self._lock:
            self._read_topic()

    def _read_topic(self) -> None:
        rules = dict(self._rules)
        while records := self._log.read(topics.RULES, self._position):
            for record in records:
                try:
                    event = RulesDefined.model_validate_json(record.value)
                    rules[event.surface] = SurfaceRules.model_validate(event.rules)
                except ValidationError as error:
                    logger.warning("skipped unreadable rules, %s: %s", record.origin, error)
            self._position = self._position.after(records)
        # Replaced whole: readers need no lock.
        self._rules = rules
