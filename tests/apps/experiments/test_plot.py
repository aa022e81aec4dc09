"""The plots are well-formed, self-contained and accessible SVG, whatever the report holds."""

from datetime import UTC, date, datetime
from xml.etree import ElementTree

import numpy as np
import pytest

from apps.experiments.plot import NARROW, WIDE, final_lift, lift_over_time
from apps.experiments.report import UNITS_SCHEMA, report

NOW = datetime(2026, 11, 20, tzinfo=UTC)
SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture
def build_report(define, units_of):
    def make(*, names=("A", "B"), units=1_200, days=8):
        rng = np.random.default_rng(5)
        rows = [
            {
                "variation": names[number % len(names)],
                "unit": f"u{number}",
                "day": date(2026, 11, 1 + int(rng.integers(days))),
                "conversions": int(rng.random() < 0.15),
                "value": float(rng.random()),
            }
            for number in range(units)
        ]
        table = units_of(rows) if rows else UNITS_SCHEMA.empty_table()
        return report(table, define(names=names), now=NOW)

    return make


@pytest.mark.parametrize("draw", [lift_over_time, final_lift])
@pytest.mark.parametrize("layout", [WIDE, NARROW], ids=["wide", "narrow"])
@pytest.mark.parametrize(
    "shape",
    [
        {},
        {"units": 0},
        {"units": 20},
        {"days": 1},
        {"names": ("A", "B", "C", "D", "E", "F")},
        {"units": 90, "days": 19},
    ],
)
def test_it_is_accessible_self_contained_svg(build_report, draw, layout, shape):
    text = draw(build_report(**shape), layout)
    root = ElementTree.fromstring(text)  # noqa: S314 - our own text
    assert root.tag == f"{SVG}svg"
    assert root.get("role") == "img"
    ids = {element.get("id") for element in root.iter() if element.get("id")}
    assert set(root.get("aria-labelledby", "").split()) <= ids
    assert root.findtext(f"{SVG}title")
    assert root.findtext(f"{SVG}desc")
    assert root.find(f".//{SVG}script") is None
    assert "href" not in text
    assert "nan" not in text
    assert "currentColor" in text


def test_the_description_says_the_last_numbers(build_report):
    report = build_report()
    lift = report.series[-1].result.lift
    root = ElementTree.fromstring(lift_over_time(report))  # noqa: S314
    assert f"B: {lift * 100:+.0f} %" in root.findtext(f"{SVG}desc") or f"B: {lift * 100:+.1f} %" in root.findtext(
        f"{SVG}desc"
    )


def test_axes_are_labelled(build_report):
    words = " ".join(ElementTree.fromstring(lift_over_time(build_report())).itertext())  # noqa: S314
    assert "lift, with 95 % interval" in words
    assert "day (UTC), 2026" in words


def test_without_an_interval_it_says_so(build_report):
    assert "No day has an interval yet" in lift_over_time(build_report(units=10))
    assert "no answer yet: too few units" in final_lift(build_report(units=10))


def test_plots_share_a_page(build_report):
    ids = [
        element.get("id")
        for layout in (WIDE, NARROW)
        for text in (lift_over_time(build_report(), layout), final_lift(build_report(), layout))
        for element in ElementTree.fromstring(text).iter()  # noqa: S314
        if element.get("id")
    ]
    assert len(ids) == len(set(ids))
