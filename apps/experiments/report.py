"""Builds the experiment report: whether B beats A, by how much, how certain that is, and whether to trust it.

Reads the table of units that streaming/exposures.py writes: one row per experiment, variation, unit and day.
Knows nothing of how outcomes were attributed, and leaves tests and intervals to statistics.py.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import date, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from apps.experiments.schemas import (
    Comparison,
    ExperimentDefinition,
    MetricName,
    MetricReport,
    NoAnswer,
    Report,
    SampleRatio,
    SeriesPoint,
    VariationResult,
    VariationSummary,
)
from apps.experiments.statistics import ALPHA, Sample, compare, sample, sample_ratio, with_power
from apps.wording import counted

UNITS_FILE = "experiment_units.parquet"
COUNTED = {
    "exposures": pa.int64(),
    "shown": pa.int64(),
    "conversions": pa.int64(),
    "value": pa.float64(),
    "returns": pa.int64(),
    "returned_value": pa.float64(),
    "purchases_after": pa.int64(),
    "spend_after": pa.float64(),
}
"""The columns that are summed over a unit's days."""
UNITS_SCHEMA = pa.schema(
    {"experiment": pa.string(), "variation": pa.string(), "unit": pa.string(), "day": pa.date32(), **COUNTED}
)

Values = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Metric:
    """What is compared, per unit."""

    title: str
    column: str
    share: bool = False
    """Whether it counts units with any of it, not how much they have."""
    per: str | None = None
    """The column whose total it is counted per; None: per unit."""

    def sample(self, totals: Mapping[str, Values], members: NDArray[np.bool_], *, name: str) -> Sample:
        """Returns the sample of the units where `members` holds, shape [units]. totals: column to the total of every
        unit, shape [units]."""
        values = totals[self.column][members]
        per = None if self.per is None else totals[self.per][members]
        return sample((values > 0).astype(np.float64) if self.share else values, name=name, per=per)


METRICS = {
    MetricName.CONVERSION: Metric("Units that bought what they were shown", "conversions", share=True),
    MetricName.HIT_RATE: Metric("Purchases per item shown", "conversions", per="shown"),
    MetricName.VALUE: Metric("Value bought of what was shown, per unit", "value"),
    MetricName.PURCHASES_AFTER: Metric("All purchases since first exposure, per unit", "purchases_after"),
    MetricName.SPEND_AFTER: Metric("All spending since first exposure, per unit", "spend_after"),
}


def load_units(offline_dir: Path, key: str) -> pa.Table:
    """Returns the rows of one experiment with the columns of UNITS_SCHEMA; none before there is a table."""
    try:
        # One open file, not a path: the table may be replaced while it is read.
        with (offline_dir / UNITS_FILE).open("rb") as file:
            return pq.read_table(file, columns=UNITS_SCHEMA.names, filters=pc.field("experiment") == key)
    except FileNotFoundError:
        return UNITS_SCHEMA.empty_table()


def report(units: pa.Table, definition: ExperimentDefinition, *, now: datetime) -> Report:
    """Returns the report of `definition`. units: columns as UNITS_SCHEMA; other experiments' rows do not count."""
    totals = _UnitTotals(units, definition)
    results = {name: tuple(_results(totals, metric)) for name, metric in METRICS.items()}
    ratio = sample_ratio(
        [int(totals.members(index).sum()) for index in range(len(definition.variations))],
        [variation.weight for variation in definition.variations],
    )
    return Report(
        experiment=definition,
        generated_at=now,
        verdict=_verdict(definition, ratio, results[definition.metric]),
        sample_ratio=ratio,
        variations=tuple(_summary(totals, index) for index in range(len(definition.variations))),
        metrics=tuple(
            MetricReport(metric=name, title=metric.title, decides=name is definition.metric, results=results[name])
            for name, metric in METRICS.items()
        ),
        series=tuple(_series(totals, METRICS[definition.metric])),
        crossovers=totals.crossovers,
        unlisted=totals.unlisted,
        notes=tuple(_notes(definition, totals)),
    )


