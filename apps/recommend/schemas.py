"""What POST /v1/recommend and its sisters take and give."""

from typing import Annotated, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from features.events import Code, Id


class _Schema(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Session(_Schema):
    session_id: Id
    items: list[Id] = Field([], max_length=200, description="Items looked at in this session, oldest first.")


class Context(_Schema):
    request_time: AwareDatetime | None = Field(
        None, description="When the request is taken to happen: for replays and backtests. Now, when left out."
    )


class Condition(_Schema):
    """One condition on an item; all conditions of a filter must hold."""

    field: Literal["item_id", "price", "title"]
    op: Literal["eq", "ne", "lt", "le", "gt", "ge", "in", "contains"]
    value: float | str | list[str]


Filter = Annotated[list[Condition], Field(max_length=20)]


class RecommendRequest(_Schema):
    user_id: Id | None = None
    session: Session | None = None
    surface: Code = "home"
    n: int = Field(20, ge=1, le=100, description="How many items are wanted.")
    context: Context = Context()
    filter: Filter = []
    exclude: list[Id] = Field([], max_length=1000, description="Items that must not be shown.")
    seen: Literal["keep", "drop"] = Field(
        "keep", description="drop: leave out what this visitor bought or looked at before."
    )

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {"user_id": "17850", "surface": "home", "n": 5},
                {"session": {"session_id": "s-1", "items": ["85123A"]}, "surface": "product", "n": 5},
                {"user_id": "17850", "n": 5, "filter": [{"field": "price", "op": "le", "value": 2.5}], "seen": "drop"},
            ]
        },
    )


class ItemReason(_Schema):
    code: Literal["BOUGHT_TOGETHER", "BOUGHT_BEFORE", "CLOSE_TO_RECENT", "TRENDING", "SIMILAR"]
    text: str
    item_id: str | None = None


class RecommendedItem(_Schema):
    item_id: str
    score: float
    source: str
    reasons: list[ItemReason]
    propensity: float = Field(description="Chance with which this item was put here, given the variation.")
    title: str
    price: float


class InExperiment(_Schema):
    key: str
    variation: str
    bucket: int


class RecommendResponse(_Schema):
    request_id: str = Field(description="Send it back with what is bought from this list.")
    items: list[RecommendedItem]
    model: str
    release: str
    experiment: InExperiment | None
    degraded: bool = Field(description="True when the visitor's features, or the event log, could not be reached.")
    took_ms: float


class SimilarRequest(_Schema):
    n: int = Field(20, ge=1, le=100)
    filter: Filter = []
    exclude: list[Id] = Field([], max_length=1000)

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"n": 5}]})


class ItemList(_Schema):
    items: list[RecommendedItem]
    release: str
    took_ms: float
