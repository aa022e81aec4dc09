"""Sets up the application log: lines of text or JSON, each with its request, and pseudonyms in place of people's ids.

Modules log with `logging.getLogger(__name__)` and put fields into `extra`. Decision 0011 says why no other library.
"""

import json
import logging
import secrets
import sys
from contextvars import ContextVar
from datetime import UTC, datetime
from hashlib import blake2b

from infra.settings import Settings

REQUEST_ID: ContextVar[str | None] = ContextVar("request_id", default=None)
"""The X-Request-ID of the current request; None outside of one."""

_OWN_FIELDS = frozenset(vars(logging.LogRecord("", 0, "", 0, "", (), None))) | {"message", "asctime", "taskName"}
_key = secrets.token_bytes(32)


def set_up(settings: Settings) -> None:
    """Sends the log of this process to standard error, with the level and format of the settings."""
    global _key
    if settings.pseudonym_key is not None:
        _key = blake2b(settings.pseudonym_key.get_secret_value().encode(), digest_size=32).digest()
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines() if settings.log_format == "json" else TextLines())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(settings.log_level)
    for library in ("feast", "faiss", "py4j"):
        logging.getLogger(library).setLevel(logging.WARNING)
    logging.getLogger("torchrec").setLevel(logging.ERROR)
    # FBGEMM logs the creation of each table through the root logger; our modules have loggers of their own.
    root.filters[:] = [lambda record: record.levelno > logging.INFO]


def pseudonym(name: str | None) -> str | None:
    """Returns a keyed hash of 16 hex digits that stands for a user, session or card in the log.

    The same name gives the same hash: in every process with HEADRACE_PSEUDONYM_KEY, otherwise within one process.
    """
    return None if name is None else blake2b(name.encode("utf-8", "surrogatepass"), key=_key, digest_size=8).hexdigest()


def _fields(record: logging.LogRecord) -> dict[str, object]:
    """Returns the fields of `extra`, and request_id within a request."""
    given = {name: value for name, value in vars(record).items() if name not in _OWN_FIELDS}
    request_id = REQUEST_ID.get()
    return given if request_id is None or "request_id" in given else {"request_id": request_id, **given}


class JsonLines(logging.Formatter):
    """Formats a record as one JSON object: time, level, logger, message, the fields of `extra`, request_id and error.

    >>> record = logging.LogRecord("shop", logging.INFO, "", 0, "sold %d", (3,), None)
    >>> record.created, record.item = 0, "tea"
    >>> JsonLines().format(record)
    '{"time": "1970-01-01T00:00:00.000Z", "level": "INFO", "logger": "shop", "message": "sold 3", "item": "tea"}'
    """

    def format(self, record: logging.LogRecord) -> str:
        moment = datetime.fromtimestamp(record.created, tz=UTC).isoformat(timespec="milliseconds")
        line: dict[str, object] = {
            "time": moment.replace("+00:00", "Z"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            **_fields(record),
        }
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str, ensure_ascii=False)


class TextLines(logging.Formatter):
    """Formats a record for people: the fields follow the message."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:
        fields = " ".join(f"{name}={value}" for name, value in _fields(record).items())
        line = super().formatMessage(record)
        return f"{line} [{fields}]" if fields else line
