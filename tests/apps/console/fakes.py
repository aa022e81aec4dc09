"""Data for the console's tests: views of every kind, and services with a real log and nothing trained."""

from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pyarrow as pa
import pyarrow.parquet as pq

from apps.console import views
from apps.console.data import LiveConsoleData
from apps.experiments.definitions import ExperimentStore
from apps.experiments.report import UNITS_FILE, UNITS_SCHEMA
from apps.experiments.schemas import ExperimentDefinition
from apps.fraud.decisions import DecisionStore
from apps.http.errors import Problem
from apps.recommend.schemas import InExperiment, ItemReason, RecommendedItem, RecommendRequest, RecommendResponse
from apps.wiring import Services
from features.contract import columns
from features.contract.events import Decision, Reason, key_of, to_json
from features.contract.release import MANIFEST, FraudModelCard, GateResult, Manifest, RecommendModelCard
from features.contract.timestamps import DAY
from infra import topics
from infra.log.files import FileLog
from infra.settings import Settings

NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)
EVIL = "<script>alert('x')</script>"


class SettableClock:
    """A clock that a test sets, in seconds since the epoch."""

    def __init__(self) -> None:
        self.now = NOON.timestamp()

    def __call__(self) -> float:
        return self.now


class EmptyData:
    """A system that was started a moment ago."""

    def overview(self) -> views.Overview:
        return views.Overview(NOON, (), None, (), 0, (), None, ())

    def example_users(self, count: int) -> tuple[str, ...]:
        return ()

    def user_view(self, user_id: str, *, surface: str, n: int) -> views.UserView:
        return views.UserView(NOON, user_id, problem="No release yet")

    def alerts(self, filters: views.AlertFilter, *, limit: int) -> views.AlertList:
        return views.AlertList((), "0", None)

    def experiments(self) -> tuple[views.ExperimentSummary, ...]:
        return ()

    def experiment(self, key: str) -> views.ExperimentView | None:
        return None


class EvilData(EmptyData):
    """Every text that comes from outside tries to be markup."""

    ALERT = views.AlertView(
        EVIL, NOON, NOON, EVIL, EVIL, 1.0, 0.9, "review", (views.ReasonView(EVIL, EVIL, 1.0),), EVIL, True
    )
    SUMMARY = views.ExperimentSummary(
        EVIL, EVIL, "user", "value", "running", 0.5, EVIL, ((EVIL, 0.5), (EVIL, 0.5)), EVIL
    )

    def __init__(self) -> None:
        self.asked: list[Any] = []

    def overview(self) -> views.Overview:
        gate = views.Gate(
            EVIL, EVIL, (views.Bar(EVIL, 0.0, "model", True),), EVIL, EVIL, {EVIL: {EVIL: 0.1}}, ((EVIL, EVIL),)
        )
        return views.Overview(
            now=NOON,
            components=(views.Component("Log", "ok", EVIL, EVIL), views.Component("Job", "down", EVIL, EVIL)),
            release=views.ReleaseView(EVIL, NOON, NOON, NOON, (gate,), {}),
            topics=(views.TopicReading("shop_events", 12_345, False, 99, NOON),),
            alerts_known=1,
            alerts=(self.ALERT,),
            thresholds=(0.3, 0.9),
            experiments=(self.SUMMARY,),
        )

    def example_users(self, count: int) -> tuple[str, ...]:
        return (EVIL, "17850")

    def user_view(self, user_id: str, *, surface: str, n: int) -> views.UserView:
        self.asked.append((user_id, surface, n))
        return views.UserView(
            now=NOON,
            user_id=user_id,
            history=(views.HistoryEntry(NOON, "view", EVIL, EVIL, 1.0, 0.0),),
            history_length=1,
            items=(views.ItemView(EVIL, EVIL, 1.5, 0.25, EVIL, (views.ReasonView(EVIL, EVIL),), True),),
            model=EVIL,
            experiment=(EVIL, EVIL, 7),
            degraded=True,
        )

    def alerts(self, filters: views.AlertFilter, *, limit: int) -> views.AlertList:
        self.asked.append(filters)
        return views.AlertList((self.ALERT,), "7", (0.3, 0.9))

    def experiments(self) -> tuple[views.ExperimentSummary, ...]:
        return (self.SUMMARY,)

    def experiment(self, key: str) -> views.ExperimentView | None:
        variation = views.VariationRow(EVIL, 0.5, 0, 0, 0, 0, None, 0.0, None, 0, 0, 0.0)
        metric = views.MetricRow("value", EVIL, True, EVIL, no_answer=EVIL)
        return views.ExperimentView(
            self.SUMMARY, NOON, None, "warn", EVIL, (variation,), (metric,), (("<svg></svg>", "<svg></svg>"),), (EVIL,)
        )


class FakeRecommend:
    """Answers without a release, and keeps the requests."""

    def __init__(self) -> None:
        self.previews: list[RecommendRequest] = []

    def preview(self, request: RecommendRequest) -> RecommendResponse:
        self.previews.append(request)
        if request.user_id == "nobody":
            raise Problem(503, "No release yet", "run `headrace train` first")
        reason = ItemReason(code="BOUGHT_TOGETHER", text="Often bought together with a kettle", item_id="kettle")
        item = RecommendedItem(
            item_id="teapot",
            score=0.5,
            source="co_purchase",
            reasons=[reason],
            propensity=1.0,
            title="Red teapot",
            price=4.25,
        )
        return RecommendResponse(
            request_id="r",
            items=[item],
            model="ranker",
            release="v1",
            experiment=InExperiment(key="ranker", variation="model", bucket=42),
            degraded=False,
            took_ms=1.0,
        )


