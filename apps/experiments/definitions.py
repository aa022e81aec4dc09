"""Stores experiments in the event log's topic of experiments, where the last definition of a key holds.

Every process follows the topic, so a definition put through one server is known to all within a second. Two servers
that put the same key at the same moment are not kept apart: the later definition holds.
"""

import logging
import uuid
from collections.abc import Callable, Sequence
from datetime import UTC, datetime

from apps.experiments.schemas import ExperimentDefinition
from apps.topic_projection import Entry, TopicProjection
from features.contract.events import ExperimentDefined, key_of, to_json
from infra import topics
from infra.log.client import EventLog

logger = logging.getLogger(__name__)

REFRESH_SECONDS = 1.0
UNREADABLE_SECONDS = 5.0
"""Additional seconds without reading after the log could not be read: requests must not wait for it."""


class DefinitionRefusedError(Exception):
    """The definition would spoil a comparison; the text says how, and what to do instead."""


class ExperimentStore:
    """Holds all experiments by key. Safe to use from threads."""

    def __init__(self, log: EventLog, clock: Callable[[], float]) -> None:
        """clock: seconds since the epoch."""
        self._clock = clock
        self._topic = TopicProjection(log, topics.EXPERIMENTS, parse=_parse, apply=self._apply)
        self._refreshed = float("-inf")
        self._unreadable = False
        self._definitions: dict[str, ExperimentDefinition] = {}
        self._have_run: set[str] = set()

    def now(self) -> datetime:
        """Returns the time of the store's clock, UTC."""
        return datetime.fromtimestamp(self._clock(), tz=UTC)

    def get(self, key: str) -> ExperimentDefinition | None:
        """Returns the definition of a key; None without one."""
        self._refresh()
        return self._definitions.get(key)

    def all(self) -> list[ExperimentDefinition]:
        """Returns every experiment, running or stopped, in the order of the keys."""
        self._refresh()
        return [definition for _, definition in sorted(self._definitions.items())]

    def running_for(self, surface: str) -> ExperimentDefinition | None:
        """Returns the experiment that runs on `surface`; None without one."""
        running = (each for each in self.all() if each.surface == surface and each.status == "running")
        return next(running, None)

    def put(self, definition: ExperimentDefinition) -> bool:
        """Stores a definition; True when its key is new. On return every reader of this object sees it.

        Raises DefinitionRefusedError for a change that would spoil the comparison, LogFullError when it cannot be
        stored.
        """
        with self._topic.lock:
            self._topic.catch_up()
            existing = self._definitions.get(definition.key)
            if existing == definition:
                return False
            if existing is not None and definition.key in self._have_run:
                _refuse_spoiling(existing, definition)
            self._refuse_second_on_surface(definition)
            event = ExperimentDefined(
                type="experiment",
                event_id=f"experiment-{uuid.uuid4().hex}",
                event_time=self.now(),
                experiment=definition.key,
                definition=definition.model_dump(mode="json"),
            )
            self._topic.append(key_of(event), to_json(event))
            return existing is None

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
        """Reads what is new, at most once a second."""
        if self._clock() - self._refreshed >= REFRESH_SECONDS:
            self.renew()

    def renew(self) -> None:
        """Reads what is new, unless another thread is reading. A log that cannot be read leaves the definitions as
        they are."""
        if not self._topic.lock.acquire(blocking=False):
            return
        try:
            self._topic.catch_up()
            self._refreshed, self._unreadable = self._clock(), False
        except Exception as error:  # whatever the log's client raises
            self._refreshed = self._clock() + UNREADABLE_SECONDS
            if not self._unreadable:
                logger.warning("experiments stay as they were read last: %s", error)
            self._unreadable = True
        finally:
            self._topic.lock.release()

    def _apply(self, entries: Sequence[Entry[ExperimentDefinition]]) -> None:
        self._have_run |= {entry.event.key for entry in entries if entry.event.status == "running"}
        # Replaced whole: readers need no lock.
        self._definitions = self._definitions | {entry.event.key: entry.event for entry in entries}


def _parse(value: bytes) -> ExperimentDefinition:
    return ExperimentDefinition.model_validate(ExperimentDefined.model_validate_json(value).definition)


def _refuse_spoiling(old: ExperimentDefinition, new: ExperimentDefinition) -> None:
    """Refuses a change of what decides who is in an experiment, who gets what and what counts."""
    old_split, new_split = ([(arm.key, arm.weight) for arm in each.variations] for each in (old, new))
    old_means, new_means = ([arm.parameters for arm in each.variations] for each in (old, new))
    spoiled = (
        (old.seed != new.seed, "a new seed assigns the units again: most would be counted in two variations"),
        (old.unit != new.unit, "a new unit assigns everybody again: most would be counted in two variations"),
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
