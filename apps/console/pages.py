"""Turns views into HTML: the templates, how numbers and times read in them, and the headers of every page."""

from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

from fastapi.responses import HTMLResponse
from jinja2 import Environment, FileSystemLoader, StrictUndefined

HERE = Path(__file__).parent
STATIC = {"console.css": "text/css; charset=utf-8", "console.js": "text/javascript; charset=utf-8"}
"""The files that a page may ask for, and what they are."""
HEADERS = {
    # Bars carry their length in a style attribute; nothing else inline, and nothing from elsewhere, is let in.
    "Content-Security-Policy": "default-src 'none'; style-src 'self' 'unsafe-inline'; script-src 'self'; "
    "connect-src 'self'; img-src 'self' data:; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
NONE = "–"


def ago(moment: datetime, now: datetime) -> str:
    """How long ago, in the largest unit that tells.

    >>> noon = datetime(2026, 11, 22, 12, tzinfo=UTC)
    >>> ago(datetime(2026, 11, 22, 11, 58, tzinfo=UTC), noon), ago(datetime(2026, 10, 21, tzinfo=UTC), noon)
    ('2 min ago', '32 days ago')
    """
    seconds = (now - moment).total_seconds()
    return "just now" if seconds < 2 else f"{duration(seconds)} ago"


def duration(seconds: float) -> str:
    """
    >>> duration(45), duration(7300), duration(90_000)
    ('45 s', '2 h', '1 day')
    """
    for size, name in ((86_400, "day"), (3_600, "h"), (60, "min")):
        if seconds >= size:
            number = int(seconds // size)
            return f"{number} {name}{'s' if name == 'day' and number > 1 else ''}"
    return f"{seconds:.0f} s"


def size(count: int) -> str:
    """
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
    """
    >>> money(1234.5), money(None)
    ('1,234.50', '–')
    """
    return NONE if amount is None else f"{amount:,.2f}"


def count(number: float | None) -> str:
    """
    >>> count(342220), count(2.5)
    ('342,220', '2.5')
    """
    return NONE if number is None else f"{number:,.0f}" if number == int(number) else f"{number:,.3g}"


def percent(share: float | None, *, signed: bool = False) -> str:
    """
    >>> percent(0.1234), percent(-0.02, signed=True)
    ('12.3 %', '-2.0 %')
    """
    return NONE if share is None else f"{share * 100:{'+' if signed else ''}.1f} %"


def moment(at: datetime, form: str = "%-d %b %Y, %H:%M") -> str:
    """A time in UTC, for people."""
    return at.astimezone(UTC).strftime(form)


def number(value: float | None, digits: int = 3) -> str:
    """Three significant digits, unless asked otherwise.

    >>> number(0.262338), number(None)
    ('0.262', '–')
    """
    return NONE if value is None else f"{value:.{digits}g}"


def words(code: str) -> str:
    """
    >>> words("BOUGHT_TOGETHER"), words("two_tower")
    ('bought together', 'two tower')
    """
    return code.replace("_", " ").lower()


def _environment() -> Environment:
    made = Environment(
        loader=FileSystemLoader(HERE / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for one in (ago, size, money, count, percent, moment, number, words):
        made.filters[one.__name__] = one
    digest = sha256()
    for name in STATIC:
        digest.update((HERE / "static" / name).read_bytes())
    made.globals["static_version"] = digest.hexdigest()[:12]
    return made


ENVIRONMENT = _environment()


def page(template: str, *, status: int = 200, **shown: Any) -> HTMLResponse:
    """The page of a template with what it shows; every value is escaped unless the template says otherwise."""
    html = ENVIRONMENT.get_template(template).render(**shown)
    return HTMLResponse(html, status_code=status, headers=HEADERS)
