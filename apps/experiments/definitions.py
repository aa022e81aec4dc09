"""The experiments there are: kept in the event log's experiments topic, where the last definition of a key holds.

Every process tails the topic, so a definition put through one server is known to all within a second.
Two servers that put the same key at the same moment are not kept apart: the later one holds.
"""

import logging
import threading
import uuid
from collections.abc import Callable
from datetime import UTC, datetime

from pydantic import ValidationError

from apps.experiments.schemas import ExperimentDefinition
from features.contract.events import ExperimentDefined, key_of, to_json
from infra import topics
from infra.log.client import START, EventLog

logger = logging.getLogger(__name__)

REFRESH_SECONDS = 1.0
UNREADABLE_SECONDS = 5.0
"""How much longer to go on with what is known when the log cannot be read: requests must not wait for it."""


class DefinitionRefusedError(Exception):
    """The definition would spoil a comparison; the text says how, and what to do instead."""


class ExperimentStore:
    """`clock` gives seconds since the epoch. Safe to use from many threads."""

    def __init__(self, log: EventLog, clock: Callable[[], float]) -> None:
        self._log = log
        self._clock = clock
        self._lock = threading.Lock()
        self._position = START
        self._refreshed = float("-inf")
        self._unreadable = False
        self._definitions: dict[str, ExperimentDefinition] = {}
        self._have_run: set[str] = set()

    def now(self) -> datetime:
        return datetime.fromtimestamp(self._clock(), tz=UTC)

    def get(self, key: str) -> ExperimentDefinition | None:
        self._refresh()
        return self._definitions.get(key)

    def all(self) -> list[ExperimentDefinition]:
        """Every experiment, running or stopped, by key."""
        self._refresh()
        return [definition for _, definition in sorted(self._definitions.items())]

    def running_for(self, surface: str) -> ExperimentDefinition | None:
        """The one experiment that runs on `surface`, if any."""
        return next((one for one in self.all() if one.surface == surface and one.status == "running"), None)

    def put(self, definition: ExperimentDefinition) -> bool:
        """Store a definition; True when its key is new. On return every reader of this object sees it.

        Raises DefinitionRefusedError for a change that would spoil the comparison, LogFullError when it cannot be
        stored.
        """
        with self._lock:
            self._read_topic()
            known = self._definitions.get(definition.key)
            if known == definition:
                return False
            if known is not None and definition.key in self._have_run:
                _refuse_spoiling(known, definition)
            self._refuse_second_on_surface(definition)
            event = ExperimentDefined(
                type="experiment",
                event_id=f"experiment-{uuid.uuid4().hex}",
                event_time=self.now(),
                experiment=definition.key,
                definition=definition.model_dump(mode="json"),
            )
            self._log.append(topics.EXPERIMENTS, [(key_of(event), to_json(event))])
            self._read_topic()
            return known is None

    def _refuse_second_on_surface(self, definition: ExperimentDefinition) -> None:
        if definition.status != "running":
            return
        for other in self._definitions.values():
            if other.key != definition.key and other.surface == definition.surface and other.status == "running":
                raise DefinitionRefusedError(
                    f"{other.key} is running on {definition.surface}, and an impression carries one experiment: "
                    f"stop {other.key} first"
                )

    def _refresh(self) -> None:
        """Read what is new, at most once a second; whoever meets another thread doing so uses what is known."""
        if self._clock() - self._refreshed >= REFRESH_SECONDS:
            self.renew()

    def renew(self) -> None:
        """Read what is new; a log that cannot be read leaves what is known in force."""
        if not self._lock.acquire(blocking=False):
            return
        try:
            self._read_topic()
        except Exception as error:  # whatever the log's client raises
            self._refreshed = self._clock() + UNREADABLE_SECONDS
            if not self._unreadable:
                logger.warning("experiments stay as they were read last: %s", error)
            self._unreadable = True
        finally:
            self._lock.release()

    def _read_topic(self) -> None:
        definitions = dict(self._definitions)
        while records := self._log.read(topics.EXPERIMENTS, self._position):
            for record in records:
                try:
                    event = ExperimentDefined.model_validate_json(record.value)
                    definition = ExperimentDefinition.model_validate(event.definition)
                except ValidationError as error:
                    logger.warning("skipped an unreadable experiment, %s: %s", record.origin, error)
                    continue
                definitions[definition.key] = definition
                if definition.status == "running":
                    self._have_run.add(definition.key)
            self._position = self._position.after(records)
        self._unreadable = False
        # Replaced whole: readers need no lock.
        self._definitions = definitions
        self._refreshed = self._clock()


def _refuse_spoiling(old: ExperimentDefinition, new: ExperimentDefinition) -> None:
    """An experiment that has run keeps what decides who is in it, who gets what and what counts."""
    old_split, new_split = ([(one.key, one.weight) for one in each.variations] for each in (old, new))
    old_means, new_means = ([one.parameters for one in each.variations] for each in (old, new))
    spoiled = (
        (old.seed != new.seed, "a new seed deals the units anew: most would be counted in two variations"),
        (old.unit != new.unit, "a new unit deals everybody anew: most would be counted in two variations"),
        (old_split != new_split, "new variations or weights move units from one variation to another"),
        (old_means != new_means, "new parameters change what a variation is: its numbers would mix two treatments"),
        (old.surface != new.surface, "a new surface mixes two placements in one comparison"),
        (old.metric != new.metric, "a metric chosen after the numbers were seen can be made to win"),
        (new.coverage < old.coverage, "less coverage takes the treatment from units that were already counted"),
    )
    reasons = [reason for applies, reason in spoiled if applies]
    if reasons:
        raise DefinitionRefusedError(
            f"{old.key} has run already: {'; '.join(reasons)}. Stop it and start an experiment with another key"
        )
