"""What the scorer saw of each payment when it decided is what the whole job on real Spark writes of it for training.

The fold alone, on many more streams: tests/contracts/test_exact_windows.py.
"""

import json
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.dataset as ds
import pytest

from apps.adapters.feast_reader import FeastReader
from apps.fraud.decisions import DecisionStore
from apps.fraud.recent_payments import RecentPayments
from apps.fraud.service import FraudService
from features.contract import columns
from features.contract.events import Transaction
from features.contract.timestamps import HOUR, rfc3339
from features.fraud.velocity import FEATURES
from features.store import views
from infra import topics
from infra.log.open import open_log
from infra.settings import Settings
from tests.contracts.test_exact_windows import Features, different
from tests.streaming.test_job import run, send  # noqa: F401 - a fixture

pytestmark = pytest.mark.slow

NOW = 1_790_000_000_000
PAYMENTS, ROUNDS = 40, 3


def test_decided_then_is_known_now(
    run: Callable[[Settings], list[str]],  # noqa: F811
    tmp_path: Path,
) -> None:
    settings, rng = Settings(data_dir=tmp_path), random.Random(11)
    log, seen = open_log(settings), []
    service = FraudService(
        lambda: None,
        reader=FeastReader(settings),
        log=log,
        decisions=DecisionStore(log, decisions_kept=1_000, alerts_kept=10),
        recent=RecentPayments(clock=time.time),
        clock=time.time,
        watch=seen.append,
    )
    online: Features = {}
    late, now = 0, NOW
    for round_ in range(ROUNDS):
        for number in range(PAYMENTS):
            now += rng.randrange(30) * HOUR // 60
            behind = rng.choice([0, 0, 0, HOUR // 2, 50 * HOUR])
            late += behind > 0
            name = f"p{round_}-{number}"
            payload: dict[str, Any] = {
                "type": "transaction", "event_id": name, "event_time": rfc3339(now - behind),
                "card_id": f"c{rng.randrange(4)}", "terminal_id": f"t{rng.randrange(3)}",
                "amount": rng.choice([1.0, 12.5, 99.99, 800.0]), "channel": "chip",
            }  # fmt: skip
            service.score_many([Transaction.model_validate_json(json.dumps(payload))])
            online[name] = seen.pop()[0]
            send(log, *[payload] * rng.choice([1, 1, 2]))
        run(settings)
        send(log, {
            "type": "label", "event_id": f"l{round_}", "event_time": rfc3339(now), "transaction_id": name,
            "fraud": True, "terminal_id": payload["terminal_id"], "transaction_time": payload["event_time"],
        })  # fmt: skip
        run(settings)  # what became known reaches the scorer by way of the store
    assert late > 10
    assert log.size(topics.TRANSACTIONS).records > ROUNDS * PAYMENTS  # some came twice
    rows = ds.dataset(settings.offline_dir / views.TRANSACTION_FEATURES).to_table()
    assert rows.num_rows == ROUNDS * PAYMENTS
    matrix = np.stack([rows[name].to_numpy() for name in FEATURES], axis=1).astype(np.float32)
    assert not different(online, dict(zip(rows[columns.TRANSACTION].to_pylist(), matrix, strict=True)))