class FakeReader:
    def __init__(self) -> None:
        self.broken = False

    def user_histories(self, ids: Sequence[str]) -> list[dict[str, Any]]:
        if self.broken:
            raise OSError("the store is away")
        day = int(NOON.timestamp() * 1000)
        row = {
            columns.TIMES: [day - DAY, day],
            columns.EVENT_TYPES: [columns.EVENT_TYPE_CODES["purchase"], columns.EVENT_TYPE_CODES["view"]],
            columns.ITEMS: ["teapot", "kettle"],
            columns.QUANTITIES: [2.0, 1.0],
            columns.PRICES: [4.25, 9.0],
        }
        return [row for _ in ids]


def decision(number: int, *, outcome: str = "review", score: float = 0.6, card: str = "card_1") -> Decision:
    return Decision.model_validate(
        {
            "type": "decision",
            "event_id": f"tx_{number}",
            "event_time": NOON + timedelta(seconds=number),
            "decided_time": NOON + timedelta(seconds=number, milliseconds=5),
            "card_id": card,
            "terminal_id": "term_1",
            "amount": 412.5,
            "score": score,
            "outcome": outcome,
            "reasons": [Reason(code="CARD_BURST", weight=1.72, text="payments in 24 hours: 7, usually 1")],
            "model": "v1",
        }
    )


def decide(log: FileLog, *decisions: Decision) -> None:
    log.append(topics.DECISIONS, [(key_of(decision), to_json(decision)) for decision in decisions])


def services(folder: Path) -> Any:
    """Returns what LiveConsoleData reads of apps.wiring.Services, over a log in `folder`."""
    settings = Settings(data_dir=folder)
    clock = SettableClock()
    log = FileLog(settings.log_dir, clock=clock)
    return SimpleNamespace(
        settings=settings,
        clock=clock,
        log=log,
        reader=FakeReader(),
        recommend=FakeRecommend(),
        releases=SimpleNamespace(version=None, recommender=None, fraud=None),
        experiments=ExperimentStore(log, clock),
        decisions=DecisionStore(log, decisions_kept=1_000, alerts_kept=100),
    )


def console_data(parts: Any, *, feature_age_seconds: float | None = None) -> LiveConsoleData:
    return LiveConsoleData(cast(Services, parts), feature_age_seconds=lambda: feature_age_seconds, clock=parts.clock)


def _gate(served: str) -> GateResult:
    return GateResult(
        metric="m",
        scores={"popularity": 0.2, "model": 0.3, "other": 0.1},
        model="model",
        best_baseline="popularity",
        served=served,
        metrics={"model": {"m": 0.3}},
    )


def publish(parts: Any) -> None:
    """Puts a release with both models on the disk: the ranking model won its gate, the fraud model lost."""
    fraud = FraudModelCard(
        feature_service="fraud_v1",
        gate=_gate("popularity"),
        features=("a",),
        reference_values=(0.0,),
        review_threshold=0.3,
        decline_threshold=0.9,
        alert_budget_per_day=10,
    )
    recommend = RecommendModelCard(
        feature_service="users_v1",
        gate=_gate("model"),
        index_kind="Flat",
        index_recall=0.987,
        candidate_features=("a",),
        catalogue_items=3,
    )
    manifest = Manifest(
        version="v1",
        created_time=NOON,
        data_start=NOON - timedelta(days=9),
        data_end=NOON,
        packages={},
        seed=1,
        recommend=recommend,
        fraud=fraud,
        files={},
    )
    folder = parts.settings.releases_dir / "v1"
    folder.mkdir(parents=True)
    (folder / MANIFEST).write_text(manifest.model_dump_json())
    parts.releases.version = "v1"


def run_experiment(parts: Any, key: str = "ranker", *, units: int = 40) -> None:
    """Defines an experiment and writes the table of units that the feature job would have written."""
    parts.experiments.put(
        ExperimentDefinition.model_validate(
            {
                "key": key,
                "surface": "home",
                "variations": [{"key": "baseline", "weight": 0.5}, {"key": "model", "weight": 0.5}],
            }
        )
    )
    rows = [
        {
            "experiment": key,
            "variation": ("baseline", "model")[unit % 2],
            "unit": f"u{unit}",
            "day": date(2026, 11, 1) + timedelta(days=unit % 5),
            "exposures": 1,
            "shown": 10,
            "conversions": int(unit % (4 if unit % 2 else 7) == 1),
            "value": 2.5 * (unit % 3),
            "returns": 0,
            "returned_value": 0.0,
            "purchases_after": unit % 4,
            "spend_after": 3.0 * (unit % 4),
        }
        for unit in range(units)
    ]
    parts.settings.offline_dir.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, schema=UNITS_SCHEMA), parts.settings.offline_dir / UNITS_FILE)
