"""Joins ports to adapters: the only module that knows which classes the running processes are made of."""

import gc
import logging
import threading
import time
from collections.abc import Callable
from datetime import timedelta

import numpy as np
from numpy.typing import NDArray
from prometheus_client import start_http_server

from apps import metrics
from apps.adapters.feast_reader import FeastReader
from apps.adapters.listed_items import NewItems
from apps.adapters.release_files import Releases
from apps.experiments.definitions import ExperimentStore
from apps.experiments.report import load_units, report
from apps.fraud import scorer
from apps.fraud.decisions import DecisionStore
from apps.fraud.recent_payments import RecentPayments
from apps.fraud.service import FraudService
from apps.ingest.service import IngestService
from apps.input_drift import DriftMonitor
from apps.ports import Clock
from apps.recommend.item_stats import ItemStats
from apps.recommend.rules.store import SurfaceRuleStore
from apps.recommend.service import ActiveRelease, RecommendService
from apps.wording import counted
from features.fraud.velocity import FEATURES
from features.recommender.candidates import CANDIDATE_FEATURES
from infra import topics
from infra.log.client import PartitionShare
from infra.log.open import open_log
from infra.log.spool import Spool, SpooledLog
from infra.observability import traces
from infra.settings import Settings

logger = logging.getLogger(__name__)

FOLLOW_SECONDS = 0.25
"""Seconds between two readings of what other processes decided and defined."""


