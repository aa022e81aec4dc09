"""Requests and answers of the fraud endpoints. Times are RFC 3339 with an offset."""

from typing import Annotated, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from features.contract.events import Decision, Id, Reason
from infra.log.client import Position

MOST_LABELS = 1_000

EXAMPLE_REASON = {"code": "CARD_BURST", "weight": 1.72, "text": "payments in 24 hours: 7, usually 1"}
EXAMPLE_DECISION = {
    "transaction_id": "tx_5f0c8a41d2e79b36",
    "score": 0.62,
    "outcome": "review",
    "reasons": [EXAMPLE_REASON],
    "model": "20261122T101500",
    "took_ms": 3.1,
    "degraded": False,
}
EXAMPLE_ALERT = {
    "alert_id": "0:18874",
    "transaction_id": "tx_5f0c8a41d2e79b36",
    "event_time": "2026-11-22T10:20:00Z",
    "decided_time": "2026-11-22T10:20:00.004Z",
    "card_id": "card_91d1e06f03bddec6",
    "terminal_id": "term_961e1d5e94bfab0c",
    "amount": 412.5,
    "score": 0.62,
    "outcome": "review",
    "reasons": [EXAMPLE_REASON],
    "model": "20261122T101500",
    "degraded": False,
}


class _In(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class ScoreRequest(_In):
    transaction_id: Id = Field(description="A transaction asked for again gets its first decision back.")
    card_id: Id = Field(description="A pseudonym of the card, never its number.")
    terminal_id: Id
    amount: float = Field(ge=0, le=1e9, description="In the account's currency.")
    channel: Literal["chip", "contactless", "online"] = "chip"
    event_time: AwareDatetime | None = Field(None, description="When it was paid; now, if left out.")


class ScoreResponse(BaseModel):
    transaction_id: str
    score: float = Field(description="Probability of fraud.")
    outcome: Literal["approve", "review", "decline"]
    reasons: tuple[Reason, ...] = Field(description="What raised the score most, heaviest first.")
    model: str
    took_ms: float
    degraded: bool = Field(description="Decided without stored histories or without a model.")


class LabelRequest(_In):
    transaction_id: Id
    fraud: bool
    known_time: AwareDatetime | None = Field(None, description="When it became known; now, if left out.")
    card_id: Id | None = Field(None, description="Filled in where the decision is still known.")
    terminal_id: Id | None = None
    transaction_time: AwareDatetime | None = None


LabelBatch = Annotated[list[LabelRequest], Field(min_length=1, max_length=MOST_LABELS)]


class LabelResult(BaseModel):
    transaction_id: str
    status: Literal["accepted", "duplicate"]


class LabelsResponse(BaseModel):
    accepted: int
    duplicates: int
    results: list[LabelResult]


class AlertOut(BaseModel):
    alert_id: str = Field(description="Also the event id of the stream: resume behind this alert with it.")
    transaction_id: str
    event_time: AwareDatetime
    decided_time: AwareDatetime
    card_id: str
    terminal_id: str
    amount: float
    score: float
    outcome: Literal["review", "decline"]
    reasons: tuple[Reason, ...]
    model: str
    degraded: bool
    http_request_id: str | None = Field(None, description="X-Request-ID of the call that brought the payment.")


class AlertsResponse(BaseModel):
    alerts: list[AlertOut]


def alert_out(resume: Position, decision: Decision) -> AlertOut:
    fields = decision.model_dump(exclude={"event_id", "schema_version", "type"})
    return AlertOut(alert_id=str(resume), transaction_id=decision.event_id, **fields)
