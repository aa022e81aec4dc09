"""The report counts each unit once, leaves out what cannot be compared, and says so."""

from datetime import UTC, date, datetime

import numpy as np
import pyarrow.parquet as pq
import pytest

from apps.experiments.report import UNITS_FILE, UNITS_SCHEMA, load_units, percent
from apps.experiments.report import report as build_report
from apps.experiments.schemas import Comparison, MetricName, NoAnswer, NoAnswerReason

NOW = datetime(2026, 11, 20, tzinfo=UTC)


def arm(name, *, units, converted, start=0, value=10.0, day=date(2026, 11, 1)):
    return [
        {"variation": name, "unit": f"{name}{start + number}", "day": day}
        | ({"conversions": 1, "value": value, "purchases_after": 1, "spend_after": value} if number < converted else {})
        for number in range(units)
    ]


def test_a_units_days_are_added_up(define, units_of):
    table = units_of(
        [
            {"variation": "A", "unit": "u", "conversions": 1, "value": 5.0},
            {"variation": "A", "unit": "u", "day": date(2026, 11, 2), "conversions": 2, "value": 6.0, "exposures": 3},
            {"variation": "A", "unit": "v", "returns": 1, "returned_value": 4.0},
            {"experiment": "another", "variation": "A", "unit": "w"},
        ]
    )
    report = build_report(table, define(), now=NOW).variations[0]
    assert (report.units, report.exposures, report.shown) == (2, 5, 30)
    assert (report.converted, report.conversions, report.conversion_rate) == (1, 3, 0.5)
    assert (report.value_sum, report.value_mean, report.returned_value) == (11.0, 5.5, 4.0)


def test_no_rows_give_an_honest_empty_report(define):
    report = build_report(UNITS_SCHEMA.empty_table(), define(), now=NOW)
    assert [variation.units for variation in report.variations] == [0, 0]
    assert report.variations[0].conversion_rate is None
    assert report.sample_ratio.verdict == "unknown"
    assert report.series == ()
    assert "No answer yet for B against A: no unit has seen A or B yet" in report.verdict


def test_crossovers_and_unlisted_variations_are_left_out_and_counted(define, units_of):
    table = units_of(
        [
            *arm("A", units=3, converted=1),
            *arm("B", units=3, converted=1),
            {"variation": "B", "unit": "A0"},
            {"variation": "gone", "unit": "x"},
            {"variation": "gone", "unit": "B0"},
        ]
    )
    report = build_report(table, define(), now=NOW)
    assert [variation.units for variation in report.variations] == [2, 2]
    assert (report.crossovers, report.unlisted) == (1, 2)
    assert any(note.startswith("1 unit seen in more than one variation") for note in report.notes)


def test_a_unit_without_exposure_does_not_count(define, units_of):
    table = units_of([{"variation": "A", "unit": "u", "exposures": 0, "conversions": 1}])
    assert build_report(table, define(), now=NOW).variations[0].units == 0


def test_a_winner_is_named_with_its_interval(define, units_of):
    table = units_of(arm("A", units=2_000, converted=200) + arm("B", units=2_000, converted=300))
    report = build_report(table, define(), now=NOW)
    assert report.verdict.startswith("B beats A: +50 % [+27 %, +7")
    decisive = report.metrics[0]
    assert (decisive.metric, decisive.decides) == (MetricName.CONVERSION, True)
    assert isinstance(decisive.results[0].result, Comparison)
    assert decisive.results[0].result.lift == pytest.approx(0.5)
    assert any("fixed-horizon" in note for note in report.notes)


def test_the_hit_rate_is_counted_per_item_shown(define, units_of):
    def rows(name, bought):
        return [
            {"variation": name, "unit": f"{name}{unit}", "shown": 10 * (1 + unit % 3), "conversions": bought(unit)}
            for unit in range(900)
        ]

    table = units_of(rows("A", lambda unit: 1 + unit % 2) + rows("B", lambda unit: 2 + unit % 2))
    report = build_report(table, define(metric="hit_rate"), now=NOW)
    assert report.verdict.startswith("B beats A: +67 % [")
    [hits] = [metric for metric in report.metrics if metric.decides]
    assert hits.results[0].result.control_mean == pytest.approx(1.5 / 20)
    assert report.series[-1].result.mean == pytest.approx(2.5 / 20)