class Services:
    """Holds everything that one process serves with, and the threads that keep it up to date."""

    def __init__(self, settings: Settings, clock: Clock = time.time) -> None:
        self.settings = settings
        self.log = open_log(settings)
        self.reader = FeastReader(settings)
        self.releases = Releases(settings.releases_dir)
        self.experiments = ExperimentStore(self.log, clock)
        self.rules = SurfaceRuleStore(self.log, clock)
        self.new_items = NewItems(settings)
        self.clock = clock
        recent_payments = RecentPayments(clock=clock)
        self.decisions = DecisionStore(
            self.log,
            decisions_kept=settings.decisions_kept,
            alerts_kept=settings.alerts_kept,
            on_decisions=recent_payments.observe_decided,
        )
        self.impressions = SpooledLog(
            self.log,
            topics.IMPRESSIONS,
            Spool(settings.spool_dir, max_bytes=settings.spool_mebibytes * 2**20 // settings.api_workers),
            clock=clock,
            on_lost=metrics.IMPRESSIONS_LOST.inc,
            on_change=_show_spool,
        )
        self.fraud = FraudService(
            lambda: self.releases.fraud,
            reader=self.reader,
            log=self.log,
            decisions=self.decisions,
            recent=recent_payments,
            clock=clock,
            watch=lambda features: self._observe_inputs("fraud", features),
        )
        self.ingest = IngestService(
            self.log,
            clock,
            recent=settings.recent_event_ids,
            max_event_bytes=settings.max_event_bytes,
            max_future_seconds=settings.max_future_seconds,
            max_age_days=settings.max_event_age_days,
        )
        self.recommend = RecommendService(
            lambda: self._serving,
            self.reader,
            self.impressions,
            self.experiments,
            clock,
            per_source=settings.candidates_per_source,
            max_future_seconds=settings.max_future_seconds,
            rng=np.random.default_rng(),
            rules=self.rules.get,
            watch=lambda features: self._observe_inputs("ranker", features),
        )
        self._serving: ActiveRelease | None = None
        self._drift: dict[str, DriftMonitor] = {}
        self._halt = threading.Event()

    def poll_release(self) -> None:
        """Serves the newest whole release; its item statistics are read before the first request needs them."""
        before = self.releases.version
        if not self.releases.poll():
            return
        if self.releases.recommender is not None:
            serving = ActiveRelease(self.releases.recommender, ItemStats(self.releases.recommender))
            self._refresh(serving)
            self._serving = serving
            # The garbage collector need not look again at what a release holds.
            gc.collect()
            gc.freeze()
        self._drift = self._drift_monitors()
        if before is not None:
            metrics.RELEASE.labels(before).set(0)
        metrics.RELEASE.labels(str(self.releases.version)).set(1)

    def _refresh(self, serving: ActiveRelease, *, pause: Callable[[float], object] = lambda seconds: None) -> None:
        now = int(self.clock() * 1000)
        serving.item_stats.refresh(self.reader, now=now, new_items=self.new_items.since, pause=pause)

    def _drift_monitors(self) -> dict[str, DriftMonitor]:
        """Returns a monitor for each model of the release: it compares inputs in service with those of training."""
        recommender, fraud = self.releases.recommender, self.releases.fraud
        card = recommender.manifest.recommend if recommender else None
        learned = {}
        if card is not None:
            learned["ranker"] = (card.references, CANDIDATE_FEATURES)
        if fraud is not None:
            learned["fraud"] = (fraud.card.references, FEATURES)
        return {
            model: DriftMonitor(
                references,
                names,
                one_in=self.settings.drift_sample_requests,
                window_seconds=self.settings.drift_window_seconds,
                clock=time.monotonic,
            )
            for model, (references, names) in learned.items()
        }

    def _observe_inputs(self, model: str, inputs: NDArray[np.float32]) -> None:
        watch = self._drift.get(model)
        if watch is not None:
            watch.observe(inputs)

    def keep_fresh(self) -> Callable[[], None]:
        """Starts the threads that load releases, refresh item statistics and follow the log; returns their stop."""
        self.poll_release()
        self.impressions.start()
        threads = [
            threading.Thread(target=self._renew, name="renew", daemon=True),
            threading.Thread(target=self._follow, name="follow", daemon=True),
        ]
        for thread in threads:
            thread.start()

        def stop() -> None:
            self._halt.set()
            self.impressions.stop()
            for thread in threads:
                thread.join(timeout=5)

        return stop

    def _renew(self) -> None:
        next_board = time.monotonic() + self.settings.population_refresh_seconds
        while not self._halt.wait(self.settings.release_poll_seconds):
            try:
                self.poll_release()
                for model, watch in self._drift.items():
                    for feature, index in watch.stability_indices().items():
                        metrics.DRIFT.labels(model, feature).set(index)
                if self._serving is not None and time.monotonic() >= next_board:
                    self._refresh(self._serving, pause=self._halt.wait)
                    next_board = time.monotonic() + self.settings.population_refresh_seconds
            except Exception:
                logger.exception("looking for a new release failed; trying again")

    def _follow(self) -> None:
        """Reads what other processes decided and defined, so that no request has to wait for the log."""
        failing = False
        while not self._halt.wait(FOLLOW_SECONDS):
            try:
                self.experiments.renew()
                self.rules.renew()
                self.decisions.refresh()
                failing = False
            except Exception as error:  # whatever the log's client raises
                if not failing:
                    logger.warning("following the event log failed; trying again: %s", error)
                failing = True


def _show_spool(records: int, size: int) -> None:
    metrics.SPOOL_RECORDS.set(records)
    metrics.SPOOL_BYTES.set(size)


def run_scorer(settings: Settings, *, stop: threading.Event) -> None:
    """Scores the transactions that arrive in the log until `stop` is set."""
    flush = traces.start(settings, "headrace-scorer")
    services = Services(settings)
    if settings.scorer_metrics_port:
        start_http_server(settings.scorer_metrics_port, addr=settings.metrics_host)
    halt = services.keep_fresh()
    try:
        scorer.run(
            services.log,
            service=services.fraud,
            decisions=services.decisions,
            stop=stop,
            share=PartitionShare(settings.scorer_share, settings.scorer_shares),
            history_after=timedelta(hours=settings.history_after_hours),
        )
    finally:
        halt()
        flush()


def print_report(settings: Settings, key: str, *, say: Callable[[str], None], as_json: bool = False) -> None:
    """Says an experiment's report in lines of text, or in one of JSON. Raises UnknownExperimentError."""
    services = Services(settings)
    definition = services.experiments.get(key)
    if definition is None:
        existing = ", ".join(experiment.key for experiment in services.experiments.all()) or "none yet"
        raise UnknownExperimentError(f"there is no experiment {key!r}; there are: {existing}")
    result = report(load_units(settings.offline_dir, key), definition, now=services.experiments.now())
    if as_json:
        say(result.model_dump_json())
        return
    say(f"experiment {key}: {result.verdict}")
    for variation in result.variations:
        say(
            f"  {variation.key}: {counted(variation.units, 'unit')}, {counted(variation.exposures, 'exposure')}, "
            f"{counted(variation.conversions, 'conversion')}"
        )
    say(f"  sample ratio: {result.sample_ratio.verdict}")
    for note in result.notes:
        say(f"  note: {note}")


class UnknownExperimentError(Exception):
    """No experiment has this key; the message lists those that exist."""
