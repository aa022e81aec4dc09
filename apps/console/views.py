"""The data that the console's pages show, and the protocol of its supplier. Knows nothing of where it comes from."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, datetime
from typing import Literal, Protocol

State = Literal["ok", "idle", "warn", "down"]
"""idle: nothing is wrong and there is nothing to do; warn: needs a look; down: the part does not work."""


@dataclass(frozen=True, slots=True)
class Component:
    """The state of one part of the system, what it last did, and a detail."""

    name: str
    state: State
    reading: str
    detail: str


@dataclass(frozen=True, slots=True)
class TopicReading:
    """The size of one topic of the event log."""

    topic: str
    records: int
    whole: bool
    """False while older records are still being counted: there are at least this many."""
    size_bytes: int | None
    """None where the log does not say."""
    last_append: datetime | None


@dataclass(frozen=True, slots=True)
class Bar:
    name: str
    value: float
    role: Literal["model", "baseline"]
    served: bool


@dataclass(frozen=True, slots=True)
class Gate:
    """Compares a model with its baselines on held-out time; bars by value, highest first."""

    title: str
    metric: str
    bars: tuple[Bar, ...]
    served: str
    model: str
    measured: Mapping[str, Mapping[str, float]]
    """All measured values, by candidate and then metric."""
    facts: tuple[tuple[str, str], ...]
    """(name, value) pairs, ready to print."""


@dataclass(frozen=True, slots=True)
class ReleaseView:
    version: str
    created: datetime
    data_start: datetime
    data_end: datetime
    gates: tuple[Gate, ...]
    packages: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class ReasonView:
    code: str
    text: str
    weight: float = 0.0
    """Change of the score's log-odds; 0 where reasons have no weights."""


@dataclass(frozen=True, slots=True)
class AlertView:
    transaction_id: str
    event_time: datetime
    decided_time: datetime
    card_id: str
    terminal_id: str
    amount: float
    score: float
    outcome: str
    reasons: tuple[ReasonView, ...]
    """Heaviest first."""
    model: str
    degraded: bool


@dataclass(frozen=True, slots=True)
class AlertFilter:
    outcome: str | None = None
    card_id: str | None = None
    min_score: float = 0.0


@dataclass(frozen=True, slots=True)
class AlertList:
    alerts: tuple[AlertView, ...]
    """Newest first."""
    position: str
    """Where a stream resumes for alerts that are not in this list yet; read before the list was."""
    thresholds: tuple[float, float] | None
    """Scores from which a payment is reviewed and declined; None without a fraud model."""


@dataclass(frozen=True, slots=True)
class ExperimentSummary:
    key: str
    surface: str
    unit: str
    metric: str
    status: str
    coverage: float
    description: str
    variations: tuple[tuple[str, float], ...]
    """(key, weight), the control first."""
    verdict: str


@dataclass(frozen=True, slots=True)
class VariationRow:
    key: str
    weight: float
    units: int
    exposures: int
    converted: int
    conversions: int
    conversion_rate: float | None
    value_sum: float
    value_mean: float | None
    returns: int
    purchases_after: int
    spend_after: float


@dataclass(frozen=True, slots=True)
class MetricRow:
    """One metric of one variation against the control; `no_answer` says why the numbers are missing."""

    metric: str
    title: str
    decides: bool
    variation: str
    control_mean: float | None = None
    mean: float | None = None
    lift: float | None = None
    low: float | None = None
    high: float | None = None
    p_value: float | None = None
    no_answer: str = ""


@dataclass(frozen=True, slots=True)
class ExperimentView:
    summary: ExperimentSummary
    generated: datetime
    days: tuple[date, date] | None
    """First and last day with data."""
    ratio_state: State
    ratio_message: str
    variations: tuple[VariationRow, ...]
    metrics: tuple[MetricRow, ...]
    plots: tuple[tuple[str, str], ...]
    """Each for a wide page and for a phone: whole SVG elements, their text escaped."""
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Overview:
    now: datetime
    components: tuple[Component, ...]
    release: ReleaseView | None
    topics: tuple[TopicReading, ...]
    alerts_known: int
    alerts: tuple[AlertView, ...]
    thresholds: tuple[float, float] | None
    experiments: tuple[ExperimentSummary, ...]
    """The running ones."""


@dataclass(frozen=True, slots=True)
class HistoryEntry:
    """One entry of a user's history."""

    time: datetime
    event_type: str
    item_id: str
    title: str
    quantity: float
    price: float


@dataclass(frozen=True, slots=True)
class ItemView:
    item_id: str
    title: str
    price: float
    score: float
    source: str
    reasons: tuple[ReasonView, ...]
    owned: bool
    """It is in the user's history."""


@dataclass(frozen=True, slots=True)
class UserView:
    """A user's recommendations and history, newest first; `problem` says why there are none."""

    now: datetime
    user_id: str
    history: tuple[HistoryEntry, ...] = ()
    history_length: int = 0
    items: tuple[ItemView, ...] = ()
    model: str = ""
    release: str = ""
    experiment: tuple[str, str, int] | None = None
    """(experiment, variation, bucket)."""
    degraded: bool = False
    took_ms: float = 0.0
    problem: str = ""


class ConsoleData(Protocol):
    """Supplies the pages. Reading changes nothing: no impression, no exposure, no decision comes from it."""

    def overview(self) -> Overview: ...

    def example_users(self, count: int) -> tuple[str, ...]:
        """Returns users that were active last, the latest first; from the last records alone, so maybe fewer."""
        ...

    def user_view(self, user_id: str, *, surface: str, n: int) -> UserView: ...

    def alerts(self, filters: AlertFilter, *, limit: int) -> AlertList: ...

    def experiments(self) -> tuple[ExperimentSummary, ...]:
        """Returns every experiment, running ones first."""
        ...

    def experiment(self, key: str) -> ExperimentView | None: ...