def test_a_loser_too(define, units_of):
    table = units_of(arm("A", units=2_000, converted=300) + arm("B", units=2_000, converted=200))
    assert build_report(table, define(), now=NOW).verdict.startswith("B loses to A: -33 %")


def test_no_difference_comes_with_the_effect_that_would_have_been_detected(define, units_of):
    table = units_of(arm("A", units=2_000, converted=200) + arm("B", units=2_000, converted=202))
    verdict = build_report(table, define(), now=NOW).verdict
    assert verdict.startswith("No difference shown yet between B and A: +1.0 % [")
    assert "finds a true change of +27 % four times in five" in verdict


def test_the_named_metric_decides(define, units_of):
    table = units_of(arm("A", units=500, converted=50) + arm("B", units=500, converted=50, value=30.0))
    report = build_report(table, define(metric="value"), now=NOW)
    assert report.verdict.startswith("B beats A: +200 %")
    assert [metric.metric for metric in report.metrics if metric.decides] == [MetricName.VALUE]


def test_a_broken_sample_ratio_silences_the_verdict(define, units_of):
    table = units_of(arm("A", units=500, converted=50) + arm("B", units=900, converted=300))
    report = build_report(table, define(), now=NOW)
    assert report.sample_ratio.verdict == "alarm"
    assert report.verdict.startswith("No verdict: 500 / 900 units do not fit the weights")


def test_several_variations_are_each_compared_with_the_control(define, units_of):
    rows = [row for name, n in zip("ABC", (100, 150, 100), strict=True) for row in arm(name, units=1_000, converted=n)]
    report = build_report(units_of(rows), define(names="ABC"), now=NOW)
    assert [result.variation for result in report.metrics[0].results] == ["B", "C"]
    assert "B beats A" in report.verdict
    assert "No difference shown yet between C and A" in report.verdict


def test_the_series_is_cumulative_and_ends_at_the_final_result(define, units_of):
    rng = np.random.default_rng(1)
    rows = []
    for number in range(1_200):
        name, first = "AB"[number % 2], int(rng.integers(1, 6))
        for day in range(first, 6):
            bought = int(rng.random() < 0.1)
            rows.append({"variation": name, "unit": f"u{number}", "day": date(2026, 11, day), "conversions": bought})
    report = build_report(units_of(rows), define(), now=NOW)
    assert [point.day.day for point in report.series] == [1, 2, 3, 4, 5]
    assert [point.units for point in report.series] == sorted(point.units for point in report.series)
    last, final = report.series[-1].result, report.metrics[0].results[0].result
    assert isinstance(last, Comparison)
    assert isinstance(final, Comparison)
    assert (last.lift, last.p_value) == (final.lift, final.p_value)


def test_early_days_without_an_answer_say_why(define, units_of):
    table = units_of(
        arm("A", units=5, converted=1)
        + arm("B", units=5, converted=1)
        + arm("A", units=400, converted=40, start=10, day=date(2026, 11, 2))
        + arm("B", units=400, converted=40, start=10, day=date(2026, 11, 2))
    )
    first, second = build_report(table, define(), now=NOW).series
    assert isinstance(first.result, NoAnswer)
    assert first.result.reason is NoAnswerReason.TOO_FEW_UNITS
    assert isinstance(second.result, Comparison)


def test_the_report_is_plain_json(define, units_of):
    table = units_of(arm("A", units=200, converted=0) + arm("B", units=200, converted=30))
    text = build_report(table, define(), now=NOW).model_dump_json()
    assert "NaN" not in text
    assert "Infinity" not in text


def test_units_are_read_for_one_experiment_and_may_be_missing(tmp_path, units_of):
    assert load_units(tmp_path, "test").num_rows == 0
    table = units_of([{"variation": "A", "unit": "u"}, {"variation": "A", "unit": "v", "experiment": "another"}])
    pq.write_table(table, tmp_path / UNITS_FILE)
    assert load_units(tmp_path, "test")["unit"].to_pylist() == ["u"]
    assert load_units(tmp_path, "test").schema.names == UNITS_SCHEMA.names


@pytest.mark.parametrize(
    ("share", "text"), [(0.1234, "+12 %"), (-0.0312, "-3.1 %"), (0.0, "+0.0 %"), (0.0996, "+10 %")]
)
def test_percent(share, text):
    assert percent(share) == text