class _UnitTotals:
    """Holds the table by unit: which variation each unit is in, whether it counts, and its totals."""

    def __init__(self, table: pa.Table, definition: ExperimentDefinition) -> None:
        self.definition = definition
        table = table.filter(pc.equal(table["experiment"], definition.key)).sort_by("day").combine_chunks()
        names, self._unit = np.unique(table["unit"].to_numpy(zero_copy_only=False).astype(str), return_inverse=True)
        self._count = len(names)
        keys = pa.array([variation.key for variation in definition.variations])
        variation = pc.fill_null(pc.index_in(table["variation"], value_set=keys), -1).to_numpy().astype(np.int64)
        lowest = np.full(self._count, len(keys), dtype=np.int64)
        highest = np.full(self._count, -1, dtype=np.int64)
        np.minimum.at(lowest, self._unit, variation)
        np.maximum.at(highest, self._unit, variation)
        self.unlisted = int((lowest < 0).sum())
        self.crossovers = int(((lowest >= 0) & (lowest < highest)).sum())
        self._variation: NDArray[np.int64] = np.where(lowest == highest, lowest, -1)
        self._columns = {name: table[name].to_numpy(zero_copy_only=False).astype(np.float64) for name in COUNTED}
        self._days = table["day"].to_numpy(zero_copy_only=False).astype("datetime64[D]")
        self._totals: dict[str, Values] = {
            name: np.bincount(self._unit, weights=column, minlength=self._count).astype(np.float64)
            for name, column in self._columns.items()
        }

    def members(self, index: int, exposures: Values | None = None) -> NDArray[np.bool_]:
        """Returns which units count for a variation, shape [units]: exposed to it and to no other.

        exposures: of each unit up to a day, shape [units]; all without it.
        """
        exposures = self._totals["exposures"] if exposures is None else exposures
        members: NDArray[np.bool_] = (self._variation == index) & (exposures > 0)
        return members

    def totals(self, column: str, index: int) -> Values:
        """Returns the total of a column for each unit of a variation."""
        return self._totals[column][self.members(index)]

    def sample(self, metric: Metric, index: int) -> Sample:
        return metric.sample(self._totals, self.members(index), name=self.definition.variations[index].key)

    def daily_samples(self, metric: Metric) -> Iterator[tuple[date, list[Sample]]]:
        """Yields, for each day with rows, every variation's sample of all that happened up to its end."""
        so_far = {name: np.zeros(self._count) for name in ("exposures", metric.column, metric.per) if name}
        days, starts = np.unique(self._days, return_index=True)
        ends = np.append(starts, len(self._days))[1:]
        for day, start, end in zip(days, starts, ends, strict=True):
            for name, totals in so_far.items():
                np.add.at(totals, self._unit[start:end], self._columns[name][start:end])
            yield (
                day.item(),
                [
                    metric.sample(so_far, self.members(index, so_far["exposures"]), name=variation.key)
                    for index, variation in enumerate(self.definition.variations)
                ],
            )


def _summary(units: _UnitTotals, index: int) -> VariationSummary:
    variation = units.definition.variations[index]
    totals = {name: units.totals(name, index) for name in COUNTED}
    count, converted = len(totals["exposures"]), int((totals["conversions"] > 0).sum())
    value = float(totals["value"].sum())
    return VariationSummary(
        key=variation.key,
        weight=variation.weight,
        units=count,
        exposures=int(totals["exposures"].sum()),
        shown=int(totals["shown"].sum()),
        converted=converted,
        conversions=int(totals["conversions"].sum()),
        conversion_rate=converted / count if count else None,
        value_sum=value,
        value_mean=value / count if count else None,
        returns=int(totals["returns"].sum()),
        returned_value=float(totals["returned_value"].sum()),
        purchases_after=int(totals["purchases_after"].sum()),
        spend_after=float(totals["spend_after"].sum()),
    )


