"""Defines what a surface does after ranking, as data: one document per surface, put through the API.

Knows what a rule may say, and nothing of how it is applied (reranking.py) or stored (store.py).
"""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from apps.recommend.filters.language import MAX_CHARACTERS, parse
from features.contract.events import Id

Expression = Annotated[str, Field(min_length=1, max_length=MAX_CHARACTERS)]


class _Rule(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class _Conditional(_Rule):
    when: Expression = Field(description="Items that the rule applies to, in the language of filters.")

    @field_validator("when")
    @classmethod
    def _parses(cls, value: str) -> str:
        parse(value)
        return value


class Boost(_Conditional):
    """Multiplies the odds of the items by `factor`: the logits of the ranker rise by its logarithm."""

    kind: Literal["boost"]
    factor: float = Field(gt=1, le=1000)


class Bury(_Conditional):
    """Multiplies the odds of the items by a `factor` below 1."""

    kind: Literal["bury"]
    factor: float = Field(gt=0, lt=1)


class Hide(_Conditional):
    """Never shows the items on this surface."""

    kind: Literal["hide"]


class Pin(_Rule):
    """Shows the item at the position, whatever its rank, unless the request or another rule excludes it."""

    kind: Literal["pin"]
    item_id: Id
    position: int = Field(ge=1, le=100)


class Quota(_Rule):
    """Shows at most so many items with the same value of a field. Pinned items count first; explored items may exceed
    it."""

    kind: Literal["quota"]
    field: Literal["category", "source"]
    most: int = Field(ge=1, le=100)


class InteractedRule(_Rule):
    """Leaves out, or buries, items that the visitor bought, or bought or looked at, within so many days."""

    kind: Literal["bought", "seen"]
    days: float = Field(30, gt=0, le=400)
    factor: float = Field(0, ge=0, lt=1, description="0 leaves them out.")


class Rotate(_Rule):
    """Buries what this visitor was shown on the surface lately: by `factor` for each time, up to `most` times."""

    kind: Literal["rotate"]
    hours: float = Field(24, gt=0, le=24 * 30)
    factor: float = Field(0.8, gt=0, lt=1)
    most: int = Field(5, ge=1, le=50)


class Diversity(_Rule):
    """Re-ranks by maximal marginal relevance over the item vectors (Carbonell and Goldstein, SIGIR 1998)."""

    weight: float = Field(gt=0, le=1, description="0 would be relevance alone, 1 diversity alone.")
    pool: int = Field(60, ge=2, le=300, description="How many of the best items it chooses from.")


class Exploration(_Rule):
    """Shows other items than the best now and then, with known propensities, so that their effect can be measured.

    epsilon: each position that is not pinned shows, with this probability, an item from the `pool` next best instead.
    plackett_luce: the positions are filled by sampling without replacement, with probabilities by the odds to the
    power of 1 / temperature (Plackett 1975; by the Gumbel trick), from the slate and its `pool` next best.
    """

    policy: Literal["epsilon", "plackett_luce"]
    epsilon: float = Field(0.1, gt=0, lt=1)
    temperature: float = Field(1.0, ge=0.01, le=100)
    pool: int = Field(50, ge=1, le=300)


Rule = Annotated[Boost | Bury | Hide | Pin | Quota | InteractedRule | Rotate, Field(discriminator="kind")]
"""Where rules are applied they are distinguished by `kind`: `isinstance` of pydantic's models takes a microsecond."""


class Sources(_Rule):
    """Sets the most candidates of each source; HEADRACE_CANDIDATES_PER_SOURCE for one that is left out."""

    co_purchase: int | None = Field(None, ge=0, le=500)
    repurchase: int | None = Field(None, ge=0, le=500)
    two_tower: int | None = Field(None, ge=0, le=500)
    trending: int | None = Field(None, ge=0, le=500)
    new: int | None = Field(None, ge=0, le=500)


class SurfaceRules(_Rule):
    """The rules of one surface, applied in the order: hide, bought and seen; boost, bury and rotate; diversity; quotas;
    pins; exploration."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "rules": [
                        {"kind": "bought", "days": 14},
                        {"kind": "boost", "when": "category == 'tea' and price < 10", "factor": 1.5},
                        {"kind": "quota", "field": "category", "most": 4},
                        {"kind": "pin", "item_id": "85123A", "position": 1},
                    ],
                    "diversity": {"weight": 0.2},
                    "exploration": {"policy": "epsilon", "epsilon": 0.05},
                }
            ]
        },
    )

    rules: tuple[Rule, ...] = Field((), max_length=100)
    diversity: Diversity | None = None
    exploration: Exploration | None = None
    sources: Sources = Sources()


NO_RULES = SurfaceRules()
