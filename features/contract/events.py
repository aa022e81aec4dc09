"""Defines every event of the stream as it is stored in the log: one JSON object, frozen, named in the past tense.

ItemEvent and Transaction come in through the API, files and Kafka; Headrace writes the rest itself.
The Spark jobs read the same JSON with the schema that streaming/source.py derives from these classes.
Knows nothing of transport, storage or features.
"""

from typing import Annotated, Literal

import orjson
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, StringConstraints, TypeAdapter, model_validator

from infra import topics
from infra.log.client import origin

Id = Annotated[str, StringConstraints(min_length=1, max_length=128, pattern=r"^[^\x00-\x1f\x7f]+$")]
"""An identifier: 1 to 128 characters, none of them a control character."""
Code = Annotated[str, StringConstraints(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9_.:-]+$")]
"""A short machine-readable word."""


class Event(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    event_id: Id = Field(description="Idempotence key: an event sent twice counts once.")
    event_time: AwareDatetime = Field(description="When it happened, RFC 3339 with an offset.")
    schema_version: Literal[1] = 1


class _VisitorEvent(Event):
    """Something a user or an anonymous session did."""

    user_id: Id | None = None
    session_id: Id | None = None

    @model_validator(mode="after")
    def _has_a_visitor(self) -> "_VisitorEvent":
        if self.user_id is None and self.session_id is None:
            raise ValueError("give user_id or session_id, so that the event belongs to someone")
        return self


class _ItemInteraction(_VisitorEvent):
    item_id: Id
    quantity: float = Field(1, gt=0, le=1e6)
    price: float | None = Field(None, ge=0, le=1e7, description="Price of one piece, in the shop's currency.")
    order_id: Id | None = None
    request_id: Id | None = Field(None, description="The recommendation this item was taken from, if it was.")


class ItemListed(Event):
    """An item was added to the catalogue or changed; the last event of an item holds."""

    type: Literal["item"]
    item_id: Id
    title: str = Field("", max_length=500)
    price: float | None = Field(None, ge=0, le=1e7)
    category: str | None = Field(None, max_length=128)


class ItemViewed(_ItemInteraction):
    type: Literal["view"]


class ItemAddedToCart(_ItemInteraction):
    type: Literal["cart"]


class ItemPurchased(_ItemInteraction):
    type: Literal["purchase"]


class ItemReturned(_ItemInteraction):
    type: Literal["return"]


class Transaction(Event):
    """A card payment. Its event_id is the transaction's id."""

    type: Literal["transaction"]
    card_id: Id
    terminal_id: Id
    amount: float = Field(ge=0, le=1e9, description="In the account's currency.")
    channel: Literal["chip", "contactless", "online"] = "chip"
    scored: bool = Field(False, description="Written by the API: a decision for it is in the log already.")
    http_request_id: Id | None = Field(None, description="Written by the API: X-Request-ID of the call it came with.")


class Label(Event):
    """A transaction turned out to be fraud or not. event_time is when that became known."""

    type: Literal["label"]
    transaction_id: Id
    fraud: bool
    card_id: Id | None = None
    terminal_id: Id | None = None
    transaction_time: AwareDatetime | None = None


class ShownItem(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    item_id: Id
    position: int = Field(ge=1)
    score: float
    source: Code
    propensity: float = Field(gt=0, le=1)


class Impression(_VisitorEvent):
    """A list of items that was shown. Its event_id is the request_id that outcomes name."""

    type: Literal["impression"]
    surface: Code
    model: Code
    experiment: Code | None = None
    variation: Code | None = None
    bucket: int | None = Field(None, ge=0, lt=10_000)
    degraded: bool = False
    http_request_id: Id | None = None
    """X-Request-ID of the call that this answered; unlike event_id, the caller may have chosen it."""
    items: tuple[ShownItem, ...]


class Reason(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    code: Code
    weight: float = Field(description="Change of the score's log-odds that this reason stands for.")
    text: str


class Decision(Event):
    """A scored transaction. Its event_id and event_time are the transaction's."""

    type: Literal["decision"]
    card_id: Id
    terminal_id: Id
    amount: float
    score: float = Field(ge=0, le=1)
    outcome: Literal["approve", "review", "decline"]
    reasons: tuple[Reason, ...] = ()
    model: Code
    degraded: bool = False
    decided_time: AwareDatetime
    http_request_id: Id | None = None
    """X-Request-ID of the call that brought the transaction."""


class ExperimentDefined(Event):
    """An experiment was defined; the last definition of a key holds."""

    type: Literal["experiment"]
    experiment: Code
    definition: dict[str, object]


class RulesDefined(Event):
    """The rules of a surface were set; the last ones of a surface hold."""

    type: Literal["rules"]
    surface: Code
    rules: dict[str, object]


ItemEvent = ItemListed | ItemViewed | ItemAddedToCart | ItemPurchased | ItemReturned
AcceptedEvent = Annotated[ItemEvent | Transaction, Field(discriminator="type")]
"""The events that POST /v1/events and `headrace import` accept."""
Logged = ItemEvent | Transaction | Label | Impression | Decision | ExperimentDefined | RulesDefined
LoggedEvent = Annotated[Logged, Field(discriminator="type")]

ACCEPTED: TypeAdapter[ItemEvent | Transaction] = TypeAdapter(AcceptedEvent)
LOGGED: TypeAdapter[Logged] = TypeAdapter(LoggedEvent)

TOPIC_OF = {
    "item": topics.SHOP,
    "view": topics.SHOP,
    "cart": topics.SHOP,
    "purchase": topics.SHOP,
    "return": topics.SHOP,
    "transaction": topics.TRANSACTIONS,
    "label": topics.LABELS,
    "impression": topics.IMPRESSIONS,
    "decision": topics.DECISIONS,
    "experiment": topics.EXPERIMENTS,
    "rules": topics.RULES,
}


def key_of(event: Event) -> str:
    """Returns the log key of an event: all events of one user, card or item stay in order under it."""
    for name in ("card_id", "user_id", "session_id", "transaction_id", "experiment", "item_id", "surface"):
        if value := getattr(event, name, None):
            return str(value)
    return event.event_id


def to_json(event: Event) -> bytes:
    """Returns the event as compact JSON for the log: times keep the offset they came with, unset fields are left
    out."""
    return event.model_dump_json(exclude_none=True).encode()


def dead_letter(
    topic: str, partition: int, offset: int, *, value: str, reason: str, detail: str | None = None
) -> tuple[str, bytes]:
    """Returns (key, JSON) of a record that cannot be used: its id is its position in the log, its value is kept as it
    came."""
    letter = {
        "event_id": origin(topic, partition, offset),
        "reason": reason,
        **({} if detail is None else {"detail": detail}),
        "origin": {"topic": topic, "partition": partition, "offset": offset},
        "value": value,
    }
    return reason, orjson.dumps(letter)
