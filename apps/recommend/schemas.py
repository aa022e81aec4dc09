"""Defines the requests and answers of POST /v1/recommend and of the other endpoints for items, with their defaults."""

from typing import Annotated, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from apps.recommend.filters.language import MAX_CHARACTERS
from features.contract.events import Code, Id

DEFAULT_LIST_LENGTH = 20
"""Items in a list when the request does not say how many."""


class _Schema(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Session(_Schema):
    session_id: Id
    items: list[Id] = Field([], max_length=200, description="Items looked at in this session, oldest first.")


class Context(_Schema):
    request_time: AwareDatetime | None = Field(
        None, description="The time for which the request is answered, for replays and backtests. Now, when left out."
    )


Filter = Annotated[
    str | None,
    Field(
        max_length=MAX_CHARACTERS,
        description="Which items may be shown: price < 20 and category in ['tea'] and not item_id in ['85123A'].",
        examples=["price <= 2.5 and title contains 'heart'"],
    ),
]


class RecommendRequest(_Schema):
    user_id: Id | None = None
    session: Session | None = None
    surface: Code = "home"
    n: int = Field(DEFAULT_LIST_LENGTH, ge=1, le=100, description="How many items to return.")
    context: Context = Field(default_factory=Context)
    filter: Filter = None
    exclude: list[Id] = Field(default_factory=list, max_length=1000, description="Items that must not be shown.")
    seen: Literal["keep", "drop"] = Field(
        "keep", description="drop: leave out what this visitor bought or looked at before."
    )
    trace: bool = Field(False, description="Explain each candidate: its sources, and which stage dropped it.")

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {"user_id": "17850", "surface": "home", "n": 5},
                {"session": {"session_id": "s-1", "items": ["85123A"]}, "surface": "product", "n": 5},
                {"user_id": "17850", "n": 5, "filter": "price <= 2.5", "seen": "drop"},
            ]
        },
    )


class ItemReason(_Schema):
    code: Literal[
        "BOUGHT_TOGETHER", "BOUGHT_BEFORE", "CLOSE_TO_RECENT", "TRENDING", "NEW_ITEM", "PINNED", "EXPLORED", "SIMILAR"
    ]
    text: str
    item_id: str | None = None


class RecommendedItem(_Schema):
    item_id: str
    score: float
    source: str
    reasons: list[ItemReason]
    propensity: float = Field(description="Probability with which this item was put here: docs/recommend.md.")
    title: str
    price: float
    category: str = ""


class InExperiment(_Schema):
    key: str
    variation: str
    bucket: int


class TracedCandidate(_Schema):
    item_id: str
    sources: dict[str, int] = Field(description="Rank of the item in each source that has it, from 1 on.")
    score: float
    log_odds: float = Field(description="The score after the rules that change odds.")
    rank: int = Field(description="Rank by score, from 1 on, before any rule.")
    stage: Literal["shown", "hide", "bought", "seen", "quota", "cut"]
    why: str


class Trace(_Schema):
    candidates: list[TracedCandidate]
    stages_ms: dict[str, float]
    rules: dict[str, object]


class RecommendResponse(_Schema):
    request_id: str = Field(description="Send it back with what is bought from this list.")
    items: list[RecommendedItem]
    model: str
    release: str
    experiment: InExperiment | None
    degraded: bool = Field(description="True while the visitor's features, or the event log, cannot be reached.")
    took_ms: float
    trace: Trace | None = None


class SimilarRequest(_Schema):
    n: int = Field(DEFAULT_LIST_LENGTH, ge=1, le=100)
    filter: Filter = None
    exclude: list[Id] = Field([], max_length=1000)

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"n": 5}]})


class ItemList(_Schema):
    items: list[RecommendedItem]
    release: str
    took_ms: float
