"""Gathers what the console's pages show from the running services: the only module that knows both.

A page changes nothing: it logs no impression, counts no exposure and loads no history that a request would not load.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

from pydantic import ValidationError

from apps.console import views
from apps.console.health import ComponentHealth
from apps.console.log_size import LogSizeReader
from apps.console.pages import percent
from apps.experiments.plot import NARROW, final_lift, lift_over_time
from apps.experiments.report import UNITS_FILE, load_units, report
from apps.experiments.schemas import Comparison, ExperimentDefinition, MetricReport, Report
from apps.fraud.decisions import Alert
from apps.http.errors import Problem
from apps.ports import Clock
from apps.recommend.schemas import RecommendRequest, RecommendResponse
from apps.wiring import Services
from features.contract import columns
from features.contract.release import MANIFEST, FraudModelCard, GateResult, Manifest, RecommendModelCard
from features.contract.timestamps import from_milliseconds
from infra import topics

RECENT_ALERTS = 5
HISTORY_SHOWN = 40
EVENT_TYPE_NAMES = {code: name for name, code in columns.EVENT_TYPE_CODES.items()}
RATIO_STATES: Mapping[str, views.State] = {"ok": "ok", "unusual": "warn", "alarm": "down", "unknown": "idle"}


class LiveConsoleData:
    """Implements apps.console.views.ConsoleData over the services of a process."""

    def __init__(
        self, services: Services, *, feature_age_seconds: Callable[[], float | None], clock: Clock = time.time
    ) -> None:
        """feature_age_seconds: seconds since the feature job's last batch; None before the first."""
        self._services = services
        self._log_size = LogSizeReader(services.log)
        self._health = ComponentHealth(services, self._log_size, feature_age_seconds=feature_age_seconds, clock=clock)
        self._clock = clock
        self._reports: dict[str, tuple[object, Report]] = {}

    def overview(self) -> views.Overview:
        services = self._services
        manifest = self._manifest()
        readings = {topic: self._log_size.read(topic) for topic in topics.ALL}
        alerts = services.decisions.alerts(limit=services.settings.alerts_kept)
        return views.Overview(
            now=self._now(),
            components=tuple(self._health.read(readings)),
            release=_release(manifest) if manifest else None,
            topics=tuple(readings.values()),
            alerts_known=len(alerts),
            alerts=tuple(_alert(alert) for alert in alerts[:RECENT_ALERTS]),
            thresholds=_thresholds(manifest),
            experiments=tuple(
                _summary(self._report(experiment))
                for experiment in services.experiments.all()
                if experiment.status == "running"
            ),
        )

    def example_users(self, count: int) -> tuple[str, ...]:
        return self._log_size.recent_keys(topics.SHOP, count)

    def user_view(self, user_id: str, *, surface: str, n: int) -> views.UserView:
        try:
            request = RecommendRequest(user_id=user_id, surface=surface, n=n)
            answer = self._services.recommend.preview(request)
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(str(part) for part in first["loc"])
            return views.UserView(now=self._now(), user_id=user_id, problem=f"{field}: {first['msg']}")
        except Problem as error:
            return views.UserView(now=self._now(), user_id=user_id, problem=f"{error.title}: {error.detail}")
        try:
            (row,) = self._services.reader.user_histories([user_id])
        except Exception:  # the answer says that it is degraded
            row = {}
        return self._user_view(user_id, answer, row)

    def alerts(self, filters: views.AlertFilter, *, limit: int) -> views.AlertList:
        position = self._services.decisions.end()
        alerts = self._services.decisions.alerts(
            outcome=filters.outcome, card_id=filters.card_id, min_score=filters.min_score, limit=limit
        )
        return views.AlertList(
            alerts=tuple(_alert(alert) for alert in alerts),
            position=str(position),
            thresholds=_thresholds(self._manifest()),
        )

    def experiments(self) -> tuple[views.ExperimentSummary, ...]:
        definitions = sorted(self._services.experiments.all(), key=lambda definition: definition.status != "running")
        return tuple(_summary(self._report(definition)) for definition in definitions)

    def experiment(self, key: str) -> views.ExperimentView | None:
        definition = self._services.experiments.get(key)
        return _experiment(self._report(definition)) if definition else None

    def _now(self) -> datetime:
        return datetime.fromtimestamp(self._clock(), tz=UTC)

    def _report(self, definition: ExperimentDefinition) -> Report:
        """Returns the report, computed again only after its definition or the table of units changed."""
        folder = self._services.settings.offline_dir
        try:
            state = (folder / UNITS_FILE).stat()
            version: object = (definition, state.st_mtime_ns, state.st_ino)
        except FileNotFoundError:
            version = definition
        cached = self._reports.get(definition.key)
        if cached is None or cached[0] != version:
            computed = report(load_units(folder, definition.key), definition, now=self._services.experiments.now())
            cached = self._reports[definition.key] = (version, computed)
        return cached[1]

    def _manifest(self) -> Manifest | None:
        """Returns the manifest of the served release."""
        releases = self._services.releases
        if releases.version is None:
            return None
        try:
            path = self._services.settings.releases_dir / releases.version / MANIFEST
            return Manifest.model_validate_json(path.read_bytes())
        except (OSError, ValueError):  # the folder was removed; the loaded release is still served
            return releases.recommender.manifest if releases.recommender else None

    def _user_view(self, user_id: str, answer: RecommendResponse, row: Mapping[str, Any]) -> views.UserView:
        recommender = self._services.releases.recommender
        catalogue = recommender.catalogue if recommender else None

        def title(item: str) -> str:
            row = catalogue.index.get(item) if catalogue else None
            return catalogue.titles[row] if catalogue and row is not None else ""

        names = (columns.TIMES, columns.EVENT_TYPES, columns.ITEMS, columns.QUANTITIES, columns.PRICES)
        entries = list(zip(*(row.get(name) or () for name in names), strict=False))
        owned = {item for _, _, item, _, _ in entries}
        return views.UserView(
            now=self._now(),
            user_id=user_id,
            history=tuple(
                views.HistoryEntry(
                    from_milliseconds(at), EVENT_TYPE_NAMES.get(event_type, "?"), item, title(item), quantity, price
                )
                for at, event_type, item, quantity, price in entries[: -HISTORY_SHOWN - 1 : -1]
            ),
            history_length=len(entries),
            items=tuple(
                views.ItemView(
                    item_id=item.item_id,
                    title=item.title,
                    price=item.price,
                    score=item.score,
                    source=item.source,
                    reasons=tuple(views.ReasonView(reason.code, reason.text) for reason in item.reasons),
                    owned=item.item_id in owned,
                )
                for item in answer.items
            ),
            model=answer.model,
            release=answer.release,
            experiment=(
                (answer.experiment.key, answer.experiment.variation, answer.experiment.bucket)
                if answer.experiment
                else None
            ),
            degraded=answer.degraded,
            took_ms=answer.took_ms,
        )