def _results(units: _UnitTotals, metric: Metric) -> Iterator[VariationResult]:
    control = units.sample(metric, 0)
    for index, variation in enumerate(units.definition.variations[1:], start=1):
        treatment = units.sample(metric, index)
        result = compare(control, treatment, share=metric.share)
        if isinstance(result, Comparison):
            result = with_power(result, control, treatment)
        yield VariationResult(variation=variation.key, result=result)


def _series(units: _UnitTotals, metric: Metric) -> Iterator[SeriesPoint]:
    for day, (control, *treatments) in units.daily_samples(metric):
        for treatment in treatments:
            yield SeriesPoint(
                day=day,
                variation=treatment.name,
                units=control.units + treatment.units,
                result=compare(control, treatment, share=metric.share),
            )


def _verdict(definition: ExperimentDefinition, ratio: SampleRatio, results: tuple[VariationResult, ...]) -> str:
    if ratio.verdict == "alarm":
        return f"No verdict: {ratio.message}."
    return " ".join(_sentence(definition.control.key, each.variation, each.result) for each in results)


def _sentence(control: str, variation: str, result: Comparison | NoAnswer) -> str:
    if isinstance(result, NoAnswer):
        return f"No answer yet for {variation} against {control}: {result.message}."
    show: Callable[[float], str] = _number
    effect, interval = result.difference, result.difference_interval
    if result.lift is not None and result.lift_interval is not None:
        effect, interval, show = result.lift, result.lift_interval, percent
    size = f"{show(effect)} [{show(interval.low)}, {show(interval.high)}]"
    if result.p_value >= ALPHA:
        return f"No difference shown yet between {variation} and {control}: {size}; {_detectable(result)}."
    if interval.low <= 0 <= interval.high:
        return f"On the border between {variation} and {control}: {size}, p = {result.p_value:.2g}. Not an answer yet."
    verb = "beats" if effect > 0 else "loses to"
    return f"{variation} {verb} {control}: {size}, p = {result.p_value:.2g}."


def _detectable(result: Comparison) -> str:
    show: Callable[[float], str] = percent
    smallest = result.detectable_lift
    if smallest is None:
        smallest, show = result.detectable_difference, _number
    if smallest is None:
        return "more units would narrow the interval"
    return f"a sample like this finds a true change of {show(smallest)} four times in five"


def percent(share: float) -> str:
    """Returns a signed change as text.

    >>> percent(0.1234), percent(-0.0312)
    ('+12 %', '-3.1 %')
    """
    return f"{share * 100:+.0f} %" if abs(share) >= 0.0995 else f"{share * 100:+.1f} %"


def _number(value: float) -> str:
    return f"{value:+.3g}"


def _notes(definition: ExperimentDefinition, units: _UnitTotals) -> Iterator[str]:
    yield (
        "The intervals are fixed-horizon: valid for one look, at a time set beforehand. Whoever looks repeatedly and "
        "stops at the first p < 0.05 finds differences that do not exist: with 20 looks in one experiment of four."
    )
    yield (
        f"Only the metric {definition.metric.value} was chosen to decide. Each other metric shows a difference by "
        "chance in one experiment of twenty."
    )
    yield (
        "conversion, hit_rate and value count purchases of what was shown, so they rise when a variation shows what "
        "people buy anyway; purchases_after and spend_after count all purchases, and decide when the two disagree."
    )
    if len(definition.variations) > 2:
        yield "Each variation is compared with the control at 5 % on its own; there is no correction for their number."
    if units.crossovers:
        yield f"{counted(units.crossovers, 'unit')} seen in more than one variation: left out."
    if units.unlisted:
        yield f"{counted(units.unlisted, 'unit')} seen in a variation that the definition does not list: left out."
