"""Renders views as HTML: the templates, the format of numbers and times in them, and the headers of every page."""

from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

from fastapi.responses import HTMLResponse
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from apps.wording import counted

HERE = Path(__file__).parent
STATIC = {"console.css": "text/css; charset=utf-8", "console.js": "text/javascript; charset=utf-8"}
"""The files that a page may load, and their media types."""
HEADERS = {
    # Bars carry their length in a style attribute; nothing else may be inline, and nothing comes from elsewhere.
    "Content-Security-Policy": "default-src 'none'; style-src 'self' 'unsafe-inline'; script-src 'self'; "
    "connect-src 'self'; img-src 'self' data:; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
NONE = "–"


def ago(moment: datetime, now: datetime) -> str:
    """Returns how long ago a moment was, in its largest whole unit.

    >>> noon = datetime(2026, 11, 22, 12, tzinfo=UTC)
    >>> ago(datetime(2026, 11, 22, 11, 58, tzinfo=UTC), noon), ago(datetime(2026, 10, 21, tzinfo=UTC), noon)
    ('2 min ago', '32 days ago')
    """
    seconds = (now - moment).total_seconds()
    return "just now" if seconds < 2 else f"{duration(seconds)} ago"


def duration(seconds: float) -> str:
    """Returns a time span in its largest whole unit.

    >>> duration(45), duration(7300), duration(90_000)
    ('45 s', '2 h', '1 day')
    """
    if seconds >= 86_400:
        return counted(int(seconds // 86_400), "day")
    for size, unit in ((3_600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds // size:.0f} {unit}"
    return f"{seconds:.0f} s"


def size(count: int) -> str:
    """Returns a number of bytes in its largest unit.

    >>> size(0), size(67_036_404)
    ('0 B', '63.9 MiB')
    """
    value = float(count)
    for unit in ("B", "KiB", "MiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} GiB"


def money(amount: float | None) -> str:
    """Returns an amount with two decimals.

    >>> money(1234.5), money(None)
    ('1,234.50', '–')
    """
    return NONE if amount is None else f"{amount:,.2f}"


def count(number: float | None) -> str:
    """Returns a count with thousands separated; three significant digits where it is not whole.

    >>> count(342220), count(2.5)
    ('342,220', '2.5')
    """
    return NONE if number is None else f"{number:,.0f}" if number == int(number) else f"{number:,.3g}"


def percent(share: float | None, *, signed: bool = False) -> str:
    """Returns a share from 0 to 1 as per cent with one decimal.

    >>> percent(0.1234), percent(-0.02, signed=True)
    ('12.3 %', '-2.0 %')
    """
    return NONE if share is None else f"{share * 100:{'+' if signed else ''}.1f} %"


def moment(at: datetime, form: str = "%-d %b %Y, %H:%M") -> str:
    """Returns a time in UTC."""
    return at.astimezone(UTC).strftime(form)


def number(value: float | None, digits: int = 3) -> str:
    """Returns a number with `digits` significant digits.

    >>> number(0.262338), number(None)
    ('0.262', '–')
    """
    return NONE if value is None else f"{value:.{digits}g}"


def words(code: str) -> str:
    """Returns a code in lower case, with spaces.

    >>> words("BOUGHT_TOGETHER"), words("two_tower")
    ('bought together', 'two tower')
    """
    return code.replace("_", " ").lower()


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(HERE / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for function in (ago, size, money, count, counted, percent, moment, number, words):
        environment.filters[function.__name__] = function
    digest = sha256()
    for name in STATIC:
        digest.update((HERE / "static" / name).read_bytes())
    environment.globals["static_version"] = digest.hexdigest()[:12]
    return environment


ENVIRONMENT = _environment()


def page(template: str, *, status: int = 200, **shown: Any) -> HTMLResponse:
    """Renders a template with the values it shows; every value is escaped unless the template says otherwise."""
    html = ENVIRONMENT.get_template(template).render(**shown)
    return HTMLResponse(html, status_code=status, headers=HEADERS)
