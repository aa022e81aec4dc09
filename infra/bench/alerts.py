"""`headrace bench alerts`: measures how long a fraud takes from the event log to an alert at a client.

Payments of a load simulator are appended at a steady rate, and a client listens to GET /v1/alerts/stream. The small
release that is served reviews every payment above an amount, so it is known which payments must raise an alert. The
limit beside the result is the log itself: one append, and reading it back.
"""

import http.client
import json
import threading
import time
from datetime import UTC, datetime
from typing import Any

import numpy as np

from infra import topics
from infra.bench.servers import serving
from infra.log.client import EventLog
from infra.log.open import open_log
from infra.settings import Settings

SHARE, AMOUNT = 0.1, 950.0
WARM_SECONDS = 5.0


class Listener(threading.Thread):
    """Records when each alert arrives, on the monotonic clock, by transaction id."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(daemon=True)
        self._connection = http.client.HTTPConnection("127.0.0.1", settings.port, timeout=60)
        self._connection.request("GET", "/v1/alerts/stream")
        self._answer = self._connection.getresponse()
        self.arrived: dict[str, float] = {}

    def run(self) -> None:
        while line := self._answer.readline():
            if line.startswith(b"data: "):
                now = time.monotonic()
                self.arrived.setdefault(json.loads(line[6:])["transaction_id"], now)


def _pay(log: EventLog, *, rate: float, seconds: float) -> dict[str, float]:
    """Appends `rate` payments a second. Returns when each payment that must raise an alert was due, by its id."""
    rng = np.random.default_rng(7)
    due: dict[str, float] = {}
    start = time.monotonic() + 0.1
    for number in range(int(rate * seconds)):
        due_at = start + number / rate
        time.sleep(max(0.0, due_at - time.monotonic()))
        fraud = rng.random() < SHARE
        card, payment_id = f"card-{rng.integers(500)}", f"pay-{number}"
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        payment = {
            "type": "transaction", "event_id": payment_id, "event_time": now, "card_id": card,
            "terminal_id": f"terminal-{rng.integers(100)}", "amount": AMOUNT if fraud else 20.0,
        }  # fmt: skip
        log.append(topics.TRANSACTIONS, [(card, json.dumps(payment).encode())])
        if fraud and due_at - start >= WARM_SECONDS:
            due[payment_id] = due_at
    return due


def _log_alone(log: EventLog) -> float:
    """Returns the median seconds from the start of an append until the record is read back."""
    took = []
    for number in range(100):
        position, started = log.end("bench"), time.monotonic()
        log.append("bench", [("k", b'{"event_id": "%d"}' % number)])
        while not log.read("bench", position):
            pass
        took.append(time.monotonic() - started)
    return float(np.median(took))


def run(*, rate: float, seconds: float, real: bool) -> dict[str, Any]:
    """Measures, and returns the result as plain data. Times in milliseconds, from when a payment was due in the log."""
    with serving(real=real) as settings:
        log = open_log(settings)
        listener = Listener(settings)
        listener.start()
        due = _pay(log, rate=rate, seconds=seconds + WARM_SECONDS)
        end = time.monotonic() + 20
        while time.monotonic() < end and not set(due) <= set(listener.arrived):
            time.sleep(0.1)
        alone = _log_alone(log)
    arrived = listener.arrived
    took = np.array([(arrived[name] - due_at) * 1000 for name, due_at in due.items() if name in arrived])
    return {
        "bench": "alerts",
        "servers": "kafka, redis" if real else "files, sqlite",
        "transactions_per_s": rate,
        "alerts": len(due),
        "lost": len(due) - len(took),
        "p50_ms": round(float(np.quantile(took, 0.5)), 1),
        "p99_ms": round(float(np.quantile(took, 0.99)), 1),
        "max_ms": round(float(took.max()), 1),
        "limit_log_alone_ms": round(alone * 1000, 1),
    }
