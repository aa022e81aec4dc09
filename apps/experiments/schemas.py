"""Defines experiments and their reports: the documents that the API takes and gives.

Knows nothing of where definitions are stored or how the numbers come about.
"""

from collections.abc import Mapping
from datetime import date, datetime
from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from features.contract.events import Code


def _key_of(validated: Mapping[str, Any]) -> str:
    """Returns the default of `seed`: the experiment's key, or an empty text where the key itself is not valid."""
    return str(validated.get("key", ""))


class Variation(BaseModel):
    """One arm of an experiment."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    key: Code
    weight: float = Field(gt=0, le=1, description="Share of the covered units that get it.")
    parameters: dict[str, str | int | float | bool] = Field(
        default_factory=dict, description="What the surface does for it. Only the surface reads this."
    )
    description: str = Field("", max_length=500)


class MetricName(StrEnum):
    """The metrics of a report, which `report.METRICS` defines."""

    CONVERSION = "conversion"
    HIT_RATE = "hit_rate"
    VALUE = "value"
    PURCHASES_AFTER = "purchases_after"
    SPEND_AFTER = "spend_after"


class ExperimentDefinition(BaseModel):
    """Compares variations on a surface. The first variation is the control, with which the others are compared."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        json_schema_extra={
            "examples": [
                {
                    "key": "ranker-2026-11",
                    "surface": "home",
                    "variations": [
                        {"key": "baseline", "weight": 0.5, "parameters": {"recommender": "baseline"}},
                        {"key": "model", "weight": 0.5, "parameters": {"recommender": "model"}},
                    ],
                    "coverage": 1.0,
                    "unit": "user",
                    "metric": "conversion",
                    "status": "running",
                    "description": "Does the ranker sell more than its best baseline?",
                }
            ]
        },
    )

    key: Code
    seed: Code = Field(
        default_factory=_key_of,
        description="Decides, with the unit's id, who gets what. Two experiments with one seed split units alike.",
        validate_default=True,
    )
    surface: Code = Field(description="Where it runs; one running experiment a surface.")
    variations: tuple[Variation, ...] = Field(description="At least two, the control first; weights sum to 1.")
    coverage: float = Field(1.0, ge=0, le=1, description="Share of all units that take part.")
    unit: Literal["user", "session"] = Field(
        "user", description="What is assigned and counted. The other id stands in where this one is missing."
    )
    metric: MetricName = Field(MetricName.CONVERSION, description="The one that decides, chosen beforehand.")
    status: Literal["running", "stopped"] = "running"
    description: str = Field("", max_length=2_000)

    @model_validator(mode="after")
    def _is_a_comparison(self) -> "ExperimentDefinition":
        keys = [variation.key for variation in self.variations]
        if len(keys) < 2:
            raise ValueError(f"variations: an experiment compares at least two, this one has {len(keys)}")
        if repeated := sorted({key for key in keys if keys.count(key) > 1}):
            raise ValueError(f"variations: each key may stand once, but {', '.join(repeated)} stands more often")
        total = sum(variation.weight for variation in self.variations)
        if abs(total - 1) > 1e-6:
            raise ValueError(f"variations: weights must sum to 1, these sum to {total:.6g}")
        return self

    @property
    def control(self) -> Variation:
        return self.variations[0]


class NoAnswerReason(StrEnum):
    """Names why a comparison has no answer."""

    EMPTY_VARIATION = "empty_variation"
    TOO_FEW_UNITS = "too_few_units"
    TOO_FEW_OUTCOMES = "too_few_outcomes"
    ZERO_VARIANCE = "zero_variance"


class NoAnswer(BaseModel):
    """Stands for a comparison whose numbers would not mean anything, and says why."""

    kind: Literal["no_answer"] = "no_answer"
    reason: NoAnswerReason
    message: str


class Interval(BaseModel):
    """The bounds of a confidence interval."""

    low: float
    high: float


class Comparison(BaseModel):
    """Compares a variation with the control by Welch's t-test on one value per unit."""

    kind: Literal["comparison"] = "comparison"
    control_mean: float
    mean: float
    difference: float = Field(description="mean - control_mean.")
    difference_interval: Interval = Field(description="95 %, fixed horizon.")
    lift: float | None = Field(description="difference / control_mean; null where the control's mean is 0.")
    lift_interval: Interval | None = Field(description="95 %, fixed horizon, from the logarithm of the ratio.")
    p_value: float = Field(description="Two-sided, of the difference.")
    detectable_difference: float | None = Field(
        None, description="Smallest true difference that a sample like this finds four times in five."
    )
    detectable_lift: float | None = None


Result = Annotated[Comparison | NoAnswer, Field(discriminator="kind")]


class SampleRatio(BaseModel):
    """Says whether the variations have as many units as their weights promise."""

    p_value: float | None = Field(description="Null where there is no unit yet.")
    verdict: Literal["ok", "unusual", "alarm", "unknown"] = Field(description="unusual: p < 0.01; alarm: p < 0.001.")
    message: str


class VariationSummary(BaseModel):
    """The totals of one variation."""

    key: str
    weight: float
    units: int = Field(description="Units with at least one exposure, crossovers left out.")
    exposures: int = Field(description="Impressions.")
    shown: int = Field(description="Items shown.")
    converted: int = Field(description="Units with at least one attributed purchase.")
    conversions: int = Field(description="Attributed purchases.")
    conversion_rate: float | None = Field(description="converted / units.")
    value_sum: float = Field(description="Price times quantity of attributed purchases.")
    value_mean: float | None = Field(description="value_sum / units.")
    returns: int = Field(description="Attributed purchases that came back.")
    returned_value: float
    purchases_after: int = Field(description="All purchases of these units since they were first exposed.")
    spend_after: float


class VariationResult(BaseModel):
    variation: str
    result: Result


class MetricReport(BaseModel):
    metric: MetricName
    title: str
    decides: bool = Field(description="The metric that the definition names; the others are there to learn from.")
    results: tuple[VariationResult, ...] = Field(description="One per variation after the control.")


class SeriesPoint(BaseModel):
    """The deciding metric of one variation, cumulative up to the end of a day (UTC)."""

    day: date
    variation: str
    units: int = Field(description="Of the variation and the control together.")
    result: Result


class Report(BaseModel):
    """The report of one experiment: the verdict first, then what it rests on."""

    experiment: ExperimentDefinition
    generated_at: datetime
    verdict: str = Field(description="The answer in plain words.")
    sample_ratio: SampleRatio
    variations: tuple[VariationSummary, ...]
    metrics: tuple[MetricReport, ...]
    series: tuple[SeriesPoint, ...]
    crossovers: int = Field(description="Units seen in more than one variation: excluded from everything above.")
    unlisted: int = Field(description="Units seen in a variation that the definition does not list: excluded.")
    notes: tuple[str, ...] = Field(description="What to keep in mind when reading the numbers.")
