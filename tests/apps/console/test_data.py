"""The console's data from running services: reading changes nothing, and a failing part is shown, not raised."""

from pathlib import Path
from typing import Any

import pytest

from apps.console.views import AlertFilter
from apps.fraud.scorer import GROUP
from features.contract.events import Transaction, key_of, to_json
from infra import topics
from infra.log.client import START
from tests.apps.console.fakes import NOON, console_data, decide, decision, publish, run_experiment, services


@pytest.fixture
def parts(tmp_path: Path) -> Any:
    return services(tmp_path)


def states(parts: Any, **more: Any) -> dict[str, str]:
    return {component.name: component.state for component in console_data(parts, **more).overview().components}


def test_an_empty_system_can_be_shown(parts: Any) -> None:
    view = console_data(parts).overview()
    assert view.release is None
    assert {topic.records for topic in view.topics} == {0}
    assert states(parts) == {
        "Event log": "ok",
        "Feature job": "down",
        "Online store": "ok",
        "Release": "down",
        "API": "ok",
        "Fraud scorer": "idle",
    }


def test_a_store_that_fails_is_shown(parts: Any) -> None:
    parts.reader.broken = True
    assert states(parts)["Online store"] == "down"
    assert console_data(parts).user_view("17850", surface="home", n=5).history == ()


def test_a_quiet_feature_job_is_fine_until_records_wait_for_it(parts: Any) -> None:
    assert states(parts, feature_age_seconds=5)["Feature job"] == "ok"
    assert states(parts, feature_age_seconds=3_000)["Feature job"] == "idle"
    parts.log.append(topics.SHOP, [("u", b"{}")])
    assert states(parts, feature_age_seconds=3_000)["Feature job"] == "idle"
    parts.clock.now += 61
    assert states(parts, feature_age_seconds=3_061)["Feature job"] == "warn"
    assert states(parts, feature_age_seconds=10)["Feature job"] == "ok"


def test_a_scorer_that_lags_is_shown(parts: Any) -> None:
    payment = Transaction(type="transaction", event_id="t", event_time=NOON, card_id="c", terminal_id="t", amount=1.0)
    parts.log.append(topics.TRANSACTIONS, [(key_of(payment), to_json(payment))])
    assert states(parts)["Fraud scorer"] == "ok"
    parts.clock.now += 61
    assert states(parts)["Fraud scorer"] == "warn"
    parts.log.commit(GROUP, topics.TRANSACTIONS, parts.log.end(topics.TRANSACTIONS))
    assert states(parts)["Fraud scorer"] == "ok"


def test_the_release_is_shown_with_its_gates(parts: Any) -> None:
    publish(parts)
    release = console_data(parts).overview().release
    assert release is not None
    recommend, fraud = release.gates
    assert [(bar.name, bar.role, bar.served) for bar in recommend.bars] == [
        ("model", "model", True),
        ("popularity", "baseline", False),
        ("other", "baseline", False),
    ]
    assert (fraud.served, fraud.model) == ("popularity", "model")
    assert ("Index recall against exact search", "98.7 %") in recommend.facts
    assert console_data(parts).alerts(AlertFilter(), limit=5).thresholds == (0.3, 0.9)


def test_showing_a_user_writes_nothing(parts: Any) -> None:
    view = console_data(parts).user_view("17850", surface="home", n=5)
    assert [request.user_id for request in parts.recommend.previews] == ["17850"]
    assert all(parts.log.end(topic) == START for topic in topics.ALL)
    assert [(entry.event_type, entry.item_id) for entry in view.history] == [("view", "kettle"), ("purchase", "teapot")]
    assert [(item.item_id, item.owned) for item in view.items] == [("teapot", True)]
    assert view.experiment == ("ranker", "model", 42)


@pytest.mark.parametrize("user", ["nobody", "x" * 200, "tab\there"])
def test_a_user_without_an_answer_gets_the_reason(parts: Any, user: str) -> None:
    assert console_data(parts).user_view(user, surface="home", n=5).problem


def test_alerts_pass_the_filters_and_the_position_misses_none(parts: Any) -> None:
    decide(
        parts.log, decision(1), decision(2, outcome="approve", score=0.1), decision(3, outcome="decline", score=0.95)
    )
    shown = console_data(parts).alerts(AlertFilter(), limit=10)
    assert [alert.transaction_id for alert in shown.alerts] == ["tx_3", "tx_1"]
    assert shown.alerts[0].reasons[0].weight == 1.72
    assert shown.position == str(parts.log.end(topics.DECISIONS))
    filters = AlertFilter(outcome="review", card_id="card_1", min_score=0.5)
    assert [alert.transaction_id for alert in console_data(parts).alerts(filters, limit=10).alerts] == ["tx_1"]


def test_an_experiment_is_shown_with_its_plots(parts: Any) -> None:
    run_experiment(parts)
    console = console_data(parts)
    assert [experiment.key for experiment in console.overview().experiments] == ["ranker"]
    view = console.experiment("ranker")
    assert view is not None
    assert [svg[:4] for plot in view.plots for svg in plot] == ["<svg"] * 4
    assert [row.units for row in view.variations] == [20, 20]
    assert [row.decides for row in view.metrics] == [True, False, False, False, False]
    assert console.experiment("unknown") is None


def test_a_report_follows_its_table(parts: Any) -> None:
    run_experiment(parts)
    console = console_data(parts)
    first = console.experiment("ranker")
    run_experiment(parts, units=60)
    second = console.experiment("ranker")
    assert first is not None
    assert second is not None
    assert [row.units for row in first.variations] == [20, 20]
    assert [row.units for row in second.variations] == [30, 30]
