"""Dashboards and alert rules use metrics and labels that the processes export, in well-formed expressions."""

import json
import os
import re
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest
import yaml
from prometheus_client import REGISTRY, Counter, Gauge, Histogram

from apps import metrics as serving_metrics
from infra.local.ports import free_port
from streaming import metrics as stream_metrics
from tests.apps.servers import ASK, ROOT, Server, serving, wait_until

INFRA = ROOT / "infra"
RULES = yaml.safe_load((INFRA / "prometheus" / "alerts.yml").read_text())["groups"][0]["rules"]
BOARDS = {path.name: json.loads(path.read_text()) for path in sorted((INFRA / "grafana" / "dashboards").glob("*.json"))}
EXPRESSIONS = [(rule["alert"], rule["expr"]) for rule in RULES] + [
    (f"{name}: {panel['title']}", target["expr"])
    for name, board in BOARDS.items()
    for panel in board["panels"]
    for target in panel["targets"]
]
TOKEN = re.compile(
    r"""\s*(?:(?P<number>\d+(?:\.\d+)?)|(?P<range>\[\d+[smhd]\])|(?P<selector>\{[^}]*\})
    |(?P<operator>==|!=|>=|<=|[-+*/><])|(?P<bracket>[(),])|(?P<word>[A-Za-z_:][A-Za-z0-9_:]*))""",
    re.VERBOSE,
)
CALLS = {"sum", "rate", "increase", "histogram_quantile", "vector", "time"}
WORDS = CALLS | {"by", "on", "and", "or", "le"}
MATCHER = re.compile(r'(\w+)\s*(?:=~|!~|!=|=)\s*"[^"]*"')
SUFFIXES = ("_bucket", "_count", "_sum")


def tokens(expression: str) -> list[tuple[str, str]]:
    parts, position = [], 0
    while expression[position:].strip():
        match = TOKEN.match(expression, position)
        assert match, f"cannot read {expression[position:]!r}"
        assert match.lastgroup
        parts.append((match.lastgroup, match[match.lastgroup]))
        position = match.end()
    return parts


def named(expression: str) -> Iterator[tuple[str, set[str]]]:
    """Yields (metric, labels that its selector names) for each metric of an expression."""
    parts = tokens(re.sub(r"\b(by|on)\s*\([^)]*\)", "", expression))
    for index, (kind, text) in enumerate(parts):
        if kind == "word" and text not in WORDS:
            following = parts[index + 1] if index + 1 < len(parts) else ("", "")
            yield text, set(MATCHER.findall(following[1])) if following[0] == "selector" else set()


def base(metric: str) -> str:
    return next((metric.removesuffix(suffix) for suffix in SUFFIXES if metric.endswith(suffix)), metric)


@pytest.mark.parametrize(("where", "expression"), EXPRESSIONS, ids=[where for where, _ in EXPRESSIONS])
def test_an_expression_is_well_formed(where: str, expression: str) -> None:
    parts = tokens(expression)
    depth, before = 0, "operator"
    for index, (kind, text) in enumerate(parts):
        if kind == "bracket" and text in "()":
            depth += 1 if text == "(" else -1
            assert depth >= 0
        if kind == "word" and index + 1 < len(parts) and parts[index + 1][1] == "(":
            assert text in WORDS, f"there is no function {text}"
        if kind in ("range", "selector"):
            assert before in ("word", "selector")
        if kind == "number":
            assert before in ("operator", "bracket")
        before = kind
    assert depth == 0
    assert parts[-1][0] != "operator"
    assert list(named(expression))
    selectors = [text for kind, text in parts if kind == "selector"]
    assert all(re.fullmatch(rf"\{{{MATCHER.pattern}(,\s*{MATCHER.pattern})*\}}", text) for text in selectors)


def test_every_rule_has_a_severity_and_a_runbook() -> None:
    page = (ROOT / "docs" / "operations.md").read_text()
    for rule in RULES:
        assert rule["labels"]["severity"] in ("page", "warn")
        assert rule["annotations"]["summary"]
        assert len(rule["annotations"]["runbook"]) > 40
        assert re.fullmatch(r"\d+[smh]", str(rule["for"]))
        assert rule["alert"] in page, "docs/operations.md lists the alerts"


def test_every_metric_is_documented_and_every_label_that_is_named_exists() -> None:
    page = (ROOT / "docs" / "operations.md").read_text()
    labels: dict[str, set[str]] = {"up": {"job"}}
    for module in (serving_metrics, stream_metrics):
        for metric in vars(module).values():
            if isinstance(metric, Counter | Gauge | Histogram):
                (family,) = metric.describe()
                name = f"{family.name}_total" if family.type == "counter" else family.name
                labels[name] = set(metric._labelnames)
                assert f"`{name}`" in page, f"docs/operations.md lists {name}"
    for where, expression in EXPRESSIONS:
        for metric, used in named(expression):
            assert used <= labels[base(metric)] | {"job"}, f"{where}: {metric} has no label {used}"


def scraped(url: str) -> set[str]:
    with urllib.request.urlopen(url, timeout=10) as answer:  # noqa: S310
        return set(re.findall(r"^# TYPE (\S+)", answer.read().decode(), re.M))


def use(server: Server) -> None:
    event = {"type": "view", "event_id": "v", "event_time": "2026-11-22T10:00:00Z", "item_id": "i"}
    payment = {"transaction_id": "t", "card_id": "c", "terminal_id": "x", "amount": 1.0}
    for path, body in (("/v1/recommend", ASK), ("/v1/events", event), ("/v1/transactions/score", payment)):
        assert server.call("POST", path, body)[0] == 200


@pytest.mark.slow
def test_the_real_processes_show_every_metric_that_dashboards_and_rules_name(tmp_path: Path) -> None:
    port = free_port()
    with serving(tmp_path) as server:
        use(server)
        environment = {
            **os.environ, "HEADRACE_DATA_DIR": str(tmp_path), "HEADRACE_SCORER_METRICS_PORT": str(port),
            "PYTHONPATH": str(ROOT),
        }  # fmt: skip
        with subprocess.Popen([sys.executable, "-m", "infra.cli", "score"], env=environment, cwd=ROOT) as scorer:
            try:
                wait_until(lambda: reached(f"http://127.0.0.1:{port}/metrics"), seconds=60)
                shown = scraped(f"http://127.0.0.1:{port}/metrics") | scraped(f"http://127.0.0.1:{server.port}/metrics")
            finally:
                scorer.terminate()
    batch = pa.table({"topic": ["t", "t"], "reason": pa.array([None, "bad"], pa.string()), "timestamp": [5_000, 6_000]})
    stream_port = free_port()
    with stream_metrics.served(stream_port, host="127.0.0.1"):
        stream_metrics.record_batch(batch, seconds=0.5, now=15.0)
        shown |= scraped(f"http://127.0.0.1:{stream_port}/metrics")
    assert REGISTRY.get_sample_value("headrace_stream_lag_seconds") == 10.0
    assert REGISTRY.get_sample_value("headrace_stream_dead_letters_total", {"reason": "bad"}) == 1.0
    named_metrics = {base(metric) for _, expression in EXPRESSIONS for metric, _ in named(expression)} - {"up"}
    assert len(named_metrics) > 20
    assert named_metrics - shown == set()


def reached(url: str) -> bool:
    try:
        return bool(scraped(url))
    except OSError:
        return False