def _release(manifest: Manifest) -> views.ReleaseView:
    gates = []
    if manifest.recommend:
        gates.append(_recommend_gate(manifest.recommend))
    if manifest.fraud:
        gates.append(_fraud_gate(manifest.fraud))
    return views.ReleaseView(
        version=manifest.version,
        created=manifest.created_time,
        data_start=manifest.data_start,
        data_end=manifest.data_end,
        gates=tuple(gates),
        packages=manifest.packages,
    )


def _recommend_gate(card: RecommendModelCard) -> views.Gate:
    facts = (
        ("Index", card.index_kind),
        ("Index recall against exact search", percent(card.index_recall)),
        ("Items in the release", f"{card.catalogue_items:,}"),
        ("Features per candidate", str(len(card.candidate_features))),
        ("Feature service", card.feature_service),
    )
    return _gate("Recommendations", card.gate, facts)


def _fraud_gate(card: FraudModelCard) -> views.Gate:
    facts = (
        ("Review from score", f"{card.review_threshold:.3g}"),
        ("Decline from score", f"{card.decline_threshold:.3g}"),
        ("Alert budget", f"{card.alert_budget_per_day:g} per day"),
        ("Features", str(len(card.features))),
        ("Feature service", card.feature_service),
    )
    return _gate("Fraud", card.gate, facts)


def _gate(title: str, gate: GateResult, facts: tuple[tuple[str, str], ...]) -> views.Gate:
    bars = sorted(gate.scores.items(), key=lambda bar: -bar[1])
    return views.Gate(
        title=title,
        metric=gate.metric,
        bars=tuple(
            views.Bar(name, value, "model" if name == gate.model else "baseline", name == gate.served)
            for name, value in bars
        ),
        served=gate.served,
        model=gate.model,
        measured=gate.metrics,
        facts=facts,
    )


def _thresholds(manifest: Manifest | None) -> tuple[float, float] | None:
    card = manifest.fraud if manifest else None
    return (card.review_threshold, card.decline_threshold) if card else None


def _alert(alert: Alert) -> views.AlertView:
    decision = alert.decision
    return views.AlertView(
        transaction_id=decision.event_id,
        event_time=decision.event_time,
        decided_time=decision.decided_time,
        card_id=decision.card_id,
        terminal_id=decision.terminal_id,
        amount=decision.amount,
        score=decision.score,
        outcome=decision.outcome,
        reasons=tuple(views.ReasonView(reason.code, reason.text, reason.weight) for reason in decision.reasons),
        model=decision.model,
        degraded=decision.degraded,
    )


def _summary(report: Report) -> views.ExperimentSummary:
    definition = report.experiment
    return views.ExperimentSummary(
        key=definition.key,
        surface=definition.surface,
        unit=definition.unit,
        metric=definition.metric.value,
        status=definition.status,
        coverage=definition.coverage,
        description=definition.description,
        variations=tuple((variation.key, variation.weight) for variation in definition.variations),
        verdict=report.verdict,
    )


def _experiment(report: Report) -> views.ExperimentView:
    fields = views.VariationRow.__dataclass_fields__
    return views.ExperimentView(
        summary=_summary(report),
        generated=report.generated_at,
        days=(report.series[0].day, report.series[-1].day) if report.series else None,
        ratio_state=RATIO_STATES[report.sample_ratio.verdict],
        ratio_message=report.sample_ratio.message,
        variations=tuple(
            views.VariationRow(**{name: getattr(variation, name) for name in fields}) for variation in report.variations
        ),
        metrics=tuple(row for metric in report.metrics for row in _metric_rows(metric)),
        plots=tuple((plot(report), plot(report, NARROW)) for plot in (lift_over_time, final_lift)),
        notes=report.notes,
    )


def _metric_rows(metric: MetricReport) -> Iterator[views.MetricRow]:
    for compared in metric.results:
        head = (metric.metric.value, metric.title, metric.decides, compared.variation)
        result = compared.result
        if not isinstance(result, Comparison):
            yield views.MetricRow(*head, no_answer=result.message)
            continue
        interval = result.lift_interval
        yield views.MetricRow(
            *head,
            control_mean=result.control_mean,
            mean=result.mean,
            lift=result.lift,
            low=interval.low if interval else None,
            high=interval.high if interval else None,
            p_value=result.p_value,
        )
