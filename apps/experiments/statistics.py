"""Tests whether a difference is real. tea-tasting calculates; this module decides when there is no answer.

A metric is one value per unit (0 or 1 for a share), or the ratio of two, compared by Welch's t-test, so interval and
p-value always agree with each other; the variance of a ratio is the delta method's (Deng, Knoblich and Lu 2018,
"Applying the Delta Method in Metric Analytics"). The intervals are fixed-horizon: valid when read once. Knows nothing
of experiments.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from apps.experiments.schemas import Comparison, Interval, NoAnswer, NoAnswerReason, SampleRatio

ALPHA = 0.05
POWER = 0.8
MIN_UNITS = 30
"""Units per variation below which the mean of skewed values is not close to normal."""
MIN_OUTCOMES = 5
"""Least expected units with, and for shares also without, the outcome in each variation: the usual condition for
approximating a share by a normal distribution."""
RATIO_ALARM = 0.001
RATIO_UNUSUAL = 0.01

# tea-tasting takes seconds to import: it is imported by the first report, not by the server's start.


@dataclass(frozen=True, slots=True)
class Sample:
    """Holds the moments of one variation's values and of what they are counted per, which is 1 for each unit where a
    metric is per unit."""

    name: str
    units: int
    positive: int
    """How many units have a value other than 0."""
    value: float
    """Mean over the units. Variances and the covariance are divided by units - 1, and 0 for fewer than two units."""
    value_variance: float
    per: float = 1.0
    per_variance: float = 0.0
    covariance: float = 0.0

    @property
    def mean(self) -> float:
        """The metric: the sum of the values over the sum of what they are counted per."""
        return self.value / self.per if self.per else 0.0

    @property
    def constant(self) -> bool:
        return self.value_variance == self.per_variance == 0


def sample(values: NDArray[np.float64], *, name: str, per: NDArray[np.float64] | None = None) -> Sample:
    """Returns the moments of values, shape [units], counted per unit or per the sum of `per`, of the same shape."""
    per = np.ones_like(values) if per is None else per
    spread = np.cov(values, per) if len(values) > 1 else np.zeros((2, 2))
    return Sample(
        name=name,
        units=len(values),
        positive=int(np.count_nonzero(values)),
        value=float(values.mean()) if len(values) else 0.0,
        value_variance=float(spread[0, 0]),
        per=float(per.mean()) if len(values) else 1.0,
        per_variance=float(spread[1, 1]),
        covariance=float(spread[0, 1]),
    )


def compare(control: Sample, treatment: Sample, *, share: bool) -> Comparison | NoAnswer:
    """Compares the treatment with the control. share: whether values are 0 or 1.

    Difference, its 95 % interval and p-value are Welch's; the lift's interval comes from the logarithm of the ratio of
    means (delta method). Returns NoAnswer, with its reason, where these would not mean anything.
    """
    if no_answer := _no_answer(control, treatment, share=share):
        return no_answer
    from tea_tasting import RatioOfMeans

    metric = RatioOfMeans(
        "value", "per", alternative="two-sided", confidence_level=1 - ALPHA, equal_var=False, use_t=True
    )
    result = metric.analyze_aggregates(_aggregates(control), _aggregates(treatment))
    lift = _finite(result.rel_effect_size)
    low, high = _finite(result.rel_effect_size_ci_lower), _finite(result.rel_effect_size_ci_upper)
    return Comparison(
        control_mean=control.mean,
        mean=treatment.mean,
        difference=result.effect_size,
        difference_interval=Interval(low=result.effect_size_ci_lower, high=result.effect_size_ci_upper),
        lift=lift,
        lift_interval=None if lift is None or low is None or high is None else Interval(low=low, high=high),
        p_value=result.pvalue,
    )


def with_power(comparison: Comparison, control: Sample, treatment: Sample) -> Comparison:
    """Returns the comparison with the smallest difference that samples of this size would find at 80 % power."""
    from tea_tasting import RatioOfMeans

    ratio = treatment.units / control.units
    metric = RatioOfMeans("value", "per", alternative="two-sided", alpha=ALPHA, power=POWER, ratio=ratio, use_t=False)
    both = _aggregates(control) + _aggregates(treatment)
    difference = float(metric.solve_power_from_aggregates(both, "effect_size")[0].effect_size)
    lift = difference / control.mean if control.mean > 0 else None
    return comparison.model_copy(update={"detectable_difference": difference, "detectable_lift": lift})


def sample_ratio(units: Sequence[int], weights: Sequence[float]) -> SampleRatio:
    """Tests whether units per variation fit the weights: by an exact binomial test below 1,000 units, else a normal
    one; by chi-squared for more than two variations."""
    if sum(units) == 0:
        return SampleRatio(p_value=None, verdict="unknown", message="no unit has been exposed yet")
    p_value = _sample_ratio_p(units, weights)
    counts = " / ".join(f"{count:,}" for count in units)
    if p_value < RATIO_ALARM:
        return SampleRatio(
            p_value=p_value,
            verdict="alarm",
            message=f"{counts} units do not fit the weights (p = {p_value:.2g}): "
            "units are lost or assigned wrongly somewhere, and no comparison here can be trusted",
        )
    if p_value < RATIO_UNUSUAL:
        return SampleRatio(
            p_value=p_value,
            verdict="unusual",
            message=f"{counts} units are unusual for the weights (p = {p_value:.2g}): look for lost units",
        )
    return SampleRatio(p_value=p_value, verdict="ok", message=f"{counts} units fit the weights (p = {p_value:.2g})")


def _sample_ratio_p(units: Sequence[int], weights: Sequence[float]) -> float:
    if len(units) == 2:
        from tea_tasting import SampleRatio as RatioCheck
        from tea_tasting.aggr import Aggregates

        check = RatioCheck(weights[1] / weights[0], correction=False)
        counts = {"control": Aggregates(units[0]), "treatment": Aggregates(units[1])}
        return float(check.analyze(counts, "control", "treatment").pvalue)
    from scipy.stats import chisquare  # tea-tasting's check takes two variations

    total, weight = sum(units), sum(weights)
    return float(chisquare(units, [total * share / weight for share in weights]).pvalue)


def _no_answer(control: Sample, treatment: Sample, *, share: bool) -> NoAnswer | None:
    both = (control, treatment)
    if empty := [arm.name for arm in both if arm.units == 0]:
        return NoAnswer(reason=NoAnswerReason.EMPTY_VARIATION, message=f"no unit has seen {' or '.join(empty)} yet")
    smallest = min(both, key=lambda arm: arm.units)
    if smallest.units < MIN_UNITS:
        return NoAnswer(
            reason=NoAnswerReason.TOO_FEW_UNITS,
            message=f"{smallest.name} has {smallest.units} of the {MIN_UNITS} units that an interval needs",
        )
    units, positive = control.units + treatment.units, control.positive + treatment.positive
    if control.constant and treatment.constant and control.mean == treatment.mean:
        return NoAnswer(
            reason=NoAnswerReason.ZERO_VARIANCE,
            message=f"every unit has the same value, {control.mean:g}: nothing differs",
        )
    rare = min(positive, units - positive) if share else positive
    if (expected := rare * smallest.units / units) < MIN_OUTCOMES:
        return NoAnswer(
            reason=NoAnswerReason.TOO_FEW_OUTCOMES,
            message=f"only {rare} of {units:,} units {'have' if rare == positive else 'lack'} the outcome: "
            f"{smallest.name} can expect {expected:.1f} of them, and an interval needs {MIN_OUTCOMES}",
        )
    if control.constant and treatment.constant:
        return NoAnswer(
            reason=NoAnswerReason.ZERO_VARIANCE,
            message="values do not vary within either variation: no interval can be given",
        )
    return None


def _aggregates(arm: Sample) -> Any:
    from tea_tasting.aggr import Aggregates

    return Aggregates(
        arm.units,
        {"value": arm.value, "per": arm.per},
        {"value": arm.value_variance, "per": arm.per_variance},
        {("value", "per"): arm.covariance},
    )


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
