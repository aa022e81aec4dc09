"""Draws the report's two plots as SVG text: lift over time, and the final lift of every metric.

Each comes in two layouts, one for a wide page and one for a phone, whose text stays readable without zoom. Drawn on
the server, with no script and no outside file. Text and axes take the page's colour (currentColor); a page
may set --plot-1 to --plot-4 for the series. Knows nothing of how the numbers came about.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from datetime import date
from html import escape
from textwrap import wrap
from typing import NamedTuple

from apps.experiments.report import percent
from apps.experiments.schemas import Comparison, Interval, MetricReport, Report, SeriesPoint

TOP, BOTTOM = 56, 52
"""Pixels above and below the drawn area; a title of several lines needs more."""
LINE_HEIGHT = 20
HIGHEST_LIFT = 2.0
"""The drawn scale ends at +200 %, and at -100 %, less than which nothing can sell."""
COLOURS = ("var(--plot-1, #2f7ed8)", "var(--plot-2, #d9822b)", "var(--plot-3, #2e9e6b)", "var(--plot-4, #a35bc4)")
STYLE = (
    "<style>"
    ".hr-plot{font:13px system-ui,sans-serif;color:inherit;max-width:100%;height:auto}"
    ".hr-plot text{fill:currentColor}.hr-plot .soft{opacity:.7}.hr-plot .head{font-size:16px;font-weight:600}"
    ".hr-plot .grid{stroke:currentColor;stroke-opacity:.15}.hr-plot .zero{stroke:currentColor;stroke-opacity:.6}"
    "</style>"
)
Scale = Callable[[float], float]


class Layout(NamedTuple):
    """Measures in pixels; text is 13 pixels high, where the plot is shown at its own width."""

    width: int
    margin: int
    """Where titles and labels begin."""
    left: int
    """Where the axis of days begins."""
    right: int
    """Space behind the axes."""
    lift_left: int
    """Where the lift axis of the final plot begins."""
    ticks: int
    """About so many on the lift axis that runs across."""
    day_labels: int
    title_letters: int
    """Most letters in a line of the title."""
    stacked: bool
    """Whether labels stand above their intervals and variations below each other, not side by side."""

    @property
    def end(self) -> int:
        return self.width - self.right

    def title_lines(self, title: str) -> list[str]:
        return wrap(title, self.title_letters)

    def top(self, title: str) -> int:
        return TOP + LINE_HEIGHT * (len(self.title_lines(title)) - 1)


WIDE = Layout(900, 20, 84, 24, lift_left=400, ticks=6, day_labels=9, title_letters=100, stacked=False)
NARROW = Layout(340, 4, 78, 4, lift_left=28, ticks=4, day_labels=4, title_letters=36, stacked=True)


def lift_over_time(report: Report, layout: Layout = WIDE) -> str:
    """Draws the cumulative lift of the deciding metric and its 95 % interval by day, one line per variation."""
    lines = {
        variation.key: [
            (point.day, lift)
            for point in report.series
            if point.variation == variation.key and (lift := _lift(point)) is not None
        ]
        for variation in report.experiment.variations[1:]
    }
    points = [point for line in lines.values() for point in line]
    control = report.experiment.control.key
    title = f"Lift over {control} in {report.experiment.metric.value}, cumulative by day"
    top = layout.top(title) + (LINE_HEIGHT * max(0, len(lines) - 1) if layout.stacked else 0)
    height = 324 + top
    if not points:
        words = "No day has an interval yet"
        notice = _text(layout.width / 2, top + 34, words, anchor="middle", style="soft")
        return _frame("time", title, f"{words}.", layout, height=84 + top, body=notice)
    days = sorted({day for day, _ in points})
    settled = days[len(days) // 4]  # the first days' wide intervals may leave the picture
    low, high = _reach([interval for day, (_, interval) in points if day >= settled])
    ticks = _ticks(low, high, count=6)
    y = _scale((min(low, ticks[0]), max(high, ticks[-1])), (height - BOTTOM, top), clamped=False)
    x = _scale((days[0].toordinal(), days[-1].toordinal()), (layout.left + 24, layout.end - 24))
    clip = _id("time-clip", layout)
    inside = f'<rect x="{layout.left}" y="{top}" width="{layout.end - layout.left}" height="{height - BOTTOM - top}"/>'
    body = [
        f'<clipPath id="{clip}">{inside}</clipPath>',
        *_y_axis(ticks, y, layout),
        *_day_axis(days, x, layout, height),
    ]
    for index, (name, line) in enumerate(lines.items()):
        body += [
            f'<g clip-path="url(#{clip})">',
            *_line(line, x, y, colour=COLOURS[index % len(COLOURS)]),
            "</g>",
            _legend(index, name, layout, layout.top(title) - LINE_HEIGHT),
        ]
    description = "; ".join(
        f"{name}: {percent(line[-1][1][0])} [{percent(line[-1][1][1].low)}, {percent(line[-1][1][1].high)}]"
        f" on {line[-1][0]}"
        for name, line in lines.items()
        if line
    )
    return _frame("time", title, f"Last day. {description}.", layout, height=height, body="".join(body))


def final_lift(report: Report, layout: Layout = WIDE) -> str:
    """Draws the lift and 95 % interval of each metric and variation at the end, the deciding metric first."""
    metrics = sorted(report.metrics, key=lambda metric: not metric.decides)
    rows = [row for metric in metrics for row in _rows(metric, report)]
    row_height = 72 if layout.stacked else 46
    title = f"Final lift over {report.experiment.control.key}, with 95 % interval"
    top = layout.top(title)
    bottom = top + row_height * len(rows)
    height = bottom + BOTTOM
    intervals = [interval for _, _, _, interval in rows if interval is not None]
    low, high = _reach(intervals) if intervals else (-0.1, 0.1)
    ticks = _ticks(low, high, count=layout.ticks)
    x = _scale((min(low, ticks[0]), max(high, ticks[-1])), (layout.lift_left, layout.end - 24))
    body = []
    for tick in ticks:
        style = "zero" if abs(tick) < 1e-12 else "grid"
        body.append(f'<line class="{style}" x1="{x(tick):.1f}" x2="{x(tick):.1f}" y1="{top}" y2="{bottom}"/>')
        body.append(_text(x(tick), bottom + 18, percent(tick) if tick else "0", anchor="middle"))
    body.append(_text((layout.lift_left + layout.end) / 2, height - 10, "lift", anchor="middle", style="soft"))
    for index, (label, words, lift, interval) in enumerate(rows):
        middle = top + row_height * index + 23
        colour = COLOURS[(index % max(1, len(report.experiment.variations) - 1)) % len(COLOURS)]
        body.append(_text(layout.margin, middle - 2, label))
        body.append(_text(layout.margin, middle + 14, words, style="soft"))
        if lift is not None and interval is not None:
            body.append(_whisker(lift, interval, x, middle + 32 if layout.stacked else middle, colour))
    description = "; ".join(f"{label}: {words}" for label, words, _, _ in rows)
    return _frame("final", title, f"{description}.", layout, height=height, body="".join(body))


def _rows(metric: MetricReport, report: Report) -> Iterator[tuple[str, str, float | None, Interval | None]]:
    """(label, words, lift, interval) of each variation."""
    several = len(report.experiment.variations) > 2
    for compared in metric.results:
        label = (
            metric.metric.value
            + (f", {_short(compared.variation)}" if several else "")
            + (" (decides)" if metric.decides else "")
        )
        if not isinstance(compared.result, Comparison):
            yield label, f"no answer yet: {compared.result.reason.value.replace('_', ' ')}", None, None
        elif compared.result.lift is None or compared.result.lift_interval is None:
            yield label, "no lift: a mean is 0", None, None
        else:
            lift, interval, p_value = compared.result.lift, compared.result.lift_interval, compared.result.p_value
            words = f"{percent(lift)} [{percent(interval.low)}, {percent(interval.high)}], p = {p_value:.2g}"
            yield label, words, lift, interval


def _lift(point: SeriesPoint) -> tuple[float, Interval] | None:
    result = point.result
    if not isinstance(result, Comparison) or result.lift is None or result.lift_interval is None:
        return None
    return result.lift, result.lift_interval


def _reach(intervals: Sequence[Interval]) -> tuple[float, float]:
    """What the scale must show: every interval and 0, as far as the limits allow."""
    low = min(0.0, *(max(-1.0, interval.low) for interval in intervals))
    high = max(0.0, *(min(HIGHEST_LIFT, interval.high) for interval in intervals))
    return (low, high) if high - low > 1e-9 else (-0.1, 0.1)


def _ticks(low: float, high: float, *, count: int) -> list[float]:
    """Returns about `count` round numbers from low to high, 0 among them."""
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= raw * 0.999)
    return [index * step for index in range(math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9) + 1)]


def _scale(domain: tuple[float, float], pixels: tuple[float, float], *, clamped: bool = True) -> Scale:
    """Returns a linear scale, `clamped` to the pixels; a domain of a single point maps to the middle."""
    start, end = domain

    def to_pixels(value: float) -> float:
        share = (value - start) / (end - start) if end > start else 0.5
        share = min(max(share, 0.0), 1.0) if clamped else share
        return pixels[0] + share * (pixels[1] - pixels[0])

    return to_pixels


def _y_axis(ticks: Sequence[float], y: Scale, layout: Layout) -> Iterator[str]:
    for tick in ticks:
        style = "zero" if abs(tick) < 1e-12 else "grid"
        yield f'<line class="{style}" x1="{layout.left}" x2="{layout.end}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>'
        yield _text(layout.left - 8, y(tick) + 4, percent(tick) if tick else "0", anchor="end")
    middle = (y(ticks[0]) + y(ticks[-1])) / 2
    yield (
        f'<text class="soft" transform="translate({layout.left - 66} {middle:.0f}) rotate(-90)" text-anchor="middle">'
        "lift, with 95 % interval</text>"
    )


def _day_axis(days: Sequence[date], x: Scale, layout: Layout, height: int) -> Iterator[str]:
    every = math.ceil(len(days) / layout.day_labels)
    for day in days[::every]:
        yield _text(x(day.toordinal()), height - BOTTOM + 18, f"{day.day} {day:%b}", anchor="middle")
    years = f"{days[0].year}" if days[0].year == days[-1].year else f"{days[0].year} to {days[-1].year}"
    yield _text((layout.left + layout.end) / 2, height - 10, f"day (UTC), {years}", anchor="middle", style="soft")


def _line(line: Sequence[tuple[date, tuple[float, Interval]]], x: Scale, y: Scale, *, colour: str) -> Iterator[str]:
    points = [(x(day.toordinal()), lift, interval) for day, (lift, interval) in line]
    upper = [f"{across:.1f},{y(interval.high):.1f}" for across, _, interval in points]
    lower = [f"{across:.1f},{y(interval.low):.1f}" for across, _, interval in reversed(points)]
    if len(points) > 1:
        yield f'<polygon points="{" ".join(upper + lower)}" fill="{colour}" fill-opacity=".18"/>'
        middle = " ".join(f"{across:.1f},{y(lift):.1f}" for across, lift, _ in points)
        yield f'<polyline points="{middle}" fill="none" stroke="{colour}" stroke-width="2"/>'
    for across, lift, interval in points[-1:] if len(points) > 1 else points:
        ends = f'x1="{across:.1f}" x2="{across:.1f}" y1="{y(interval.low):.1f}" y2="{y(interval.high):.1f}"'
        yield f'<line {ends} stroke="{colour}" stroke-width="2"/>'
        yield f'<circle cx="{across:.1f}" cy="{y(lift):.1f}" r="4" fill="{colour}"/>'


def _whisker(lift: float, interval: Interval, x: Scale, middle: float, colour: str) -> str:
    low, high = x(interval.low), x(interval.high)
    beyond = _text(high + 3, middle + 5, "›") if interval.high > HIGHEST_LIFT else ""
    return (
        f'<line x1="{low:.1f}" x2="{high:.1f}" y1="{middle:.1f}" y2="{middle:.1f}" stroke="{colour}" stroke-width="6" '
        f'stroke-opacity=".45" stroke-linecap="round"/><circle cx="{x(lift):.1f}" cy="{middle:.1f}" r="6" '
        f'fill="{colour}"/>{beyond}'
    )


def _legend(index: int, name: str, layout: Layout, y: int) -> str:
    x = layout.left + (0 if layout.stacked else 200 * index)
    y += LINE_HEIGHT * index if layout.stacked else 0
    swatch = f'<rect x="{x}" y="{y}" width="12" height="12" rx="2" fill="{COLOURS[index % len(COLOURS)]}"/>'
    return swatch + _text(x + 18, y + 11, _short(name))


def _short(name: str) -> str:
    return name if len(name) <= 24 else f"{name[:23]}…"


def _text(x: float, y: float, words: str, *, anchor: str = "start", style: str = "") -> str:
    kind = f' class="{style}"' if style else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{kind}>{escape(words)}</text>'


def _id(name: str, layout: Layout) -> str:
    """Returns an id that the other plots of the page do not have."""
    return f"plot-{name}-{layout.width}"


def _frame(name: str, title: str, description: str, layout: Layout, *, height: int, body: str) -> str:
    title_id, text_id = _id(f"{name}-title", layout), _id(f"{name}-text", layout)
    head = "".join(
        _text(layout.margin, 22 + LINE_HEIGHT * line, words, style="head")
        for line, words in enumerate(layout.title_lines(title))
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="hr-plot" viewBox="0 0 {layout.width} {height}" '
        f'width="{layout.width}" height="{height}" role="img" aria-labelledby="{title_id} {text_id}">'
        f'<title id="{title_id}">{escape(title)}</title><desc id="{text_id}">{escape(description)}</desc>'
        f"{STYLE}{head}{body}</svg>"
    )
