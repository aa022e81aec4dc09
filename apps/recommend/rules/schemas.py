"""What a surface does after ranking, as data: one document per surface, put through the API.

Knows what a rule may say, and nothing of how it is applied (slate.py) or stored (rule_book.py).
"""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from apps.recommend.filters.language import MOST_CHARACTERS, parse
from features.contract.events import Id

Expression = Annotated[str, Field(min_length=1, max_length=MOST_CHARACTERS)]


class _Rule(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class _Conditional(_Rule):
    when: Expression = Field(description="Items that it is about, in the language of filters.")

    @field_validator("when")
    @classmethod
    def _parses(cls, value: str) -> str:
        parse(value)
        return value


class Boost(_Conditional):
    """Multiply the odds of the items by `factor`: the logits of the ranker rise by its logarithm."""

    kind: Literal["boost"]
    factor: float = Field(gt=1, le=1000)


class Bury(_Conditional):
    kind: Literal["bury"]
    factor: float = Field(gt=0, lt=1)


class Hide(_Conditional):
    """Never show the items on this surface."""

    kind: Literal["hide"]


class Pin(_Rule):
    """Show the item at the position, whatever its rank, unless the request or another rule bars it."""

    kind: Literal["pin"]
    item_id: Id
    position: int = Field(ge=1, le=100)


class Quota(_Rule):
    """At most so many items with the same value of a field. Pinned items count first; explored ones may step over."""

    kind: Literal["quota"]
    field: Literal["category", "source"]
    most: int = Field(ge=1, le=100)


class InteractedRule(_Rule):
    """What to do with items that the visitor lately bought, or looked at: leave them out, or bury them."""

    kind: Literal["bought", "seen"]
    days: float = Field(30, gt=0, le=400)
    factor: float = Field(0, ge=0, lt=1, description="0 leaves them out.")


class Rotate(_Rule):
    """Bury what this visitor was shown on the surface lately: by `factor` for each time, up to `most` times."""

    kind: Literal["rotate"]
    hours: float = Field(24, gt=0, le=24 * 30)
    factor: float = Field(0.8, gt=0, lt=1)
    most: int = Field(5, ge=1, le=50)


class Diversity(_Rule):
    """Maximal marginal relevance over the item vectors (Carbonell and Goldstein, SIGIR 1998)."""

    weight: float = Field(gt=0, le=1, description="0 would be relevance alone, 1 difference alone.")
    pool: int = Field(60, ge=2, le=300, description="How many of the best are chosen from.")


class Exploration(_Rule):
    """Show other items than the best now and then, with known chances, so that what they would do can be learnt.

    epsilon: each position that is not pinned shows, with this chance, an item from the `pool` next best instead.
    plackett_luce: the positions are filled by draws without replacement, with chances by the odds to the power of
    1 / temperature (Plackett 1975; by the Gumbel trick), from the list and its `pool` next best.
    """

    policy: Literal["epsilon", "plackett_luce"]
    epsilon: float = Field(0.1, gt=0, lt=1)
    temperature: float = Field(1.0, ge=0.01, le=100)
    pool: int = Field(50, ge=1, le=300)


Rule = Annotated[Boost | Bury | Hide | Pin | Quota | InteractedRule | Rotate, Field(discriminator="kind")]
"""Told apart by `kind` where they are applied: `isinstance` of pydantic's models is Python, and takes a microsecond."""


class Sources(_Rule):
    """Most candidates of each source; left out: HEADRACE_CANDIDATES_PER_SOURCE."""

    co_purchase: int | None = Field(None, ge=0, le=500)
    repurchase: int | None = Field(None, ge=0, le=500)
    two_tower: int | None = Field(None, ge=0, le=500)
    trending: int | None = Field(None, ge=0, le=500)
    new: int | None = Field(None, ge=0, le=500)


class SurfaceRules(_Rule):
    """Applied in the order: hide, bought and seen; boost, bury and rotate; diversity; quotas; pins; exploration."""

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
